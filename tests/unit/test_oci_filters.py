"""Seccomp filters that the host compiles: what of the profile is left, and what the agent makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from agent import seccomp
from agent.api import jsonmap, oci_pb2
from agent.container import plan
from shim.errors import InvalidSpec
from shim.oci import filters
from shim.runspec.seccomp import load, resolve

PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}],
}


def spec(profile: dict[str, Any] | None) -> oci_pb2.Spec:
    """A guest's spec with that profile."""
    message = oci_pb2.Spec()
    jsonmap.fill(message, {"linux": {} if profile is None else {"seccomp": profile}})
    return message


@pytest.mark.parametrize("kept", [False, True])
def test_the_agent_installs_what_the_host_compiled(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same program and flags as its own, without compiling; with Kata's agent the profile is there, too."""
    message = spec(PROFILE)
    wanted = seccomp.compile(message.Linux.Seccomp), seccomp.flags(message.Linux.Seccomp)
    filters.compile_in(message, keep_profile=kept)
    monkeypatch.setattr(seccomp, "compile", lambda _: pytest.fail("compiled in the guest"))
    assert plan.seccomp_filter(message.Linux) == wanted
    assert bool(message.Linux.Seccomp.Syscalls) is kept
    assert message.Linux.Seccomp.DefaultAction == ("SCMP_ACT_ERRNO" if kept else "")


def test_the_default_profile_is_much_smaller_compiled() -> None:
    """Its 300 names need not be taken apart in the guest."""
    profile = load("")
    assert profile is not None
    message = spec(resolve(profile, ["CAP_CHOWN"], "x86_64", (6, 1)))
    before = len(message.SerializeToString())
    filters.compile_in(message, keep_profile=False)
    assert 0 < len(message.Linux.Seccomp.Program) <= 8 * 4096
    assert len(message.SerializeToString()) < before


def test_without_a_profile_there_is_no_filter() -> None:
    """And none is made up."""
    message = spec(None)
    filters.compile_in(message, keep_profile=False)
    assert not message.Linux.HasField("Seccomp")
    assert plan.seccomp_filter(message.Linux) == (b"", 0)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"listenerPath": "/x"}, "linux.seccomp.listenerPath"), ({"flags": ["NO_SUCH"]}, "linux.seccomp.flags")],
)
def test_what_cannot_be_enforced_is_refused_with_its_field(change: dict[str, Any], field: str) -> None:
    """In the words of the agent, before anything is asked of it."""
    with pytest.raises(InvalidSpec) as caught:
        filters.compile_in(spec(PROFILE | change), keep_profile=False)
    assert caught.value.field == field
