"""Reading a container's log."""

from __future__ import annotations

from pathlib import Path

from shim.cli import crilog

TIME = "2026-11-23T09:00:00.000000001Z"


def _line(text: str, stream: str = "stdout", tag: str = "F") -> str:
    return f"{TIME} {stream} {tag} {text}\n"


def _printed(entries: list[crilog.Entry], *, timestamps: bool = False) -> dict[str, bytes]:
    found = {"stdout": b"", "stderr": b""}

    def put(stream: str, data: bytes) -> None:
        found[stream] += data

    crilog.write(entries, put, timestamps=timestamps)
    return found


def test_output_comes_back_as_it_was(tmp_path: Path) -> None:
    """Blanks, empty lines, pieces of a long line and output without a last newline survive."""
    log = tmp_path / "log"
    log.write_text(_line("a  b ") + _line("") + _line("x", tag="P") + _line("y") + _line("end", tag="P"))
    assert _printed(list(crilog.read(str(log))))["stdout"] == b"a  b \n\nxy\nend"


def test_streams_stay_apart(tmp_path: Path) -> None:
    """stderr's lines are not stdout's."""
    log = tmp_path / "log"
    log.write_text(_line("out") + _line("err", "stderr"))
    assert _printed(list(crilog.read(str(log)))) == {"stdout": b"out\n", "stderr": b"err\n"}


def test_the_predecessor_comes_first(tmp_path: Path) -> None:
    """After a rotation, what was rotated away is still read, before the rest."""
    log = tmp_path / "log"
    log.write_text(_line("new"))
    (tmp_path / "log.1").write_text(_line("old"))
    assert _printed(list(crilog.read(str(log))))["stdout"] == b"old\nnew\n"


def test_no_log_is_empty(tmp_path: Path) -> None:
    """A container that has not printed has no file yet."""
    assert list(crilog.read(str(tmp_path / "none"))) == []


def test_lines_that_are_none_are_left_out(tmp_path: Path) -> None:
    """A line that a crash cut off does not break the rest."""
    log = tmp_path / "log"
    log.write_text(f"{TIME} std\n\ngarbage\n" + _line("ok"))
    assert _printed(list(crilog.read(str(log))))["stdout"] == b"ok\n"


def test_the_last_lines_count_pieces_as_one(tmp_path: Path) -> None:
    """--tail 2 shows two lines, in however many pieces they came, with the streams interleaved."""
    log = tmp_path / "log"
    log.write_text(
        _line("1")
        + _line("2a", tag="P")
        + _line("e", "stderr")
        + _line("2b")
        + _line("3a", tag="P")
        + _line("3b")
    )
    entries = list(crilog.read(str(log)))
    assert _printed(crilog.last(entries, 2)) == {"stdout": b"3a3b\n", "stderr": b"e\n"}
    assert _printed(crilog.last(entries, 3))["stdout"] == b"2a2b\n3a3b\n"
    assert crilog.last(entries, 0) == []


def test_timestamps(tmp_path: Path) -> None:
    """--timestamps puts the time of each entry before it."""
    log = tmp_path / "log"
    log.write_text(_line("a"))
    assert _printed(list(crilog.read(str(log))), timestamps=True)["stdout"] == f"{TIME} a\n".encode()


def test_following_sees_every_line_once_across_a_rotation(tmp_path: Path) -> None:
    """Lines before and after a rotation arrive in order, each once, and a half line only when whole."""
    log = tmp_path / "log"
    log.write_text(_line("before"))
    follower = crilog.Follower(str(log))
    assert _printed(follower.so_far())["stdout"] == b"before\n"
    with log.open("a") as stream:
        stream.write(_line("1") + _line("2")[:-3])
        stream.flush()
        assert _printed(follower.poll())["stdout"] == b"1\n"
        stream.write(_line("2")[-3:])
    log.rename(tmp_path / "log.1")
    assert _printed(follower.poll())["stdout"] == b"2\n"
    log.write_text(_line("3"))
    assert _printed(follower.poll())["stdout"] == b"3\n"
    assert follower.poll() == []
    follower.close()


def test_following_begins_before_the_first_output(tmp_path: Path) -> None:
    """A log that is not there yet is waited for; its predecessor counts as printed so far."""
    follower = crilog.Follower(str(tmp_path / "log"))
    assert follower.so_far() == []
    (tmp_path / "log").write_text(_line("first"))
    assert _printed(follower.poll())["stdout"] == b"first\n"
    follower.close()
