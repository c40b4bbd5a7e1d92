"""Settings by annotation: only what the administrator enables, and never what names a program."""

from __future__ import annotations

import pytest

from shim.config import Config, RuntimeConfig
from shim.errors import ConfigError
from shim.sandbox import overrides


def allowing(*names: str) -> Config:
    """A configuration that enables these keys."""
    return Config(runtime=RuntimeConfig(enable_annotations=names))


def test_without_such_annotations_nothing_changes() -> None:
    """Other annotations are none of ours."""
    config = allowing()
    assert overrides.apply(config, {"io.kubernetes.cri.sandbox-id": "x"}) is config


def test_an_enabled_key_is_changed() -> None:
    """Numbers, switches and choices."""
    config = allowing("hypervisor.default_memory", "hypervisor.seccomp_sandbox", "share.cache")
    changed = overrides.apply(
        config,
        {
            "io.hako.config.hypervisor.default_memory": "512",
            "io.hako.config.hypervisor.seccomp_sandbox": "false",
            "io.hako.config.share.cache": "never",
        },
    )
    assert changed.hypervisor.default_memory == 512
    assert changed.hypervisor.seccomp_sandbox is False
    assert changed.share.cache == "never"
    assert config.hypervisor.default_memory == 256


def test_what_is_not_enabled_is_refused() -> None:
    """With what would be."""
    with pytest.raises(ConfigError, match=r"not enabled.*default_vcpus"):
        overrides.apply(allowing("hypervisor.default_vcpus"), {"io.hako.config.hypervisor.default_memory": "1"})


@pytest.mark.parametrize(
    "name",
    [
        "hypervisor.path",
        "guest.kernel",
        "guest.kernel_params",
        "share.daemon",
        "share.extra_args",
        "runtime.user",
        "runtime.enable_annotations",
        "hypervisor.nope",
        "nope.nope",
        "hypervisor",
    ],
)
def test_paths_and_arguments_can_never_be_enabled(name: str) -> None:
    """Even if the administrator lists them: a pod must not name what runs on the host."""
    assert not overrides.can_be_enabled(name)
    with pytest.raises(ConfigError, match="never"):
        overrides.apply(allowing(name), {f"io.hako.config.{name}": "/bin/evil"})


def test_a_bad_value_is_refused_like_in_the_file() -> None:
    """The key and what is allowed are in the error."""
    with pytest.raises(ConfigError, match=r"hypervisor\.machine_type.*'q35', 'microvm'"):
        overrides.apply(allowing("hypervisor.machine_type"), {"io.hako.config.hypervisor.machine_type": "pc; rm -rf"})
