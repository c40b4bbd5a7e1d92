"""The guest as a machine: what it has, its clock, its random pool, hot-plugged CPUs and memory, swap,
volumes.

Owns: Kata's requests about the VM itself. Knows nothing of containers. Called by agent/service.py. Metrics
are in metrics.py, copied files in copyfile.py.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys

from agent.api import agent_pb2, csi_pb2
from agent.errors import DeadlineExceeded, InvalidSpec, step_error
from agent.linux import syscalls, uevent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterable

SYS = "/sys/devices/system"
HOTPLUG_SECONDS = 3.0
"""kernel parameter agent.hotplug_timeout"""

# linux/random.h
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_POOL_PIECE = 512
_random_fd = -1
_MOST_SEED = 1 << 16


# --- facts ------------------------------------------------------------------------------------------------


def memory_block_size(root: str = SYS) -> int:
    """Bytes of one hot-pluggable piece of memory; 0 where the kernel cannot add memory."""
    try:
        with open(f"{root}/memory/block_size_bytes") as file:
            return int(file.read().strip(), 16)
    except (FileNotFoundError, ValueError):
        return 0


def details(
    request: agent_pb2.GuestDetailsRequest, agent: agent_pb2.AgentDetails, root: str = SYS
) -> agent_pb2.GuestDetailsResponse:
    """GetGuestDetails: `agent` is what the service says about itself."""
    answer = agent_pb2.GuestDetailsResponse(agent_details=agent)
    if request.mem_block_size:
        answer.mem_block_size_bytes = memory_block_size(root)
    if request.mem_hotplug_probe:
        answer.support_mem_hotplug_probe = os.path.exists(f"{root}/memory/probe")
    return answer


def volume_stats(path: str) -> csi_pb2.VolumeStatsResponse:
    """Bytes and inodes of the file system at the guest path. Raises StepError."""
    try:
        info = os.statvfs(path)
    except OSError as error:
        raise step_error("read volume statistics", error) from error
    answer = csi_pb2.VolumeStatsResponse()
    block = info.f_frsize
    answer.usage.add(
        unit=csi_pb2.VolumeUsage.BYTES,
        total=info.f_blocks * block,
        available=info.f_bavail * block,
        used=(info.f_blocks - info.f_bfree) * block,
    )
    answer.usage.add(
        unit=csi_pb2.VolumeUsage.INODES,
        total=info.f_files,
        available=info.f_favail,
        used=info.f_files - info.f_ffree,
    )
    answer.volume_condition.abnormal = False
    answer.volume_condition.message = "OK"
    return answer


# --- clock and random pool --------------------------------------------------------------------------------


def set_clock(seconds: int, microseconds: int) -> None:
    """Set the wall clock, as after a restore. Raises StepError."""
    if seconds < 0 or not 0 <= microseconds < 1_000_000:
        raise InvalidSpec("Usec", f"{seconds} s and {microseconds} us are no time")
    try:
        syscalls.settimeofday(seconds, microseconds)
    except OSError as error:
        raise step_error("set the clock", error) from error


def reseed(data: bytes) -> None:
    """Mix `data` into the kernel's random pool, credit it, and reseed the generator at once. Raises
    StepError.

    Two clones of one template would otherwise draw the same numbers.
    """
    if not data or len(data) > _MOST_SEED:
        raise InvalidSpec("data", f"{len(data)} bytes are no seed")
    try:
        fd = _random_pool()
        for start in range(0, len(data), _POOL_PIECE):
            piece = data[start : start + _POOL_PIECE]
            # struct rand_pool_info: bits of entropy, bytes, data
            fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", len(piece) * 8, len(piece)) + piece)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    except OSError as error:
        raise step_error("reseed the random pool", error) from error
    _reseed_python()


def _random_pool() -> int:
    """Opened once, in the template already."""
    global _random_fd
    if _random_fd < 0:
        _random_fd = os.open("/dev/random", os.O_RDWR | os.O_CLOEXEC)
    return _random_fd


def _reseed_python() -> None:
    """Python's own generator was seeded before the template was saved; nothing here may be guessed from
    that.
    """
    random = sys.modules.get("random")
    if random is not None:
        random.seed()


# --- hot-plug ---------------------------------------------------------------------------------------------


def online(
    *, wait: bool, cpus: int, cpu_only: bool, seconds: float = HOTPLUG_SECONDS, root: str = SYS
) -> None:
    """Bring hot-plugged CPUs and memory into use. Raises DeadlineExceeded, StepError.

    With `wait`, until `cpus` CPUs came up, awaited by their uevents. Containers need no change: without a
    cpuset of its own a cgroup v2 uses whatever CPUs there are.
    """
    done = [0]

    def enough() -> bool | None:
        done[0] += _online_all(_cpu_files(root), "0", "1")
        return True if not wait or done[0] >= cpus else None

    try:
        if uevent.wait_for(enough, ("cpu",), seconds if wait else 0) is None:
            what = f"bringing up {cpus} CPUs ({done[0]} came up)"
            raise DeadlineExceeded(what, seconds)
        if not cpu_only:
            _online_all(_memory_files(root), "offline", "online")
    except OSError as error:
        raise step_error("bring up CPUs and memory", error) from error


def _cpu_files(root: str) -> Iterable[str]:
    return _numbered(f"{root}/cpu", "cpu", "online")


def _memory_files(root: str) -> Iterable[str]:
    return _numbered(f"{root}/memory", "memory", "state")


def _numbered(directory: str, prefix: str, name: str) -> list[str]:
    """DIRECTORY/PREFIX<n>/NAME for all n, in order."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    numbers = sorted(int(entry[len(prefix) :]) for entry in names if entry[len(prefix) :].isdigit())
    return [f"{directory}/{prefix}{number}/{name}" for number in numbers if f"{prefix}{number}" in names]


def _online_all(files: Iterable[str], off: str, on: str) -> int:
    """Write `on` to those files that hold `off`; how many."""
    count = 0
    for path in files:
        try:
            with open(path) as file:
                if file.read().strip() != off:
                    continue
            with open(path, "w") as file:
                file.write(on)
        except FileNotFoundError:
            continue  # the boot CPU cannot go off, and has no such file
        count += 1
    return count


def probe_memory(addresses: Iterable[int], root: str = SYS) -> None:
    """Tell the kernel of memory at these physical addresses, where it has no ACPI to hear it from."""
    try:
        for address in addresses:
            with open(f"{root}/memory/probe", "w") as file:
                file.write(f"{address:#x}")
    except OSError as error:
        raise step_error("probe memory", error) from error


def add_swap(path: str, swapon: Callable[[str], None] = syscalls.swapon) -> None:
    """Swap to a file or device that the host has prepared (mkswap). Raises StepError."""
    try:
        swapon(path)
    except OSError as error:
        raise step_error("add swap", error) from error
