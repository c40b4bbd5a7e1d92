"""What the agent is told when it starts: the kernel's command line in a guest, arguments as a plain process.

Owns the names of both. Knows nothing of what they change. Called by agent.start.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AGENT_PORT = 1024
STDIO_PORT = 1027

USAGE = "usage: python -m agent [--unix PATH [--no-cgroups]] [--log error|info|debug]"


class ConfigError(ValueError):
    """An argument that the agent does not have."""


class Config:
    """All that can be set; the defaults are those of a guest."""

    __slots__ = ("cgroups", "hotplug_seconds", "log", "port", "rehearse", "share", "stdio_port", "template", "unix_path")

    def __init__(self) -> None:
        self.unix_path = ""
        """listen on this unix socket (and PATH.stdio) instead of vsock: a plain process, for tests"""
        self.port = AGENT_PORT
        self.stdio_port = STDIO_PORT
        self.cgroups = True
        self.hotplug_seconds = 3.0
        """how long a device that was plugged may take to appear"""
        self.log = "error"
        self.rehearse = False
        """in its clones a child makes a throw-away container beside the agent (agent.rehearsal)"""
        self.share = ""
        """tag of the share that a template is saved with, mounted (agent.sandbox_storages.share)"""
        self.template = False
        """this VM is saved when it is warm, and others begin there"""


def from_arguments(arguments: Sequence[str]) -> Config:
    """Raises ConfigError with the usage."""
    config = Config()
    left = list(arguments)
    while left:
        option, separator, value = left.pop(0).partition("=")
        if option == "--no-cgroups" and not separator:
            config.cgroups = False
        elif option in ("--unix", "--log") and (separator or left):
            setattr(config, "unix_path" if option == "--unix" else "log", value if separator else left.pop(0))
        else:
            raise ConfigError(f"unknown or incomplete argument {option!r}\n{USAGE}")
    return config


def apply_kernel_parameters(config: Config, parameters: Mapping[str, str]) -> None:
    """Kata's agent.* parameters, as far as they mean something here; values that make no sense are ignored,

    because an agent that does not start tells nobody why.
    """
    config.log = parameters.get("agent.log", config.log)
    config.template = parameters.get("agent.template", "") == "1"
    config.rehearse = parameters.get("agent.rehearse", "") == "1"
    config.share = parameters.get("agent.share", "")
    config.hotplug_seconds = _seconds(parameters.get("agent.hotplug_timeout", ""), config.hotplug_seconds)
    config.stdio_port = _port(parameters.get("agent.passfd_listener_port", ""), config.stdio_port)
    server = parameters.get("agent.server_addr", "")
    if server.startswith("vsock://"):
        config.port = _port(server.rpartition(":")[2], config.port)


def _seconds(text: str, default: float) -> float:
    """ "3", "3s" and "500ms", as Kata writes durations."""
    number, unit = (text[:-2], 0.001) if text.endswith("ms") else (text.removesuffix("s"), 1.0)
    return int(number) * unit if number.isascii() and number.isdigit() else default


def _port(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 1 << 32 else default
