"""Disks that take no more of what a training leaves."""

from __future__ import annotations

from disks import small_disk
from one_process_fleet import OneProcessFleet
from optuna.trial import TrialState

from workers.protocol.spec import StudySpec


def test_a_disk_with_room_for_the_model_and_none_for_its_tokenizer_costs_no_value(
    client, server, settings, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    config = {
        "data": {"source": "cldr-language-id", "max_length": 8},
        "tokenizer": {"vocab_size": 4000},
        "model": {"architecture": "bert", "hidden_size": 8, "num_hidden_layers": 1},
        "max_steps": 1,
        "checkpoint_interval_seconds": 3600,
    }
    spec = StudySpec(name="s", metric="accuracy", trials=1, config=config)
    results = settings.home / "studies"
    with small_disk(results, 256), OneProcessFleet(client, server, settings, tmp_path) as fleet:
        (trial,) = fleet.run_studies([spec], 120.0)["s"].trials
        assert trial.state is TrialState.COMPLETE
        assert trial.value
        assert "os error 28" in trial.user_attrs["result_error"], "what is in Rust says it so"
        assert list(results.rglob("metrics.json"))
        assert not list(results.rglob("*.safetensors")), "a model is there whole, or not at all"
