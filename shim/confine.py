"""What a child does to itself between fork and its program; executed by `python3 -IS`, never imported.

Owns: the steps that need a process of their own and that `setpriv` does not have:
resource limits, oom_score_adj, umask, working directory. Must not know: what is executed. Called by process.py
alone, which puts the other tools in front of the program.

    confine.py [rlimit=NOFILE:SOFT:HARD].. [oom_score_adj=N] [umask=OCTAL] [cwd=DIR] -- PROGRAM [ARG]

Words instead of JSON: importing json takes as long as the interpreter's start (5 ms each), and people can
paste this. A step that fails ends the process with status 126 and one line on stderr; a program that is not
there with 127. A limit above the hard limit and a lower oom_score_adj need CAP_SYS_RESOURCE; without it the
nearest allowed value is set.
"""

from __future__ import annotations

import posix
import sys

STEP_FAILED = 126
NOT_FOUND = 127


def main(words: list[str]) -> None:
    """Carry out the words before `--` in their order, then become the rest."""
    end = words.index("--")
    program = words[end + 1 :]
    for word in words[:end]:
        name, _, value = word.partition("=")
        try:
            STEPS[name](value)
        except OSError as exc:
            fail(word, exc, STEP_FAILED)
    try:
        posix.execv(program[0], program)
    except OSError as exc:
        fail(f"execute {program[0]}", exc, NOT_FOUND)


def fail(step: str, exc: OSError, status: int) -> None:
    posix.write(2, f"hako confine: {step}: {exc.strerror}\n".encode())
    posix._exit(status)


def set_rlimit(value: str) -> None:
    import resource

    name, soft, hard = value.split(":")
    kind = getattr(resource, f"RLIMIT_{name}")
    try:
        resource.setrlimit(kind, (int(soft), int(hard)))
    except ValueError:  # how Python words EPERM of setrlimit(2), and a soft limit above the hard one
        ceiling = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (min(int(soft), ceiling), ceiling))


def set_oom_score_adj(value: str) -> None:
    fd = posix.open("/proc/self/oom_score_adj", posix.O_WRONLY)
    try:
        posix.write(fd, value.encode())
    except PermissionError:
        pass  # lowering it needs CAP_SYS_RESOURCE, which a nested host may not have
    finally:
        posix.close(fd)


def set_umask(value: str) -> None:
    posix.umask(int(value, 8))


STEPS = {
    "rlimit": set_rlimit,
    "oom_score_adj": set_oom_score_adj,
    "umask": set_umask,
    "cwd": posix.chdir,
}

if __name__ == "__main__":
    main(sys.argv[1:])
