"""The resolv.conf that containers on the NAT network get: the host's, without what they cannot reach. Pure.

Owns: that choice. Must not know: where the text comes from. Called by nat.py.
"""

from __future__ import annotations

import ipaddress

# In order; the second has the real servers where systemd-resolved listens on loopback.
SOURCES = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
MAX_SERVERS = 3  # resolv.conf(5), MAXNS


def servers(text: str) -> list[str]:
    """The addresses in `nameserver` lines."""
    rows = [line.split() for line in text.splitlines()]
    return [row[1] for row in rows if len(row) > 1 and row[0] == "nameserver"]


def reachable(server: str) -> bool:
    """Whether a container behind IPv4 NAT can reach it: no loopback (the host's own), no IPv6."""
    try:
        address = ipaddress.ip_address(server.partition("%")[0])
    except ValueError:
        return False
    return address.version == 4 and not address.is_loopback and not address.is_unspecified


def for_containers(texts: list[str]) -> tuple[str, str]:
    """resolv.conf made from the first of `texts` that names a reachable server, and a warning ("" if all is
    well).
    """
    for text in texts:
        usable = [server for server in servers(text) if reachable(server)]
        if usable:
            return _text(text, usable[:MAX_SERVERS]), ""
    named = ", ".join(server for text in texts for server in servers(text)) or "none"
    warning = (
        f"containers get no name server: none of the host's ({named}) can be reached from behind the NAT"
    )
    return _text(texts[0] if texts else "", []), warning


def _text(source: str, usable: list[str]) -> str:
    """`search`, `domain` and `options` of the source with these servers."""
    kept = [
        line.strip()
        for line in source.splitlines()
        if line.split()[:1] in (["search"], ["domain"], ["options"])
    ]
    return "".join(f"{line}\n" for line in [f"nameserver {server}" for server in usable] + kept)
