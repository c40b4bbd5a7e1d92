"""What QEMU reports of its own accord, kept for those who wait for it.

Owns: the few events that matter, and the waiting. Must not know: what they are waited for. Filled by driver.py in
the watching thread; plug.py and restore.py wait, in any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

MIGRATION_ENDS = ("completed", "failed", "cancelled")


class Events:
    """See the module."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.migration = ""
        """the last state of the migration; "" before the first"""
        self.deleted: set[str] = set()
        """devices that are gone"""
        self.accepted: set[str] = set()
        """memory devices that the guest has taken into use, or refused"""
        self.ended = False
        """QEMU has ended"""

    def take(self, name: str, data: dict[str, Any]) -> None:
        """One event of QMP."""
        with self._changed:
            if name == "MIGRATION":
                self.migration = data.get("status", "")
            elif name == "DEVICE_DELETED" and "device" in data:
                self.deleted.add(data["device"])
            elif name == "ACPI_DEVICE_OST":
                self.accepted.add(data.get("info", {}).get("device", ""))
            self._changed.notify_all()

    def end(self) -> None:
        """QEMU has ended: nothing more comes."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def wait(self, happened: Callable[[], bool], timeout: float) -> bool:
        """Whether it happened within `timeout` seconds, QEMU's end not counted."""
        with self._changed:
            self._changed.wait_for(lambda: happened() or self.ended, timeout)
            return happened()
