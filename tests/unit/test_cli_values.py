"""What users write in options."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.cli import values
from shim.cli.options import UsageError


@pytest.mark.parametrize("text", ["a", "web-1", "A_b.c-9", "0", "x" * 64])
def test_usable_names(text: str) -> None:
    """Names are what docker takes."""
    assert values.name(text) == text


@pytest.mark.parametrize("text", ["", "-a", ".a", "a/b", "a b", "ä", "x" * 65, "..", "a\n"])
def test_unusable_names(text: str) -> None:
    """A name that could leave its directory or break a table is refused."""
    with pytest.raises(UsageError):
        values.name(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512m", 512 << 20), ("1g", 1 << 30), ("1.5G", 3 << 29), ("8388608", 8 << 20), ("9000k", 9000 << 10)],
)
def test_memory(text: str, size: int) -> None:
    """Units are powers of 1024, none is bytes."""
    assert values.memory(text) == size


@pytest.mark.parametrize("text", ["", "m", "12q", "-1m", "1e3", "5m", "1_0m", "٣m"])
def test_bad_memory(text: str) -> None:
    """A number without sense or below what anything needs is refused."""
    with pytest.raises(UsageError):
        values.memory(text)


def test_cpus() -> None:
    """Processors are decimal numbers above 0."""
    assert values.cpus("1.5") == 1.5
    for text in ("0", "-1", "two", "nan", "inf", ""):
        with pytest.raises(UsageError):
            values.cpus(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGUSR1", 10), ("RTMIN", 34), ("RTMIN+3", 37), ("64", 64)],
)
def test_signals(text: str, number: int) -> None:
    """Names with and without SIG, numbers, and real-time signals."""
    assert values.signal_number(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "NOPE", "KILL+1", "RTMIN+31", "-9"])
def test_bad_signals(text: str) -> None:
    """What is no signal of Linux is refused."""
    with pytest.raises(UsageError):
        values.signal_number(text)


def test_volume_forms(tmp_path: Path) -> None:
    """SRC:DST[:OPTIONS]; a relative source is below the working directory, the destination is made plain."""
    (tmp_path / "data").mkdir()
    found = values.volume("data:/mnt/../x:ro,rslave", str(tmp_path))
    assert (found.source, found.destination) == (str(tmp_path / "data"), "/x")
    assert found.read_only and found.propagation == "rslave"
    assert not values.volume(f"{tmp_path}:/x", "/").read_only


@pytest.mark.parametrize(
    "text", ["/tmp", "/tmp:", ":/x", "/tmp:x", "/tmp:/x:no", "/tmp:/x:ro,rw", "/tmp:/x:ro:rw"]
)
def test_bad_volumes(text: str) -> None:
    """A volume with a missing half, a relative destination or an unknown option is refused."""
    with pytest.raises(UsageError, match="volume"):
        values.volume(text, "/")


def test_a_volume_source_must_exist(tmp_path: Path) -> None:
    """A missing source is an error, and one like docker's named volumes says that there are none."""
    with pytest.raises(UsageError, match="named volumes"):
        values.volume("cache:/x", str(tmp_path))
    with pytest.raises(UsageError, match=r"/none does not exist$"):
        values.volume(f"{tmp_path}/none:/x", "/")


def test_environment_order_and_inheritance(tmp_path: Path) -> None:
    """Files first, then -e; a key alone takes the caller's value or is left out; quotes stay as they are."""
    file = tmp_path / "env"
    file.write_text('# comment\n\nA=from file\nB="quoted"\nMINE\n  C=indented\nABSENT\n')
    found = values.environment([str(file)], ["A=from flag", "TERM"], {"MINE": "1", "TERM": "xterm"})
    assert found == ["A=from flag", 'B="quoted"', "MINE=1", "C=indented", "TERM=xterm"]


@pytest.mark.parametrize("text", ["=x", "A B=1", "B C"])
def test_bad_variables_name_their_place(tmp_path: Path, text: str) -> None:
    """A line that is no variable is refused with file and line."""
    file = tmp_path / "env"
    file.write_text(f"OK=1\n{text}\n")
    with pytest.raises(UsageError, match=r"env:2: not a variable"):
        values.environment([str(file)], [], {})


def test_missing_env_file() -> None:
    """The file that cannot be read is named with the reason."""
    with pytest.raises(UsageError, match="/nowhere: No such file"):
        values.environment(["/nowhere"], [], {})


def test_networks(tmp_path: Path) -> None:
    """nat, none and an existing namespace file; everything else is refused."""
    (tmp_path / "ns").touch()
    assert values.network("nat") == ("nat", "")
    assert values.network(f"netns:{tmp_path}/ns") == ("netns", f"{tmp_path}/ns")
    for text in ("host", "bridge", "netns:", "netns:relative", f"netns:{tmp_path}/gone", "nat:x"):
        with pytest.raises(UsageError):
            values.network(text)


def test_security_options() -> None:
    """seccomp takes a file or unconfined, and no-new-privileges is known."""
    assert values.security([]) == ("", False)
    assert values.security(["seccomp=unconfined", "no-new-privileges"]) == ("unconfined", True)
    assert values.security(["seccomp=/etc/p.json"])[0] == "/etc/p.json"
    assert values.security(["seccomp:unconfined"])[0] == "unconfined"
    assert values.security(["label=disable", "apparmor=unconfined"]) == ("", False)
    for option in ("apparmor=x", "seccomp", "label=type:x", "no-new-privileges=x"):
        with pytest.raises(UsageError):
            values.security([option])


def test_annotations() -> None:
    """KEY=VALUE, the value may hold more equal signs."""
    assert values.annotation("a.b/c=d=e") == ("a.b/c", "d=e")
    with pytest.raises(UsageError):
        values.annotation("a")
