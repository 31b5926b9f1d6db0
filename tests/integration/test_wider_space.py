"""A study that goes on in a wider space: its trials, whole, with their numbers and values."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial

import optuna
import pytest
from hand_fleet import Fleet, is_over, look_around, put, turn_until
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState as Told
from postgres import Postgres
from typer.testing import CliRunner

from orchestrator.commands.control import control_app
from orchestrator.driving import driven as driven_module
from orchestrator.driving import service as service_module
from orchestrator.handle import StudyHandle
from orchestrator.storage import succession
from orchestrator.storage.attributes import (
    FORMER_ATTR,
    GENERATION_ATTR,
    IDENTITY_ATTR,
    SPEC_ATTR,
)
from orchestrator.storage.journal import JournalFile
from orchestrator.storage.known_studies import kept_beside, known_studies
from orchestrator.storage.opening import StudyStorage, open_reader, storage_url
from orchestrator.storage.results_removal import remove_results
from orchestrator.submission.submit import submit
from orchestrator.submission.widening import widen_stored, widened
from workers.coordination import keys
from workers.coordination.event_stream import EventStream
from workers.coordination.studies import Studies
from workers.protocol.errors import FleetError, InvalidInputError, StudyExistsError
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState, Wish
from workers.trials.study_view import StudyView

SPACE = {
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "kind": {"type": "categorical", "choices": ["a", 1]},
}
WIDER = {
    # `1` has another name beside `True`, which Optuna takes for the same
    "kind": {"type": "categorical", "choices": ["b", True, "a", 1]},
    "x": {"type": "float", "low": -1.0, "high": 2.0},
    "new": {"type": "float", "low": 0.0, "high": 1.0, "default": 0.5, "when": {"kind": ["a", "b"]}},
}


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with Postgres() as started:
        yield started


@pytest.fixture(params=["journal", "sqlite"])
def fleet(request, client, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(service_module, "_BLOCK_MS", 5)  # more turns in the same time
    database = f"sqlite:///{tmp_path}/studies.db" if request.param == "sqlite" else None
    if request.param == "postgres":
        database = request.getfixturevalue("postgres").url
    return Fleet(client, settings.model_copy(update={"storage": database}), tmp_path)


def url(fleet):
    return storage_url(fleet.settings, "s")


def names(fleet):
    return sorted(study.study_name for study in open_reader(url(fleet)).get_all_studies())


def load(fleet, name="s"):
    return optuna.load_study(study_name=name, storage=open_reader(url(fleet)))


def facts(trials):
    """What is to be the same of trials in another space."""
    return [
        (t.number, t.state, t.values, t.user_attrs, t.intermediate_values, t.datetime_start)
        for t in trials
    ]


@pytest.mark.parametrize("fleet", ["journal", "sqlite", "postgres"], indirect=True)
def test_a_study_goes_on_in_a_wider_space_with_all_its_trials_whatever_they_are_at(fleet):
    handle = fleet.submit(space=SPACE, trials=6, sampler={"type": "tpe"})
    handle.enqueue({"x": 0.25, "kind": 1}, {"x": 0.5, "kind": "a"})
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(2), "three are in flight")
        fleet.commit(0, 0.5)
        fleet.commit(1, None, TrialState.FAILED)
        turn_until(service, lambda: fleet.stored()[1].state is Told.FAIL, "two are told")
        running = fleet.claim(2)
        fleet.leases.report(2, running.token, 3, 0.75)
        turn_until(service, lambda: fleet.stored()[2].intermediate_values, "it has reported")
        turn_until(service, lambda: fleet.leases.is_queued(3), "one waits for a slot")
        record, study = fleet.leases.record(3), load(fleet)
        generation, before = study.user_attrs[GENERATION_ATTR], study.get_trials()
        assert handle.extend(space=WIDER).space == StudySpec(name="s", space=WIDER).space
        turn_until(service, lambda: "s@1" in names(fleet), "it goes on in the wider space")
        assert fleet.leases.record(3).params == record.params, "its record is what it was"
        fleet.leases.report(2, running.token, 4, 0.5)
        fleet.commit(3, 0.25)
        for number in (4, 5, 6, 7):
            turn_until(service, lambda n=number: fleet.leases.is_queued(n), "it is in flight")
            fleet.commit(number, 1.0)
        turn_until(service, lambda: fleet.stored()[7].state is Told.COMPLETE, "all are told")
    former, after = load(fleet, "s@1").trials, load(fleet)
    assert facts(former) == facts(before)
    assert [trial.params for trial in former] == [trial.params for trial in before]
    assert former[0].distributions["x"] == FloatDistribution(0.0, 1.0)
    assert after.user_attrs[GENERATION_ATTR] == generation
    assert after.user_attrs[FORMER_ATTR] == "s@1"
    assert kept_beside(fleet.settings, "s") == ["s@1"]
    assert handle.status().former == "s@1"
    told = [each.text for batch in EventStream(fleet.client, "s").after("0-0") for each in batch]
    widened = [text for text in told if '"widened"' in text]
    assert widened == ['{"kind":"widened","detail":"as it was: s@1"}'], "once, however often opened"
    after = after.trials
    assert facts(after)[:2] == facts(before)[:2]
    assert after[3].params["x"] == before[3].params["x"]
    kinds = CategoricalDistribution(("b", "true", "a", "1"))
    for trial in after:
        assert trial.distributions["x"] == FloatDistribution(-1.0, 2.0)
        assert trial.distributions["kind"] == kinds
    assert after[0].params == {"x": 0.25, "kind": "1"}
    assert after[1].params == {"x": 0.5, "kind": "a", "new": 0.5}
    assert after[2].intermediate_values == {3: 0.75, 4: 0.5}
    assert [trial.state for trial in after[2:]] == [Told.RUNNING, *[Told.COMPLETE] * 5]
    assert after[3].value == 0.25
    assert known_studies(fleet.settings) == ["s"]
    remove_results(fleet.settings, "s", Studies(fleet.client).origin("s"))
    storage = open_reader(url(fleet))
    assert storage is None or storage.get_all_studies() == []


def test_a_study_that_is_over_goes_on_and_can_become_wider_again_with_its_orchestrator_away(fleet):
    handle = fleet.submit(space=SPACE, trials=2, sampler={"type": "cmaes"})
    with fleet.service() as service:
        turn_until(service, lambda: is_over(fleet, "s"), "it is over")
    handle.extend(trials=4, space=WIDER)
    assert names(fleet) == ["s"], "nobody has looked at it yet"
    further = {**WIDER, "x": {**WIDER["x"], "high": 4.0}}
    with fleet.service() as service:
        turn_until(service, lambda: is_over(fleet, "s"), "it is over again")
    handle.extend(space=further)
    handle.extend(space=further)
    with fleet.service() as service:
        turn_until(service, lambda: "s@2" in names(fleet), "it is wider again")
        handle.extend(trials=5)
        turn_until(service, lambda: is_over(fleet, "s"), "it is over once more")
    assert names(fleet) == ["s", "s@1", "s@2"]
    assert [len(load(fleet, name).trials) for name in names(fleet)] == [5, 2, 4]
    status = handle.status()
    assert (status.state, status.num_ended) == ("finished", 5)
    assert handle.best_trial.number == 0


def test_the_further_points_of_a_grid_are_added_and_none_is_gone_through_again(fleet):
    space = {
        "x": {"type": "float", "low": 0.1, "high": 0.3, "step": 0.1},
        "kind": {"type": "categorical", "choices": ["a", "b"]},
    }
    handle = fleet.submit(space=space, trials=100, sampler={"type": "grid", "seed": 3})
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(2), "three are in flight")
        fleet.commit(0, 0.5)
        fleet.commit(1, 0.5)
        turn_until(service, lambda: fleet.stored()[1].state is Told.COMPLETE, "two are told")
        space["x"]["low"], space["kind"]["choices"] = 0.0, ["c", "a", "b"]
        handle.extend(space=space)
        turn_until(service, lambda: is_over(fleet, "s"), "it is over")
    points = [(round(t.params["x"], 6), t.params["kind"]) for t in fleet.stored()]
    assert sorted(points) == [(x, kind) for x in (0.0, 0.1, 0.2, 0.3) for kind in "abc"]


def test_the_points_of_a_grid_with_a_new_parameter_are_all_tried_whatever_the_trials_before_lack(
    fleet,
):
    space = {
        "x": {"type": "int", "low": 0, "high": 1},
        "kind": {"type": "categorical", "choices": ["a", "b"]},
    }
    handle = fleet.submit(space=space, trials=100, sampler={"type": "grid"})
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(2), "three are in flight")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: fleet.stored()[0].state is Told.COMPLETE, "one is told")
        space["y"] = {"type": "int", "low": 0, "high": 1}
        handle.extend(space=space)
        turn_until(service, lambda: "s@1" in names(fleet), "it is wider")
        turn_until(service, lambda: is_over(fleet, "s"), "it is over")
    points = [tuple(t.params.values()) for t in fleet.stored() if "y" in t.params]
    assert sorted(points) == [(x, kind, y) for x in (0, 1) for kind in "ab" for y in (0, 1)]
    assert {t.state for t in fleet.stored()} == {Told.COMPLETE}


A_OR_B = {
    "kind": {"type": "categorical", "choices": ["a", "b"]},
    "x": {"type": "float", "low": 0.1, "high": 0.2, "step": 0.1, "when": {"kind": "a"}},
}


def test_brute_force_goes_on_in_a_wider_space_with_each_trial_once(fleet):
    handle = fleet.submit(space=A_OR_B, trials=100, sampler={"type": "brute_force"})
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(1), "two are in flight")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: fleet.stored()[0].state is Told.COMPLETE, "one is told")
        wider = {
            "new": {"type": "int", "low": 1, "high": 2, "default": 2},
            "only_c": {"type": "int", "low": 0, "high": 1, "when": {"kind": "c"}},
            "x": {**A_OR_B["x"], "low": 0.0, "when": {"kind": ["a", "b"]}, "default": 0.2},
            "kind": {"type": "categorical", "choices": ["c", "a", "b"]},
        }
        handle.extend(space=wider)
        turn_until(service, lambda: "s@1" in names(fleet), "it is wider")
        turn_until(service, lambda: is_over(fleet, "s"), "it is over")
    assert len({str(sorted(t.params.items())) for t in fleet.stored()}) == len(fleet.stored())
    assert len(fleet.stored()) == 2 * (2 + 2 * 3)
    assert [list(t.distributions) for t in fleet.stored()[:2]] == [["new", "kind", "x"]] * 2


@pytest.mark.parametrize("fleet", ["journal"], indirect=True)
def test_brute_force_takes_no_space_in_which_trials_would_lack_something(fleet):
    new = {"type": "float", "low": 0.0, "high": 1.0, "step": 0.5}
    kind, x = A_OR_B["kind"], A_OR_B["x"]
    wrong = {
        "space.new: brute force.*default: VALUE": {"new": new},
        "space.new: brute": {"new": {**new, "when": {"kind": "a"}}},
        "space.new:": {"y": {**new, "default": 0.5}, "new": {**new, "when": {"y": [0.5]}}},
        "space.x: brute": {"x": {**x, "when": {"kind": ["a", "b"]}}},
        "space.x:": {"x": {name: each for name, each in x.items() if name != "when"}},
        r"space.new.default = 0.3 lies between": {"new": {**new, "default": 0.3}},
    }
    c = {**kind, "choices": ["a", "b", "c"]}
    right = {
        "a new one": {"new": {**new, "default": 0.5}},
        "a choice": {"kind": c, "new": {**new, "when": {"kind": "c"}}},
        "for a choice": {"kind": c, "x": {**x, "when": {"kind": ["a", "c"]}}},
        "for a value": {"y": {**new, "default": 0.5}, "new": {**new, "when": {"y": [0.0, 1.0]}}},
    }
    spec = fleet.submit(space=A_OR_B, sampler={"type": "brute_force"}).spec()
    for reason, changes in wrong.items():
        with pytest.raises(InvalidInputError, match=reason):
            widened(spec, {**A_OR_B, **changes}, fleet.settings)
    for what, changes in right.items():
        assert widened(spec, {**A_OR_B, **changes}, fleet.settings).space.keys() >= {"x"}, what


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_a_trial_that_was_under_way_gets_no_further_parameter_when_redis_loses_its_data(
    fleet, sampler
):
    space = {"x": {"type": "int", "low": 0, "high": 9}}
    handle = fleet.submit(space=space, trials=9, sampler={"type": sampler})
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(1), "two are in flight")
        fleet.claim(0)
        handle.extend(space={**space, "new": {"type": "int", "low": 0, "high": 1}})
        turn_until(service, lambda: "s@1" in names(fleet), "it is wider")
        fleet.client.flushdb()
        fleet.pretend_worker()
        turn_until(service, lambda: fleet.leases.is_queued(1), "both are back")
        fleet.leases = Studies(fleet.client).leases("s")  # in another epoch
        params = [fleet.leases.record(each).params for each in (0, 1)]
        fleet.commit(0, 0.5)
        turn_until(service, lambda: fleet.stored()[0].state is Told.COMPLETE, "it is told")
    former = load(fleet, "s@1").trials
    assert params == [trial.params for trial in former[:2]]
    assert [trial.params for trial in fleet.stored()[:2]] == params
    assert "grid_id" not in fleet.stored()[0].system_attrs


@pytest.mark.parametrize("fleet", ["journal"], indirect=True)
def test_a_space_that_is_handed_in_in_another_order_stays_in_its_own(fleet):
    space = {name: {"type": "int", "low": 0, "high": 1} for name in "xy"}
    other = dict(reversed(space.items()))
    handle = fleet.submit(space=space, trials=1, sampler={"type": "brute_force"})
    with fleet.service() as service:
        turn_until(service, lambda: is_over(fleet, "s"), "it is over")
        fleet.submit(space=other, trials=2, sampler={"type": "brute_force"})
        assert list(handle.spec().space) == ["x", "y"]
        assert list(handle.extend(space=other, trials=3).space) == ["x", "y"]
        turn_until(service, lambda: is_over(fleet, "s"), "it is over again")
    assert len(fleet.stored()) == 3


def test_the_parents_of_a_generation_stay_the_same_trials(fleet):
    space = {"x": SPACE["x"]}
    sampler = {"type": "nsgaii", "population_size": 3}
    handle = fleet.submit(space=space, trials=9, sampler=sampler)
    with fleet.service() as service:
        turn_until(service, lambda: is_over(fleet, "s"), "it is over")
        for count in (1, 2):  # in a journal, the first one begins with the same ids
            space["x"] = {**space["x"], "high": 1.0 + count}
            handle.extend(space=space, trials=9 + 3 * count)
            turn_until(service, lambda n=count: f"s@{n}" in names(fleet), "it is wider")
            turn_until(service, lambda: is_over(fleet, "s"), "it is over again")
    former, after = parents(load(fleet, "s@2")), parents(load(fleet))
    assert [len(each) for each in former.values()] == [3] * len(former) != []
    assert former.items() <= after.items()
    assert parents(load(fleet, "s@1")).items() <= former.items()


def parents(study):
    """The numbers of the trials that are a generation's parents, by the attribute's name."""
    attrs = study._storage.get_study_system_attrs(study._study_id)
    numbers = {trial._trial_id: trial.number for trial in study.trials}
    return {
        key: sorted(numbers.get(each, -1) for each in ids)
        for key, ids in attrs.items()
        if ":parent:" in key
    }


STEPS = {
    "journal": [(JournalFile, "append_logs"), (JournalFile, "sync"), (os, "replace")],
    "database": [
        (optuna.storages.RDBStorage, name)
        for name in ("create_new_study", "set_study_user_attr", "create_new_trial")
    ]
    + [(succession, "_rename"), (StudyStorage, "raise_fence")],
}


def broken_off(fleet, spec, step) -> bool:
    """Have a process widen the storage that is killed after so many steps; whether it was."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == signal.SIGKILL
    left = iter(range(step))

    def step_or_die():
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, name in (each for steps in STEPS.values() for each in steps):
        whole = getattr(owner, name)

        def counted(*arguments, _whole=whole, _name=name, **named):
            step_or_die()
            answer = _whole(*arguments, **named)
            if _name in {"replace", "_rename"}:  # by which it is done
                step_or_die()
            return answer

        setattr(owner, name, counted)
    try:
        widen_stored(url(fleet), spec)
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - this process must not go on with the tests
        print(repr(error), file=sys.stderr)
        os._exit(1)


def test_one_who_is_killed_at_any_step_leaves_the_study_as_it_was_or_as_it_is_to_be(fleet):
    handle = fleet.submit(space=SPACE, trials=2)
    with fleet.service() as service:
        turn_until(service, lambda: is_over(fleet, "s"), "it is over")
    before, step = load(fleet).get_trials(), 0
    params = [trial.params for trial in before]
    spec = StudySpec.read({**handle.spec().model_dump(mode="json"), "space": WIDER})
    while broken_off(fleet, spec, step):
        step += 1
        now = load(fleet)
        assert facts(now.trials) == facts(before)
        is_wider = "new" in stored_space(now)
        assert ("b" in now.trials[0].distributions["kind"].choices) is is_wider
        assert is_wider or [trial.params for trial in now.trials] == params
    assert step > 10, "each step was tried"
    assert widen_stored(url(fleet), spec) is None, "it is done"
    assert names(fleet) == ["s", "s@1"]
    assert [trial.params for trial in load(fleet, "s@1").trials] == params
    assert facts(load(fleet).trials) == facts(load(fleet, "s@1").trials) == facts(before)
    with fleet.service() as service:
        turn_until(service, lambda: service.status("s") is not None, "an orchestrator takes it")
        handle.extend(trials=3)
        turn_until(service, lambda: len(fleet.stored()) == 3, "and goes on with it")
    assert fleet.stored()[2].distributions["x"] == FloatDistribution(-1.0, 2.0)


def stored_space(study):
    return StudySpec.read(study.user_attrs["trialfleet:spec"]).space


def test_the_storage_counts_where_redis_forgot_that_a_space_became_wider(fleet):
    handle = fleet.submit(space=SPACE, trials=2)
    earlier = fleet.client.hget(keys.study("s"), "spec")
    with fleet.service() as service:
        turn_until(service, lambda: is_over(fleet, "s"), "it is over")
        wider = handle.extend(space=WIDER)
        turn_until(service, lambda: "s@1" in names(fleet), "it is wider")
    fleet.client.hset(keys.study("s"), "spec", earlier)
    assert submit(wider, fleet.settings).spec().space == wider.space, "it can be handed in"
    fleet.client.hset(keys.study("s"), "spec", earlier)
    with fleet.service() as service:
        turn_until(service, lambda: service.status("s") is not None, "an orchestrator takes it")
        assert handle.spec().space == wider.space
    with pytest.raises(StudyExistsError, match=r"space\."):
        fleet.submit(space=SPACE, trials=2)
    assert names(fleet) == ["s", "s@1"]


WIDE = {"x": {"type": "float", "low": 0.0, "high": 2.0}}
NARROW = {"x": {"type": "float", "low": 0.0, "high": 1.0}}


@pytest.mark.parametrize("fleet", ["journal"], indirect=True)
@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({"space": NARROW}, {"space": WIDE, "direction": "maximize"}),
        ({"space": NARROW}, {"space": WIDE, "config": {"other": 1}}),
        ({"space": {}}, {"space": NARROW}),
        ({"space": NARROW}, {"space": {}}),
        ({"space": WIDE}, {"space": NARROW, "direction": "maximize"}),
    ],
)
def test_another_study_under_a_name_that_the_storage_has_is_no_wider_one(fleet, was, now):
    fleet.submit(trials=1, **was)
    with fleet.service() as service:
        turn_until(service, lambda: is_over(fleet, "s"), "it is over")
    before, attrs = facts(load(fleet).trials), load(fleet).user_attrs
    fleet.client.flushdb()
    fleet.pretend_worker()
    put(fleet, "s", **now)  # as one submits it who has no such storage
    written = fleet.client.hget(keys.study("s"), "spec")
    with fleet.service() as service, pytest.raises(StudyExistsError, match="exists with"):
        look_around(service)
    assert names(fleet) == ["s"]
    assert facts(load(fleet).trials) == before
    for attr in (IDENTITY_ATTR, SPEC_ATTR):
        assert load(fleet).user_attrs[attr] == attrs[attr]
    assert fleet.client.hget(keys.study("s"), "spec") == written


@pytest.mark.parametrize("fleet", ["journal"], indirect=True)
@pytest.mark.parametrize("wish", [Wish.RUN, Wish.STOP])
def test_an_extension_that_is_made_while_redis_learns_of_a_wider_space_is_kept(
    fleet, monkeypatch, wish
):
    handle = fleet.submit(space=NARROW, trials=1)
    earlier = fleet.client.hget(keys.study("s"), "spec")
    with fleet.service() as service:
        turn_until(service, lambda: is_over(fleet, "s"), "it is over")
        handle.extend(space=WIDE)
        turn_until(service, lambda: "s@1" in names(fleet), "it is wider")
    fleet.client.hset(keys.study("s"), "spec", earlier)
    whole, left = driven_module.stored_spec, [3]

    def while_somebody_extends_it(*given):
        if left:
            handle.extend(trials=left.pop())
            Studies(fleet.client).want("s", wish)
        return whole(*given)

    monkeypatch.setattr(driven_module, "stored_spec", while_somebody_extends_it)
    Studies(fleet.client).want("s", Wish.RUN)
    handle.extend(trials=1)  # so that it is looked at
    with fleet.service() as service:
        turn_until(service, lambda: handle.spec().space["x"].high == 2.0, "Redis has it")
    assert handle.spec().trials == 3


def test_what_is_not_wider_is_refused_and_nothing_has_changed(fleet):
    handle = fleet.submit(space=SPACE, trials=2)
    before = fleet.client.hget(keys.study("s"), "spec")
    x = SPACE["x"]
    wrong = {
        r"space\.x\.high = 0\.5 is below 1\.0": {**SPACE, "x": {**x, "high": 0.5}},
        r"space\.kind is left out": {"x": x},
        r"space\.x\.low = -inf: give a finite": {**SPACE, "x": {**x, "low": float("-inf")}},
        r"space\.new\.default = 3.*can never be": {
            **SPACE, "new": {"type": "int", "low": 0, "high": 1, "default": 3},
        },
        r"space\.new\.when\.y: no such parameter": {
            **SPACE, "new": {"type": "int", "low": 0, "high": 1, "when": {"y": 1}},
        },
        r"space\.x\.hihg = 2: no such setting; did you mean 'high'\?$": {
            **SPACE, "x": {**x, "hihg": 2},
        },
        r"space\.x\.high = 'abc': it should be a valid number[^.]*$": {
            **SPACE, "x": {**x, "high": "abc"},
        },
    }  # fmt: skip
    for reason, space in wrong.items():
        with pytest.raises(InvalidInputError, match=reason):
            handle.extend(space=space)
        assert fleet.client.hget(keys.study("s"), "spec") == before
    with pytest.raises(StudyExistsError, match=r"`trialfleet extend s --space FILE` takes"):
        fleet.submit(space={**SPACE, "x": {**x, "high": 2.0}}, trials=2)
    fleet.client.flushdb()
    fleet.submit(space={}, trials=2)
    with pytest.raises(InvalidInputError, match="has no `space`: its objective suggests"):
        handle.extend(space=SPACE)


def test_a_study_that_no_fleet_has_is_widened_where_it_lies(fleet, server):
    handle = fleet.submit(space=SPACE, trials=2)
    with fleet.service() as service:
        turn_until(service, lambda: is_over(fleet, "s"), "it is over")
    alone = StudyHandle("s", fleet.settings.model_copy(update={"redis_url": None}))
    with pytest.raises(FleetError, match="no fleet runs here"):
        alone.extend(trials=5, space=WIDER)
    assert alone.extend(space=WIDER).space == alone.spec().space
    assert names(fleet) == ["s", "s@1"]
    with fleet.service() as service:
        turn_until(service, lambda: service.status("s") is not None, "an orchestrator takes it")
    assert handle.spec().space == alone.spec().space


def test_who_has_loaded_a_journal_is_told_that_another_has_taken_its_place(
    client, settings, tmp_path
):
    fleet = Fleet(client, settings, tmp_path)
    handle = fleet.submit(space=SPACE, trials=1)
    with fleet.service() as service:
        turn_until(service, lambda: is_over(fleet, "s"), "it is over")
        earlier, handles = load(fleet), handle.study
        seen_by_trials = StudyView(fleet.spec, Studies(client), url(fleet))
        assert len(seen_by_trials.trials) == 1
        handle.extend(space=WIDER)
        turn_until(service, lambda: "s@1" in names(fleet), "it is wider")
    for study in (earlier, handles):
        with pytest.raises(FleetError, match="load the study again"):
            _ = study.trials
    assert "new" in stored_space(handle.study)
    assert seen_by_trials.trials[0].distributions["x"] == FloatDistribution(-1.0, 2.0)


def test_the_command_line_widens_one_field_or_takes_a_whole_space_from_a_file(
    fleet, tmp_path, monkeypatch
):
    for name, value in fleet.settings.to_environment().items():
        monkeypatch.setenv(name, value)
    handle = fleet.submit(space=SPACE, trials=2)
    call = partial(CliRunner().invoke, control_app)
    said = call(["extend", "s", "--trials", "5", "--set", "space.x.high=3"])
    assert said.exit_code == 0, said.output
    spec = handle.spec()
    assert (spec.trials, spec.space["x"].high, spec.space["x"].low) == (5, 3.0, 0.0)
    (tmp_path / "space.yaml").write_text(
        "x: {type: float, low: 0.0, high: 9}\n"
        "kind: {type: categorical, choices: [a, 1]}\n"
        "further: {type: int, low: 1, high: 2}\n"
    )
    said = call(["extend", "s", "--space", str(tmp_path / "space.yaml")])
    assert "further is new, and the trials before lack it" in said.output
    assert set(handle.spec().space) == {"x", "kind", "further"}
    study = "name: s\nobjective: m:f\nspace:\n  x: {type: float, low: 0, high: 1}\n"
    (tmp_path / "study.yaml").write_text(study)
    for arguments, reason in (
        (["--set", "config.epochs=1"], "config cannot change"),
        (["--set", "space.x.high=1"], r"space.x.high = 1.0 is below 9.0"),
        (["--set", "space.y.high=1"], "space has no such parameter"),
        (["--space", str(tmp_path / "study.yaml")], "space.x.high = 1.0 is below 9.0"),
        (["--space", str(tmp_path / "none.yaml")], "there is no such study file"),
    ):
        assert reason in str(call(["extend", "s", *arguments]).exception)
