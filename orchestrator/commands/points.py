"""Points of a space as a command line names them: NAME=VALUE, files, another study's best."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.handle import StudyHandle
from orchestrator.submission.study_file import read_value
from workers.protocol.errors import InvalidInputError


def read_points(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The points that arguments name: all `NAME=VALUE` together one, and those of each file.

    Raises:
        InvalidInputError: An argument is neither, or a file holds no mappings.
    """
    one: dict[str, Any] = {}
    found: list[dict[str, Any]] = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name) or _is_file(text):
            found += _read_file(Path(text))
        elif name in one:
            raise InvalidInputError(f"{text!r}: {name} is given twice; a trial has one value of it")
        else:
            one[name] = read_value(value, text)
    return [one, *found] if one else found


def best_points(target: StudyHandle, count: int, source: str | None) -> list[dict[str, Any]]:
    """The parameters of another study's best trials, those that the target's space has.

    Raises:
        InvalidInputError: One of both options is missing, or that study has no complete trial.
    """
    if not count and source is None:
        return []
    example = f"such as `trialfleet enqueue {target.name} --best 3 --from {source or 'OTHER'}`"
    if source is None:
        raise InvalidInputError(
            f"--best {count}: of which study? Its --from is missing; give both, {example}"
        )
    if count < 1:
        how_many = f"--best {count} is no number of trials" if count else "its --best is missing"
        raise InvalidInputError(f"--from {source}: how many? {how_many}; give both, {example}")
    points = StudyHandle(source).best_params(count)
    space = target.spec().space
    left_out = {name for point in points for name in point if space and name not in space}
    if left_out:
        names = ", ".join(sorted(left_out))
        print(f"note: left out, since {target.name!r} has none: {names}", file=sys.stderr)
    return [{name: point[name] for name in point if name not in left_out} for point in points]


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a value that is longer than a file's name can be
        return False


def _read_file(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{path}: neither NAME=VALUE nor a file that can be read ({error})"
        ) from error
    value = read_value(text, path.name)
    points = value if isinstance(value, list) else [value]
    for place, point in enumerate(points):
        if not isinstance(point, Mapping):
            raise InvalidInputError(
                f"{path.name}, entry {place}: {point!r:.80} names no parameters; write a mapping,"
                " or a list of mappings, such as `- {learning_rate: 3.0e-4}`"
            )
    return [dict(point) for point in points]
