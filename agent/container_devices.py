"""Device nodes of a container whose numbers only the guest knows: Kata's Device messages into the OCI spec.

Owns the rewriting of major and minor numbers, in the device list and in the device rules. Finding the device
is agent.storage.devices. Called by agent.sandbox before a container is made.
"""

from __future__ import annotations

import os

from agent.errors import InvalidSpec, Unsupported, step_error
from agent.storage import devices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.api import agent_pb2, oci_pb2

    Number = tuple[int, int]

_FINDERS: dict[str, Callable[[str, float], str]] = {
    "blk": devices.block,
    "scsi": devices.scsi_block,
    "mmioblk": devices.named,
    "nvdimm": devices.named,
}


def names() -> list[str]:
    """The device types, for AgentDetails.device_handlers."""
    return list(_FINDERS)


def rewrite(spec: oci_pb2.Spec, wanted: Iterable[agent_pb2.Device], seconds: float) -> None:
    """Put the guest's numbers of `wanted` into the spec; waits at most `seconds` for each device.

    Raises Unsupported, InvalidSpec, NotFound, StepError.
    """
    numbers = {device.container_path: _number(device, seconds) for device in wanted}
    if not numbers:
        return
    changed: dict[Number, Number] = {}
    for entry in spec.Linux.Devices:
        number = numbers.pop(entry.Path, None)
        if number is not None:
            changed[entry.Major, entry.Minor] = number
            entry.Major, entry.Minor = number
    if numbers:
        raise InvalidSpec("devices.container_path", f"{sorted(numbers)[0]!r} is none of linux.devices")
    for rule in spec.Linux.Resources.Devices:
        number = changed.get((rule.Major, rule.Minor))
        if number is not None and rule.HasField("Major") and rule.HasField("Minor"):
            rule.Major, rule.Minor = number


def _number(device: agent_pb2.Device, seconds: float) -> Number:
    find = _FINDERS.get(device.type)
    if find is None:
        raise Unsupported(f"device type {device.type!r} is not supported in this guest")
    path = device.vm_path or find(device.id, seconds)
    try:
        rdev = os.stat(path).st_rdev
    except OSError as error:
        raise step_error("look up device", error) from error
    return os.major(rdev), os.minor(rdev)
