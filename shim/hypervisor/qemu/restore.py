"""A VM that is saved to files, and VMs that begin where it was saved.

Owns: QEMU's migration as far as it is used for that: capabilities, stream, order of load, plug and run. Must not
know: where the files are kept (sandbox/template.py), QEMU's process (driver.py). Called by driver.py.

Only the devices' state goes through the stream (300 to 500 KB): RAM is a file that is mapped shared, which
x-ignore-shared leaves where it is. vhost-user-vsock cannot be saved, and blocks loading too (measured, 7.2:
"State blocked by non-migratable device" with the device on the new command line only); vhost-user-fs only from
8.2 on. So a saved VM has neither, and both are plugged after the load, while the VM is still stopped.

The guest of a template does have a vsock device, and a share if that is not saved: it shall know them already when its
clones get theirs (agent/arrival.py). They are taken away while the guest is stopped, which the guest is not told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shim.errors import BootError
from shim.hypervisor.qemu.events import MIGRATION_ENDS, Events
from shim.hypervisor.qemu.qmp import Qmp
from shim.process import deadline

CAPABILITIES: Final = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
PERIPHERAL: Final = "/machine/peripheral"
LOAD_DEADLINE: Final = 10.0  # seconds; 10 ms on a quiet machine


def save(qmp: Qmp, events: Events, placeholders: Sequence[str], state_fd: int, timeout: float) -> None:
    """Stop the VM and write its devices' state to a file, without `placeholders` (ids). Raises HakoError."""
    left = deadline(timeout)
    qmp.execute("stop", timeout=left())
    for device in placeholders:  # unlike device_del this asks nobody
        qmp.execute("qom-set", path=f"{PERIPHERAL}/{device}", property="realized", value=False)
    _prepare(qmp, state_fd)
    qmp.execute("migrate", uri="fd:state")
    _await_end(events, left(), "save the template")


def load(qmp: Qmp, events: Events, state_fd: int) -> None:
    """Read the devices' state. The VM stays stopped. Raises HakoError."""
    _prepare(qmp, state_fd)
    qmp.execute("migrate-incoming", uri="fd:state")
    _await_end(events, LOAD_DEADLINE, "load the template")


def _prepare(qmp: Qmp, state_fd: int) -> None:
    qmp.execute("migrate-set-capabilities", capabilities=CAPABILITIES)
    qmp.execute("getfd", fdname="state", fds=[state_fd])


def _await_end(events: Events, timeout: float, step: str) -> None:
    ended = events.wait(lambda: events.migration in MIGRATION_ENDS, timeout)
    if not ended:
        reason = "QEMU has ended" if events.ended else f"not done after {timeout:g} s ({events.migration or 'not begun'})"
        raise BootError(step, reason)
    if events.migration != "completed":
        raise BootError(step, events.migration)
