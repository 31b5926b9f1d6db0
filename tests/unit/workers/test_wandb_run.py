from __future__ import annotations

import pytest

from workers.protocol.study_options import WandbSpec
from workers.wandb_run import mode

KEY = "machine api.wandb.ai login user password " + "0" * 40
OWN = "machine wandb.example:8080 login user password " + "0" * 40


@pytest.fixture
def surroundings(monkeypatch, tmp_path):
    """Sets variables and a netrc file, and nothing else of W&B's."""
    for name in ("MODE", "API_KEY", "IDENTITY_TOKEN_FILE", "BASE_URL"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def make(variables, netrc="", file=".netrc"):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if netrc:
            (tmp_path / file).write_text(netrc)
            (tmp_path / file).chmod(0o600)

    return make


@pytest.mark.parametrize(
    ("variables", "netrc", "asked", "expected"),
    [
        ({}, "", None, "disabled"),
        ({}, "", {}, "offline"),
        ({}, "", {"project": "p"}, "offline"),
        ({}, "", {"mode": "offline"}, "offline"),
        ({}, "", {"mode": "online"}, "online"),
        ({"WANDB_API_KEY": "k"}, "", None, "online"),
        ({"WANDB_API_KEY": "k"}, "", {"mode": "offline"}, "offline"),
        ({"WANDB_API_KEY": "k"}, "", {"mode": "disabled"}, "disabled"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "", {"mode": "online"}, "disabled"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "", {}, "offline"),
        ({"WANDB_MODE": "offline"}, "", {"mode": "online"}, "online"),
        ({"WANDB_MODE": "dryrun"}, "", None, "offline"),
        ({"WANDB_MODE": "online"}, "", None, "online"),
        ({"WANDB_MODE": ""}, "", None, "disabled"),
        ({"WANDB_IDENTITY_TOKEN_FILE": "/token"}, "", None, "online"),
        ({}, KEY, None, "online"),
        ({}, "machine api.wandb.ai login user", None, "disabled"),
        ({}, "no netrc at all {", None, "disabled"),
        ({}, OWN, None, "disabled"),
        ({"WANDB_BASE_URL": "http://wandb.example:8080"}, OWN, None, "online"),
        ({"WANDB_BASE_URL": "http://wandb.example:8080"}, KEY, None, "disabled"),
    ],
)
def test_a_trial_has_a_run_where_somebody_asked_for_it(
    surroundings, variables, netrc, asked, expected
):
    surroundings(variables, netrc)
    assert mode(None if asked is None else WandbSpec.model_validate(asked)) == expected


def test_credentials_are_found_in_the_files_in_which_wandb_looks(surroundings, tmp_path):
    surroundings({}, KEY, "_netrc")
    assert mode() == "online"
    surroundings({"NETRC": str(tmp_path / "elsewhere")})
    assert mode() == "disabled"
    surroundings({}, KEY, "elsewhere")
    assert mode() == "online"
