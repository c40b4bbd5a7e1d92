"""Containers on the distribution's kernel, which `make run` starts with: all that it needs is in modules.

What containers load on demand (packet filters) is checked on our own kernel too, where it is built in.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework import guests
from tests.framework.hako import Hako, Result, installation

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test"),
]
PLUGINS = Path("/usr/lib/x86_64-linux-gnu/xtables")
NFT = """
table ip t {
  chain input {
    type filter hook input priority 0; policy accept;
    ct state established,related counter accept
    tcp dport { 22, 80 } limit rate 10/second accept
    ip saddr 10.0.0.0/8 reject with icmp type host-unreachable
  }
  chain postrouting {
    type nat hook postrouting priority 100;
    oifname "eth0" masquerade
  }
  chain prerouting {
    type nat hook prerouting priority -100;
    tcp dport 8080 redirect to :80
  }
}
"""
IPTABLES = (
    "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -m comment --comment known -j ACCEPT",
    "-A INPUT -p tcp -m multiport --dports 22,80 -m limit --limit 5/s -j ACCEPT",
    "-A INPUT -p tcp -j REJECT --reject-with tcp-reset",
    "-t mangle -A OUTPUT -m owner --uid-owner 0 -j MARK --set-mark 7",
)
ONLY_IPV4 = ("-t nat -A POSTROUTING -s 10.1.0.0/16 -j MASQUERADE", "-t nat -A OUTPUT -p tcp --dport 90 -j DNAT --to 10.1.0.9:91")


@pytest.fixture(scope="module")
def filters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with busybox and the machine's nft and iptables."""
    root = tmp_path_factory.mktemp("filters") / "root"
    programs = [shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("nft", "xtables-nft-multi")]
    if None in programs:
        pytest.skip("needs nft and iptables: apt install nftables iptables")
    plugins = [str(path) for path in PLUGINS.glob("*.so")]
    said = subprocess.run(["ldd", *map(str, programs), *plugins], check=True, capture_output=True, text=True).stdout
    libraries = {word for word in said.split() if word.startswith("/") and not word.endswith(":")}
    for path in {*map(str, programs), *plugins, *libraries, "/bin/busybox"}:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for name in ("sh", "sleep"):
        (root / "bin" / name).symlink_to("busybox")
    for name in ("iptables", "ip6tables"):
        (root / "usr/sbin" / name).symlink_to("xtables-nft-multi")
    (root / "run").mkdir()
    (root / "rules").write_text(NFT)
    return root


@pytest.fixture(scope="module", params=["stock", "guest"])
def kernel(request: pytest.FixtureRequest) -> str:
    """Which of build.py's guests boots."""
    return str(request.param)


@pytest.fixture(scope="module")
def hako(kernel: str) -> Iterator[Hako]:
    """A user of hako whose configuration names that guest."""
    built = guests.build(kernel)
    lines = [f'{key} = "{built[key]}"' for key in ("kernel", "image", "initrd") if built[key]]
    with installation("\n".join(["[guest]", *lines, ""])) as hako:
        yield hako


@pytest.fixture(scope="module")
def box(hako: Hako, filters: Path) -> str:
    """A container that may filter packets, running."""
    return hako.detached("--cap-add", "NET_ADMIN", "--rootfs", str(filters), "sleep", "1000")


def test_a_container_runs_on_this_kernel(hako: Hako, kernel: str, tmp_path: Path) -> None:
    """Image, volume, output of more than one packet, status; the kernel is the one that build.py named."""
    (tmp_path / "file").write_text("from the host\n")
    script = "uname -r; cat /data/file; seq 20000; exit 4"
    done = hako.run("run", "--rm", "--network", "none", "-v", f"{tmp_path}:/data", hako.image, "sh", "-c", script)
    numbers = "".join(f"{number}\n" for number in range(1, 20001))
    assert (done.stdout, done.returncode) == (f"{guests.build(kernel)['version']}\nfrom the host\n{numbers}", 4), done.stderr


def test_a_root_on_a_disk(hako: Hako, tmp_path: Path) -> None:
    """Without a shared file system: the disk is found, erofs and overlay are there (as modules, on this kernel)."""
    settings = tmp_path / "none.toml"
    settings.write_text((hako.directory / "hako.toml").read_text() + '[share]\nshared_fs = "none"\n')
    script = "echo x > /bin/new; cat /bin/new; grep -c virtiofs /proc/mounts"
    words = ("run", "--rm", "--network", "none", hako.image, "sh", "-c", script)
    assert hako.run(*words, HAKO_CONFIG=str(settings)).stdout == "x\n0\n"


def test_nft(hako: Hako, box: str) -> None:
    """Filter, connection tracking, limit, sets and NAT in a container's own network namespace."""
    done = hako.run("exec", box, "nft", "-f", "/rules")
    assert done.returncode == 0, done.stderr
    listed = hako.run("exec", box, "nft", "list", "ruleset", check=True).stdout
    for part in ("ct state established,related", "limit rate 10/second", "masquerade", "redirect to :80", "reject with icmp"):
        assert part in listed


def _rule(hako: Hako, box: str, program: str, rule: str) -> Result:
    return hako.run("exec", box, program, *rule.split())


@pytest.mark.parametrize("program", ["iptables", "ip6tables"])
def test_iptables(hako: Hako, box: str, program: str) -> None:
    """The matches and targets that service meshes and nested runtimes use."""
    rules = IPTABLES + (ONLY_IPV4 if program == "iptables" else ())
    failed = {rule: done.stderr for rule in rules if (done := _rule(hako, box, program, rule)).returncode}
    assert not failed
    shown = _rule(hako, box, program, "-S INPUT").stdout
    assert re.search(r"ctstate.*--comment.*-j ACCEPT", shown) and "tcp-reset" in shown
