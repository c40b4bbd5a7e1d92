"""guest-kernel/image.py and what it stands on, with the real interpreter and tools: contents, size, same inputs same bytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import closure
import elf
import image
import imports
import pytest
from commands import BuildError
from tree import CONSOLE, Tree

need_erofs = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="no mkfs.erofs: apt-get install erofs-utils")
need_cpio = pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio: apt-get install cpio")
SITE = image.default_site()


@pytest.fixture(scope="module")
def tree() -> Tree:
    """The guest's files."""
    return image.guest_tree(image.AGENT, SITE)


def extension() -> Path:
    """A shared object with dependencies."""
    (path,) = SITE.glob("_cffi_backend*.so")
    return path


@need_erofs
def test_the_same_inputs_give_the_same_bytes(tree: Tree, tmp_path: Path) -> None:
    """Two images of two trees that were collected one after the other are equal, and small enough."""
    again = image.guest_tree(image.AGENT, SITE)
    assert again.digest() == tree.digest()
    for name, source in (("one", tree), ("two", again)):
        image.make_erofs(source, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").stat().st_size <= 30 << 20


def test_only_what_the_guest_needs_is_in_it(tree: Tree) -> None:
    """The agent without the host's parts, the interpreter, no sources, no setuid, everything below merged /usr."""
    files = set(tree.entries)
    assert {"init", "usr/lib/hako/modules", "usr/bin/python3"} <= files
    assert not [path for path in files if path.endswith(".py") and path != "usr/lib/hako/init.py"]
    assert not [path for path in files if "asyncio" in path or "pip" in path.split("/")]
    assert not [path for path, entry in tree.entries.items() if entry.mode & 0o6000]
    modules = {module.name for module in closure.find_python(image.AGENT, SITE).modules}
    assert "agent.start" in modules and "agent.ttrpc.client" not in modules and "asyncio" not in modules


def test_an_image_that_grew_is_refused(tmp_path: Path) -> None:
    """Over 30 MiB something got in that does not belong there."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(image.SIZE_LIMIT + 1)
    with pytest.raises(BuildError, match="more than 30"):
        image.check_size(path)


@need_cpio
def test_the_initramfs_is_what_cpio_reads(tmp_path: Path) -> None:
    """Names, modes, links and contents survive the archive."""
    tree = Tree()
    tree.file("usr/bin/tool", b"odd", 0o755)
    tree.link("bin", "usr/bin")
    tree.directory("tmp", 0o1777)
    tree.device("dev/console", CONSOLE)
    listing = subprocess.run(["cpio", "-tv", "--quiet"], input=tree.cpio(), capture_output=True, check=True).stdout.decode()
    rows = {line.split()[-1]: line.split() for line in listing.splitlines()}
    assert rows["usr/bin/tool"][0] == "-rwxr-xr-x" and rows["usr/bin/tool"][4] == "3"
    assert "bin -> usr/bin" in listing
    assert rows["tmp"][0] == "drwxrwxrwt" and rows["dev/console"][0].startswith("c")
    subprocess.run(["cpio", "-i", "--quiet", "usr/bin/tool"], input=tree.cpio(), cwd=tmp_path, check=False)
    extracted = subprocess.run(["cpio", "-i", "--quiet", "--to-stdout", "usr/bin/tool"], input=tree.cpio(), capture_output=True)
    assert extracted.stdout == b"odd"


def test_trees_are_written_with_their_modes(tmp_path: Path) -> None:
    """Not the umask's choice; parents are there."""
    tree = Tree()
    tree.file("a/b/run", b"x", 0o755)
    tree.directory("t", 0o1777)
    tree.write(tmp_path)
    assert (tmp_path / "a/b/run").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "t").stat().st_mode & 0o7777 == 0o1777


def test_a_digest_tells_every_change() -> None:
    """Content, mode, name and kind count."""
    digests = set()
    for path, data, mode in (("a", b"1", 0o644), ("a", b"2", 0o644), ("a", b"1", 0o755), ("b", b"1", 0o644)):
        tree = Tree()
        tree.file(path, data, mode)
        digests.add(tree.digest())
    linked = Tree()
    linked.link("a", "1")
    assert len({*digests, linked.digest()}) == 5


def test_a_shared_object_names_its_libraries() -> None:
    """As ldd sees them; what is taken out of the dynamic section is not loaded any more."""
    data = extension().read_bytes()
    shared = elf.SharedObject(data, "cffi")
    libraries = closure.shared_libraries([extension()])
    assert "libc.so.6" in shared.needed() and set(shared.needed()) <= set(libraries)
    assert "libc.so.6" in shared.versioned_by()
    assert "libc.so.6" not in elf.unused_libraries(data, libraries)
    without = elf.SharedObject(shared.without({"libpthread.so.0", "libc.so.6"}))
    assert "libc.so.6" not in without.needed()
    assert without.undefined() == shared.undefined()


def test_what_is_no_shared_object_is_refused() -> None:
    """Scripts and static programs have no dynamic section."""
    with pytest.raises(elf.ElfError, match="script"):
        elf.SharedObject(b"#!/bin/sh", "script")
    busybox = Path("/usr/bin/busybox")
    if not busybox.exists():
        pytest.skip("no static program: apt-get install busybox-static")
    with pytest.raises(elf.ElfError, match="statically linked"):
        elf.SharedObject(busybox.read_bytes(), "busybox")


def test_imports_inside_functions_count_and_those_for_types_do_not() -> None:
    """Absolute names, relative ones resolved."""
    source = (
        "from __future__ import annotations\nimport os.path\nfrom . import near\nfrom ..far import thing\n"
        "if TYPE_CHECKING:\n    import typing\nelse:\n    import real\ndef f():\n    import late\n"
    )
    modules, possible = imports.imported(source, "pkg.sub")
    assert modules == {"os.path", "pkg.sub", "pkg.far", "real", "late"}
    assert possible == {"pkg.sub.near", "pkg.far.thing"}


def test_the_interpreter_runs_on_what_is_in_the_tree(tree: Tree, tmp_path: Path) -> None:
    """In a chroot of the tree the agent's modules import: nothing is missing."""
    import os

    if os.geteuid() != 0:
        pytest.skip("chroot needs root")
    tree.write(tmp_path)
    (tmp_path / "dev/null").touch()
    name = Path(tree.entries["usr/bin/python3"].data.decode()).name
    code = (
        "import sys; source = open('/init').read().split('main = ')[0]; exec(compile(source, '/init', 'exec'));"
        "import agent.start; print(len(agent.start.HELLO))"
    )
    (tmp_path / "look.py").write_text(code)  # Python 3.13 imports linecache for -c
    argv = ["chroot", str(tmp_path), f"/usr/bin/{name}", "-IS", "/look.py"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0 and sys.version_info >= (3, 11)
