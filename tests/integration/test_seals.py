"""A fleet with a secret: what its workers and its orchestrator act on, they find signed."""

from __future__ import annotations

import json
import math
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hand_fleet import SPACE, Fleet, turn_until
from one_process_fleet import OneProcessFleet
from optuna.distributions import CategoricalDistribution, IntDistribution, distribution_to_json
from structlog.testing import capture_logs

from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from workers.containers import Container
from workers.coordination import keys
from workers.coordination.clock import server_time_ms
from workers.coordination.grants import Grant
from workers.coordination.inbox import Inbox
from workers.coordination.studies import Studies, ensure_epoch
from workers.managers import MANAGERS
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.errors import InvalidInputError, UnsealedError
from workers.protocol.messages import Drawn, Result, RunTrial
from workers.protocol.seals import UNSEALED, Seal
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind, TrialState
from workers.settings import Settings
from workers.trials.runner import TrialRunner

SECRET, OTHER = "the-secret-of-this-fleet", "the-secret-of-another-fleet"
SEAL = Seal.of(SECRET)

#: Asks for one parameter of its space, one that was drawn before, and one that nobody foresaw.
OBJECTIVE = """
def objective(trial):
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_int("y", 1, 5)
    if trial.number % 2:
        y += trial.suggest_int("z", 1, 5)
    return x + y
"""


def with_secret(settings, secret=SECRET, **changes):
    fields = {"secret": secret, "objectives": ("*",), "home": settings.home, **changes}
    return Settings(redis_url=settings.redis_url, cache=settings.cache, time_scale=0.1, **fields)


@pytest.fixture(autouse=True)
def wandb_is_off(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def train(tmp_path):
    sys.modules.pop("sealed_objective", None)
    (tmp_path / "sealed_objective.py").write_text(OBJECTIVE)
    return f"{tmp_path}/sealed_objective.py:objective"


@contextmanager
def runner_of(client, settings, folder):
    """A runner whose process is registered as the one slot of a worker."""
    registry = ProcessRegistry(client, settings.times.scaled(1e4))
    fields = {"slots": 1, "queues": ["default"]}
    main = ProcessRecord(registry, ProcessKind.MAIN, fields=fields)
    main.identity = main.identity._replace(pid=1)
    main.register()
    slot = ProcessRecord(registry, ProcessKind.TRIAL, parent=1, fields={"device": "here/cpu-0"})
    slot.register()
    with Container(MANAGERS, [settings, ProcessRecord()]) as container:
        yield TrialRunner(
            client=client,
            redis_url=settings.redis_url,
            settings=settings,
            container=container,
            record=slot,
            drain_file=str(folder / "drain"),
        )


def test_studies_of_all_kinds_run_under_a_secret(client, server, settings, tmp_path, train):
    with OneProcessFleet(client, server, with_secret(settings), tmp_path) as fleet:
        asking = StudySpec(name="asking", objective=train, trials=4)
        given = StudySpec(name="given", objective=train, trials=4, space={**SPACE})
        studies = fleet.run_studies([asking, given])
        for study in studies.values():
            assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
            assert {"x", "y", "z"} == set(study.trials[1].params)
        assert client.hget(keys.trial("asking", 1), "seal")
        assert client.hget(keys.study("asking"), "seal")
        (document,) = {SECRET in str(client.hgetall(key)) for key in client.keys("*:study")}
        assert not document


@pytest.fixture
def queued(client, settings, train):
    """The trials of a study, in Redis as an orchestrator with the secret wrote them."""
    ensure_epoch(client)
    spec = StudySpec(name="s", objective=train, trials=4)
    studies = Studies(client, seal=SEAL)
    studies.submit(spec)
    leases = studies.leases("s", generation="g", work=spec.work())
    distribution = distribution_to_json(IntDistribution(1, 5))
    drawn = {"y": Drawn(distribution=distribution, value=3)}
    for number in range(2):
        leases.enqueue(number, {"x": 0.5}, drawn=drawn)
    return leases


def hint_of(leases, seal=SEAL, number=0):
    return RunTrial(study="s", number=number, epoch=leases.epoch).sealed(seal)


def alter_spec(client):
    text = client.hget(keys.study("s"), "spec").replace("sealed_objective", "other")
    client.hset(keys.study("s"), "spec", text)


def take_other_specs(client):
    """Put in its place one of the same name that the fleet did sign, once."""
    earlier = StudySpec(name="s", objective="earlier:objective", trials=4)
    Studies(client, seal=SEAL).restore(Studies(client).submitted("s")._replace(spec=earlier))


def copy_record(client):
    client.delete(keys.trial("s", 0))
    client.hset(keys.trial("s", 0), mapping=client.hgetall(keys.trial("s", 1)))


FORGERIES = {
    "a specification without a seal": lambda client: client.hdel(keys.study("s"), "seal"),
    "an altered specification": alter_spec,
    "an earlier specification": take_other_specs,
    "a record without a seal": lambda client: client.hdel(keys.trial("s", 0), "seal"),
    "an altered parameter": lambda client: client.hset(keys.trial("s", 0), "param:x", "0.75"),
    "another parameter": lambda client: client.hset(keys.trial("s", 0), "param:z", "1"),
    "altered draws": lambda client: client.hset(keys.trial("s", 0), "drawn", "{}"),
    "another generation": lambda client: client.hset(keys.trial("s", 0), "generation", "h"),
    "another trial's record": copy_record,
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_others_wrote_is_refused_before_it_is_claimed(
    client, settings, tmp_path, queued, forgery
):
    FORGERIES[forgery](client)
    with runner_of(client, with_secret(settings), tmp_path) as runner, capture_logs() as logs:
        for number in (0, 0):
            runner.run(hint_of(queued, number=number))
    record = queued.record(0)
    assert (record.state, record.attempt, record.failures) == (TrialState.QUEUED, 0, 0)
    (told,) = [each for each in logs if each["event"] == "study_refused"]
    assert told["reason"].startswith("FLEET_SECRET is set here, and ")
    (waits_for,) = StudyHandle("s", settings).status().waits_for[-1:]
    assert waits_for.startswith("no worker takes its trials (")
    assert told["reason"] in waits_for


@pytest.mark.parametrize("seal", [UNSEALED, Seal.of(OTHER)])
def test_a_message_that_is_not_the_fleets_is_refused_and_left_to_others(
    client, settings, tmp_path, queued, seal
):
    with runner_of(client, with_secret(settings), tmp_path) as runner:
        runner.run(hint_of(queued, seal))
        assert queued.record(0).attempt == 0
        assert "s" in StudyHandle("s", settings).status().waits_for[-1]
        runner.run(hint_of(queued))  # the orchestrator sends it again
        assert queued.record(0).state is TrialState.COMPLETE
        assert "FLEET_SECRET" not in str(StudyHandle("s", settings).status().waits_for)


def test_a_worker_without_a_secret_leaves_a_fleet_that_has_one(client, settings, tmp_path, queued):
    """What it told would not be taken in."""
    with runner_of(client, with_secret(settings, None), tmp_path) as runner, capture_logs() as logs:
        runner.run(hint_of(queued))
    assert (queued.record(0).state, queued.record(0).attempt) == (TrialState.QUEUED, 0)
    (told,) = [each for each in logs if each["event"] == "study_refused"]
    assert "'s' is of a fleet with a secret, and there is no FLEET_SECRET here" in told["reason"]


def test_a_record_that_is_altered_between_look_and_claim_is_given_back(client, queued):
    spec = Studies(client, seal=SEAL).spec("s")
    leases = Studies(client, seal=SEAL).leases("s").trusted(0, spec.work())
    client.hset(keys.trial("s", 0), "param:x", "0.75")
    refusal = leases.claim(0, "me", 45.0)
    assert refusal.reason == "ALTERED"
    record = queued.record(0)
    assert (record.state, record.failures, record.losses) == (TrialState.QUEUED, 0, 0)
    assert isinstance(leases.trusted(1, spec.work()).claim(1, "me", 45.0), Grant)


def test_a_drawn_choice_that_is_no_number_stays_what_it_is(client, queued):
    text = distribution_to_json(CategoricalDistribution([math.nan, 1.0]))
    drawn = {"c": Drawn(distribution=text, value=math.nan)}
    queued.enqueue(3, {}, drawn=drawn)
    work = Studies(client, seal=SEAL).spec("s").work()
    leases = Studies(client, seal=SEAL).leases("s").trusted(3, work)
    grant = leases.claim(3, "me", 45.0)
    assert math.isnan(grant.record.drawn["c"].value)
    assert leases.take(3, grant.token, grant.record.drawn)
    assert math.isnan(leases.trusted(3, work).record(3).params["c"])


def test_an_answer_that_the_orchestrator_did_not_sign_is_not_taken(
    client, server, settings, tmp_path, train
):
    """The parameter waits in the record, as somebody put it there while its holder asked."""
    with OneProcessFleet(client, server, with_secret(settings), tmp_path) as fleet:
        spec = StudySpec(name="s", objective=train, trials=2)
        fleet.studies.submit(spec)
        leases = fleet.studies.leases("s")
        fleet.until(lambda: 0 in leases.queued(), "it is asked for")
        trusted = leases.trusted(0, spec.work())
        grant = trusted.claim(0, "me", 45.0)
        assert trusted.suggest(0, grant.token, "z", "{}") == ["OK"]
        client.hset(keys.trial("s", 0), "param:z", "4")
        answer = trusted.suggest(0, grant.token, "z", "{}")
        with pytest.raises(UnsealedError, match="z of trial 0 of study 's' is not signed"):
            trusted.check_answer(0, "z", *answer[1:])


def test_an_orchestrator_drives_what_its_fleet_handed_in_alone(client, settings, tmp_path):
    fleet = Fleet(client, with_secret(settings), tmp_path)
    unsigned = StudySpec(name="s", objective=fleet.objective, space=SPACE, trials=2)
    Studies(client).submit(unsigned)
    leases = Studies(client).leases("s")
    with Service(fleet.settings) as service:
        turn_until(service, lambda: Studies(client).facts.get("s", "stalled"), "it stalls")
        assert leases.queued() == {}
        stalled = StudyHandle("s", settings).status().stalled
        assert "the specification of study 's' is not signed: hand it in again" in stalled
        fleet.submit(trials=2)  # the same, signed
        turn_until(service, lambda: len(leases.queued()) == 2, "it is driven")
    with pytest.raises(UnsealedError, match="'s' is signed, and there is no FLEET_SECRET here"):
        StudyHandle("s", settings).extend(trials=5)
    with pytest.raises(UnsealedError, match="is signed with another secret"):
        StudyHandle("s", with_secret(settings, OTHER)).extend(trials=5)
    unsigned_again = Fleet(client, settings, tmp_path)
    with pytest.raises(InvalidInputError, match="'s' is signed"):
        unsigned_again.submit(trials=5)
    assert StudyHandle("s", fleet.settings).extend(trials=5).trials == 5
    assert Studies(client, seal=SEAL).spec("s").trials == 5


@pytest.mark.parametrize("secret", [None, OTHER])
def test_what_the_orchestrator_that_runs_would_not_take_is_not_handed_in(
    client, settings, tmp_path, secret
):
    fleet = Fleet(client, with_secret(settings, f"{SECRET},former-{SECRET}"), tmp_path)
    stranger = Fleet(client, with_secret(settings, secret), tmp_path)
    with fleet.service():
        with pytest.raises(UnsealedError, match="'s'.*only signed studies.*FLEET_SECRET.* here"):
            stranger.submit(trials=2)
        assert not Studies(client).exists("s")
        Fleet(client, with_secret(settings, f"former-{SECRET}"), tmp_path).submit(trials=2)
    assert Studies(client).exists("s")


def test_a_fleet_without_a_secret_takes_what_is_signed(client, settings, tmp_path):
    with Fleet(client, settings, tmp_path).service():
        Fleet(client, with_secret(settings), tmp_path).submit(trials=2)


def trusted(client, spec, number, secret=SECRET):
    """A trial's leases, as a worker with a secret has them."""
    return Studies(client, seal=Seal.of(secret)).leases("s").trusted(number, spec.work())


def is_trusted(client, spec, number):
    try:
        return trusted(client, spec, number) is not None
    except UnsealedError:
        return False


def has_ended(fleet, number):
    return fleet.stored()[number].state.is_finished()


def drawn_for(fleet):
    """A trial that waits, and for which something was drawn; 0 if there is none."""
    records = fleet.leases.records(sorted(fleet.leases.queued()))
    return next((number for number, record in records.items() if record.drawn), 0)


EVIL = distribution_to_json(CategoricalDistribution(["/tmp/evil"]))
EVIL_PARAMS = {"data.source": {"distribution": EVIL, "value": "/tmp/evil"}}

#: What somebody could put into an inbox: kind, subject, body.
FORGED_ENTRIES = [
    ("suggest", "model.id", EVIL),
    ("taken", "", json.dumps(EVIL_PARAMS)),
    ("report", "3", "0.5"),
    ("pause", "0", json.dumps({"step": 3, "value": 0.5, "result": {"params": EVIL_PARAMS}})),
    ("terminal", "COMPLETE", json.dumps({"values": [0.0], "params": EVIL_PARAMS})),
    ("terminal", "DEAD", json.dumps({"error": "x", "params": EVIL_PARAMS})),
    ("nothing", "", ""),
]


def test_an_orchestrator_takes_nothing_in_that_its_fleet_did_not_sign(client, settings, tmp_path):
    fleet = Fleet(client, with_secret(settings), tmp_path)
    fleet.submit(trials=2, space={})
    inbox = Inbox(client, "test")
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they wait for a worker")
        leases = trusted(client, fleet.spec, 0)
        token = leases.claim(0, "me", 600.0).token
        leases.report(0, token, 1, 0.25)
        ((_, signed),) = client.xrange(keys.inbox("s"))
        replayed = [
            {**signed, "number": "1"},
            {**signed, "subject": "2"},
            {**signed, "body": "0.5"},
        ]
        fields = {"number": "0", "token": str(token), "attempt": "1", "seal": signed["seal"]}
        for kind, subject, body in FORGED_ENTRIES:
            replayed.append({**fields, "kind": kind, "subject": subject, "body": body})
        for entry in replayed:
            client.xadd(keys.inbox("s"), entry)
        turn_until(service, lambda: inbox.is_empty("s"), "all is read")
        stored = fleet.stored()
        assert (stored[0].state.name, stored[0].params) == ("RUNNING", {})
        assert [trial.intermediate_values for trial in stored] == [{1: 0.25}, {}]
        client.delete(keys.trial("s", 0))  # it is written again from the storage
        turn_until(service, lambda: fleet.leases.record(0), "it waits again")
        assert fleet.leases.record(0).params == {}
        shown = f"is not signed by it, in {len(replayed)} entries"
        turn_until(service, lambda: shown in str(fleet.statuses[-1].set_aside), "it is shown")
        assert len(fleet.statuses[-1].set_aside) == 1


def test_a_trial_that_a_process_without_the_secret_ended_runs_again(client, settings, tmp_path):
    fleet = Fleet(client, with_secret(settings), tmp_path)
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, lambda: 0 in fleet.leases.queued(), "it waits for a worker")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: 0 in fleet.leases.queued(), "it waits again")
        leases = trusted(client, fleet.spec, 0)
        ended = Result(values=[0.75])
        token = leases.claim(0, "me", 600.0).token
        assert leases.commit(0, token, TrialState.COMPLETE, ended) == "OK"
        turn_until(service, lambda: has_ended(fleet, 0), "it is told")
    assert fleet.stored()[0].values == [0.75]


def test_ends_that_are_told_for_processes_that_are_gone_are_signed(client, settings, tmp_path):
    """By the lease's end, by who saw the process die, and by who found its result on disk."""
    fleet = Fleet(client, with_secret(settings), tmp_path)
    fleet.submit(trials=3)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "they wait for a worker")
        tokens = [
            trusted(client, fleet.spec, number).claim(number, "me", 600.0).token
            for number in range(3)
        ]
        others = Studies(client, seal=SEAL).leases("s")  # whoever ran none of them
        died = {"most": 1, "backoff_seconds": 0.0}
        assert others.reap(0, "gone", dead_token=tokens[0], **died) == "DEAD"
        late = replace(others, now_ms=server_time_ms(client) + 10**6)
        assert late.reap(1, "gone", **died) == "DEAD"
        assert others.commit(2, tokens[2], TrialState.COMPLETE, Result(values=[0.5])) == "OK"
        turn_until(service, lambda: all(has_ended(fleet, each) for each in range(3)), "all ended")
        assert fleet.statuses[-1].set_aside == []
    assert [trial.state.name for trial in fleet.stored()] == ["FAIL", "FAIL", "COMPLETE"]


def alterations(client):
    """What somebody could do to the record of a trial that waits, by what it is."""
    sealed = client.hget(keys.trial("s", 0), "seal")
    return {
        "parameters": {"param:x": "7.5", "param:z": "8", "seal:z": "0"},
        "a generation": {"generation": "another"},
        "draws": {"drawn": "{}"},
        "a seal": {"seal": sealed[::-1]},
    }


def test_what_others_write_into_a_record_is_mended_from_the_storage(client, settings, tmp_path):
    fleet = Fleet(client, with_secret(settings), tmp_path)
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, lambda: 0 in fleet.leases.queued(), "it waits for a worker")
        before = fleet.leases.record(0).params
        for what, fields in alterations(client).items():
            client.hset(keys.trial("s", 0), mapping=fields)
            assert not is_trusted(client, fleet.spec, 0), what
            turn_until(service, lambda: is_trusted(client, fleet.spec, 0), f"{what} of it mended")
            assert fleet.leases.record(0).params == before


def test_a_study_that_is_handed_in_with_its_default_task_written_out_goes_on(
    client, settings, tmp_path
):
    fleet = Fleet(client, with_secret(settings), tmp_path)
    given = {"name": "s", "objective": "finetune", "space": SPACE}
    written = StudySpec(**given, config={"task": "text_classification"}, trials=3)
    assert written.work() == StudySpec(**given).work()
    studies = Studies(client, seal=SEAL)
    studies.submit(StudySpec(**given, trials=1))
    with fleet.service() as service:
        turn_until(service, lambda: 0 in studies.leases("s").queued(), "it is driven")
        studies.submit(written)
        turn_until(service, lambda: 2 in studies.leases("s").queued(), "it has more trials")
        for number in range(3):
            assert is_trusted(client, studies.spec("s"), number)


@pytest.mark.parametrize("before", [None, OTHER])
def test_trials_go_on_where_a_fleet_is_given_a_secret_or_another_one(
    client, settings, tmp_path, before
):
    """One has been answered, one has taken what was drawn for it, and that waits to be read."""
    fleet = Fleet(client, with_secret(settings, before), tmp_path)
    fleet.submit(trials=8, space={})
    spec, asked_from = fleet.spec, distribution_to_json(IntDistribution(1, 5))
    with fleet.service() as service:
        for number in (0, 1):
            turn_until(service, lambda each=number: each in fleet.leases.queued(), "it waits")
            leases = trusted(client, spec, number, before)
            token = leases.claim(number, "me", 600.0).token
            leases.suggest(number, token, "y", asked_from)
            turn_until(
                service, lambda each=number: fleet.leases.record(each).params, "it is answered"
            )
            if number == 0:
                leases.commit(0, token, TrialState.COMPLETE, Result(values=[0.5]))
        late = turn_until(service, lambda: drawn_for(fleet), "one is asked for with draws")
        leases = trusted(client, spec, late, before)
        grant = leases.claim(late, "me", 600.0)
        drawn = grant.record.drawn
        assert drawn.keys() == {"y"}
        leases.take(late, grant.token, drawn)
    fleet.settings = with_secret(settings, SECRET if before is None else f"{SECRET},{before}")
    fleet.submit(trials=8, space={})
    with fleet.service() as service:
        for number in (1, late):
            turn_until(service, lambda each=number: is_trusted(client, spec, each), "it is signed")
        turn_until(service, lambda: Inbox(client, "test").is_empty("s"), "all is read")
        assert Studies(client, seal=SEAL).spec("s").trials == 8
        assert trusted(client, spec, 1).record(1).params == fleet.stored()[1].params
        if before is not None:
            assert fleet.stored()[late].params == {"y": drawn["y"].value}
            leases.commit(late, grant.token, TrialState.COMPLETE, Result(values=[0.5]))
            turn_until(service, lambda: has_ended(fleet, late), "it is told")
