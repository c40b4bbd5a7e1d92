"""Executed as `python3 -IS logger_exec.py FD... PROGRAM ARGUMENT...`: puts three descriptors where a logger
expects them.

Owns: that renumbering (posix_spawn in process.py keeps numbers). The three are the ends of stdout, stderr
and "ready", which become 3, 4 and 5 as containerd's logging convention has it. Never imported.
"""

import os
import sys

FIRST = 3


def main(arguments: list[str]) -> None:
    """Renumber and become the program."""
    given = [int(word) for word in arguments[:3]]
    above = max(*given, FIRST + len(given)) + 1
    copies = [os.dup2(fd, above + at) for at, fd in enumerate(given)]  # out of the way of each other
    for at, fd in enumerate(copies):
        os.dup2(fd, FIRST + at)
    os.closerange(FIRST + len(given), above + len(given))
    os.execv(arguments[3], arguments[3:])


if __name__ == "__main__":
    main(sys.argv[1:])
