"""The ways in which pods start, as configurations of hako.

Owns: what each of them is in a configuration file. Knows no pods. Called by `lab`, which keeps the files.

COLD boots; TEMPLATE restores; both as the first pod of a machine. MANY is the configuration of a machine with many pods: all
defaults, the forkserver of pod processes with them. DISKS is TEMPLATE without a shared file system, POOL has a VM waiting.
"""

from __future__ import annotations

from tests.bench.stacks import Stack

COLD, TEMPLATE, MANY, DISKS, POOL = "cold", "template", "many", "disks", "pool"
MODES = {
    COLD: "[factory]\ntemplate = false\n[runtime]\nforkserver = false\n",
    TEMPLATE: "[runtime]\nforkserver = false\n",
    MANY: "",
    DISKS: "[runtime]\nforkserver = false\n",
    POOL: "[factory]\npool = 1\n",
}
RESTORED = (TEMPLATE, MANY, DISKS, POOL)


def text(mode: str, stack: Stack) -> str:
    """The file. TCG always: the rows are ratios to an emulated boot, whatever else the host could do."""
    shared = "none" if mode == DISKS else "virtio-fs"
    return (
        f'[hypervisor]\naccelerator = "tcg"\npath = "{stack.qemu}"\n'
        f'[share]\nshared_fs = "{shared}"\ndaemon = "{stack.virtiofsd}"\n{MODES[mode]}'
    )
