"""The seccomp filter of a container, compiled here: 2 ms, where an emulated guest takes 20 to 40 for the same.

Owns: what of a profile goes to the guest. Must not know: what a profile means (agent.seccomp, which is pure). Called by
sandbox/container.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.errors import InvalidSpec

if TYPE_CHECKING:
    from agent.api import oci_pb2


def compile_in(spec: oci_pb2.Spec, *, keep_profile: bool) -> None:
    """Put the program of the guest's spec's profile beside it, or in its place unless `keep_profile`. Raises InvalidSpec.

    An agent that is not ours skips the program, and needs the profile.
    """
    if not spec.Linux.HasField("Seccomp"):
        return
    from agent import seccomp
    from agent.errors import InvalidSpec as Refused

    profile = spec.Linux.Seccomp
    try:
        program, flags = seccomp.compile(profile), seccomp.flags(profile)
    except Refused as exc:
        raise InvalidSpec(exc.field, exc.reason) from exc
    if not keep_profile:
        profile.Clear()
    profile.Program, profile.ProgramFlags = program, flags
