"""The console script's first step: an interrupt is one line also while the rest is imported."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from orchestrator.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("trialfleet: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
