"""What an earlier release left is gone on with: its home, its journal, its Redis."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FIXTURE = Path(__file__).parents[1] / "fixtures" / "home-of-0.1.0.tar.gz"

#: Where that release ran; its files hold the path, some with its length before it.
THERE = "/tmp/trialfleet-0.1.0-at-cac2339-padded-x"


@pytest.fixture
def earlier(machine: Any) -> Iterator[Any]:
    """A machine on which release 0.1.0 was killed, with two trials running and one queued."""
    here = Path(tempfile.gettempdir()) / "h"
    here = here.with_name("h" * (len(THERE) - len(str(here)) + 1))
    assert len(str(here)) == len(THERE)
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(here, filter="data")
    for path in here.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes().replace(THERE.encode(), str(here).encode()))
    made = type(machine)(here)
    made.environment |= {"WANDB_MODE": "disabled", "FLEET_TIME_SCALE": "0.1"}
    yield made
    made.stop_all()
    shutil.rmtree(here)


@pytest.mark.parametrize(
    "has_redis",
    [
        pytest.param(True, id="with its Redis"),
        pytest.param(False, id="its journal alone", marks=pytest.mark.long),
    ],
)
def test_a_home_of_the_release_before_is_resumed(earlier, has_redis):
    notes = earlier.folder / "notes"
    before = notes.read_text().splitlines()
    assert before == [f"{number} 1 0" for number in range(6)]
    if not has_redis:
        shutil.rmtree(earlier.home / "redis")
    status = earlier.json("run", "study.yaml", "--slots", "1")
    assert (status["state"], status["trials"]["complete"]) == ("finished", 8)
    after = [line.split() for line in notes.read_text().splitlines()[len(before) :]]
    starts = {int(number): int(step) for number, _, step in after}
    assert starts == {4: 6, 5: 6, 6: 0, 7: 0}, "on from the checkpoints; nothing twice"
    for trial in status["recent"]:
        assert trial["value"] == pytest.approx(4 * trial["params"]["rate"] ** 10, rel=1e-4)
    again = earlier.json("run", "study.yaml")
    assert again["trials"] == status["trials"], "it was finished before"
