"""configuration.toml as frozen, checked values.

Owns: the names, types, limits and defaults of all settings. Must not know: what a setting does.
`configs/configuration.toml` documents each field with its default (a test compares). Unknown keys and bad
values are refused with the file, the line and what is allowed; nothing is corrected in silence.

`load()` reads the first file of `paths.config_candidates()`, then `config.d/*.toml` beside it in alphabetical
order, whose tables are merged over it. No file at all means the defaults. Annotations of a pod reach these
values only through `shim/sandbox/plan.py`, and there only the keys that `[runtime] enable_annotations` names.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args, get_origin, get_type_hints

import msgspec

from shim import paths
from shim.errors import ConfigError

Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
NotNegative: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
AbsolutePath: TypeAlias = Annotated[str, msgspec.Meta(pattern="^/")]
OptionalPath: TypeAlias = Annotated[str, msgspec.Meta(pattern="^(/|$)")]
FITTING: Final = "fitting"


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file: immutable, and a key that it does not know is an error."""


class HypervisorConfig(_Section, frozen=True):
    """The VMM and the size of the VM. Memory in MiB."""

    name: Literal["qemu"] = "qemu"
    path: AbsolutePath = "/usr/bin/qemu-system-x86_64"
    machine_type: Literal["q35", "microvm"] = "q35"
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    cpu_model: str = ""
    default_vcpus: NotNegative = 1
    max_vcpus: NotNegative = 0
    default_memory: Annotated[int, msgspec.Meta(ge=64)] = 256
    max_memory: NotNegative = 0
    memory_granularity: Positive = 128
    tcg_tb_size: NotNegative = 64
    hotplug_ports: Annotated[int, msgspec.Meta(ge=0, le=28)] = 8
    seccomp_sandbox: bool = True
    debug_serial: bool = False


class GuestConfig(_Section, frozen=True):
    """What boots: an uncompressed vmlinux with an erofs image, or a stock kernel with an initramfs."""

    kernel: OptionalPath = ""
    image: OptionalPath = ""
    initrd: OptionalPath = ""
    kernel_params: str = ""
    boot_timeout: Seconds = 60.0
    dial_timeout: Seconds = 45.0


class FactoryConfig(_Section, frozen=True):
    """Templates: VMs that were saved warm, from which pods start instead of booting."""

    template: bool = True
    mounted_share: bool = True
    restore_timeout: Seconds = 20.0
    build_timeout: Seconds = 180.0
    keep: Positive = 4
    pool: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0


class AgentConfig(_Section, frozen=True):
    """How the shim talks to the agent, and what the agent is told at boot."""

    request_timeout: Seconds = 60.0
    log_level: Literal["error", "warn", "info", "debug"] = "info"
    stdio: Literal["auto", "stream", "rpc"] = "auto"


class VsockConfig(_Section, frozen=True):
    """The channel to the agent."""

    transport: Literal["auto", "kernel", "userspace"] = "auto"
    daemon: OptionalPath = ""


class ShareConfig(_Section, frozen=True):
    """How containers' files reach the guest: through virtio-fs, or "none": as disks and copies. Sizes in MiB."""

    shared_fs: Literal["virtio-fs", "none"] = "virtio-fs"
    packed_images: NotNegative = 4096
    copy_limit: Positive = 1
    daemon: OptionalPath = ""
    cache: Literal["fitting", "auto", "always", "never"] = FITTING
    thread_pool_size: NotNegative = 0
    queue_size: Annotated[int, msgspec.Meta(ge=16, le=1024)] = 1024
    extra_args: tuple[str, ...] = ()


class NetworkConfig(_Section, frozen=True):
    """The pod's interfaces, and the network that `hako run` makes for itself."""

    vhost_net: bool = True
    nat_bridge: Annotated[str, msgspec.Meta(pattern="^[a-z0-9_-]{1,15}$")] = "hako0"
    nat_subnet: str = "10.88.64.0/20"
    nat_mtu: NotNegative = 0


class ImageConfig(_Section, frozen=True):
    """Images for `hako run`; engines bring their own root filesystem."""

    default_registry: str = "docker.io"
    skopeo: str = "skopeo"
    umoci: str = "umoci"
    pull_timeout: Seconds = 600.0


class RuntimeConfig(_Section, frozen=True):
    """The pod process itself."""

    create_container_timeout: Seconds = 60.0
    stdio_drain_timeout: Seconds = 10.0
    stop_timeout: Seconds = 10.0
    log_level: Literal["error", "warn", "info", "debug"] = "info"
    user: str = "hako"
    host_hooks: bool = True
    forkserver: bool = True
    enable_annotations: tuple[str, ...] = ()


class TraceConfig(_Section, frozen=True):
    """Where the spans of each start are sent, beside being kept for `hako trace`."""

    otlp_endpoint: Annotated[str, msgspec.Meta(pattern="^(https?://[^/]+/.+)?$")] = ""


class Config(_Section, frozen=True):
    """Everything in configuration.toml. `source` is the file it came from, "" for the built-in defaults."""

    hypervisor: HypervisorConfig = HypervisorConfig()
    guest: GuestConfig = GuestConfig()
    factory: FactoryConfig = FactoryConfig()
    agent: AgentConfig = AgentConfig()
    vsock: VsockConfig = VsockConfig()
    share: ShareConfig = ShareConfig()
    network: NetworkConfig = NetworkConfig()
    image: ImageConfig = ImageConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    trace: TraceConfig = TraceConfig()


SECTIONS = tuple(Config.__struct_fields__)


def load(path: str | None = None) -> Config:
    """The configuration from `path`, or from the first candidate that exists, or the defaults.

    Raises ConfigError; a `path` that was named (argument or HAKO_CONFIG) and is missing is an error too.
    """
    file = path or _first_existing()
    if file is None:
        return Config()
    tables = [(name, _read(name)) for name in [file, *_drop_ins(file)]]
    merged: dict[str, Any] = {}
    for name, table in tables:
        parse(table, name)  # so that an error names the file that has it
        _merge(merged, table)
    return parse(merged, file)


def files(path: str | None = None) -> list[str]:
    """The files that `load` reads, or would if they were there."""
    file = path or _first_existing()
    return paths.config_candidates() if file is None else [file, *_drop_ins(file)]


def parse(table: dict[str, Any], file: str = "") -> Config:
    """A TOML table as Config. Raises ConfigError with the key, its line in `file` and the values allowed."""
    try:
        return msgspec.convert(table, Config, strict=True)
    except msgspec.ValidationError as exc:
        raise _worded(str(exc), file) from None


def _first_existing() -> str | None:
    candidates = paths.config_candidates()
    if len(candidates) == 1:
        return candidates[0]
    return next((file for file in candidates if os.path.exists(file)), None)


def _drop_ins(file: str) -> list[str]:
    directory = os.path.join(os.path.dirname(file), "config.d")
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [os.path.join(directory, name) for name in names if name.endswith(".toml")]


def _read(file: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(file, "rb") as stream:
            return tomllib.load(stream)
    except OSError as exc:
        raise ConfigError(exc.strerror or str(exc), file=file) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"not TOML: {exc}", file=file) from exc


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, dict) else value


def _worded(message: str, file: str) -> ConfigError:
    """msgspec's "reason - at `$.section.key`" as an error that names line and choices."""
    reason, _, where = message.partition(" - at `$")
    path = [part for part in where.rstrip("`").split(".") if part]
    unknown = reason.partition("unknown field `")[2].rstrip("`")
    if unknown:
        allowed = _fields(path)
        path.append(unknown)
        reason = "there is no such key"
    else:
        allowed = _allowed(path)
    return ConfigError(reason, file=file, line=_line_of(file, path), key=".".join(path), allowed=allowed)


def _fields(path: list[str]) -> str:
    struct = _type_at(path)
    return ", ".join(getattr(struct, "__struct_fields__", ()))


def _type_at(path: list[str]) -> Any:
    found: Any = Config
    for part in path:
        found = get_type_hints(found, include_extras=True).get(part.partition("[")[0])
    return found


def _allowed(path: list[str]) -> str:
    """Words for what the field at `path` accepts."""
    kind = _type_at(path)
    if get_origin(kind) is Annotated:
        base, *metas = get_args(kind)
        return " and ".join([base.__name__, *(_limits(meta) for meta in metas)])
    if get_origin(kind) is Literal:
        return ", ".join(repr(choice) for choice in get_args(kind))
    return str(getattr(kind, "__name__", kind))


def _limits(meta: msgspec.Meta) -> str:
    names = (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("pattern", "matching"))
    set_limits = ((word, getattr(meta, name)) for name, word in names)
    return " and ".join(f"{word} {limit}" for word, limit in set_limits if limit is not None)


def _line_of(file: str, path: list[str]) -> int:
    """Line of a key in its table, 0 if it cannot be found (an inline table, a merged file)."""
    if not file or not path:
        return 0
    table, key = (path[0], path[1].partition("[")[0]) if len(path) > 1 else ("", path[0])
    try:
        with open(file, encoding="utf-8") as stream:
            lines = [line.split("#", 1)[0].strip() for line in stream]
    except OSError:
        return 0
    current = ""
    for number, line in enumerate(lines, 1):
        if line.startswith("["):
            current = line.strip("[] ")
            if not table and current == key:
                return number
        elif current == table and line.partition("=")[0].strip().strip("\"'") == key:
            return number
    return 0
