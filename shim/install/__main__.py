"""What the Makefile calls: python -m shim.install prepare | prepare-tests | run | kernel | install | uninstall.

Owns: the arguments. The work is in checkout.py and prefix.py.
"""

from __future__ import annotations

import argparse
import os
import sys

from shim.errors import HakoError
from shim.install import checkout, prefix


def main() -> int:
    """Run one of them; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m shim.install")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("prepare", "prepare-tests", "run", "kernel"):
        verbs.add_parser(name)
    for name in ("install", "uninstall"):
        verb = verbs.add_parser(name)
        verb.add_argument("--prefix", required=True)
        verb.add_argument("--user", default="")
        verb.add_argument("--keep-cache", action="store_true")
    arguments = parser.parse_args()
    try:
        _require_root(arguments.verb)
        return _do(arguments)
    except (HakoError, OSError) as exc:
        print(f"hako: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hako: interrupted", file=sys.stderr)
        return 130


def _require_root(verb: str) -> None:
    """Raises HakoError for everybody else; who has a cache of his own may fill it."""
    if os.geteuid() == 0 or (verb in ("prepare", "prepare-tests", "kernel") and "HAKO_CACHE_DIR" in os.environ):
        return
    raise HakoError("this needs root", hint="sudo make ...")


def _do(arguments: argparse.Namespace) -> int:
    if arguments.verb == "prepare":
        checkout.prepare()
    elif arguments.verb == "prepare-tests":
        checkout.prepare_tests()
    elif arguments.verb == "kernel":
        checkout.build_kernel()
    elif arguments.verb == "run":
        return checkout.show_a_container()
    elif arguments.verb == "install":
        _install(prefix.target(arguments.prefix, arguments.user))
    else:
        _uninstall(prefix.target(arguments.prefix, arguments.user), keep_cache=arguments.keep_cache)
    return 0


def _install(place: prefix.Target) -> None:
    prefix.install(place, checkout.ROOT, checkout.installed_files())
    print(f"hako is in {place.home}; the commands in {place.bin}:")
    print(f"  {place.bin}/hako check")


def _uninstall(place: prefix.Target, *, keep_cache: bool) -> None:
    left = prefix.uninstall(place, keep_cache=keep_cache)
    print(f"hako is gone from {place.prefix}; distribution packages stay.")
    for path in left:
        print(f"  kept: {path}")


if __name__ == "__main__":
    sys.exit(main())
