"""Data flows one way (architecture.md section 1): who may import whom, read from the import statements."""

from __future__ import annotations

import pytest

from tests.framework.importgraph import Import, Tree, When, cycles

# Higher lines may import lower lines. On the lines marked "apart" no unit imports a sibling; in the other
# lines siblings may use each other as long as no cycle appears.
SHIM_LINES: list[tuple[str, set[str]]] = [
    ("apart", {"__main__"}),
    ("apart", {"cli", "task", "install"}),
    ("apart", {"sandbox", "vm", "byhand"}),
    ("apart", {"hypervisor", "share", "network", "stdio", "image", "agent_client", "runspec"}),
    (
        "free",
        {
            "oci",
            "config",
            "paths",
            "process",
            "confine",
            "cgroups",
            "log",
            "trace",
            "errors",
            "tools",
            "watch",
            "answers",
            "light",
        },
    ),
]
# Data, not behaviour: containerd's protobuf messages serve both ends of the task API, the server (task) and
# its client in `hako run` (cli).
SHIM_DATA = "shim.task.api"

AGENT_LINES: list[tuple[str, set[str]]] = [
    ("apart", {"__main__"}),
    ("apart", {"start"}),
    ("apart", {"rehearsal"}),
    ("apart", {"service", "warm"}),
    ("apart", {"sandbox"}),
    ("apart", {"container"}),
    (
        "free",
        {"arrival", "namespaces", "mounts", "rootfs", "devices", "cgroups", "seccomp", "capabilities", "rlimits",
         "hooks", "users", "storage", "network", "guest", "init", "process", "config", "streams",
         "container_devices", "modules", "oom", "orphans", "sampleprogram", "samplespec", "sandbox_storages",
         "shared_namespaces"},
    ),
    ("free", {"ttrpc"}),
    ("free", {"linux", "api", "errors", "log", "spans"}),
]  # fmt: skip

# The last two are pure: a container's filter is compiled on the host.
SHIM_MAY_USE_OF_AGENT = ("agent.api", "agent.ttrpc", "agent.linux", "agent.seccomp", "agent.errors")

# Third-party or sharp modules and the only places that import them.
ONLY_IN = {
    "pyroute2": ("shim.network",),
    "libvirt": ("shim.vm",),
    "subprocess": ("shim.process",),
    "cffi": ("agent.linux",),
    "_cffi_backend": ("agent.linux",),
    "asyncio": (),
    "ctypes": ("shim.hypervisor.clock",),
    "yaml": (),
}


@pytest.fixture(scope="module")
def tree() -> Tree:
    """Every module of both sides."""
    return Tree("shim", "agent")


def _unit(module: str) -> str:
    """`shim.sandbox.plan` -> `sandbox`; the package itself has no unit."""
    return module.split(".")[1] if "." in module else ""


def _line_of(unit: str, lines: list[tuple[str, set[str]]]) -> int | None:
    return next((index for index, (_, units) in enumerate(lines) if unit in units), None)


def _breaks(importer: str, target: str, lines: list[tuple[str, set[str]]]) -> bool:
    here, there = _unit(importer), _unit(target)
    if here == there or not there or not here:
        return False
    low, high = _line_of(here, lines), _line_of(there, lines)
    if low is None or high is None:
        return False  # named by test_every_module_has_its_place
    return high < low or (high == low and lines[low][0] == "apart")


def _within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def _report(found: list[Import]) -> str:
    return "\n".join(map(str, found))


@pytest.mark.parametrize(("package", "lines"), [("shim", SHIM_LINES), ("agent", AGENT_LINES)])
def test_every_module_has_its_place(tree: Tree, package: str, lines: list[tuple[str, set[str]]]) -> None:
    """Each module belongs to a unit of the picture, so that no new one escapes the contract."""
    units = {_unit(name) for name in tree.modules if name.startswith(package + ".")}
    assert units - set().union(*(names for _, names in lines)) == set()


@pytest.mark.parametrize(("package", "lines"), [("shim", SHIM_LINES), ("agent", AGENT_LINES)])
def test_data_flows_one_way(tree: Tree, package: str, lines: list[tuple[str, set[str]]]) -> None:
    """No module imports one of a higher line, or a sibling on a line whose units stay apart."""
    wrong = [
        found
        for found in tree.imports
        if found.importer.split(".")[0] == package
        and (target := tree.resolve(found.target)) is not None
        and target.split(".")[0] == package
        and not _within(target, (SHIM_DATA,))
        and _breaks(found.importer, target, lines)
    ]
    assert not wrong, _report(wrong)


def test_shared_messages_stay_data(tree: Tree) -> None:
    """What both ends of the task API import holds messages only: of the shim it imports only itself."""
    wrong = [
        found
        for found in tree.imports
        if _within(found.importer, (SHIM_DATA,))
        and (target := tree.resolve(found.target)) is not None
        and target.startswith("shim.")
        and not _within(target, (SHIM_DATA,))
        and target != "shim.task"
    ]
    assert not wrong, _report(wrong)


def test_the_agent_never_imports_the_shim(tree: Tree) -> None:
    """What goes into the guest is `agent` alone."""
    wrong = [f for f in tree.imports if f.importer.startswith("agent") and f.target.split(".")[0] == "shim"]
    assert not wrong, _report(wrong)


def test_the_shim_uses_only_the_shared_parts_of_the_agent(tree: Tree) -> None:
    """The host side knows the protocol and the system calls, not the guest's logic."""
    wrong = [
        found
        for found in tree.imports
        if found.importer.split(".")[0] == "shim"
        and found.target.split(".")[0] == "agent"
        and not _within(found.target, SHIM_MAY_USE_OF_AGENT)
    ]
    assert not wrong, _report(wrong)


@pytest.mark.parametrize("module", sorted(ONLY_IN))
def test_sharp_modules_have_one_home(tree: Tree, module: str) -> None:
    """A module with a cost or a danger of its own is imported in its one place."""
    wrong = [
        f
        for f in tree.imports
        if f.target.split(".")[0] == module and not _within(f.importer, ONLY_IN[module])
    ]
    assert not wrong, _report(wrong)


def test_no_import_cycles(tree: Tree) -> None:
    """Loading a module never needs the module itself."""
    assert cycles(tree.internal(When.LOAD)) == []


def test_sandbox_and_vm_do_not_know_each_other(tree: Tree) -> None:
    """The two kinds of payload are siblings: neither imports the other, not even for types."""
    wrong = [
        found
        for found in tree.imports
        for one, other in (("shim.sandbox", "shim.vm"), ("shim.vm", "shim.sandbox"))
        if _within(found.importer, (one,)) and _within(found.target, (other,))
    ]
    assert not wrong, _report(wrong)
