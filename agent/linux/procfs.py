"""Facts from /proc: command line, mounts, network counters, memory.

Owns: the formats. Knows nothing of who asks. `root` is always the guest's /proc (another one in tests).
"""

from __future__ import annotations

PROC = "/proc"


def read(name: str, root: str = PROC) -> str:
    """The text of a file below /proc. Raises OSError."""
    with open(f"{root}/{name}", encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def kernel_parameters(root: str = PROC) -> dict[str, str]:
    """The kernel command line: name -> value, "" for a bare name; the last of equal names wins."""
    parameters = {}
    for word in read("cmdline", root).split():
        name, _, value = word.partition("=")
        parameters[name] = value
    return parameters


class Mount:
    """One line of mountinfo."""

    __slots__ = ("fstype", "options", "point", "root", "source")

    def __init__(self, root: str, point: str, options: str, fstype: str, source: str) -> None:
        self.root = root
        """path inside the file system that is mounted"""
        self.point = point
        self.options = options
        self.fstype = fstype
        self.source = source


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    if "\\" not in text:
        return text
    head, *pieces = text.split("\\")
    return head + "".join([chr(int(piece[:3], 8)) + piece[3:] for piece in pieces])


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts in the order in which they were made."""
    mounts = []
    for line in text.splitlines():
        words = line.split(" ")
        if len(words) < 10 or "-" not in words:
            continue
        dash = words.index("-", 6)
        root, point = _unescape(words[3]), _unescape(words[4])
        mounts.append(Mount(root, point, words[5], words[dash + 1], _unescape(words[dash + 2])))
    return mounts


def mounts(root: str = PROC) -> list[Mount]:
    """What this process sees mounted."""
    return parse_mountinfo(read("self/mountinfo", root))


def mount_points_below(path: str, root: str = PROC) -> list[str]:
    """Mount points at and below `path`, the last mounted first: the order to unmount them in."""
    inside = path.rstrip("/") + "/"
    return [
        mount.point
        for mount in reversed(mounts(root))
        if mount.point == path or mount.point.startswith(inside)
    ]


_NETWORK_FIELDS = (
    ("rx_bytes", 0), ("rx_packets", 1), ("rx_errors", 2), ("rx_dropped", 3),
    ("tx_bytes", 8), ("tx_packets", 9), ("tx_errors", 10), ("tx_dropped", 11),
)  # fmt: skip


def network_counters(root: str = PROC) -> dict[str, dict[str, int]]:
    """Counters by link name, with Kata's names of NetworkStats' fields."""
    found = {}
    for line in read("net/dev", root).splitlines():
        name, colon, numbers = line.partition(":")
        values = numbers.split()
        if colon and len(values) >= 12 and values[0].isdigit():
            found[name.strip()] = {key: int(values[index]) for key, index in _NETWORK_FIELDS}
    return found


def keyed(text: str) -> dict[str, int]:
    """Lines "Name: 5 kB" or "name 5" as numbers (kB stay kB); other lines are skipped."""
    found = {}
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found
