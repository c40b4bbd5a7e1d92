"""The parts of a machine live and die together: the VMM, its daemons, the connection to the agent.

Owns: noticing the first end, which is the reason of the others, and ending the rest at once, also while the machine is
still being built: a guest whose virtiofsd is gone would wait for it as long as our deadlines are. Must not know: what
the parts are. Fed by builder.py, asked by machine.py. Thread-safe; `watch`'s callbacks come in the watching thread,
which must not wait, so that ending is done in a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from shim import errors
from shim.hypervisor.base import HELLO
from shim.process import describe_status

KILLED = -9  # as Child.poll has it: SIGKILL, which nobody sends himself
LINES = 3  # of the console of a guest that has ended
VMM_FIRST = 1.0  # seconds for the end of a VMM, which holds the guest's memory, to be told


class Fate:
    """See the module. `reason` is "" as long as nothing has ended; `killed`: somebody outside has ended the first part.

    What ends `outer` ends this, but not the other way.
    """

    def __init__(self, outer: Fate | None = None) -> None:
        self.reason = ""
        self.killed = False
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._released = False
        self._endings: list[Callable[[], object]] = []
        self._daemons: list[Callable[[], object]] = []
        self._told: Callable[[str], None] | None = None
        if outer is not None:
            outer.also(lambda: self.end(outer.reason))

    def watch_vmm(
        self,
        on_exit: Callable[[Callable[[], None]], object],
        status: Callable[[], int | None],
        reason: Callable[[], str],
    ) -> None:
        """The VMM: `on_exit` takes what is called when it has ended, and `reason` then says so in words."""
        on_exit(lambda: self.end(reason(), killed=status() == KILLED))

    def watch_daemon(
        self,
        name: str,
        on_exit: Callable[[Callable[[], None]], object],
        status: Callable[[], int | None],
        kill: Callable[[], object],
    ) -> None:
        """A daemon; `status` is as Child.poll gives it, `kill` does not wait.

        One that ends by itself does so because the VMM has gone, whose end is told a little later (the kernel closes a
        process's connections before it lets anybody know of its end).
        """

        def ended() -> None:
            found = status()
            reason = f"{name} {describe_status(found)}"
            if found is not None and found < 0:
                self.end(reason, killed=found == KILLED)
            else:
                _in_thread(lambda: self._end_later(reason))

        self._daemons.append(kill)
        on_exit(ended)

    def also(self, ending: Callable[[], object]) -> None:
        """`ending` is called when a part has ended by itself, or now if one has. It may be called at any time."""
        with self._guard:
            ended = bool(self.reason)
            self._endings.append(ending)
        if ended:
            _in_thread(ending)

    def end(self, reason: str, *, killed: bool = False) -> None:
        """A part has ended; nothing after `release`."""
        with self._guard:
            if self._released or self.reason:
                return
            self.reason, self.killed = reason, killed
            endings, told = tuple(self._endings), self._told
        self._ended.set()
        _in_thread(*endings, *([lambda: told(reason)] if told is not None else []))

    def _end_later(self, reason: str) -> None:
        if not self.wait(VMM_FIRST):
            self.end(reason)

    def wait(self, timeout: float) -> bool:
        """Whether a part has ended, waiting for that `timeout` seconds."""
        return self._ended.wait(timeout)

    def why(self, timeout: float) -> str:
        """The reason, waited for `timeout` seconds."""
        self.wait(timeout)
        return self.reason

    def tell(self, told: Callable[[str], None]) -> None:
        """Call `told(reason)` once, in a thread of its own, when everything has been ended."""
        with self._guard:
            self._told = told
            reason = self.reason
        if reason:
            _in_thread(lambda: told(reason))

    def release(self) -> None:
        """From now on ends are meant; nobody needs to wait for one any more."""
        with self._guard:
            self._released = True
        self._ended.set()

    def dismiss(self) -> None:
        """Nothing is wanted of the daemons any more. All that map the guest's memory end beside each other: it takes 10 ms."""
        self.release()
        for kill in self._daemons:
            kill()


def _in_thread(*actions: Callable[[], object]) -> None:
    def work() -> None:
        for action in actions:
            action()

    threading.Thread(target=work, name="hako-machine-end", daemon=True).start()


def last_words(console: str) -> str:
    """What a guest said last, as the rest of a sentence about its end; "" if it said nothing."""
    said = errors.last_lines(console.replace(HELLO, ""), LINES)
    return f"; guest console: {said}" if said else ""
