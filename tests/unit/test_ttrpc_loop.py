"""The epoll loop: readiness, timers, calls from other threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from agent.linux.loop import READABLE, WRITABLE, Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_readable_descriptor_calls_back(loop: Loop) -> None:
    """A callback runs when its descriptor is ready, with the events."""
    read, write = os.pipe()
    seen: list[int] = []
    loop.add(read, READABLE, seen.append)
    loop.run_once(0)
    assert seen == []
    os.write(write, b"x")
    loop.run_once(1)
    assert seen == [READABLE]
    loop.remove(read)
    loop.remove(read)
    loop.run_once(0)
    assert seen == [READABLE]


def test_descriptor_removed_within_the_batch_is_not_called(loop: Loop) -> None:
    """If one callback removes another ready descriptor, that one is not called any more."""
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def first(fd: int, other: int) -> None:
        called.append(fd)
        loop.remove(other)

    (a, _), (b, _) = pipes
    loop.add(a, READABLE, lambda _e: first(a, b))
    loop.add(b, READABLE, lambda _e: first(b, a))
    for _, write in pipes:
        os.write(write, b"x")
    loop.run_once(1)
    assert len(called) == 1


def test_removing_a_closed_descriptor_is_harmless(loop: Loop) -> None:
    """remove() after close() does not raise."""
    read, _write = os.pipe()
    loop.add(read, READABLE, lambda _e: None)
    os.close(read)
    loop.remove(read)


def test_modify_changes_the_events(loop: Loop) -> None:
    """modify() switches what is waited for."""
    _read, write = os.pipe()
    seen: list[int] = []
    loop.add(write, 0, seen.append)
    loop.run_once(0)
    assert seen == []
    loop.modify(write, WRITABLE)
    loop.run_once(1)
    assert seen == [WRITABLE]


def test_timers_run_in_order_and_cancelled_ones_never(loop: Loop) -> None:
    """Timers fire by time, not by order of creation; a cancelled one does not fire."""
    ran: list[str] = []
    loop.call_later(0.02, lambda: ran.append("late"))
    loop.call_later(0.0, lambda: ran.append("soon"))
    cancelled = loop.call_later(0.01, lambda: ran.append("never"))
    cancelled.cancel()
    cancelled.cancel()
    deadline = time.monotonic() + 2
    while len(ran) < 2 and time.monotonic() < deadline:
        loop.run_once(0.1)
    assert ran == ["soon", "late"]


def test_cancelled_timers_do_not_pile_up(loop: Loop) -> None:
    """A server that makes and cancels a timer per request keeps a bounded heap, and pending timers stay."""
    ran: list[int] = []
    loop.call_later(0.0, lambda: ran.append(1))
    for _ in range(1000):
        loop.call_later(3600, lambda: ran.append(2)).cancel()
    assert len(loop._timers) < 200
    loop.run_once(1)
    assert ran == [1]


def test_call_soon_from_a_callback_runs_in_the_next_round(loop: Loop) -> None:
    """call_soon() that posts itself again does not starve the loop."""
    count: list[int] = []

    def again() -> None:
        count.append(1)
        loop.call_soon(again)

    loop.call_soon(again)
    loop.run_once(0)
    assert count == [1]
    loop.run_once(None)
    assert count == [1, 1]


def test_other_thread_wakes_the_loop_and_stops_it(loop: Loop) -> None:
    """call_threadsafe() and stop() reach a loop that sleeps in epoll."""
    ran: list[int] = []
    thread = threading.Thread(target=loop.run)
    thread.start()
    for i in range(100):
        loop.call_threadsafe(lambda i=i: ran.append(i))  # type: ignore[misc]
    loop.call_threadsafe(loop.stop)
    thread.join(5)
    assert not thread.is_alive()
    assert ran == list(range(100))


def test_failing_callback_goes_to_on_error_and_the_loop_lives() -> None:
    """With on_error, an exception in a callback neither ends the loop nor hides the next callback."""
    errors: list[Exception] = []
    ran: list[int] = []
    loop = Loop(on_error=errors.append)
    loop.call_soon(lambda: [][0])
    loop.call_soon(lambda: ran.append(1))
    loop.run_once(0)
    loop.close()
    assert [type(exc) for exc in errors] == [IndexError]
    assert ran == [1]
