"""agent/linux/syscall_numbers.py against the host's kernel headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.linux import generate_syscall_numbers as generator
from agent.linux import syscall_numbers

HEADERS = Path("/usr/include/x86_64-linux-gnu/asm")
needs_headers = pytest.mark.skipif(
    not (HEADERS / "unistd_64.h").exists(), reason="no kernel headers: apt install linux-libc-dev"
)


@needs_headers
@pytest.mark.parametrize(("kind", "table"), [("64", syscall_numbers.X86_64), ("32", syscall_numbers.I386)])
def test_every_call_of_the_hosts_headers_is_in_the_table(kind: str, table: dict[str, int]) -> None:
    """The table may be newer than the host's headers, never older, and no number may differ."""
    host = generator.parse((HEADERS / f"unistd_{kind}.h").read_text())
    assert host
    assert {name: table.get(name) for name in host} == host


@needs_headers
def test_x32_numbers_follow_from_the_differences() -> None:
    """x86_64's numbers overlaid with the differences give x32's."""
    host = generator.parse((HEADERS / "unistd_x32.h").read_text())
    ours = syscall_numbers.X86_64 | syscall_numbers.X32_DIFFERENT
    assert {name: ours.get(name) for name in host} == host


@needs_headers
def test_the_generator_writes_loadable_tables() -> None:
    """What the generator prints is Python with the three tables in it."""
    module: dict[str, dict[str, int]] = {}
    exec(generator.generate(str(HEADERS)), module)
    assert module["X86_64"]["read"] == 0
    assert module["I386"]["read"] == 3
    assert module["X32_DIFFERENT"]["ioctl"] == 514
    assert max(map(len, generator.generate(str(HEADERS)).splitlines())) <= 120
