"""How a confinement becomes an argv (shim/process.py), and what errors say."""

from __future__ import annotations

import os
import sys

from shim import process
from shim.process import NEW_NETNS, CommandFailed, Confinement, confined_argv

PROGRAM = ["/usr/bin/qemu", "-name", "a b"]


def test_no_confinement_costs_no_extra_program() -> None:
    """A child without a confinement is executed directly."""
    assert confined_argv(PROGRAM, None) == PROGRAM


def test_identity_alone_needs_only_setpriv() -> None:
    """User, no_new_privs and die-with-parent take one small program, not an interpreter."""
    argv = confined_argv(PROGRAM, Confinement(uid=65534, gid=65533, groups=(7, 8)))
    assert argv == [
        "/usr/bin/setpriv", "--reuid=65534", "--regid=65533", "--groups=7,8", "--bounding-set=-all",
        "--inh-caps=-all",
        "--no-new-privs", "--pdeathsig=KILL", "--", *PROGRAM,
    ]  # fmt: skip


def test_group_defaults_to_the_user_and_supplementary_groups_go() -> None:
    """A child that changes user keeps none of root's groups."""
    argv = confined_argv(PROGRAM, Confinement(uid=5, no_new_privs=False, die_with_parent=False))
    assert argv[1:4] == ["--reuid=5", "--regid=5", "--clear-groups"]


def test_a_network_namespace_needs_no_program() -> None:
    """The thread that starts the child is in it."""
    for netns in ("/run/netns/x", NEW_NETNS):
        assert confined_argv(PROGRAM, Confinement(netns=netns))[0] == "/usr/bin/setpriv"


def test_a_child_with_cgroups_waits_in_a_shell() -> None:
    """What is executed for every VMM and daemon starts no interpreter. It dies with us from before its go on."""
    confine = Confinement(cgroup_dirs=("/sys/fs/cgroup/x",))
    argv = confined_argv(PROGRAM, confine, go=3)
    assert argv[:3] == ["/usr/bin/setpriv", "--pdeathsig=KILL", "--"]
    assert argv[3:6] == ["/bin/sh", "-c", 'read -r line <&3 && exec 3<&- "$@"']
    assert argv[7] == "/usr/bin/setpriv"
    assert confined_argv(PROGRAM, confine._replace(die_with_parent=False), go=3)[0] == "/bin/sh"


def test_limits_and_directory_are_words_for_confine_py() -> None:
    """What setpriv cannot do is done first, by an interpreter without site packages."""
    confine = Confinement(rlimits=(("NOFILE", 10, 20),), oom_score_adj=-5, umask=0o77, cwd="/x y")
    argv = confined_argv(PROGRAM, confine)
    assert argv[0] == os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    assert argv[1] == "-IS"
    assert argv[2].endswith("/shim/confine.py")
    assert argv[3:8] == ["rlimit=NOFILE:10:20", "oom_score_adj=-5", "umask=77", "cwd=/x y", "--"]


def test_failure_is_one_pasteable_line() -> None:
    """The error of a command can be pasted into a shell and has the last words of stderr."""
    error = CommandFailed(["nft", "add rule", "x"], "exited with status 1", "no such table\n", 1)
    assert str(error) == "run: nft 'add rule' x: exited with status 1: no such table"
    assert error.status == 1


def test_status_is_worded() -> None:
    """A signal is named, also one without a name."""
    assert process.describe_status(-9) == "was killed by SIGKILL"
    assert process.describe_status(-63) == "was killed by signal 63"
    assert process.describe_status(0) == "exited with status 0"
    assert process.describe_status(None) == "is still running"
