"""One W&B run a trial: how it is named, where it goes, and how another process ends it.

Importing this imports neither wandb nor torch; `command_to_end` is a
process that ends the run of a trial that died for good.
"""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from workers.protocol.study_options import WandbSpec

Mode: TypeAlias = Literal["online", "offline", "disabled"]

#: Where W&B is, unless `WANDB_BASE_URL` says so.
_CLOUD: Final = "https://api.wandb.ai"

#: How long a run may take to reach the server before it is left out.
_INIT_SECONDS: Final = 30.0


def mode(asked: WandbSpec | None = None) -> Mode:
    """Whether a trial has a run, and where it goes.

    A worker whose `WANDB_MODE` is `disabled` has none. Else the study's word counts, then
    `WANDB_MODE`; then there are runs where there are credentials, or where the study asks for them.

    Args:
        asked: What the study says, if anything.
    """
    given = os.environ.get("WANDB_MODE", "").strip().lower()
    if given == "disabled":
        return "disabled"
    if asked is not None and asked.mode is not None:
        return asked.mode
    if given:
        return "offline" if given in {"offline", "dryrun"} else "online"
    if has_credentials():
        return "online"
    return "disabled" if asked is None else "offline"


def has_credentials() -> bool:
    """Whether W&B would find a key or a token, where it looks for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _CLOUD).netloc
    try:
        found = netrc.netrc(_netrc_file()).authenticators(host)
    except (OSError, RuntimeError, netrc.NetrcParseError):  # none, none readable, no HOME
        return False
    return found is not None and bool(found[2])


def _netrc_file() -> Path:
    given = os.environ.get("NETRC")
    if given:
        return Path(given).expanduser()
    found = Path("~/.netrc").expanduser()
    return found if found.exists() else Path("~/_netrc").expanduser()


def start_run(
    home: Path,
    study: str,
    number: int,
    config: Mapping[str, Any],
    asked: WandbSpec | None = None,
    generation: str | None = None,
) -> Any:
    """Start the run of a trial, or go on with the one of an earlier attempt.

    Args:
        home: Offline runs go to its `wandb/`.
        study: Becomes the run's group.
        number: The trial's number.
        config: Becomes the run's configuration.
        asked: What the study asks of W&B.
        generation: Tells the study from a deleted one of its name, whose runs stay as they are.

    Returns:
        A `wandb.Run`.
    """
    import wandb

    asked = asked or WandbSpec()
    return wandb.init(
        project=asked.project or os.environ.get("WANDB_PROJECT", "trialfleet"),
        entity=asked.entity,
        tags=asked.tags or None,
        group=study,
        name=f"{study}-{number}",
        id=f"{study}-{number}{f'-{generation[:8]}' if generation else ''}",
        resume="allow",
        config=dict(config),
        dir=str(home),  # it appends its own `wandb/`
        mode=mode(asked),
        settings=wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            init_timeout=_INIT_SECONDS,
        ),
    )


def command_to_end(
    home: Path,
    study: str,
    number: int,
    asked: WandbSpec | None,
    generation: str | None,
    exit_code: int = 1,
) -> list[str]:
    """The command that ends the run of a trial; by default as a failure."""
    words = [str(home), study, str(number), (asked or WandbSpec()).model_dump_json()]
    words += [generation or "", str(exit_code)]
    return [sys.executable, "-m", "workers.wandb_run", *words]


def main() -> None:
    """End the run of a trial."""
    home, study, number, asked_json, generation, exit_code = sys.argv[1:]
    asked = WandbSpec.model_validate_json(asked_json)
    run = start_run(Path(home), study, int(number), {}, asked, generation)
    run.finish(exit_code=int(exit_code))


if __name__ == "__main__":
    main()
