from __future__ import annotations

import os
import sys

import pytest

from orchestrator.submission.shipping import collect, unpacked, with_package
from orchestrator.submission.study import Study, load_study
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec

LIMIT = 1000

OBJECTIVE = "import helper\n\ndef objective(trial):\n    return helper.VALUE\n"


@pytest.fixture
def folder(tmp_path):
    """A user's folder, with what lies about in one."""
    made = tmp_path / "lab"
    texts = {
        "train.py": OBJECTIVE,
        "helper.py": "VALUE = 1\n",
        "pack/__init__.py": "",
        "pack/model.py": "SIZE = 2\n",
        "pack/run.sh": "#!/bin/sh\n",
        "pack/__pycache__/model.cpython-311.pyc": "x",
        "pack/.git/config": "x",
        "pack/venv/pyvenv.cfg": "x",
        "pack/venv/lib.py": "x",
        "pack/.gitignore": "*.log\n!kept.log\nbuild/\n",
        "pack/a.log": "x",
        "pack/kept.log": "x",
        "pack/build/a.py": "x",
        "pack/sub/deep.log": "x",
        "pack/sub/.gitignore": "!deep.log\n",
        ".gitignore": "secret.py\n",
        "pack/secret.py": "x",
        "secret.py": "x",
        "empty/.git/config": "x",
        "study.yaml": "objective: train.py:objective\ncode: {ship: [train.py, helper.py]}\n",
    }
    for name, text in texts.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    (made / "pack" / "run.sh").chmod(0o755)
    return made


def test_of_a_folder_code_travels_and_nothing_else(folder):
    files = collect(folder, ["pack/", "train.py", "./pack"], LIMIT)
    assert sorted(files) == [
        "pack/.gitignore", "pack/__init__.py", "pack/kept.log", "pack/model.py", "pack/run.sh",
        "pack/sub/.gitignore", "pack/sub/deep.log", "train.py",
    ]  # fmt: skip
    assert files["pack/run.sh"].is_executable
    assert not files["train.py"].is_executable
    assert "secret.py" in collect(folder, ["secret.py"], LIMIT), "what is named travels"
    assert "train.py" in collect(folder, ["."], LIMIT)


def test_secrets_and_results_stay_here_unless_they_are_named(folder):
    private = [
        ".env", ".env.local", ".envrc", ".netrc", ".aws/credentials", ".ssh/config", "id_ed25519",
        "id_rsa.pub", "server.pem", "Server.KEY", "wandb/run/config.yaml", "mlruns/0/meta.yaml",
        "old.ipynb_checkpoints/a.py", "kept-out.txt",
    ]  # fmt: skip
    for name in [*private, "id_map.py", "id_tools/x.py", "also.txt"]:
        path = folder / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (folder / ".git" / "info").mkdir(parents=True)
    (folder / ".git" / "info" / "exclude").write_text("kept-out.txt\nalso.txt\n")
    (folder / "app" / ".gitignore").write_text("!also.txt\n")
    files = collect(folder, ["app"], LIMIT)
    expected = ["app/.gitignore", "app/also.txt", "app/id_map.py", "app/id_tools/x.py"]
    assert sorted(files) == expected
    for name in private:
        assert f"app/{name}" in collect(folder, [f"app/{name}"], LIMIT), name


def test_a_work_tree_keeps_the_list_of_its_clone(folder, tmp_path):
    of_tree = tmp_path / "clone" / ".git" / "worktrees" / "lab"
    of_tree.mkdir(parents=True)
    (of_tree / "commondir").write_text("../..\n")
    (tmp_path / "clone" / ".git" / "info").mkdir()
    (tmp_path / "clone" / ".git" / "info" / "exclude").write_text("helper.py\n")
    (folder / ".git").write_text(f"gitdir: {of_tree}\n")
    files = collect(folder, ["."], LIMIT)
    assert "train.py" in files
    assert "helper.py" not in files


def test_what_cannot_travel_is_named_with_the_way_out(folder, tmp_path):
    (tmp_path / "outside.py").write_text("x")
    (tmp_path / "beside").mkdir()
    (folder / "link.py").symlink_to(tmp_path / "outside.py")
    (folder / "tree").symlink_to(tmp_path / "beside")
    (folder / "gone.py").symlink_to(folder / "nowhere.py")
    (folder / "large.bin").write_bytes(b"x" * (LIMIT + 1))
    (folder / "again").mkdir()
    (folder / "again" / "pack").symlink_to(folder / "pack")
    os.mkfifo(folder / "pipe")
    for name, told in [
        ("/etc/passwd", "give a path below"),
        ("../outside.py", "give a path below"),
        ("trian.py", "there is no .*did you mean 'train.py'"),
        ("link.py", "outside of .*lab: copy it there, or leave it out"),
        ("tree", "outside of .*lab"),
        ("gone.py", "a link to .*nowhere.py, which is not there"),
        ("large.bin", f"1001 bytes.*more than FLEET_CODE_SIZE = {LIMIT}"),
        ("again", "'again/pack': it is a link to a folder"),
        ("pipe", "no plain file"),
        ("empty", "no file that is not ignored"),
    ]:
        with pytest.raises(InvalidInputError, match=f"(?s)code.ship = .*{told}"):
            collect(folder, [name], LIMIT)
    (folder / "alias.py").symlink_to("train.py")
    assert collect(folder, ["alias.py"], LIMIT)["alias.py"].content == OBJECTIVE.encode()


def test_the_same_files_are_the_same_package(folder, tmp_path):
    spec = load_study(str(folder / "study.yaml"))
    assert spec.objective == "train.py:objective"
    first, package = with_package(spec, folder, LIMIT)
    os.utime(folder / "train.py", (1, 1))
    (folder / "train.py").chmod(0o600)
    second, _ = with_package(spec, folder, LIMIT)
    assert package is not None
    assert first.code.package == second.code.package == package.digest
    assert first.identity()["code"] == {"package": package.digest}
    assert first.work() == second.work() != spec.work()
    (folder / "helper.py").write_text("VALUE = 2\n")
    third, _ = with_package(spec, folder, LIMIT)
    assert third.identity() != first.identity()


def test_the_objective_is_looked_for_in_what_travels(folder):
    spec = load_study(str(folder / "study.yaml"))
    shipped, package = with_package(spec, folder, LIMIT)
    with unpacked(shipped, package, LIMIT) as (seen, root):
        assert seen.objective == f"{root}/train.py:objective"
        assert sorted(path.name for path in root.iterdir()) == ["helper.py", "train.py"]
    assert not root.exists()
    code = {"ship": ["helper.py"]}
    for objective in ("train.py:objective", "pack.model:SIZE", "json:dumps", "sub/x.py:f"):
        alone = StudySpec(name="s", objective=objective, code=code)
        alone, package = with_package(alone, folder, LIMIT)
        with pytest.raises(InvalidInputError, match="its module is not among `code.ship`"):
            unpacked(alone, package, LIMIT).__enter__()
    inside = StudySpec(name="s", objective="pack.model:SIZE", code={"ship": ["pack"]})
    inside, package = with_package(inside, folder, LIMIT)
    with unpacked(inside, package, LIMIT) as (seen, _):
        assert seen.objective == "pack.model:SIZE"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"objective": "finetune", "code": {"ship": ["train.py"]}}, "finetune is built in"),
        ({"objective": "train.py:objective", "code": {"package": "0" * 64}}, "is filled in"),
    ],
)
def test_what_makes_no_sense_is_refused(folder, fields, told):
    with pytest.raises(InvalidInputError, match=told):
        with_package(StudySpec(name="s", **fields), folder, LIMIT)


def test_an_objective_outside_of_what_can_travel_is_refused(folder, tmp_path):
    (folder / "away.yaml").write_text(
        "objective: ../train.py:objective\ncode: {ship: [helper.py]}\n"
    )
    with pytest.raises(InvalidInputError, match="does not lie below .*lab"):
        load_study(str(folder / "away.yaml"))


def test_overrides_and_scripts_ship_from_where_the_study_lies(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (folder / "plain.yaml").write_text("objective: train.py:objective\n")
    for reference, name in [("lab/plain.yaml", "plain"), ("lab/train.py:objective", "train")]:
        spec = load_study(reference, overrides=['code.ship=["train.py"]'])
        assert spec.objective == "train.py:objective"
        assert spec.code.ship == ["train.py"]
        assert name in spec.name
    script = str(folder / "submit.py")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", script, raising=False)
    study = Study(f"{folder}/train.py:objective", code={"ship": ["train.py"]})
    assert study.spec.objective == "train.py:objective"
    assert study._folder == folder
