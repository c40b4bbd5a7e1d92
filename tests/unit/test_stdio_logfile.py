"""The log of a detached container: the CRI's format, pieces, rotation."""

from __future__ import annotations

import re
from pathlib import Path

from shim.stdio.logfile import LogFile, timestamp


def records(path: Path) -> list[tuple[str, str, str]]:
    """(stream, tag, text) of every line; the time must be RFC 3339 with nanoseconds."""
    found = []
    for line in path.read_text().splitlines():
        match = re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) (.*)", line)
        assert match, line
        found.append((match[1], match[2], match[3]))
    return found


def test_lines_become_records(tmp_path: Path) -> None:
    """A line that comes in pieces is one record; an empty line is a record too."""
    log = LogFile(str(tmp_path / "a/log"), "stdout")
    for chunk in (b"one\ntw", b"o\n", b"\nthree\n"):
        log.write(chunk)
    assert records(tmp_path / "a/log") == [("stdout", "F", text) for text in ("one", "two", "", "three")]


def test_what_has_no_newline_is_a_partial_record(tmp_path: Path) -> None:
    """A prompt at the end is not lost: tag P."""
    log = LogFile(str(tmp_path / "log"), "stdout")
    log.write(b"$ ")
    log.close()
    log.close()
    assert records(tmp_path / "log") == [("stdout", "P", "$ ")]


def test_long_lines_are_cut(tmp_path: Path) -> None:
    """Pieces of 16 KiB with tag P, the last one F; together they are the line."""
    line = "x" * 40000
    log = LogFile(str(tmp_path / "log"), "stderr")
    log.write(line.encode() + b"\n")
    found = records(tmp_path / "log")
    assert [tag for _, tag, _ in found] == ["P", "P", "F"]
    assert "".join(text for _, _, text in found) == line


def test_a_line_without_end_does_not_stay_in_memory(tmp_path: Path) -> None:
    """It is written as it grows."""
    log = LogFile(str(tmp_path / "log"), "stdout")
    for _ in range(4):
        log.write(b"y" * 10000)
    assert [tag for _, tag, _ in records(tmp_path / "log")] == ["P", "P"]


def test_rotation_keeps_one_predecessor(tmp_path: Path) -> None:
    """A file over the limit becomes NAME.1; the one before that is gone; no record is torn."""
    log = LogFile(str(tmp_path / "log"), "stdout", limit=1000)
    for number in range(100):
        log.write(b"line %03d\n" % number)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["log", "log.1"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    kept = records(tmp_path / "log.1") + records(tmp_path / "log")
    assert [text for _, _, text in kept] == [f"line {n:03d}" for n in range(100 - len(kept), 100)]


def test_streams_share_a_file(tmp_path: Path) -> None:
    """stdout and stderr go into one file, which rotates once and closes with the last of them."""
    out = LogFile(str(tmp_path / "log"), "stdout")
    err = out.stream("stderr")
    out.write(b"a\n")
    err.write(b"b\n")
    out.close()
    err.write(b"c\n")
    err.close()
    assert records(tmp_path / "log") == [("stdout", "F", "a"), ("stderr", "F", "b"), ("stderr", "F", "c")]


def test_appends_to_what_is_there(tmp_path: Path) -> None:
    """A container that starts again goes on in its log."""
    for word in (b"1\n", b"2\n"):
        log = LogFile(str(tmp_path / "log"), "stdout")
        log.write(word)
        log.close()
    assert [text for _, _, text in records(tmp_path / "log")] == ["1", "2"]


def test_timestamp() -> None:
    """Nanoseconds are nine digits."""
    assert timestamp(1_000_000_007) == "1970-01-01T00:00:01.000000007Z"


def test_a_full_disk_costs_the_log_alone() -> None:
    """What cannot be written is lost; whoever wrote it goes on."""
    log = LogFile("/dev/full", "stdout")
    log.write(b"lost\n" * 1000)
    log.write(b"and this")
    log.close()
