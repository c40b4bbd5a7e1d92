#!/usr/bin/python3 -IS
"""PID 1 of the guest: /init in the image. Sets the module path up and hands over to the agent's main()."""
import sys

sys.path[:] = ["/usr/lib/hako", "/usr/lib/hako/site", *sys.path]
# upb imports collections.abc when it is loaded; it is this module (collections/__init__.py says so, too), and the
# package around it is not needed.
sys.modules["collections.abc"] = sys.modules.get("_collections_abc") or __import__("_collections_abc")

from agent.__main__ import main  # noqa: E402

main()
