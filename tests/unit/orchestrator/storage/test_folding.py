from __future__ import annotations

import json
from datetime import UTC, datetime

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from orchestrator.storage.folding import FoldedJournal, Folding
from orchestrator.storage.journal import JournalFile, JournalReader

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

NOW = datetime(2030, 1, 1, tzinfo=UTC).isoformat(timespec="microseconds")

DISTRIBUTIONS = [
    distribution_to_json(each)
    for each in (
        FloatDistribution(0, 1),
        FloatDistribution(0, 9),
        FloatDistribution(1, 9, log=True),
        IntDistribution(0, 9),
        CategoricalDistribution(["a", None]),
        CategoricalDistribution(["a", "b"]),
    )
]

numbers = st.floats(width=64) | st.just(float("inf")) | st.just(-0.0)
trial = st.integers(0, 3)
study = st.integers(0, 2)
json_values = st.none() | numbers | st.text(max_size=3) | st.lists(st.integers(), max_size=2)


def of(op_code, **fields):
    """Logs of one operation; what is no strategy is in each of them."""
    given = {"op_code": op_code, "worker_id": "another-1", **fields}
    return st.fixed_dictionaries({
        name: each if isinstance(each, st.SearchStrategy) else st.just(each)
        for name, each in given.items()
    })  # fmt: skip


def attribute(values):
    return st.dictionaries(st.sampled_from("kl"), values, min_size=1, max_size=1)


templates = of(
    4,
    study_id=study,
    datetime_start=st.none() | st.just(NOW),
    state=st.sampled_from([0, 1, 4]),
    value=st.none() | numbers,
    values=None,
    distributions=st.just({"x": DISTRIBUTIONS[3]}),
    params=st.just({"x": 3.0}),
    user_attrs=attribute(json_values),
    system_attrs=st.just({}),
    intermediate_values=st.dictionaries(st.sampled_from(["1", "7"]), numbers),
)

LOGS = st.lists(
    of(0, study_name=st.sampled_from("st"), directions=[1])
    | of(1, study_id=study)
    | of(2, study_id=study, user_attr=attribute(json_values))
    | of(3, study_id=study, system_attr=attribute(json_values))
    | of(4, study_id=study, datetime_start=NOW)
    | of(4, study_id=st.just(0), datetime_start=NOW)
    | templates
    | of(5, trial_id=trial, param_name=st.sampled_from("xy"), param_value_internal=st.just(1.0),
         distribution=st.sampled_from(DISTRIBUTIONS))
    | of(6, trial_id=trial, state=st.sampled_from([0, 1, 2, 3, 4]), datetime_start=NOW,
         datetime_complete=NOW, values=st.none() | st.lists(numbers, min_size=1, max_size=2))
    | of(7, trial_id=trial, step=st.integers(0, 3), intermediate_value=numbers)
    | of(8, trial_id=trial, user_attr=attribute(json_values))
    | of(9, trial_id=trial, system_attr=attribute(json_values))
    | of(10, trial_ids=[0]),
    max_size=60,
)  # fmt: skip

FIRST = {"op_code": 0, "worker_id": "another-1", "study_name": "s", "directions": [1]}
TRIAL = {"op_code": 4, "worker_id": "another-1", "study_id": 0, "datetime_start": NOW}


def contents(storage):
    """All that a storage holds, in its order; as text, where NaN is like itself."""
    studies = {each._study_id: repr(vars(each)) for each in storage.get_all_studies()}
    return {
        number: (text, [repr(vars(each)) for each in storage.get_all_trials(number)])
        for number, text in studies.items()
    }


def drawn(number, distribution):
    return {
        "op_code": 5, "worker_id": "w", "trial_id": number, "param_name": "x",
        "param_value_internal": 1.0, "distribution": DISTRIBUTIONS[distribution],
    }  # fmt: skip


#: A study that is there already; a trial that was added with a parameter of another kind.
TWICE = [FIRST, {**TRIAL, "study_id": 1}, {**TRIAL, "study_id": 0}, drawn(3, 0)]
ADDED = {**TRIAL, "distributions": {"x": DISTRIBUTIONS[3]}, "params": {"x": 3.0}}


@settings(max_examples=250)
@example(logs=TWICE, split=0)
@example(logs=[drawn(0, 0), ADDED, drawn(1, 1), drawn(2, 3)], split=4)
@given(logs=LOGS, split=st.integers(0, 60))
def test_a_folded_journal_holds_what_optuna_reads_from_it(tmp_path_factory, logs, split):
    path = tmp_path_factory.mktemp("folding") / "journal.log"
    lines = [json.dumps(each) + "\n" for each in [FIRST, *[TRIAL] * 3, *logs]]
    path.write_text("".join(lines[: 4 + split]))
    following = JournalStorage(FoldedJournal(JournalReader(path)))
    with path.open("a") as file:
        file.writelines(lines[4 + split :])
    whole = JournalStorage(FoldedJournal(JournalReader(path)))
    expected = contents(JournalStorage(JournalFileBackend(str(path))))
    assert contents(whole) == expected
    assert contents(following) == expected


def test_who_opened_a_folded_journal_writes_on(tmp_path):
    path = tmp_path / "journal.log"
    for count in (3, 6):
        journal = JournalFile(path)
        study = optuna.create_study(
            study_name="s", storage=JournalStorage(FoldedJournal(journal)), load_if_exists=True
        )
        study.enqueue_trial({"x": 0.5})
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        assert [each.number for each in study.trials] == list(range(count))
        journal.close()
    again = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))
    assert again.trials == study.trials


def test_of_an_ended_trial_one_log_is_left(tmp_path):
    folding = Folding()
    folding.add(FIRST)
    for number in range(10):
        folding.add(dict(TRIAL))
        for step in range(10):
            folding.add({
                "op_code": 7, "worker_id": "w", "trial_id": number, "step": step,
                "intermediate_value": 0.5,
            })  # fmt: skip
    assert len(folding.logs) == 11


def test_lines_that_the_fast_parser_refuses_are_read_all_the_same(tmp_path):
    path = tmp_path / "journal.log"
    odd = [
        '{"text":"\\ud800"}',
        '{"number":' + "9" * 400 + "}",
        '{"nan":NaN}',
        "[" * 300 + "]" * 300,
    ]
    path.write_text("\n".join([*odd, ""]))
    assert list(map(repr, JournalReader(path).read_logs(0))) == [repr(json.loads(x)) for x in odd]
    path.write_text('{"n":0}\n{"n":1},{"n":2}\n')
    with pytest.raises(ValueError, match="Extra data"):
        list(JournalReader(path).read_logs(0))
