"""The share of a pod (shim/share/tree.py) against real mounts, in a mount namespace of the test's own."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from shim import process

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = """
import os, sys
from agent.linux import syscalls as sc
from shim.errors import HakoError
from shim.share.tree import GUEST_ROOT, ShareTree, mounts_below
base = sys.argv[1]
def make(path, text=None):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if text is None: os.makedirs(path, exist_ok=True)
    else: open(path, "w").write(text)
    return path
def bind(source, target):
    sc.mount(source, target, None, sc.MS_BIND | sc.MS_REC)
def fails(call, *arguments):
    try:
        call(*arguments)
    except OSError as exc:
        return exc.strerror
    raise AssertionError("it worked")
"""


def in_namespace(tmp_path: Path, script: str) -> str:
    """Run `script` in a mount namespace of its own whose mounts are shared, as systemd makes them."""
    code = PRELUDE + textwrap.dedent(script)
    # Private first: where the host's mounts are shared, a copy of them would be their peer.
    private, unshare = (
        ["/usr/bin/unshare", "--mount", "--propagation", kind] for kind in ("private", "shared")
    )
    env = {**process.ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    argv = [*private, *unshare, sys.executable, "-c", code, str(tmp_path)]
    return process.run(argv, timeout=30, env=env).decode()


def test_rootfs_and_volumes_have_the_guest_paths_of_the_contract(tmp_path: Path) -> None:
    """A container's root is CONTAINER/rootfs, a volume CONTAINER/N, a single file too; all gone after
    remove."""
    out = in_namespace(
        tmp_path,
        """
        tree = ShareTree(base + "/share")
        make(base + "/root/etc/hostname", "h")
        print(tree.add_rootfs("c1", base + "/root", False) == GUEST_ROOT + "/c1/rootfs")
        print(tree.add_volume("c1", 3, make(base + "/file", "data"), False) == GUEST_ROOT + "/c1/3")
        print(open(base + "/share/c1/rootfs/etc/hostname").read(), open(base + "/share/c1/3").read())
        tree.remove("c1")
        tree.remove("c1")
        print(os.listdir(base + "/share"), os.path.exists(base + "/root/etc/hostname"))
        tree.close()
        tree.close()
        print(os.path.exists(base + "/share"), mounts_below(base))
        """,
    )
    assert out.split("\n") == ["True", "True", "h data", "[] True", "False []", ""]


def test_a_name_never_comes_again(tmp_path: Path) -> None:
    """A guest that has looked a name up may keep what it was: a container of the same id is somewhere else."""
    out = in_namespace(
        tmp_path,
        """
        tree = ShareTree(base + "/share")
        for name in ("c1", "c1.1", "c1"):
            print(tree.add_rootfs(name, make(base + "/root"), False).removeprefix(GUEST_ROOT), end=" ")
            tree.add_volume(name, 1, base + "/root", False)
            print(*sorted(os.listdir(base + "/share")))
            tree.remove(name)
        tree.close()
        print(mounts_below(base))
        """,
    )
    assert out.split("\n") == ["/c1/rootfs c1", "/c1.1/rootfs c1.1", "/c1.2/rootfs c1.2", "[]", ""]


def test_export_itself_cannot_be_written(tmp_path: Path) -> None:
    """Beneath the containers' mounts the guest can make nothing: no symbolic link, no directory, no
    rename."""
    out = in_namespace(
        tmp_path,
        """
        tree = ShareTree(base + "/share")
        tree.add_rootfs("c1", make(base + "/root"), False)
        share = base + "/share"
        print(fails(os.symlink, "/", share + "/c2"), "|", fails(os.mkdir, share + "/c1/x"))
        print(fails(os.rename, share + "/c1", share + "/c9"))
        open(share + "/c1/rootfs/new", "w").close()
        print(os.listdir(base + "/root"))
        """,
    )
    said = "Read-only file system"
    assert out.splitlines() == [f"{said} | {said}", said, "['new']"]


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    """Links that a guest made in its root, also in the place of a mount point, lead nobody out
    (CVE-2020-2024, -2026)."""
    out = in_namespace(
        tmp_path,
        """
        make(base + "/victim/precious", "p")
        bind(base + "/victim", make(base + "/victim-mount"))
        tree = ShareTree(base + "/share")
        tree.add_rootfs("c1", make(base + "/root"), False)
        os.symlink(base + "/victim-mount", base + "/root/rootfs")
        os.symlink("/", base + "/root/3")
        # The strictest case: a link in our own directory, where a guest cannot make one.
        below = os.open(f"/proc/self/fd/{tree._below}", os.O_RDONLY)
        os.symlink(base + "/victim-mount", "c2", dir_fd=below)
        try:
            tree.add_rootfs("c2", base + "/root", False)
        except HakoError as exc:
            print("refused:", "symbolic" in str(exc))
        tree.remove("c1")
        try:
            tree.remove("c2")
        except HakoError as exc:
            print("left alone:", "symbolic" in str(exc))
        print(os.listdir(base + "/victim-mount"), len(mounts_below(base + "/victim-mount")))
        """,
    )
    assert out.splitlines()[:2] == ["refused: True", "left alone: True"]
    assert out.splitlines()[-1] == "['precious'] 1"


def test_readonly_volume_is_readonly_on_the_host_with_its_submounts(tmp_path: Path) -> None:
    """Remounting in the guest cannot make it writable (CVE-2020-28914), not even where something is mounted
    in it."""
    out = in_namespace(
        tmp_path,
        """
        make(base + "/v/sub"), make(base + "/w")
        bind(base + "/w", base + "/v/sub")
        tree = ShareTree(base + "/share")
        tree.add_volume("c1", 0, base + "/v", True)
        print(fails(open, base + "/share/c1/0/x", "w"), "|", fails(open, base + "/share/c1/0/sub/x", "w"))
        open(base + "/v/sub/x", "w").close()
        print(os.listdir(base + "/share/c1/0/sub"))
        """,
    )
    assert out.splitlines() == ["Read-only file system | Read-only file system", "['x']"]


def test_devices_are_dead_on_the_host_side(tmp_path: Path) -> None:
    """A device node that a guest makes cannot be opened through the share on the host (CVE-2020-35517)."""
    out = in_namespace(
        tmp_path,
        """
        import stat
        tree = ShareTree(base + "/share")
        tree.add_rootfs("c1", make(base + "/root"), False)
        os.mknod(base + "/share/c1/rootfs/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        print(fails(open, base + "/share/c1/rootfs/null"))
        """,
    )
    assert out.strip() == "Permission denied"


@pytest.mark.parametrize(("propagation", "seen"), [("slave", "True"), ("private", "False")])
def test_later_mounts_reach_the_share_as_asked(tmp_path: Path, propagation: str, seen: str) -> None:
    """With rslave what the host mounts later is seen; with rprivate it is not; nothing goes back to the
    host."""
    out = in_namespace(
        tmp_path,
        f"""
        make(base + "/v/sub"), make(base + "/w/late", "x")
        tree = ShareTree(base + "/share")
        tree.add_volume("c1", 0, base + "/v", False, "{propagation}")
        bind(base + "/w", base + "/v/sub")
        print(os.path.exists(base + "/share/c1/0/sub/late"))
        make(base + "/share/c1/0/mine")
        bind(base + "/w", base + "/share/c1/0/mine")
        print(os.path.exists(base + "/v/mine/late"))
        """,
    )
    assert out.split() == [seen, "False"]


def test_mounts_reach_a_namespace_that_exists_already(tmp_path: Path) -> None:
    """A container that joins later is seen by a virtiofsd that runs, and its end too."""
    out = in_namespace(
        tmp_path,
        """
        tree = ShareTree(base + "/share")
        ready, go = os.pipe(), os.pipe()
        if os.fork() == 0:
            sc.unshare(sc.CLONE_NEWNS)
            sc.mount(None, "/", None, sc.MS_SLAVE | sc.MS_REC)
            for _ in range(2):
                os.write(ready[1], b"x")
                os.read(go[0], 1)
                print(os.path.exists(base + "/share/c1/rootfs/file"), flush=True)
            os._exit(0)
        os.read(ready[0], 1)
        make(base + "/root/file", "x")
        tree.add_rootfs("c1", base + "/root", False)
        os.write(go[1], b"x")
        os.read(ready[0], 1)
        tree.remove("c1")
        os.write(go[1], b"x")
        os.wait()
        """,
    )
    assert out.split() == ["True", "False"]


def test_busy_mounts_are_gone_from_mountinfo(tmp_path: Path) -> None:
    """An open file, as virtiofsd holds it, keeps no mount point and no directory of the share."""
    out = in_namespace(
        tmp_path,
        """
        tree = ShareTree(base + "/share")
        tree.add_rootfs("c1", make(base + "/root"), False)
        held = open(base + "/share/c1/rootfs/open", "w")
        tree.close()
        print(os.path.exists(base + "/share"), mounts_below(base), os.listdir(base + "/root"))
        """,
    )
    assert out.strip() == "False [] ['open']"


def test_failed_addition_leaves_nothing(tmp_path: Path) -> None:
    """A source that is not there is an error with both paths, and the share can still be used and closed."""
    out = in_namespace(
        tmp_path,
        """
        tree = ShareTree(base + "/share")
        try:
            tree.add_volume("c1", 0, base + "/missing", False)
        except HakoError as exc:
            print(exc)
        for bad in ("..", "a/b", ""):
            try:
                tree.add_rootfs(bad, base, False)
            except HakoError as exc:
                print("refused")
        tree.add_rootfs("c1", make(base + "/root"), False)
        tree.close()
        print(os.path.exists(base + "/share"))
        """,
    )
    assert out.splitlines()[0] == f"share {tmp_path}/missing: c1/0: open_tree: No such file or directory"
    assert out.splitlines()[1:] == ["refused", "refused", "refused", "False"]


def test_directory_of_a_dead_pod_is_taken_over(tmp_path: Path) -> None:
    """A pod process that was killed left its export mounted; the next one with that id starts clean."""
    out = in_namespace(
        tmp_path,
        """
        old = ShareTree(base + "/share")
        old.add_rootfs("c1", make(base + "/root/x"), False)
        new = ShareTree(base + "/share")
        new.add_rootfs("c1", make(base + "/other"), False)
        print(os.listdir(base + "/share/c1/rootfs"))
        new.close()
        print(mounts_below(base), os.path.exists(base + "/share"), os.path.exists(base + "/root/x"))
        """,
    )
    assert out.splitlines() == ["[]", "[] False True"]
