"""One message may hint at several short trials: one slot runs them, and loses none to itself."""

from __future__ import annotations

import base64
import json
import socket
import threading

import pytest
import redis
from hand_fleet import Fleet, turn_until
from waiting import wait_until

from orchestrator.driving.shares import MAX_PER_HINT
from workers.coordination import keys
from workers.coordination.device_marks import DeviceMarks, Victim
from workers.coordination.grants import Refusal
from workers.coordination.hints import Hints
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies, ensure_epoch
from workers.managers import CUDAManager
from workers.processes.registry import ProcessRecord
from workers.protocol.errors import StudyNotKnownError
from workers.protocol.messages import Result, RunTrial
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState
from workers.settings import Settings
from workers.trials import attempts, held_lease
from workers.trials.hinted_trials import HintedTrials
from workers.trials.outcomes import Outcome
from workers.trials.runner import TrialRunner
from workers.trials.slot_health import SlotHealth

#: What trial 0 does; the others return at once.
OBJECTIVES = """
import threading
import time
from pathlib import Path

def quick(trial):
    return float(trial.number)

def waits(trial):
    folder = Path(trial.config["folder"])
    while trial.number == 0 and not (folder / "go").exists():
        time.sleep(0.01)
    return 0.0

def leaves_a_thread(trial):
    if trial.number == 0:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return 0.0

def drains(trial):
    if trial.number == 0:
        (Path(trial.config["folder"]) / "drain").touch()
    return 0.0
"""

SECRET = "a secret of this fleet"


def hinted(client) -> list[list[int]]:
    """The trials of each message that lies in the queue, the first that was sent first."""
    bodies = [
        json.loads(text)["body"] for text in client.lrange(f"{keys.CELERY_PREFIX}default", 0, -1)
    ]
    messages = [json.loads(base64.b64decode(body))[1]["message"] for body in bodies]
    return [[each["number"], *each.get("more", ())] for each in reversed(messages)]


class Place:
    """A study of some queued trials, and the one runner that is to run them."""

    def __init__(self, client, settings, folder, container, secret=None):
        (folder / "hinted_objectives.py").write_text(OBJECTIVES)
        self.client, self.folder = client, folder
        self.path = f"{folder}/hinted_objectives.py"
        self.settings = Settings(
            redis_url=settings.redis_url,
            home=settings.home,
            cache=settings.cache,
            time_scale=settings.time_scale,
            objectives=(self.path,),
            secret=secret,
        )
        self.runner = TrialRunner(
            client=client,
            redis_url=settings.redis_url,
            settings=self.settings,
            container=container,
            record=ProcessRecord(),
            drain_file=str(folder / "drain"),
        )
        ensure_epoch(client)

    def queue(self, objective, count) -> RunTrial:
        """Queue trials of a study; the message that hints at all of them."""
        studies = Studies(self.client, seal=self.settings.seal)
        spec = StudySpec(
            name="s", objective=f"{self.path}:{objective}", config={"folder": str(self.folder)}
        )
        studies.submit(spec)
        self.leases = studies.leases("s", generation="g", work=spec.work())
        for number in range(count):
            self.leases.enqueue(number, {})
        numbers = tuple(range(1, count))
        hint = RunTrial(study="s", number=0, epoch=self.leases.epoch, more=numbers)
        return hint.sealed(self.settings.seal)

    def states(self, count):
        return [self.leases.record(number).state.value for number in range(count)]

    def attempts(self, count):
        return [self.leases.record(number).attempt for number in range(count)]


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """A trial that is to be short is so on a busy machine, too, and with an import."""
    for module in (held_lease, attempts):
        monkeypatch.setattr(module, "YOUNG_SECONDS", 3.0)


@pytest.fixture
def place(client, settings, container, tmp_path):
    place = Place(client, settings, tmp_path, container)
    with place.runner:
        yield place


def test_one_message_has_several_trials_run_each_once_however_often_it_comes(place):
    hint = place.queue("quick", 4)
    place.leases.claim(2, "another", 600.0)
    for _ in range(2):
        assert place.runner.run(RunTrial.decode(hint.model_dump(mode="json"))) is Outcome.ENDED
    assert place.states(4) == ["COMPLETE", "COMPLETE", "RUNNING", "COMPLETE"]
    assert place.attempts(4) == [1, 1, 1, 1]
    assert hinted(place.client) == []


def test_trials_do_not_wait_behind_one_that_is_not_short(place):
    hint = place.queue("waits", 3)

    def free_it_when_the_others_are_announced():
        try:
            wait_until(lambda: hinted(place.client) == [[1], [2]], "the others are announced")
        finally:
            (place.folder / "go").touch()

    thread = threading.Thread(target=free_it_when_the_others_are_announced)
    thread.start()
    assert place.runner.run(hint) is Outcome.ENDED
    thread.join()
    assert place.states(3) == ["COMPLETE", "QUEUED", "QUEUED"]
    for number in (1, 2):
        place.runner.run(RunTrial(study="s", number=number, epoch=place.leases.epoch))
    assert place.states(3) == ["COMPLETE"] * 3


def test_what_is_left_when_a_process_ends_is_announced_again(place):
    hint = place.queue("leaves_a_thread", 3)
    assert place.runner.run(hint) is Outcome.ENDS_PROCESS
    assert place.states(3) == ["COMPLETE", "QUEUED", "QUEUED"]
    assert hinted(place.client) == [[1], [2]]


@pytest.mark.parametrize(
    "error", [redis.ConnectionError("away"), StudyNotKnownError("there is no study 's'")]
)
def test_a_process_that_is_to_end_ends_whatever_becomes_of_the_rest(place, monkeypatch, error):
    hint = place.queue("leaves_a_thread", 3)

    def fail(_hint):
        raise error

    monkeypatch.setattr(place.runner._others, "queue_of", fail)
    assert place.runner.run(hint) is Outcome.ENDS_PROCESS
    assert place.states(3) == ["COMPLETE", "QUEUED", "QUEUED"]


def test_what_is_left_does_not_wait_with_one_that_is_left_to_others(place, monkeypatch):
    hint = place.queue("quick", 3)
    claim = TrialLeases.claim
    monkeypatch.setattr(
        TrialLeases,
        "claim",
        lambda self, number, *args, **kwargs: (
            Refusal("ALTERED") if number == 0 else claim(self, number, *args, **kwargs)
        ),
    )
    monkeypatch.setattr(place.runner._others, "_beat_seconds", 0.0)
    assert place.runner.run(hint) is Outcome.ENDED
    assert sorted(hinted(place.client)) == [[0], [1], [2]]
    assert place.states(3) == ["QUEUED"] * 3


def test_a_redis_that_does_not_answer_keeps_no_hint_waiting_for_long(place):
    hint = place.queue("quick", 2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        hints, told = Hints(address), []

        def hand_on():
            trials = HintedTrials(hint, hints, place.settings.seal)
            trials.hand_on("default")
            told.append(trials.are_left)

        thread = threading.Thread(target=hand_on, daemon=True)
        thread.start()
        thread.join(30.0)
        assert told == [True]
        hints.close()


def test_a_drain_gives_the_rest_back_untouched_with_the_message(place):
    hint = place.queue("drains", 3)
    assert place.runner.run(hint) is Outcome.GOES_BACK
    assert place.states(3) == ["COMPLETE", "QUEUED", "QUEUED"]
    assert place.attempts(3) == [1, 0, 0]
    assert hinted(place.client) == [], "it is in the message that goes back"
    (place.folder / "drain").unlink()
    assert place.runner.run(hint) is Outcome.ENDED
    assert place.states(3) == ["COMPLETE"] * 3
    assert place.attempts(3) == [1, 1, 1]


def test_a_slot_that_takes_no_trial_announces_all_of_a_message(place, monkeypatch):
    hint, looks = place.queue("quick", 3), []

    def refusal():
        looks.append(1)
        return "put aside" if len(looks) < 4 else None

    monkeypatch.setattr(place.runner._health, "refusal", refusal)
    assert place.runner.run(hint) is Outcome.ENDED
    assert place.states(3) == ["QUEUED"] * 3
    assert sorted(hinted(place.client)) == [[0], [1], [2]]


@pytest.fixture
def num_asked(place, monkeypatch):
    """How many commands this thread has sent to Redis."""
    sent = []

    def counted(execute):
        def call(*args, **options):
            sent.append(threading.get_ident())
            return execute(*args, **options)

        return call

    monkeypatch.setattr(place.client, "execute_command", counted(place.client.execute_command))
    return lambda: sent.count(threading.get_ident())


def test_what_speaks_against_a_slot_is_looked_at_once_a_trial(place, num_asked, monkeypatch):
    hint, costs = place.queue("quick", 3), []
    refusal = place.runner._health.refusal

    def counted():
        before = num_asked()
        reason = refusal()
        costs.append(num_asked() - before)
        return reason

    monkeypatch.setattr(place.runner._health, "refusal", counted)
    assert place.runner.run(hint) is Outcome.ENDED
    num_run = place.states(3).count("COMPLETE")  # those that took long leave others to others
    assert num_run
    assert costs == [0] * num_run, "once each, and nothing is asked of Redis"


def test_of_a_slot_that_has_marks_each_trial_under_which_it_broke_is_read_once(
    place, container, num_asked
):
    place.queue("quick", 3)
    record = ProcessRecord(fields={"device": "host/cpu-0"})
    marks = DeviceMarks(place.client, record.device)
    for number in range(3):
        marks.note(Victim("s", number))
    health = SlotHealth(place.client, place.settings.times, record, container.get(CUDAManager))
    before = num_asked()
    assert health.refusal() is None
    # whether it is put aside, its victims, and of each of them the fleet's epoch and its record
    assert num_asked() - before == 2 + 2 * 3
    health.note_success()
    before = num_asked()
    assert health.refusal() is None
    assert num_asked() == before, "none is left"


def test_a_message_of_several_is_the_fleets_as_a_whole_or_refused(
    client, settings, container, tmp_path
):
    place = Place(client, settings, tmp_path, container, SECRET)
    with place.runner:
        hint = place.queue("quick", 3)
        assert place.runner.run(hint.model_copy(update={"more": (2,)})) is Outcome.ENDED
        assert place.runner.run(hint.model_copy(update={"seal": ""})) is Outcome.ENDED
        assert place.states(3) == ["QUEUED"] * 3
        assert place.runner.run(hint) is Outcome.ENDED
        assert place.states(3) == ["COMPLETE"] * 3


@pytest.mark.parametrize(("busy_seconds", "most"), [(0.001, MAX_PER_HINT), (0.02, 2), (60.0, 1)])
def test_short_trials_are_announced_together_and_others_by_themselves(
    client, settings, tmp_path, busy_seconds, most
):
    fleet = Fleet(client, settings, tmp_path)
    fleet.submit(trials=200, sampler={"type": "random"})
    with fleet.service() as service:
        turn_until(service, lambda: len(hinted(client)) == 3, "the first are announced")
        assert hinted(client) == [[0], [1], [2]], "nothing is known of how long they take"
        for number in range(3):
            result = Result(values=[0.5], busy_seconds=busy_seconds)
            token = fleet.claim(number).token
            fleet.leases.commit(number, token, TrialState.COMPLETE, result)
        turn_until(service, lambda: len(fleet.stored()) >= 6, "more are asked for")
        announced = hinted(client)[3:]
        assert max(map(len, announced)) == most
        numbers = [number for each in announced for number in each]
        assert sorted(numbers) == list(range(3, 3 + len(numbers))), "each once"
        assert sorted(fleet.leases.queued()) == sorted(numbers)
