"""`python -m agent`, and what the guest's /usr/lib/hako/init.py calls. The agent's life is agent.start."""

from __future__ import annotations

import gc
import sys


def main(arguments: list[str] | None = None) -> int:
    """See agent.start.run. Importing makes no garbage, so nobody looks for it meanwhile (a tenth of the time)."""
    gc.disable()
    from agent import start

    return start.run(arguments or [])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
