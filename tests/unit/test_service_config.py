"""What the agent is told by arguments and by the kernel's command line."""

from __future__ import annotations

import pytest

from agent import config


def test_arguments_choose_the_plain_process() -> None:
    """--unix, --no-cgroups and --log are understood in both spellings."""
    chosen = config.from_arguments(["--unix", "/s", "--no-cgroups", "--log=debug"])
    assert (chosen.unix_path, chosen.cgroups, chosen.log) == ("/s", False, "debug")
    assert config.from_arguments([]).unix_path == ""


@pytest.mark.parametrize("arguments", [["--nix"], ["--unix"], ["--no-cgroups=1"], ["x"]])
def test_unknown_argument_is_refused_with_the_usage(arguments: list[str]) -> None:
    """A typing mistake does not start an agent that does something else."""
    with pytest.raises(config.ConfigError, match="usage:"):
        config.from_arguments(arguments)


def test_kernel_parameters_are_katas() -> None:
    """agent.* parameters change what they name, and nonsense changes nothing."""
    chosen = config.Config()
    config.apply_kernel_parameters(
        chosen,
        {
            "agent.log": "debug",
            "agent.hotplug_timeout": "500ms",
            "agent.passfd_listener_port": "2000",
            "agent.server_addr": "vsock://-1:1030",
            "agent.rehearse": "1",
            "agent.share": "tag",
        },
    )
    assert (chosen.share, chosen.rehearse) == ("tag", True)
    assert (chosen.log, chosen.hotplug_seconds, chosen.stdio_port, chosen.port) == ("debug", 0.5, 2000, 1030)
    config.apply_kernel_parameters(
        chosen, {"agent.hotplug_timeout": "soon", "agent.server_addr": "vsock://-1:x", "quiet": ""}
    )
    assert (chosen.hotplug_seconds, chosen.port) == (0.5, 1030)
