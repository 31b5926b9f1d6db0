"""Successive halving that promotes, on a real Redis, with the test in the part of the workers."""

from __future__ import annotations

import math
from collections import Counter

import optuna
import pytest
from hand_fleet import Fleet, look_around, turn_until

from orchestrator.driving.seeing_sampler import PausedAsPruned
from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from orchestrator.storage.attributes import RUNG_ATTR
from workers.coordination import keys
from workers.coordination.grants import Grant, Refusal
from workers.coordination.studies import Studies
from workers.coordination.trial_record import CheckpointRef
from workers.disk.manifests import MANIFEST, checkpoint_root
from workers.protocol.errors import InvalidInputError
from workers.protocol.halving import RungSchedule
from workers.protocol.messages import Drawn, Pause, Result
from workers.protocol.states import TrialState
from workers.protocol.study_options import PrunerSpec

ASHA = {"type": "asha", "promote": True, "reduction_factor": 3, "max_resource": 9}
RUNGS = (1, 3)


class Halving(Fleet):
    """A study that promotes, and one who works on it: the lower its number, the better a trial."""

    def submit(self, **fields) -> StudyHandle:
        self.segments: Counter[int] = Counter()
        given = {"pruner": ASHA, "direction": "maximize", "trials": 9, **fields}
        self.sign = -1.0 if given["direction"] == "maximize" else 1.0
        self.schedule = RungSchedule.of(PrunerSpec.model_validate(given["pruner"]))
        return super().submit(**given)

    def train(self, number, worth=None, grant: Grant | None = None) -> int | None:
        """Hold a trial to its rung, or to its end; the rung."""
        grant = grant or self.claim(number)
        worth = self.sign * number if worth is None else worth
        self.segments[number] += 1
        rung = grant.record.rung
        step = self.schedule.resource(rung)
        if step is None:
            result = Result(values=[worth], busy_seconds=60.0)
            assert self.leases.commit(number, grant.token, TrialState.COMPLETE, result) == "OK"
            return None
        assert self.leases.report(number, grant.token, step, worth) == "OK"
        self.leases.checkpoint(number, grant.token, CheckpointRef(step, f"/{number}/{step}", "sum"))
        pause = Pause(rung=rung, step=step, value=worth, result=Result(user_attrs={"at": step}))
        assert self.leases.park(number, grant.token, pause) == "OK"
        return rung

    def work(self, service, until, worths=None, what="it is so") -> None:
        """Train whatever waits for a slot."""

        def worked():
            for number in self.leases.queued():
                self.train(number, None if worths is None else worths[number])
            return until()

        turn_until(service, worked, what)

    def pause_all(self, service, count=9) -> None:
        """Have so many trials be paused at the first rung, and none go on."""
        self.work(service, lambda: service.status("s").trials["paused"] >= count)

    def reached(self, step) -> list[int]:
        return [trial.number for trial in self.stored() if step in trial.intermediate_values]

    def save(self, number, step) -> None:
        """What a trial has on this machine's disk."""
        folder = checkpoint_root(self.settings.home) / "s" / str(number) / "7" / f"step-{step:09d}"
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text(f'{{"step": {step}, "sha256": "sum"}}')


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Halving(client, settings, tmp_path)


def is_over(fleet):
    return lambda: StudyHandle("s", fleet.settings).status().is_over


def test_what_a_paused_trial_drew_without_telling_is_stored_with_its_pause(fleet):
    fleet.submit(space={})
    distribution = optuna.distributions.FloatDistribution(0.0, 1.0)
    drawn = Drawn(distribution=optuna.distributions.distribution_to_json(distribution), value=0.25)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "one waits")
        grant = fleet.claim(0)
        assert fleet.leases.report(0, grant.token, 1, 0.5) == "OK"
        fleet.leases.checkpoint(0, grant.token, CheckpointRef(1, "/0/1", "sum"))
        pause = Pause(rung=0, step=1, value=0.5, result=Result(params={"x": drawn}))
        assert fleet.leases.park(0, grant.token, pause) == "OK"
        turn_until(service, lambda: service.status("s").trials["paused"] == 1, "it is paused")
        assert fleet.stored()[0].params == {"x": 0.25}


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_of_each_three_trials_at_a_rung_one_goes_on_where_it_stopped(fleet, direction):
    handle = fleet.submit(direction=direction)
    with fleet.service() as service:
        fleet.work(service, is_over(fleet))
    trials = fleet.stored()
    assert {step: len(fleet.reached(step)) for step in RUNGS} == {1: 9, 3: 3}
    states = Counter(trial.state.name for trial in trials)
    assert states == {"COMPLETE": 1, "PRUNED": 8}
    assert fleet.segments.total() == 9 + 3 + 1, "nothing is trained twice"
    status = handle.status()
    assert (status.state, status.best.number) == ("finished", 0)
    assert status.trials["paused"] == 0
    for trial in trials:
        assert trial.user_attrs["at"] == max(trial.intermediate_values)
        assert trial.value == fleet.sign * trial.number
        last = fleet.leases.record(trial.number)
        assert last.checkpoint.step == max(trial.intermediate_values), "it kept what it had saved"
        assert (last.failures, last.losses) == (0, 0)
        assert fleet.client.pttl(keys.trial("s", trial.number)) > 0
    assert not fleet.leases.paused()


def test_a_paused_trial_holds_no_slot_and_is_counted_as_paused(fleet):
    handle = fleet.submit(trials=6)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        for number in (1, 2):
            fleet.train(number)
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "others have their slots")
        turn_until(service, lambda: handle.status().trials["paused"] == 2, "they are shown")
        assert fleet.leases.claim(1, "hand", 45.0) == Refusal("PAUSED")
        assert handle.status().busy_seconds >= 0
        assert {each.number for each in seen_as_pruned(service)} == {1, 2}
        trials = handle.status().trials
        assert (trials["queued"], trials["running"]) == (3, 0)
        assert "paused" in {row["state"] for row in table_of(handle)}
        fleet.train(0)
        turn_until(service, lambda: 0 in fleet.leases.queued(), "the best of three goes on")
        assert fleet.leases.record(0).rung == 1
        assert len(fleet.stored()) == 5, "it had the slot that a new one would have had"


def seen_as_pruned(service):
    """What the sampler of the driven study takes for pruned."""
    study = service._roster.drivers["s"].study.study
    pruned = optuna.trial.TrialState.PRUNED
    return study.sampler._seen(study).get_trials(deepcopy=False, states=(pruned,))


def table_of(handle):
    from orchestrator.views.trial_table import TrialTable

    return TrialTable.of(handle.study.trials, ["value"], []).rows


def test_a_study_with_fewer_trials_than_a_promotion_takes_sends_its_best_to_the_end(fleet):
    handle = fleet.submit(trials=2)
    with fleet.service() as service:
        fleet.work(service, is_over(fleet))
    assert [trial.state.name for trial in fleet.stored()] == ["COMPLETE", "PRUNED"]
    assert handle.status().best.number == 0


def test_a_trial_whose_values_are_nan_is_the_last_to_go_on(fleet):
    fleet.submit(trials=3)
    worths = {0: math.nan, 1: -5.0, 2: -7.0}
    with fleet.service() as service:
        fleet.work(service, is_over(fleet), worths)
    assert [trial.state.name for trial in fleet.stored()] == ["PRUNED", "COMPLETE", "PRUNED"]


def test_a_trial_that_reported_far_beyond_its_rung_is_not_run_to_the_next_one(fleet):
    fleet.submit(trials=3)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        for number in range(3):
            grant = fleet.claim(number)
            fleet.leases.report(number, grant.token, 5, -float(number))
            fleet.leases.park(number, grant.token, Pause(rung=0, step=5, value=-float(number)))
        turn_until(service, lambda: 0 in fleet.leases.queued(), "it goes on")
        assert fleet.claim(0).record.rung == 2, "to its end"


def test_a_trial_that_ends_before_its_rung_or_fails_beyond_one_stands_in_nobodys_way(fleet):
    fleet.submit(trials=4, max_failures=1)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        fleet.commit(0, -9.0)
        grant = fleet.claim(1)
        fleet.leases.report(1, grant.token, 1, 99.0)
        fleet.leases.fail(1, grant.token, Result(error="boom"), 1, 0.0)
        fleet.work(service, is_over(fleet))
    assert [t.state.name for t in fleet.stored()] == ["COMPLETE", "FAIL", "COMPLETE", "PRUNED"]


#: How an orchestrator ends between the steps of a promotion, and what it has done by then.
CUTS = ["decides", "writes it down", "sends it on", "announces it"]


@pytest.mark.parametrize("cut", CUTS)
def test_a_promotion_survives_an_orchestrator_that_is_killed_in_the_middle(fleet, cut, monkeypatch):
    fleet.submit(trials=3)

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    from orchestrator.driving.driven import DrivenStudy
    from orchestrator.driving.study_trials import StudyTrials
    from workers.coordination.leases import TrialLeases

    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        for number in range(3):
            fleet.train(number)
        if cut == "announces it":
            monkeypatch.setattr(DrivenStudy, "send_hint", die)
        else:
            target = {
                "decides": (StudyTrials, "put"),
                "writes it down": (DrivenStudy, "sync"),
            }.get(cut, (TrialLeases, "unpark"))
            original = getattr(*target)

            def dies_at_the_promotion(self, *args, **kwargs):
                if cut == "decides" and args[1].is_paused:
                    return original(self, *args, **kwargs)
                if cut == "writes it down" and self.trials.place(0).rung == 0:
                    return original(self, *args, **kwargs)
                raise Killed

            monkeypatch.setattr(*target, dies_at_the_promotion)
        with pytest.raises(Killed):
            turn_until(service, lambda: False, "it dies")
        monkeypatch.undo()
        killed = service._roster.drivers.pop("s")  # it ends here, and writes nothing more
        killed.abandon()
        killed.release()
    with fleet.service() as service:
        turn_until(service, lambda: 0 in fleet.leases.queued(), "another one sends it on")
        assert fleet.leases.record(0).checkpoint == CheckpointRef(1, "/0/1", "sum")
        fleet.work(service, is_over(fleet))
    assert [trial.state.name for trial in fleet.stored()] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert fleet.segments == {0: 3, 1: 1, 2: 1}


def test_an_entry_of_a_pause_that_comes_twice_or_late_changes_nothing(fleet):
    fleet.submit(trials=3)
    with fleet.service() as service:
        service._inbox.acknowledge = lambda *_: None  # dies between storing and acknowledging
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        for number in range(3):
            fleet.train(number)
        turn_until(service, lambda: 0 in fleet.leases.queued(), "one is promoted")
    assert fleet.client.xlen(keys.inbox("s")) == 6
    with fleet.service() as service:
        turn_until(service, lambda: not fleet.client.xlen(keys.inbox("s")), "all come again")
        assert 0 in fleet.leases.queued()
        assert fleet.stored()[0].user_attrs[RUNG_ATTR]["rung"] == 1
        fleet.work(service, is_over(fleet))
    assert fleet.segments == {0: 3, 1: 1, 2: 1}


@pytest.mark.parametrize("by", ["this orchestrator", "the next one"])
def test_what_is_paused_and_promoted_outlives_a_redis_that_loses_its_data(fleet, by):
    fleet.submit(trials=7)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        for number in (0, 1, 2):
            fleet.train(number)
        turn_until(service, lambda: 0 in fleet.leases.queued(), "one is promoted")
        fleet.save(0, 1)
        grant = fleet.claim(3)  # has reported at its rung, and is not paused yet
        fleet.leases.report(3, grant.token, 1, -3.0)
        turn_until(service, lambda: 3 in fleet.reached(1), "its report is stored")
        fleet.save(2, 1)
        if by == "this orchestrator":
            fleet.client.flushall()
            fleet.pretend_worker()
            turn_until(service, lambda: Studies(fleet.client).exists("s"), "it is there again")
    if by == "the next one":
        fleet.client.flushall()
        fleet.pretend_worker()
    with Service(fleet.settings) as service:
        turn_until(service, lambda: Studies(fleet.client).exists("s"), "it is there again")
        fleet.leases = Studies(fleet.client).leases("s")
        turn_until(service, lambda: 0 in fleet.leases.queued(), "it is as it was")
        turn_until(service, lambda: set(fleet.leases.paused()) == {1, 2, 3}, "and so are they")
        grant = fleet.claim(0)
        assert grant.record.rung == 1
        assert grant.record.checkpoint.step == 1
        assert fleet.leases.record(2).checkpoint.step == 1
        fleet.train(0, grant=grant)
        fleet.work(service, is_over(fleet))
    assert [trial.number for trial in fleet.stored() if trial.state.name == "COMPLETE"] == [0]
    assert fleet.segments[3] == 0, "its value is known: it is not trained again"


@pytest.mark.parametrize("at", ["its pause", "its promotion", "its end"])
def test_a_redis_that_lost_its_latest_converges(fleet, at):
    fleet.submit(trials=3)
    binary = fleet.client.__class__.from_url(fleet.settings.redis_url)

    def snapshot():
        found = [key for key in binary.keys("fleet:{s}:*") if not key.endswith(b":study")]
        return {key: binary.dump(key) for key in found}

    def restore(dumps):
        for key in binary.keys("fleet:{s}:*"):
            if not key.endswith(b":study"):
                binary.delete(key)
        for key, dump in dumps.items():
            binary.restore(key, 0, dump)

    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        fleet.train(1)
        fleet.train(2)
        turn_until(service, lambda: service.status("s").trials["paused"] == 2, "they are paused")
        grant = fleet.claim(0)
        dumps = snapshot()
        fleet.train(0, grant=grant)
        if at == "its pause":
            turn_until(service, lambda: 0 in fleet.leases.queued(), "it is promoted")
        else:
            dumps = snapshot()
            turn_until(service, lambda: 0 in fleet.leases.queued(), "it is promoted")
        if at == "its end":
            fleet.work(service, is_over(fleet))
    restore(dumps)
    binary.close()
    with fleet.service() as service:
        if at == "its pause":  # by the holder that Redis believes in
            turn_until(service, lambda: service.status("s") is not None, "it is driven")
            fleet.leases.park(0, grant.token, Pause(rung=0, step=1, value=0.0))
        fleet.work(service, is_over(fleet))
        turn_until(service, lambda: not fleet.leases.paused(), "no trial rests")
    assert [trial.state.name for trial in fleet.stored()] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert fleet.stored()[0].intermediate_values.keys() == {1, 3}


def test_a_study_that_is_paused_keeps_its_paused_trials_and_goes_on(fleet):
    handle = fleet.submit(trials=3)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        fleet.train(1)
        fleet.train(2)
        grant = fleet.claim(0)
        handle.pause()
        turn_until(service, lambda: service.status("s").wish.is_pause, "it is paused")
        fleet.train(0, grant=grant)
        turn_until(service, lambda: service.status("s").trials["paused"] == 3, "all rest")
        look_around(service)
        assert not fleet.leases.queued(), "none is promoted"
        assert handle.status().state == "paused"
        handle.resume()
        turn_until(service, lambda: 0 in fleet.leases.queued(), "it is promoted")
        fleet.work(service, is_over(fleet))
    assert [trial.state.name for trial in fleet.stored()] == ["COMPLETE", "PRUNED", "PRUNED"]


@pytest.mark.parametrize(("verb", "state"), [("stop", "failed"), ("cancel", "cancelled")])
def test_a_study_that_ends_before_its_time_prunes_what_is_paused(fleet, verb, state):
    handle = fleet.submit(trials=9)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        fleet.train(1)
        fleet.train(2)
        turn_until(service, lambda: service.status("s").trials["paused"] == 2, "they are paused")
        grant = fleet.claim(0)
        getattr(handle, verb)()
        turn_until(service, lambda: not fleet.leases.queued(), "what waits is withdrawn")
        look_around(service)
        assert not handle.status().is_over, "one still runs"
        fleet.train(0, grant=grant)
        turn_until(service, is_over(fleet), "it is over")
    status = handle.status()
    assert (status.state, status.trials["pruned"]) == (state, 3)
    assert [trial.value for trial in fleet.stored()[:3]] == [0.0, -1.0, -2.0]
    assert not fleet.leases.paused()


def test_a_study_whose_time_is_up_promotes_no_more(fleet):
    handle = fleet.submit(trials=9, stop={"target": -0.5})
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        for number in (1, 2):
            fleet.train(number)
        fleet.commit(0, 0.0)
        turn_until(service, is_over(fleet), "it is over")
    status = handle.status()
    assert (status.state, status.trials["pruned"], status.trials["complete"]) == ("finished", 2, 1)
    assert "target" in status.ended_by


def test_a_study_that_is_extended_holds_new_trials_against_those_that_were_pruned(fleet):
    handle = fleet.submit(trials=3, stop={"patience": 4})
    with fleet.service() as service:
        fleet.work(service, is_over(fleet))
    handle.extend(trials=6)
    with fleet.service() as service:
        fleet.work(service, is_over(fleet), worths={3: -8.0, 4: -9.0, 5: 9.0})
    assert fleet.reached(3) == [0, 5], "the best two of six"
    assert handle.status().best.number == 5, "at its rung nobody was better: it goes to its end"
    assert handle.status().ended_by is None
    assert Counter(trial.state.name for trial in fleet.stored()) == {"COMPLETE": 2, "PRUNED": 4}


def test_given_and_retried_trials_go_through_the_rungs_as_well(fleet):
    handle = fleet.submit(trials=2, max_failures=1)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "two are in flight")
        grant = fleet.claim(0)
        fleet.leases.fail(0, grant.token, Result(error="boom"), 1, 0.0)
        fleet.train(1)
        turn_until(service, lambda: service.status("s").trials["dead"] == 1, "it is dead")
        handle.retry()
        handle.enqueue({"x": 0.25})
        fleet.work(service, is_over(fleet))
    names = [trial.state.name for trial in fleet.stored()]
    assert names == ["FAIL", "COMPLETE", "PRUNED", "PRUNED"]
    assert fleet.stored()[3].params["x"] in {0.25, fleet.stored()[0].params["x"]}


def test_the_sampler_sees_paused_trials_as_pruned_where_they_stopped():
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(constant_liar=True, seed=1))
    for value in (3.0, 1.0):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(value, 1)
    seen = []

    class Looking(optuna.samplers.RandomSampler):
        def infer_relative_search_space(self, study, trial):
            for states in (None, ("RUNNING",), ("PRUNED",), ("COMPLETE", "PRUNED"), ("COMPLETE",)):
                wanted = states and tuple(optuna.trial.TrialState[name] for name in states)
                found = study.get_trials(deepcopy=False, states=wanted)
                seen.append([(each.number, each.state.name) for each in found])
            return {}

    study.sampler = PausedAsPruned(Looking(), lambda: {0})
    study.ask().suggest_float("x", 0, 1)
    every = [(0, "PRUNED"), (1, "RUNNING"), (2, "RUNNING")]
    assert seen == [every, every[1:], every[:1], every[:1], []]
    assert [each.state.name for each in study.trials] == ["RUNNING"] * 3, "it alone sees them so"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pruner": {"type": "median", "promote": True}}, "pruner.type = 'median'.*write asha"),
        ({"pruner": {"type": "asha", "promote": True}}, "pruner.max_resource is missing"),
        (
            {"pruner": {**ASHA, "max_resource": 1}},
            "pruner.max_resource = 1: give a whole number, 2",
        ),
        ({"pruner": {**ASHA, "min_resource": 9}}, "pruner.max_resource = 9.*first rung.*step 9"),
        ({"pruner": {**ASHA, "min_resource": "auto"}}, "pruner.min_resource = 'auto'"),
        ({"pruner": {**ASHA, "reduction_factor": 1}}, "pruner.reduction_factor = 1"),
        ({"pruner": {**ASHA, "reduction_factor": 2.5}}, "pruner.reduction_factor = 2.5"),
        ({"pruner": {**ASHA, "bootstrap_count": True}}, "pruner.bootstrap_count = True"),
        ({"pruner": {**ASHA, "max_ressource": 3}}, "pruner.max_ressource = 3.*no such option"),
        ({"pruner": ASHA, "directions": ["maximize", "minimize"]}, "several directions"),
    ],
)
def test_a_promotion_that_cannot_be_is_refused_before_anything_is_enqueued(fleet, fields, message):
    with pytest.raises(InvalidInputError, match=message):
        Fleet.submit(fleet, **fields)
    assert not Studies(fleet.client).names()
