#!/usr/bin/python3 -IS
"""A VMM that misbehaves: executed in QEMU's place with QEMU's command line; the VM's name says how.

die        says something on stderr and ends with status 3         hang     says nothing at all silent
answers QMP, but its guest never says hello             hello    boots at once split      its hello
comes byte by byte, between other lines       garbage  says hello, and nonsense on QMP endless    fills
the console for ever                              stubborn hello, but ignores quit and SIGTERM
older    says hello in the words of another version
hasty    rests for a second by its own clock, which is four times too fast, and may be saved then
"""

import os
import signal
import sys
import time

LEVEL = b"4"  # agent.api.LEVEL; a test compares
HELLO = b"hako-agent: ready " + LEVEL + b"\n"


def descriptor(name: str) -> int:
    prefix = f"socket,id={name},fd="
    return int(next(word for word in sys.argv if word.startswith(prefix))[len(prefix) :])


def serve(qmp: int, answer: bytes) -> None:
    os.write(qmp, b'{"QMP": {}}\r\n')
    buffer = b""
    while data := os.read(qmp, 65536):
        buffer += data
        while b"\r\n" in buffer:
            line, buffer = buffer.split(b"\r\n", 1)
            number = line.rpartition(b'"id": ')[2].rstrip(b"}")
            os.write(qmp, answer.replace(b"%d", number))
            if b'"quit"' in line and MODE != "stubborn":
                return


MODE = sys.argv[sys.argv.index("-name") + 1].split(",")[0]
CONSOLE, QMP = descriptor("console"), descriptor("qmp")
if MODE == "die":
    os.write(2, b"qemu: no such luck\n")
    sys.exit(3)
if MODE == "hang":
    time.sleep(60)
if MODE == "split":
    for byte in b"[0.1] first line\r\nlast line\r\n" + HELLO:
        os.write(CONSOLE, bytes([byte]))
        time.sleep(0.001)
if MODE == "endless":
    while True:
        os.write(CONSOLE, b"x" * 5000 + b"\n" + b"y" * 5000)
if MODE == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if MODE == "hasty":
    os.write(CONSOLE, b"hako-agent: rests 1000\r\n")
    time.sleep(0.25)
    os.write(CONSOLE, b"hako-agent: template " + LEVEL + b"\r\n")
if MODE == "older":
    os.write(CONSOLE, b"hako-agent: ready\r\n")
if MODE in ("hello", "garbage", "stubborn"):
    os.write(CONSOLE, HELLO)
serve(QMP, b"\x00\xff{{{\r\n" if MODE == "garbage" else b'{"return": {}, "id": %d}\r\n')
if MODE == "stubborn":
    time.sleep(60)
