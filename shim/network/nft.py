"""The packet filter of the NAT network: its nftables table, as text and applied.

Owns: table `ip hako`. Must not know: addresses' owners. Called by nat.py. The table is always replaced as a
whole, in one transaction.
"""

from __future__ import annotations

import json
from typing import Any

from shim import process

TABLE = "hako"
TIMEOUT = 10.0


def ruleset(bridge: str, subnet: str) -> str:
    """The table as `nft -f -` reads it: containers get out, masked as the host; nobody gets in unasked."""
    return f"""\
table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {subnet} oifname != "{bridge}" masquerade
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname "{bridge}" ip saddr != {subnet} drop
		iifname "{bridge}" accept
		oifname "{bridge}" ct state established,related accept
		oifname "{bridge}" drop
	}}
}}
"""


def apply(bridge: str, subnet: str) -> None:
    """Put the table in place, replacing an older one. Raises process.CommandFailed."""
    try:
        process.run(["nft", "-f", "-"], TIMEOUT, ruleset(bridge, subnet).encode())
    except process.CommandFailed as failed:
        failed.hint = (
            "install the package nftables, or run with --network none" if failed.status == 127 else ""
        )
        raise


def remove() -> None:
    """Remove the table; none there is no error (declaring it first makes the deletion succeed)."""
    process.run(["nft", "-f", "-"], TIMEOUT, f"table ip {TABLE}\ndelete table ip {TABLE}\n".encode())


def blockers() -> list[str]:
    """Other base chains that drop forwarded IPv4 packets by default, such as Docker's or a firewall's.

    An accept in our table does not overrule them. Raises process.CommandFailed.
    """
    answer = json.loads(process.run(["nft", "-j", "list", "chains"], TIMEOUT))
    return blocking_chains(answer)


def blocking_chains(answer: dict[str, list[Any]]) -> list[str]:
    """`blockers` for the JSON of `nft -j list chains`."""
    chains = [entry["chain"] for entry in answer.get("nftables", []) if "chain" in entry]
    return [
        f"{chain['family']} {chain['table']} {chain['name']}"
        for chain in chains
        if chain.get("hook") == "forward"
        and chain.get("policy") == "drop"
        and chain["family"] in ("ip", "inet")
    ]
