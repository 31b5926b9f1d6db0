"""Commands that act on a live study: pause, resume, stop, cancel, extend, enqueue, retry.

Each may be given twice, or by two people at once: the second one sees what the first one did.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.options import NameArgument
from orchestrator.commands.points import best_points, read_points
from orchestrator.handle import StudyHandle
from orchestrator.status import StudyStatus
from orchestrator.submission.overrides import extension_fields
from orchestrator.submission.widening import news_of
from orchestrator.views.json_output import JsonOption, print_json
from orchestrator.views.study_text import asked_end
from orchestrator.views.ways_on import ways_on
from workers.protocol.errors import InvalidInputError

control_app = typer.Typer()


@control_app.command()
def pause(
    name: NameArgument,
    now: Annotated[
        bool,
        typer.Option(
            "--now", help="End also trials that never report, after 30 s; they begin again later."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Pause a study: its trials save a checkpoint and go back to the queue; nothing is lost.

    A trial whose objective never reports runs to its end, unless you say --now. The time that a
    study is paused does not count against its `timeout`.

    Example: trialfleet pause language-id && trialfleet resume language-id
    """
    _tell(StudyHandle(name).pause(now=now), as_json=as_json)


@control_app.command()
def resume(name: NameArgument, as_json: JsonOption = False) -> None:
    """Go on with a study that was paused, stopped or cancelled; trials that ended stay so.

    Example: trialfleet resume language-id
    """
    _tell(StudyHandle(name).resume(), as_json=as_json)


@control_app.command()
def stop(name: NameArgument, as_json: JsonOption = False) -> None:
    """Begin no further trial of a study; those that have begun go to their end.

    Example: trialfleet stop language-id && trialfleet watch language-id
    """
    _tell(StudyHandle(name).stop(), as_json=as_json)


@control_app.command()
def cancel(name: NameArgument, as_json: JsonOption = False) -> None:
    """End a study now: running trials end as cancelled, and what they made is kept.

    A trial whose objective does not end within 30 s is ended.

    Example: trialfleet cancel language-id
    """
    _tell(StudyHandle(name).cancel(), as_json=as_json)


@control_app.command()
def extend(
    name: NameArgument,
    trials: Annotated[int | None, typer.Option("--trials", help="Trials in all.")] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", help="Of all its time: 90m, 2h, 1h30m, 1d.")
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option("--space", metavar="FILE", help="A study file, or one of a space: the whole."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Of what may change: space.dropout.high=0.6, budget.slot_hours=8, share.weight=2.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Have a study run for longer or in a wider space, also one that is over.

    By --set, all that may change while it runs does: timeout, budget, stop, share, resources.queue,
    trial_timeout, max_failures and others; `null` is none, as in stop.target=null. More trials
    are refused where something else has ended it, such as its target: set that, too.

    A space becomes wider by further choices, lower or higher bounds, and new parameters. The trials
    that there are keep their numbers and values in it; as they were, they are kept in the storage
    as NAME@1. A space that is narrower is refused.

    Example: trialfleet extend language-id --trials 80 --timeout 4h

    Example: trialfleet extend language-id --trials 80 --set space.learning_rate.high=0.1

    Example: trialfleet extend language-id --set stop.target=0.98 --set budget.slot_hours=12
    """
    handle = StudyHandle(name)
    before = handle.spec()
    changes, wider = extension_fields(before, space, settings or [])
    asked = {"trials": trials, "timeout": timeout} | changes
    after = handle.extend(space=wider, **asked)
    notes = [] if wider is None else news_of(before, after)
    _tell(handle.status(), as_json=as_json)
    if not as_json:
        for note in notes:
            print(note)


@control_app.command()
def enqueue(
    name: NameArgument,
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE...] [FILE...]",
            help="One trial's parameters, or YAML or JSON files with a mapping for each trial.",
        ),
    ] = None,
    best: Annotated[
        int, typer.Option("--best", help="The parameters of so many best trials of --from.")
    ] = 0,
    source: Annotated[
        str | None, typer.Option("--from", metavar="OTHER", help="The study whose best to take.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Have trials run with parameters of yours, on top of the study's `trials`.

    What you leave open, the sampler draws. The same parameters are run once, however often they are
    enqueued; if one of them does not suit the study's space, none is.

    Example: trialfleet enqueue language-id learning_rate=3e-4 batch_size=32

    Example: trialfleet enqueue language-id points.yaml --best 3 --from earlier-study
    """
    handle = StudyHandle(name)
    points = [*read_points(given or []), *best_points(handle, best, source)]
    if not points:
        raise InvalidInputError(
            "enqueue what? Give NAME=VALUE, a YAML or JSON file, or --best K --from OTHER"
        )
    count = handle.enqueue(*points)
    if as_json:
        print_json({"study": name, "given": len(points), "new": count})
    else:
        known = "" if count == len(points) else f" ({len(points) - count} known already)"
        print(f"{name!r}: {count} trial{'' if count == 1 else 's'} enqueued{known}")


@control_app.command()
def retry(
    name: NameArgument,
    trials: Annotated[
        list[int] | None,
        typer.Option("--trial", help="This one, also if it was cancelled; may be given again."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the parameters of failed and dead trials again, as new trials; each once.

    Example: trialfleet retry language-id --trial 7 --trial 12
    """
    count = StudyHandle(name).retry(*(trials or []))
    if as_json:
        print_json({"study": name, "retried": count})
    elif count is None:
        print(f"{name!r}: its orchestrator retries what failed; trialfleet watch {name}")
    else:
        print(f"{name!r}: {count} trial{'' if count == 1 else 's'} to be retried")


def _tell(status: StudyStatus, *, as_json: bool) -> None:
    if as_json:
        print_json(status.model_dump(mode="json"))
        return
    running = status.trials["running"]
    still = f", {running} trial{'' if running == 1 else 's'} still running" if running else ""
    print(f"{status.study!r} is {status.state}: {status.num_ended}/{status.wanted} trials{still}")
    if status.ended_by is not None and status.limit != "stop.equal_failures":
        further = ways_on(status, f"trialfleet extend {status.study}")
        print(f"no further trial begins: {status.ended_by}; {further}")
    if (asked := asked_end(status)) is not None:
        print(asked)
    for reason in status.waits_for:
        print(f"waits: {reason}")
