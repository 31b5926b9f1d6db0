"""The process of one study's sampler: `python -m orchestrator.driving.sampler_process`.

It is handed the sampler, pickled by the orchestrator that begins it, then one question a line with
the trials that are news since the last one, and answers each by a line: what was drawn, and what
the sampler wants to have written. It ends with its orchestrator.

Invariant: it writes nowhere but to that pipe.
"""

from __future__ import annotations

import base64
import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Container, Sequence
from typing import Any, BinaryIO, Final, cast

import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from orchestrator.driving.sampler_messages import (
    decode_space,
    decode_trial,
    encode_error,
    encode_space,
    from_line,
    to_line,
)

#: Below what answers trials: the orchestrator on the same cores.
_NICENESS: Final = 5

#: Between two looks whether the orchestrator lives.
_LOOK_SECONDS: Final = 1.0


class MirroredStudy:
    """A study as its sampler uses it, made of the trials that came over the pipe.

    Args:
        study_id: The study's.
        directions: By their names.
    """

    def __init__(self, study_id: int, directions: Sequence[str]) -> None:
        self._study_id = study_id
        self.directions = [StudyDirection[name] for name in directions]
        #: samplers write to it
        self._storage = self
        self._known: dict[int, FrozenTrial] = {}
        self._shown: list[FrozenTrial] = []
        #: what is to be written, since that was taken last
        self._written: list[tuple[int, str, Any]] = []

    @property
    def direction(self) -> StudyDirection:
        """Of a study with a single one."""
        (direction,) = self.directions
        return direction

    def _is_multi_objective(self) -> bool:
        return len(self.directions) > 1

    def _get_trials(
        self,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 - as Optuna's
        states: Container[TrialState] | None = None,
        use_cache: bool = False,  # noqa: FBT001, FBT002 - as Optuna's
    ) -> list[FrozenTrial]:
        del deepcopy, use_cache  # nothing else has them
        return [trial for trial in self._shown if states is None or trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Have something be written by the orchestrator."""
        self._written.append((trial_id, key, value))

    def take(self, news: Sequence[dict[str, Any]], shown: Sequence[int] | None) -> None:
        """Learn what is news.

        Args:
            news: Trials that are new, or have changed.
            shown: The numbers of those that the sampler sees; None for all.
        """
        self._known |= {each["number"]: decode_trial(each) for each in news}
        numbers = sorted(self._known) if shown is None else shown
        self._shown = [self._known[number] for number in numbers]

    def take_written(self) -> list[tuple[int, str, Any]]:
        """What is to be written, each once."""
        written, self._written = self._written, []
        return written


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer questions for as long as there are some."""
    _say(answers, {})  # all is imported
    if not (first := questions.readline()):
        return
    handed = from_line(first)
    # by the orchestrator that began this process, over a pipe that nobody else has
    sampler: BaseSampler = pickle.loads(base64.b64decode(handed["sampler"]))  # noqa: S301
    study = MirroredStudy(handed["study_id"], handed["directions"])
    while line := questions.readline():
        _say(answers, _answer(sampler, study, from_line(line)))


def _answer(sampler: BaseSampler, mirrored: MirroredStudy, asked: dict[str, Any]) -> dict[str, Any]:
    mirrored.take(asked["news"], asked["shown"])
    study, trial = cast("optuna.Study", mirrored), decode_trial(asked["trial"])
    space = decode_space(asked["space"])
    drawn: Any = None
    try:
        if asked["for"] == "space":
            drawn = encode_space(sampler.infer_relative_search_space(study, trial))
        elif asked["for"] == "joint":
            drawn = sampler.sample_relative(study, trial, space)
        else:
            ((name, distribution),) = space.items()
            drawn = sampler.sample_independent(study, trial, name, distribution)
    except Exception as error:  # noqa: BLE001 - it is raised where the question came from
        return {"error": encode_error(error), "written": mirrored.take_written()}
    return {"drawn": drawn, "written": mirrored.take_written()}


def _say(answers: BinaryIO, message: dict[str, Any]) -> None:
    answers.write(to_line(message))
    answers.flush()


def _end_with(parent: int) -> None:
    """End when the orchestrator has, in the midst of a draw, too."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(0)


def main() -> None:
    """Serve over the standard streams; what others print goes to the log."""
    questions = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    os.nice(_NICENESS)
    warnings.simplefilter("ignore")  # the orchestrator's own sampler has said them
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    serve(questions, answers)


if __name__ == "__main__":
    main()
