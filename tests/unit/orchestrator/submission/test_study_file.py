from __future__ import annotations

import math

import pytest

from orchestrator.submission.metric_directions import better_side
from orchestrator.submission.space import check_space
from orchestrator.submission.study import Study, build_spec, load_study
from orchestrator.submission.study_file import read_study_file
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "study.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_study_file(path)

    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("NO", "NO"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("nil", "nil"),
        ("10", 10), ("010", 10), ("0o10", 8), ("0x1F", 31), ("-7", -7), ("+7", 7), ("0b1", "0b1"),
        ("1_000", "1_000"), ("1e-5", 1e-5), ("1.", 1.0), (".5", 0.5), ("6E+3", 6000.0),
        ("1:30", "1:30"), ("190:20:30", "190:20:30"), ("2026-01-02", "2026-01-02"),
        ("2026-01-02 10:00:00", "2026-01-02 10:00:00"), (".inf", math.inf), ("-.Inf", -math.inf),
        ("inf", "inf"), ("nan", "nan"), ("=", "="), ("'no'", "no"), ('"1"', "1"),
        ("1.1.0", "1.1.0"),
        ("${N}", "${N}"), ("é", "é"), ("0.1.", "0.1."), ("1e5x", "1e5x"), ("é: 1", {"é": 1}),
    ],
)  # fmt: skip
def test_scalars_are_those_of_the_core_schema(read, text, value):
    text = "\n  " + text if isinstance(value, dict) else text
    found = read(f"a: {text}\n")["a"]
    assert (found, type(found)) == (value, type(value))


def test_nan_is_a_number(read):
    assert math.isnan(read("a: .nan")["a"])


def test_anchors_and_merge_keys_are_understood(read):
    text = """
    base: &base {type: float, low: 0.0, high: 1.0}
    more: &more {log: false}
    one: {<<: *base, high: 2.0}
    two: {<<: [*base, *more]}
    list: &list [1, 2]
    again: *list
    """
    found = read(text)
    assert found["one"] == {"type": "float", "low": 0.0, "high": 2.0}
    assert found["two"] == {"type": "float", "low": 0.0, "high": 1.0, "log": False}
    assert found["again"] == [1, 2]


def test_keys_are_text_as_it_is_written(read):
    found = read("no: 1\n1: 2\ntrue: 3\n1.50: 4\nnull: 5\n? x\n: 6\n")
    assert found == {"no": 1, "1": 2, "true": 3, "1.50": 4, "null": 5, "x": 6}


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfname: s\n", "name: s\n".encode("utf-16"), "name: s\n".encode("utf-32"),
        b"name: s\r\n", b"---\nname: s\n...\n", b"%YAML 1.2\n---\nname: s\n", b"name: s",
    ],
)  # fmt: skip
def test_a_file_is_read_in_whatever_form_editors_save_it(read, text):
    assert read(text) == {"name": "s"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trials: {{ n }}\n", "line 1: the template '{{ n }}' was not rendered"),
        ("a: 1\n{% if x %}\ntrials: 3\n", "line 2: the template '{% if x %}' was not rendered"),
        ("a:\n\tb: 1\n", "line 2, column 1: not YAML: a tab; indent with blanks"),
        ("a: {b: {c: 1, c: 2}}", "line 1, column 15: not YAML: the key 'c' comes twice"),
        ("a: {1: 1, '1': 2}", "the key '1' comes twice"),
        ("? [1, 2]\n: 3\n", "a key is text or a number"),
        ("a: 1\n---\nb: 2\n", "it holds several documents"),
        ("a: &a [*a]\n", "an alias names what it lies in"),
        ("a: *nowhere\n", "found undefined alias"),
        ("a: !!python/object:os.system x\n", "is no type of a study file"),
        ("a: !!timestamp 2026-01-02\n", "is no type of a study file"),
        (b"a: 1\nb: \xff\n", "line 2: not UTF-8"),
        (b"a: \x00\n", "not YAML"),
        ("a: [1, 2\nb: 3\n", "not YAML"),
        ("a: " + "9" * 5000, "a number of more than 4,000 digits"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n"
            for i in range(8)), "come to more than 200000 values"),
    ],
)  # fmt: skip
def test_what_is_no_study_file_is_one_line_with_the_place(read, text, message):
    with pytest.raises(InvalidInputError) as error:
        read(text)
    assert message in str(error.value)
    assert str(error.value).startswith("study.yaml")
    assert "\n" not in str(error.value)


def test_a_file_of_a_megabyte_is_read(read):
    text = "config:\n" + "".join(f"  key_{index}: {'x' * 80}\n" for index in range(11_000))
    assert len(text) > 10**6
    assert len(read(text)["config"]) == 11_000


def test_infinity_and_null_arrive_in_config_and_choices_through_the_wire():
    spec = build_spec(
        {
            "objective": "finetune",
            "config": {"bound": math.inf, "nothing": None},
            "space": {"c": {"type": "categorical", "choices": [math.inf, None, 1, True, "no"]}},
        },
        "study.yaml",
        base=None,
    )
    read = StudySpec.read(spec.model_dump_json())
    assert read == spec
    assert read.config == {"bound": math.inf, "nothing": None}
    assert [type(choice) for choice in read.space["c"].choices] == [
        float,
        type(None),
        int,
        bool,
        str,
    ]


def test_an_empty_key_is_one_that_is_not_there(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("objective: finetune\nspace:\nconfig:\nsampler:\npruner:\ntimeout:\nmetric:\n")
    spec = load_study(str(path))
    assert (spec.space, spec.config, spec.sampler.type, spec.timeout) == ({}, {}, "tpe", None)


def test_a_condition_may_be_one_value():
    dimension = {"type": "float", "low": 0.0, "high": 1.0}
    spec = StudySpec(
        name="s",
        space={
            "n": {"type": "int", "low": 1, "high": 4},
            "x": {**dimension, "when": {"n": 3}},
            "y": {**dimension, "when": None},
        },
    )
    assert spec.space["x"].when == {"n": [3]}
    check_space(spec)


@pytest.mark.parametrize(
    ("space", "config", "message"),
    [
        (["optimizer", "optimizer.lr"], {}, "space.optimizer.lr lies below space.optimizer"),
        (["a.b.c", "a"], {}, "space.a.b.c lies below space.a"),
        (["optimizer.lr"], {"optimizer": "adam"}, "config.optimizer = 'adam' is no group"),
        (["a.b.c"], {"a": {"b": 3}}, "config.a.b = 3 is no group"),
    ],
)
def test_a_parameter_below_what_is_none_of_its_groups_is_refused(space, config, message):
    dimension = {"type": "float", "low": 0.0, "high": 1.0}
    spec = StudySpec(name="s", space=dict.fromkeys(space, dimension), config=config)
    with pytest.raises(InvalidInputError) as error:
        check_space(spec)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("metric", "side"),
    [
        ("accuracy", "maximize"), ("eval/Accuracy", "maximize"), ("val_f1", "maximize"),
        ("loss", "minimize"), ("eval_loss", "minimize"), ("test-RMSE", "minimize"),
        ("score", None), ("speed of light", None), ("lossless", None),
    ],
)  # fmt: skip
def test_the_better_side_of_a_metric_is_known_by_its_name(metric, side):
    assert better_side(metric) == side


@pytest.mark.parametrize(
    ("fields", "directions"),
    [
        ({"metric": "accuracy"}, ["maximize"]),
        ({"metric": "loss"}, ["minimize"]),
        ({"metric": "score"}, ["minimize"]),
        ({"metric": ["accuracy"]}, ["maximize"]),
        ({"metric": ("f1", "loss")}, ["maximize", "minimize"]),
        ({"metric": "accuracy", "direction": "minimize"}, ["minimize"]),
        ({"metric": ["accuracy", "loss"]}, ["maximize", "minimize"]),
        ({}, ["minimize"]),
    ],
)
def test_a_metric_is_never_minimised_in_silence_where_its_better_side_is_known(fields, directions):
    assert Study("finetune", **fields).spec.all_directions == directions
