"""Disks that are full, checkpoints that are damaged, scratch directories that are links."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from disks import fill, small_disk
from fault_fleet import signal_all, tree_of
from waiting import wait_until


@pytest.mark.fault(29)
def test_a_scratch_directory_that_became_a_link_is_not_followed(fleet):
    precious = fleet.folder / "precious"
    precious.mkdir()
    (precious / "file").write_text("not to be lost")
    fleet.order("make scratch")
    fleet.submit()
    fleet.serve()
    fleet.worker()
    place = fleet.folder / "scratch"
    wait_until(lambda: place.exists() and place.read_text(), "there is a scratch directory")
    scratch = Path(place.read_text())
    assert scratch.is_dir()
    (entry,) = wait_until(lambda: fleet.processes("trial"), "its process is in the registry")
    assert scratch in entry.scratch, "and the registry knows of it"
    shutil.rmtree(scratch)
    scratch.symlink_to(precious)
    fleet.go()
    os.kill(entry.identity.pid, signal.SIGKILL)
    fleet.await_over()
    fleet.assert_sound(attempts={0: 2})
    assert (precious / "file").read_text() == "not to be lost"
    assert not scratch.is_symlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.fault(30)
def test_a_damaged_checkpoint_is_not_used_and_the_one_before_is(fleet):
    damages = [truncate, alter]
    for number in range(len(damages)):
        fleet.order("wait for go", number, step=8)
    fleet.submit(len(damages))
    fleet.serve()
    fleet.worker()
    for number, damage in enumerate(damages):
        held = fleet.await_note("wait for go", number)
        damage(Path(fleet.await_checkpoint(6, number).uri) / "state.pt")
        os.kill(held.pid, signal.SIGKILL)
    fleet.await_over()
    fleet.assert_sound(2, attempts={0: 2, 1: 2})
    for number in range(len(damages)):
        assert fleet.await_note("starts", number, attempt=2).step == 3
    assert len(fleet.events("checkpoint_corrupt")) >= len(damages)


@pytest.mark.fault(32)
def test_on_a_full_disk_training_goes_on_with_the_checkpoint_before(fleet):
    with small_disk(fleet.settings.home / "checkpoints", 256) as filler:
        fleet.order("wait for go", step=4)
        fleet.order("kill", step=10)
        fleet.submit()
        fleet.serve()
        fleet.worker()
        fleet.await_note("wait for go")
        fill(filler)
        fleet.go()
        fleet.await_over()
        assert fleet.events("checkpoint_not_saved")
        fleet.assert_sound(attempts={0: 2})
        assert fleet.await_note("starts", attempt=2).step == 3
        filler.unlink()
        fleet.workers[0].stop(60.0)
        fleet.assert_nothing_left()


@pytest.mark.fault(32)
def test_a_full_outbox_costs_the_result_nothing(fleet):
    with small_disk(fleet.settings.home / "outbox", 64) as filler:
        fill(filler)
        fleet.submit()
        fleet.serve()
        fleet.worker()
        fleet.await_over()
        fleet.assert_sound(attempts={0: 1})
        assert fleet.events("outbox_not_written")
        filler.unlink()
        fleet.workers[0].stop(60.0)


@pytest.mark.fault(32)
def test_an_orchestrator_on_a_full_disk_waits_for_room_and_tells_then(fleet):
    with small_disk(fleet.settings.home / "studies", 64) as filler:
        fleet.order("wait for go", step=4)
        fleet.submit(12)
        fleet.serve()
        fleet.worker()
        fleet.await_note("wait for go")
        fill(filler)
        fleet.go()
        wait_until(lambda: fleet.events("study_stalled"), "the journal takes no more")
        ended = sum(trial.state.is_finished() for trial in fleet.trials())
        assert ended < 11, "what was there stands, and is whole"
        filler.unlink()
        fleet.await_over()
        fleet.assert_sound(12, attempts=dict.fromkeys(range(12), 1))
        # all before the disk goes away
        fleet.workers[0].stop(60.0)
        fleet.assert_nothing_left()
        signal_all(tree_of(fleet.orchestrators[0].pid), signal.SIGTERM)
        fleet.orchestrators[0].wait(60)
