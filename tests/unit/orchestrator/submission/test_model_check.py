from __future__ import annotations

import subprocess

import pytest

from orchestrator.submission.model_check import check_models, combinations, kept_checks
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec
from workers.settings import Settings

TINY = {"architecture": "bert", "hidden_size": 32, "num_hidden_layers": 1}


def run_again(*_args, **_options):
    raise AssertionError("it was tried again")


def study(model, **fields):
    return StudySpec(name="s", metric="accuracy", config={"model": model}, **fields)


def test_all_that_a_model_follows_from_is_combined_and_nothing_else():
    found = combinations(
        study(
            TINY,
            space={
                "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2},
                "model.hidden_size": {"type": "categorical", "choices": [32, 64]},
                "data.max_length": {"type": "int", "low": 8, "high": 16},
            },
        )
    )
    assert found == [
        {"model.hidden_size": size, "data.max_length": length}
        for size in (32, 64)
        for length in (8, 16)
    ]


def test_a_parameter_is_combined_only_with_those_for_which_it_exists():
    found = combinations(
        study(
            TINY,
            space={
                "kind": {"type": "categorical", "choices": ["wide", "narrow"]},
                "model.num_attention_heads": {
                    "type": "categorical",
                    "choices": [4, 8],
                    "when": {"kind": ["wide"]},
                },
            },
        )
    )
    assert found == [
        {"kind": "wide", "model.num_attention_heads": 4},
        {"kind": "wide", "model.num_attention_heads": 8},
        {"kind": "narrow"},
    ]


def test_of_very_many_combinations_the_same_few_are_tried():
    space = {
        f"model.{name}": {"type": "categorical", "choices": list(range(1, 9))}
        for name in ("num_hidden_layers", "num_attention_heads", "type_vocab_size")
    }
    spec = study(TINY, space=space)
    assert combinations(spec) == combinations(spec)
    assert 1 < len(combinations(spec)) <= 24


def test_what_was_found_good_is_not_tried_again_until_it_changes(tmp_path, monkeypatch):
    cache = kept_checks(Settings(home=tmp_path, cache=tmp_path / "cache"))
    check_models(study(TINY), cache)

    monkeypatch.setattr(subprocess, "run", run_again)
    check_models(study(TINY, trials=7), cache)
    with pytest.raises(AssertionError, match="tried again"):
        check_models(study({**TINY, "hidden_size": 64}), cache)


def test_a_combination_that_cannot_be_is_refused_and_not_remembered_as_good(tmp_path, monkeypatch):
    cache = kept_checks(Settings(home=tmp_path, cache=tmp_path / "cache"))
    spec = study(
        {"architecture": "bert", "num_hidden_layers": 1},
        space={
            "model.hidden_size": {"type": "categorical", "choices": [32, 48]},
            "model.num_attention_heads": {"type": "categorical", "choices": [4, 32]},
        },
    )
    with pytest.raises(InvalidInputError, match="hidden_size = 48, num_attention_heads = 32"):
        check_models(spec, cache)
    monkeypatch.setattr(subprocess, "run", run_again)
    with pytest.raises(AssertionError, match="tried again"):
        check_models(spec, cache)


def test_a_model_that_ends_its_process_is_refused(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'workers.managers.model_check' in sys.orig_argv:\n"
        "    from workers.managers import model_fit\n"
        "    model_fit.try_text = lambda *_: os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    message = r"config.model = .*'hidden_size': 32.* ended the process \(SIGSEGV\)"
    with pytest.raises(InvalidInputError, match=message):
        check_models(study(TINY))


def test_a_host_without_torch_leaves_it_to_the_trials(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_models(study({"architecture": "brt"}))
