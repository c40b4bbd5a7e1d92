"""Figures of real Kata Containers, which this bench does not run: as the project's design notes have them.

Owns: those figures. Kata 3.28 (Go shim, Rust agent, Rust virtiofsd), QEMU under TCG on two cores, the same guest kernel.
"""

from __future__ import annotations

from typing import Final

KATA_FIRST: Final = 2.38
"""First byte of `ctr run ... echo` over a bare boot of the same kernel."""
KATA_PSS_MIB: Final = 223
"""PSS of all processes of an idle pod of 256 MiB."""
KATA: Final = (
    "Real Kata 3.28 on such a machine, quoted from the design notes and not measured in this run: first byte of `ctr run"
    f" ... echo` {KATA_FIRST} times a bare boot and 18.9 times runc's, exec 3.3 times runc's, an idle pod of 256 MiB"
    f" {KATA_PSS_MIB} MiB of PSS, its agent 10.5 MiB of RSS. Meant here: less than 0.2 of its start and half of its memory."
)
