#!/usr/bin/python3 -IS
"""A vhost-device-vsock without a VM; the first word of this file's name as it was linked says how it behaves.

good    answers CONNECT with OK and echoes          refuse  closes after CONNECT
slow    answers after a second                      lie     answers with an endless line
die     says something and ends with status 4       never   makes no socket
busy    reads what the VMM tells it after half a second, and refuses until then
"""

import os
import socket
import sys
import threading
import time

MODE = os.path.basename(sys.argv[0]).split("-")[0]


def listen(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(8)
    return sock


def talk(peer: socket.socket) -> None:
    line = b""
    while not line.endswith(b"\n"):
        line += peer.recv(1)
    if MODE == "slow":
        time.sleep(1)
    if MODE == "lie":
        peer.sendall(b"O" * 1000)
    if MODE == "refuse" or (MODE == "busy" and not told.is_set()) or not line.startswith(b"CONNECT "):
        peer.close()
        return
    peer.sendall(b"OK 1024\nearly data" if MODE == "good" else b"OK 1024\n")
    while data := peer.recv(65536):
        peer.sendall(data)
    peer.close()


def read_late(vmm: socket.socket) -> None:
    time.sleep(0.5)
    vmm.recv(100)
    told.set()


told = threading.Event()
options = dict(word.split("=", 1) for word in sys.argv[sys.argv.index("--vm") + 1].split(","))
if MODE == "die":
    os.write(2, b"vhost: no such luck\n")
    sys.exit(4)
if MODE == "never":
    time.sleep(60)
hybrid = listen(options["uds-path"])
time.sleep(0.05)
vhost = listen(options["socket"])
vmm = vhost.accept()[0]
if MODE == "busy":
    threading.Thread(target=read_late, args=(vmm,), daemon=True).start()
while True:
    threading.Thread(target=talk, args=(hybrid.accept()[0],), daemon=True).start()
