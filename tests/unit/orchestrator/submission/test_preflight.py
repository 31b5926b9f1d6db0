from __future__ import annotations

import json
import sys
from functools import partial

import pyarrow as pa
import pyarrow.parquet
import pytest

from orchestrator.submission import preflight
from orchestrator.submission.finetune_check import check_finetune
from workers.disk.cache import Cache
from workers.disk.cache_sweep import CacheLimits
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec
from workers.protocol.tasks import TASKS


def finetune(**fields):
    return StudySpec(**{"name": "s", "metric": "accuracy", **fields})


RATE = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """The check with a cache, so that the same models are tried once."""
    cache = Cache(tmp_path_factory.mktemp("cache"), CacheLimits(2**20, 3600.0))
    return partial(preflight.check, cache=cache)


def test_a_good_study_passes(check):
    check(
        finetune(
            space={
                "learning_rate": RATE,
                "model.num_hidden_layers": {"type": "int", "low": 1, "high": 2},
                "data.max_length": {"type": "categorical", "choices": [16, 32]},
                "early_stopping.patience": {"type": "int", "low": 1, "high": 3},
            },
            config={
                "model": {"architecture": "bert", "hidden_size": 64},
                "epochs": 2,
            },
        )
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"metric": None},
            "metric is missing; finetune reports accuracy, f1, f1_macro, f1_micro,",
        ),
        (
            {"metric": "acuracy"},
            "metric = 'acuracy': finetune reports accuracy, f1, f1_macro, f1_micro,",
        ),
        ({"space": {"learnig_rate": RATE}}, "space.learnig_rate: no such setting of finetune; did"),
        ({"space": {"data": RATE}}, "space.data: 'data' is a group of settings"),
        ({"space": {"epochs.x": RATE}}, "space.epochs.x: 'epochs' has none below it"),
        ({"space": {"data.sorce": RATE}}, "space.data.sorce: no such setting of finetune; did you"),
        (
            {"space": {"learning_rate": {"type": "float", "low": -1.0, "high": 1.0}}},
            "space.learning_rate = -1.0: it should be greater than 0",
        ),
        ({"config": {"epoch": 3}}, "config.epoch: no such setting of finetune; did you mean"),
        (
            {"config": {"lora": {"r": 4}}},
            "config: `lora` adapts a pretrained model; give model.id in",
        ),
        (
            {"config": {"lora": {"lora_alpha": 4}}},
            "lora_alpha: it is called alpha here",
        ),
        ({"config": {"attn_implementation": "sdpa"}}, "did you mean model.attn_implementation?"),
        ({"config": {"max_length": 9}}, "config.max_length: no such setting of finetune; did you"),
        ({"config": {"epochs": 0}}, "config.epochs = 0: it should be greater than or equal to 1"),
        ({"config": {"evaluate_every": {}}}, "config.evaluate_every = {}: give either `steps` or"),
        (
            {"config": {"evaluate_every": {"steps": 9}, "evaluations_per_epoch": 2}},
            "config: `evaluate_every` and `evaluations_per_epoch` both say when it is evaluated;",
        ),
        (
            {"config": {"checkpoint_every": {"steps": 9}, "checkpoint_interval_seconds": 2}},
            "both say when checkpoints are saved; give one of them",
        ),
        ({"config": {"early_stopping": {}}}, "config.early_stopping.patience = {}: Field required"),
        (
            {"space": {"early_stopping.patient": RATE}},
            "space.early_stopping.patient: no such setting of finetune; did you mean 'patience'?",
        ),
        ({"space": {"early_stopping": RATE}}, "'early_stopping' is a group of settings"),
        ({"config": {"data": {"source": "/no/such.csv"}}}, "there is no such file; mend the path"),
        ({"config": {"data": {"source": "cldr-language"}}}, "did you mean 'cldr-language-id'?"),
        (
            {"config": {"model": {"architecture": "bert", "id": "x"}}},
            "config.model = {'architecture': 'bert', 'id': 'x'}: give either `id`",
        ),
        (
            {"directions": ["maximize", "minimize"], "metric": ["f1", "loss"], "pruner": "median"},
            "pruner.type = 'median': a study with several directions cannot be pruned",
        ),
        ({"config": {"task": ["regression"]}}, "config.task = ['regression']: "),
        ({"config": {"task": "regresion"}}, "config.task = 'regresion': it should be 'text_clas"),
        ({"config": {"task": "causal-lm"}}, "did you mean 'causal_lm'?"),
        ({"config": {"precision": "bf6"}}, "did you mean 'bf16'?"),
        (
            {"config": {"task": "causal_lm"}},
            "metric = 'accuracy': finetune with task: causal_lm reports perplexity, loss",
        ),
        *(
            ({"metric": "loss", "config": {"task": "causal_lm", **config}}, message)
            for config, message in [
                ({"data": {"label": "kind"}}, "`label`: causal_lm learns from texts alone"),
                (
                    {"data": {"source": "a.csv", "text_pair": "b"}},
                    "`text_pair`: causal_lm learns from texts alone",
                ),
                ({"data": {"labels": ["a", "b"]}}, "`labels` is for task: multi_label"),
                ({"data": {"across_texts": True}}, "give `block_size`, too"),
                ({"data": {"block_size": 64, "max_length": 64}}, "give it or `block_size`"),
                ({"data": {"block_size": 2}}, "config.data.block_size = 2: it should be greater"),
                ({"class_weights": "balanced"}, "causal_lm has not one class a text"),
            ]
        ),
        (
            {"metric": "loss", "config": {"task": "masked_lm", "data": {"block_size": 64}}},
            "`block_size` is for task: causal_lm",
        ),
        (
            {"config": {"compile": "reduce-overhead"}},
            "'reduce-overhead' records a CUDA graph for each shape of a batch, and texts have many",
        ),
        ({"config": {"compile": "fast"}}, "config.compile"),
        (
            {"config": {"compile": True, "gradient_checkpointing": True}},
            "`gradient_checkpointing` breaks the model into pieces for it; give one of them",
        ),
        ({"config": {"task": "token_clasification"}}, "did you mean 'token_classification'?"),
        *(
            ({"metric": "f1", "config": {"task": "token_classification", **config}}, message)
            for config, message in [
                ({}, "config.data.source = 'cldr-language-id': its texts have one class each"),
                ({"class_weights": "balanced"}, "token_classification has not one class a text"),
                (
                    {"data": {"source": "a.csv", "text_pair": "b"}},
                    "`text_pair`: token_classification reads one text a row",
                ),
                ({"data": {"block_size": 64}}, "`block_size` is for task: causal_lm"),
            ]
        ),
        ({"config": {"mask_fraction": 0.2}}, "`mask_fraction` is for task: masked_lm"),
        ({"config": {"data": {"block_size": 64}}}, "`block_size` is for task: causal_lm"),
        (
            {"metric": "accuracy", "config": {"task": "regression"}},
            "metric = 'accuracy': finetune with task: regression reports pearson, spearman, r2",
        ),
        (
            {"metric": "mse", "config": {"task": "regression"}},
            "config.data.source = 'cldr-language-id': its texts have one class each",
        ),
        (
            {"metric": "mse", "config": {"task": "regression", "label_smoothing": 0.1}},
            "label_smoothing: regression has no classes; leave it out",
        ),
        ({"config": {"data": {"labels": ["a", "b"]}}}, "`labels` is for task: multi_label"),
        ({"config": {"data": {"label_separator": "|"}}}, "`label_separator` is for task: multi"),
        ({"config": {"data": {"task": "regression"}}}, "data.task: give `task` beside `data`"),
        (
            {"space": {"task": {"type": "categorical", "choices": ["regression"]}}},
            "space.task: a study has one task; give it in config",
        ),
        ({"objective": "finetun"}, "objective = 'finetun': write finetune, package.module"),
        ({"objective": "no_such_module:f"}, "No module named 'no_such_module'"),
        ({"objective": "json:nope"}, "json has no 'nope'"),
        ({"objective": "json:__name__"}, "it is a str, not a function"),
        ({"objective": "/no/file.py:f"}, "there is no file /no/file.py"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(check, fields, message):
    with pytest.raises(InvalidInputError) as error:
        check(finetune(**fields))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_objective_is_imported_from_beside_the_study(check, tmp_path):
    (tmp_path / "train.py").write_text("def objective(trial):\n    return 0.0\n")
    check(finetune(objective="train:objective"), import_directory=tmp_path)
    check(finetune(objective=f"{tmp_path}/train.py:objective"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys; sys.exit(3)", "importing train raises SystemExit: 3"),
        ("import os; os._exit(3)", "importing it ended the process with code 3"),
        ("def objective(): pass", "it takes no argument"),
        ("def objective(trial) pass", "importing train raises SyntaxError"),
    ],
)
def test_an_objective_that_does_not_import_is_told_how(check, tmp_path, source, message):
    (tmp_path / "train.py").write_text(source)
    with pytest.raises(InvalidInputError) as error:
        check(finetune(objective="train:objective"), import_directory=tmp_path)
    assert message in str(error.value)


@pytest.fixture
def write(tmp_path):
    rows = [{"text": f"text {number}", "label": number % 2} for number in range(40)]

    def write(name):
        path = tmp_path / name
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows, indent=1))
        elif path.suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            lines = [f"{row['text']}{delimiter}{row['label']}\n" for row in rows]
            path.write_text(f"text{delimiter}label\n" + "".join(lines))
        return path

    return write


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.json", "d.jsonl", "d.parquet"])
def test_the_columns_of_each_kind_of_file_are_known(check, write, name):
    path = write(name)
    check(finetune(config={"data": {"source": str(path)}}))
    with pytest.raises(InvalidInputError) as error:
        check(finetune(config={"data": {"source": str(path), "text": "txt"}}))
    message = "config.data.text = 'txt': d.* has no such column (it has text, label); did you"
    assert message.replace("d.*", name) in str(error.value)


def test_each_task_reads_its_own_labels(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("text,label\n" + "".join(f"text {n},{n % 3}.5\n" for n in range(40)))
    data = {"data": {"source": str(path)}}
    up = {"direction": "maximize"}
    assert check_finetune(finetune(metric="mse", config={"task": "regression", **data})) == []
    assert (
        check_finetune(finetune(metric="auroc", config={"task": "multi_label", **data}, **up)) == []
    )
    path.write_text(path.read_text() + "text,good\n")
    with pytest.raises(InvalidInputError, match="line 42: 'good' in column 'label' is no number"):
        check_finetune(finetune(metric="mse", config={"task": "regression", **data}))


@pytest.mark.parametrize(
    ("task", "held_out", "refused", "measured"),
    [
        ("text_classification", ["0", "0"], ["mcc", "auroc"], ["accuracy", "f1_macro", "loss"]),
        ("regression", ["1", "1"], ["pearson", "spearman", "r2"], ["mse", "rmse", "mae"]),
        ("multi_label", ["", ""], ["f1_micro", "f1_macro", "f1_weighted", "auroc"], ["accuracy"]),
        ("multi_label", ["0,1", "0,1"], ["auroc"], ["f1_micro", "f1_macro", "f1_weighted"]),
    ],
)
def test_a_metric_that_the_held_out_labels_leave_undefined_is_refused_or_told(
    tmp_path, task, held_out, refused, measured
):
    source, validation = tmp_path / "d.jsonl", tmp_path / "v.jsonl"

    def write(path, labels):
        rows = [{"text": f"{path.name} {n}", "label": label} for n, label in enumerate(labels)]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    write(source, ["0", "1"] * 20)
    write(validation, held_out)
    data = {"source": str(source), "validation": str(validation)}
    assert {*refused, *measured} <= set(TASKS[task].metrics)

    def found(metric, home=None):
        study = finetune(
            metric=metric,
            direction=TASKS[task].metrics[metric],
            config={"task": task, "data": data},
        )
        return check_finetune(study, home)

    for metric in refused:
        for _ in range(2):  # the second time it is remembered
            with pytest.raises(InvalidInputError) as error:
                found(metric, tmp_path / "home")
            assert str(error.value).startswith(f"metric = {metric!r} cannot be measured: ")
            others = str(error.value).partition("one of ")[2].split(" (")[0]
            assert set(others.split(", ")) == set(TASKS[task].metrics) - set(refused)
    for metric in measured:
        told = " ".join(each for each in found(metric) if "cannot be measured" in each)
        assert all(each in told for each in refused), told
        assert metric not in told
    write(validation, ["0", "1", "0,1"] if task == "multi_label" else ["0", "1"])
    for metric in TASKS[task].metrics:
        assert not [each for each in found(metric) if "cannot be measured" in each]


def test_a_rate_that_never_falls_is_refused_where_no_trial_could_have_a_better_one(write):
    lowest = {"schedule": "cosine_with_min_lr", "schedule_options": {"min_lr": 1e-3}}
    steady = {"schedule": "warmup_stable_decay", "schedule_options": {"num_decay_steps": 60}}

    def checked(space=None, **config):
        config = {"data": {"source": str(write("d.csv"))}, **config}
        check_finetune(finetune(config=config, space=space or {}, direction="maximize"))

    checked({"learning_rate": RATE}, **lowest)
    low = {"learning_rate": {**RATE, "high": 1e-3}}
    floor = {"schedule_options.min_lr": {"type": "categorical", "choices": [1e-3, 1e-5]}}
    checked({**low, **floor}, **lowest)
    sometimes = {**low["learning_rate"], "when": {"batch_size": 16}}
    batch = {"batch_size": {"type": "categorical", "choices": [16, 32]}}
    checked({"learning_rate": sometimes, **batch}, **lowest, learning_rate=0.1)
    checked(max_steps=100, **steady)
    for space, config, told in [
        (low, lowest, "min_lr` = 0.001.*at learning_rate = 0.001, the best of `space`"),
        ({}, {**lowest, "learning_rate": 1e-4}, "falls to that from learning_rate = 0.0001, which"),
        ({}, {**steady, "max_steps": 50}, "is more than the training's 50 steps"),
        ({}, {"warmup_steps": 50, "max_steps": 50}, "would end before the rate has peaked"),
    ]:
        with pytest.raises(InvalidInputError, match=told):
            checked(space, **config)


def test_a_training_that_is_over_before_its_rate_has_peaked_is_refused_by_its_data(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "".join(f"text {at},{at % 2}\n" for at in range(100)))
    validation = tmp_path / "held.csv"
    validation.write_text("text,label\nc,0\nd,1\n")

    def checked(space=None, **config):
        data = {"source": str(path), "validation": str(validation), **config.pop("data", {})}
        spec = finetune(config={"data": data, **config}, space=space or {}, direction="maximize")
        for home in (tmp_path / "home", tmp_path / "home"):  # the second time it is remembered
            check_finetune(spec, home)

    peaks = {"batch_size": 10, "epochs": 3}  # thirty steps
    checked(warmup_steps=29, **peaks)
    epochs = {"epochs": {"type": "int", "low": 1, "high": 4}}
    checked(epochs, warmup_steps=39, batch_size=10)
    checked(warmup_steps=99, batch_tokens=128, epochs=1)
    checked(warmup_steps=99, batch_size=10, max_steps=100)
    for space, config, told in [
        ({}, {"warmup_steps": 30, **peaks}, "`warmup_steps` = 30: the training has 30 steps"),
        (epochs, {"warmup_steps": 40, "batch_size": 10}, r"has 40 steps.*\(at epochs = 4, the be"),
        ({}, {"warmup_steps": 30, **peaks, "max_steps": 99}, "has 30 steps"),
        ({}, {"warmup_steps": 100, "batch_tokens": 128, "epochs": 1}, "has 100 steps"),
    ]:
        with pytest.raises(InvalidInputError, match=told):
            checked(space, **config)


def test_of_data_that_vary_in_size_no_length_is_told_before(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("text,label\n" + "".join(f"text {at},{at % 2}\n" for at in range(100)))
    config = {"data": {"source": str(path), "validation_fraction": 0.5}, "batch_size": 10}
    fraction = {"data.validation_fraction": {"type": "float", "low": 0.1, "high": 0.5}}
    told = {"config": {**config, "epochs": 1, "warmup_steps": 7}, "direction": "maximize"}
    with pytest.raises(InvalidInputError, match="the training has 5 steps"):
        check_finetune(finetune(**told))
    check_finetune(finetune(**told, space=fraction))  # with 0.1 it has nine


def test_weights_of_classes_that_the_data_have_not_are_refused(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("text,label\na,up\nb,down\nc,up\nd,down\n")

    def checked(weights, **data):
        config = {"data": {"source": str(path), **data}, "class_weights": weights}
        check_finetune(finetune(config=config, direction="maximize"), tmp_path / "home")

    checked({"up": 2.0})
    checked("balanced")
    for _ in range(2):  # the second time it is remembered what the data have
        with pytest.raises(InvalidInputError, match=r"class_weights.dwn: .*did you mean 'down'\?"):
            checked({"dwn": 2.0})


def test_a_metric_that_goes_the_wrong_way_is_told(write):
    config = {"data": {"source": str(write("d.csv"))}}
    told = "metric = 'accuracy': the study's direction is minimize, and higher is better"
    assert check_finetune(finetune(config=config))[0].startswith(told)
    assert check_finetune(finetune(config=config, direction="maximize")) == []
    both = {"metric": ["f1", "loss"], "directions": ["maximize", "maximize"]}
    assert check_finetune(finetune(config=config, **both))[0].startswith("metric = 'loss'")


@pytest.mark.parametrize("name", ["d.json", "d.parquet"])
def test_a_file_of_another_kind_is_refused(check, tmp_path, name):
    (tmp_path / name).write_text("neither")
    with pytest.raises(InvalidInputError, match="cannot be read as|no JSON"):
        check(finetune(config={"data": {"source": str(tmp_path / name)}}))


@pytest.mark.parametrize("field", ["source", "validation"])
def test_a_data_file_is_read_to_its_end_before_a_study_is_taken(check, write, tmp_path, field):
    path = write("d.csv")
    path.write_text(path.read_text() + "one, two,1\n")
    data = {"source": str(write("good.csv")), field: str(path)}
    with pytest.raises(InvalidInputError) as error:
        check(finetune(config={"data": data}))
    assert f"config.data.{field} = {str(path)!r}, line 42: 3 columns" in str(error.value)


def test_each_data_file_that_a_space_names_is_read(check, write, tmp_path):
    bad = write("bad.csv")
    bad.write_text("text,label\n")
    choices = [str(write("good.csv")), str(bad)]
    space = {"data.source": {"type": "categorical", "choices": choices}}
    with pytest.raises(InvalidInputError, match=r"bad.csv': it holds no rows"):
        check(finetune(config={"data": {"source": choices[0]}}, space=space))


def test_a_data_file_is_read_once_for_each_state_of_it(check, write, tmp_path, monkeypatch):
    path, home = write("d.csv"), tmp_path / "home"
    reads = []
    monkeypatch.setattr(
        "orchestrator.submission.read_files.check_rows", lambda data, *_: reads.append(data.text)
    )
    monkeypatch.setattr(preflight, "check_models", lambda *_: None)  # in a process for each

    def hand_in(**data):
        check(finetune(config={"data": {"source": str(path), **data}}), home=home)
        return len(reads)

    assert hand_in() == 1
    assert hand_in() == 1
    assert hand_in(max_length=16) == 1
    assert hand_in(text="label") == 2
    path.write_text(path.read_text() + "a,1\n")
    assert hand_in() == 3
    assert len(list((home / "cache" / "checked").iterdir())) == 3


def test_what_is_remembered_of_data_files_is_bounded(check, write, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.submission.read_files._REMEMBERED", 2)
    path, home = write("d.csv"), tmp_path / "home"
    for seed in range(5):
        check(finetune(config={"data": {"source": str(path), "seed": seed}}), home=home)
    assert len(list((home / "cache" / "checked").iterdir())) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": {"type": "tpe", "n_ei_candidates": 0}}, "does not work with this study"),
        # of an objective that suggests its own parameters, by some that stand for these
        ({"sampler": {"type": "tpe", "n_ei_candidates": 0}, "space": {}}, "does not work with"),
        ({"sampler": {"type": "cmaes", "popsize": 0}, "space": {}}, "popsize must be non-zero"),
        ({"pruner": {"type": "hyperband", "reduction_factor": 0}}, "pruner = {'type': 'hyperband'"),
        ({"sampler": "grid", "space": {}}, "sampler.type = 'grid' goes through the points of"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_options_that_fail_when_they_are_used_are_found_by_a_rehearsal(check, fields, message):
    with pytest.raises(InvalidInputError, match="mend the option|give it one") as error:
        check(finetune(**{"space": {"learning_rate": RATE}, "trials": 40, **fields}))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sampler", ["cmaes", "qmc", "gp"])
def test_a_sampler_whose_package_is_not_there_is_refused_with_what_to_install(
    check, sampler, monkeypatch
):
    package = "cmaes" if sampler == "cmaes" else "scipy"
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    with pytest.raises(InvalidInputError, match=rf"pip install {package}.*trialfleet.samplers"):
        check(finetune(sampler=sampler, space={"learning_rate": RATE}))


@pytest.mark.parametrize("sampler", ["random", "cmaes", "nsgaii", "nsgaiii", "qmc", "tpe"])
@pytest.mark.parametrize("space", [{"learning_rate": RATE}, {}], ids=["space", "none"])
def test_each_sampler_plays_a_rehearsal(check, sampler, space):
    check(finetune(sampler=sampler, space=space))


@pytest.mark.parametrize(
    "sampler",
    [
        {"type": "grid", "search_space": {"learning_rate": [0.1, 0.2]}},
        {"type": "brute_force"},
        {"type": "cmaes", "x0": {"learning_rate": 0.1, "dropout": 0.1}},
        {"type": "partial_fixed", "fixed_params": {"dropout": 0.1}, "base_sampler": "random"},
    ],
    ids=lambda sampler: sampler["type"],
)
def test_a_sampler_of_named_parameters_is_not_tried_on_others(check, sampler):
    check(finetune(sampler=sampler, space={}))


def test_what_people_should_know_of_their_data_is_told_also_when_it_is_not_read_again(
    check, write, tmp_path
):
    path = write("d.csv")
    path.write_text(path.read_text() + "\n" + path.read_text().splitlines()[1])
    spec = finetune(direction="maximize", config={"data": {"source": str(path)}})
    (told,) = check(spec, home=tmp_path / "home")
    assert told.startswith(
        f"config.data.source = {str(path)!r}: 1 rows repeat a text and its class"
    )
    assert check(spec, home=tmp_path / "home") == [told]
