"""The files of `ops/deploy`, held by the linters of their own kinds, and run where they can be."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from waiting import wait_until

from workers.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "ops" / "deploy"
COMPOSE = DEPLOY / "docker" / "compose.yaml"
UNITS = {
    "trialfleet-orchestrator.service": 2.0,
    "trialfleet-dashboard.service": 2.0,
    "trialfleet-worker@.service": 3.0,
}
WITH_SECRETS = DEPLOY / "docker" / "with-secrets"


def run(*command: object, code: int = 0, **options) -> str:
    finished = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert finished.returncode == code, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def program(name: str) -> str:
    """A linter, of this environment's packages or of the system's."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or pytest.skip(f"no {name} here")


def test_hadolint_takes_the_dockerfile():
    run(program("hadolint"), DEPLOY / "docker" / "Dockerfile")


def test_the_compose_file_is_one_by_its_schema():
    run(program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_the_services_name_files_targets_and_secrets_that_there_are():
    compose = yaml.safe_load(COMPOSE.read_text())
    stages = set(re.findall(r" AS ([\w-]+)", (DEPLOY / "docker" / "Dockerfile").read_text()))
    for name, service in compose["services"].items():
        assert service.get("build", {}).get("target", "base") in stages, name
        assert set(service.get("secrets", ())) <= compose["secrets"].keys(), name
        told = [*service.get("environment", {}).values(), *service.get("command", ())]
        read = {each for text in told for each in re.findall(r"/run/secrets/([\w-]+)", text)}
        assert read <= set(service["secrets"] if read else ()), name
        for volume in service.get("volumes", ()):
            source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume).split(":")[0]
            is_there = (COMPOSE.parent / source).exists()
            assert is_there if source.startswith(".") else source in compose["volumes"], source
        if "trialfleet" in service["image"]:
            assert service["cap_drop"] == ["ALL"]
            assert "stop_grace_period" in service


def test_images_and_units_install_what_their_parts_need():
    parts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    images = {}
    for stage in re.split(r"^FROM ", dockerfile, flags=re.MULTILINE):
        for extras in re.findall(r"whl\)\[(.*?)\]", stage):
            images[stage.split()[2]] = set(extras.split(","))
    every = parts["optional-dependencies"].keys()
    of_hosts = {"local", "dev", "worker", "transformers-trainer", "lightning", "peft"}
    assert images["orchestrator"] == every - of_hosts, "all that is not of training"
    assert {"worker", "metrics", "s3"} <= images["worker"] == images["worker-cuda"]
    for page in DEPLOY.rglob("*.md"):
        for extras in re.findall(r"trialfleet\[([\w,-]+)\]", page.read_text()):
            assert set(extras.split(",")) <= every, page


def test_one_s_own_study_can_be_handed_in_without_a_change_of_the_compose_file():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert services["redis"]["ports"] == ["127.0.0.1:6379:6379"], "on this host alone"
    commands = services["commands"]
    assert f"${{STUDIES:-../../studies}}:{commands['working_dir']}:ro" in commands["volumes"]
    assert commands["profiles"], "no container of its own"
    assert "user:{file:/run/secrets/redis-user}" in commands["environment"]["FLEET_REDIS_URL"]


def test_each_variable_that_members_are_given_is_a_setting():
    given = set()
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            given |= set(re.findall(r"\bFLEET_[A-Z_]+\b", path.read_text()))
    known = {f"FLEET_{name.upper()}" for name in Settings.model_fields}
    others = {"FLEET_DASHBOARD_TOKEN", "FLEET_QUEUES", "FLEET_GPU_LOCKS"}
    assert given - known <= others, given - known - others


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_takes_the_unit_and_finds_it_closed_enough(unit, tmp_path):
    analyze = program("systemd-analyze")
    text = (DEPLOY / "systemd" / unit).read_text()
    # the programs of the installation are not here
    there = tmp_path / unit.replace("@", "@main")
    there.write_text(re.sub(r"/opt/trialfleet/bin/\w+", "/bin/true", text))
    run(analyze, "verify", there)
    told = run(analyze, "security", "--offline=true", "--no-pager", there)
    exposure = float(re.search(r"exposure level for .*: ([\d.]+)", told).group(1))
    assert exposure <= UNITS[unit]
    for line in ("KillMode=mixed", "KillSignal=SIGTERM", "Restart=always"):
        assert line in text.splitlines()


def test_a_url_of_the_environment_gets_its_secrets_from_files(tmp_path):
    (tmp_path / "one").write_text("p$1`x`\nsecond line\n")
    (tmp_path / "two").write_text("no newline")
    url = f"redis://u:{{file:{tmp_path}/one}}@h/0?x={{file:{tmp_path}/two}}"
    environment = {"PATH": os.environ["PATH"], "FLEET_REDIS_URL": url, "FLEET_STORAGE": "as it is"}
    code = "import os; print(os.environ['FLEET_REDIS_URL'], os.environ['FLEET_STORAGE'])"
    told = run(WITH_SECRETS, sys.executable, "-c", code, env=environment)
    assert told == "redis://u:p$1`x`@h/0?x=no newline as it is\n"


@pytest.mark.parametrize(("file", "reason"), [("none", "cannot be read"), ("empty", "is empty")])
def test_a_secret_that_is_not_there_ends_the_container_with_its_path(tmp_path, file, reason):
    (tmp_path / "empty").touch()
    given = {"PATH": os.environ["PATH"], "FLEET_STORAGE": f"x{{file:{tmp_path}/{file}}}"}
    assert f"{tmp_path}/{file} {reason}" in run(WITH_SECRETS, "true", env=given, code=2)


def test_prepare_makes_each_secret_of_the_compose_file_once(tmp_path):
    for folder in ("docker", "redis"):
        shutil.copytree(
            DEPLOY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("secrets")
        )
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(DEPLOY.parents[1])}
    secrets = tmp_path / "docker" / "secrets"
    run(tmp_path / "docker" / "prepare", env=environment)
    first = {path.name: path.read_text() for path in secrets.iterdir()}
    run(tmp_path / "docker" / "prepare", env=environment)
    assert {path.name: path.read_text() for path in secrets.iterdir()} == first
    named = yaml.safe_load(COMPOSE.read_text())["secrets"].values()
    assert {Path(each["file"]).name for each in named} <= first.keys()
    assert secrets.stat().st_mode & 0o777 == 0o700
    drawn = [text.strip() for name, text in first.items() if name != "users_acl"]
    assert len(set(drawn)) == len(drawn)
    assert not [text for text in drawn if text in first["users_acl"]]


@pytest.fixture
def slurm(tmp_path):
    """Starts the job's script, with an `srun` and a `scontrol` that note what they are asked."""
    srun = """
import os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
def end(number, _frame):
    (here / "signalled").write_text(str(number))
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
(here / "whole").write_text(f"{os.getpid()} {' '.join(sys.argv[1:])}")
(here / "whole").rename(here / "step")
while True:
    time.sleep(0.05)
"""
    programs = {
        "srun": f"#!{sys.executable}{srun}",
        "scontrol": '#!/bin/sh\necho "$@" > ${0%/*}/asked\n',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    started = []

    def start(**variables: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            **variables,
        }
        job = subprocess.Popen(
            [str(DEPLOY / "slurm" / "worker.sbatch")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(job)
        return job

    yield start
    for job in started:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        job.stderr.close()


def test_a_job_whose_time_is_almost_up_drains_its_step_and_is_queued_again(slurm, tmp_path):
    job = slurm(FLEET_REDIS_URL="redis://h")
    wait_until((tmp_path / "step").exists, "the step runs")
    assert "celery -A workers worker --hostname slurm-17@%h" in (tmp_path / "step").read_text()
    job.send_signal(signal.SIGTERM)  # of a preemption: Slurm tells the step itself
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 3, "the step's own code"
    assert (tmp_path / "signalled").read_text() == str(int(signal.SIGTERM))
    assert (tmp_path / "asked").read_text() == "requeue 17\n"


def test_a_job_whose_step_ends_is_not_queued_again_and_one_without_a_fleet_says_so(slurm, tmp_path):
    job = slurm(FLEET_REDIS_URL="redis://h")
    wait_until((tmp_path / "step").exists, "the step runs")
    os.kill(int((tmp_path / "step").read_text().split()[0]), signal.SIGTERM)
    assert job.wait(60) == 3
    assert not (tmp_path / "asked").exists()
    nowhere = slurm()
    assert nowhere.wait(60) == 1
    assert "set FLEET_REDIS_URL" in nowhere.stderr.read()
