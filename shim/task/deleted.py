"""The answer to `delete` for a container that was deleted by its pod's process, left in the bundle for who is executed next.

Owns: that file. containerd executes `containerd-shim-hako-v2 delete` in the bundle after each ordinary delete, and waits for
it: where the file is, nothing of the container or its pod is left on the host, and the launcher (shim/install/launcher.py) says
what is in it without starting Python. Must not know: how things are taken away. Written upon Shutdown (service.py), which
comes between the two; taken away by `start` (bootstrap.py), as a bundle may be used again.
"""

from __future__ import annotations

import os

from shim.paths import ANSWER_FILE


def leave(bundle: str, answer: bytes) -> None:
    """Leave the serialized DeleteResponse, unless the container's root is still mounted or the bundle has gone."""
    path = os.path.join(bundle, ANSWER_FILE)
    draft = f"{path}.new"
    try:
        if os.path.ismount(os.path.join(bundle, "rootfs")):
            return
        with open(draft, "wb") as stream:
            stream.write(answer)
        os.rename(draft, path)
    except OSError:  # `delete` looks by itself then
        pass


def forget(bundle: str) -> None:
    """The bundle is about to be used."""
    try:
        os.unlink(os.path.join(bundle, ANSWER_FILE))
    except OSError:
        pass
