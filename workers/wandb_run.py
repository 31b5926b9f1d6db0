"""One W&B run a trial: how it is named, where it goes, and how another process ends it.

Importing this imports neither wandb nor torch; `python -m workers.wandb_run HOME STUDY TRIAL` ends
the run of a trial that died for good.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

#: How long a run may take to reach the server before it is left out.
_INIT_SECONDS: Final = 30.0


def start_run(home: Path, study: str, number: int, config: Mapping[str, Any]) -> Any:
    """Start the run of a trial, or go on with the one of an earlier attempt.

    Args:
        home: Offline runs go to its `wandb/`.
        study: Becomes the run's group.
        number: The trial's number.
        config: Becomes the run's configuration.

    Returns:
        A `wandb.Run`.
    """
    import wandb

    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "trialfleet"),
        group=study,
        name=f"{study}-{number}",
        id=f"{study}-{number}",
        resume="allow",
        config=dict(config),
        dir=str(home),  # it appends its own `wandb/`
        mode=mode(),
        settings=wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            init_timeout=_INIT_SECONDS,
        ),
    )


def mode() -> Any:
    """`WANDB_MODE` if it is set; else online with an API key, and offline without."""
    given = os.environ.get("WANDB_MODE")
    if given:
        return given
    return "online" if os.environ.get("WANDB_API_KEY") or _has_netrc_key() else "offline"


def _has_netrc_key() -> bool:
    import netrc

    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def main() -> None:
    """End the run of a trial as a failure."""
    home, study, number = sys.argv[1:]
    start_run(Path(home), study, int(number), {}).finish(exit_code=1)


if __name__ == "__main__":
    main()
