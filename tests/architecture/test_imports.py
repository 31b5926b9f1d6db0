from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "wandb", "datasets", "pyarrow")


def modules_after(statement: str) -> set[str]:
    program = f"{statement}; import sys; print(*sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(finished.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "orchestrator",
        "orchestrator.cli",
        "orchestrator.local.run",
        "workers.bootstrap",
        "workers.tasks",
    ],
)
def test_the_main_processes_import_nothing_heavy(module):
    assert not modules_after(f"import {module}") & set(HEAVY)


def test_a_look_from_the_command_line_waits_for_nothing_that_drives():
    found = modules_after("import orchestrator.cli")
    assert not found & {"celery", "kombu", "sqlalchemy", "orchestrator.driving.service"}


def test_a_pool_process_imports_no_metrics_before_it_measures():
    found = modules_after("import workers.managers, workers.trials.runner")
    assert not found & {"torchmetrics", "scipy"}


def test_the_contracts_of_import_linter_hold():
    linter = Path(sys.executable).with_name("lint-imports")
    finished = subprocess.run([linter], capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.returncode == 0, finished.stdout


def test_the_workers_package_itself_holds_a_docstring_only():
    tree = ast.parse((ROOT / "workers" / "__init__.py").read_text())
    assert [type(node) for node in tree.body] == [ast.Expr]


def test_the_top_level_holds_what_it_should_and_no_more():
    tracked = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    top = {line.split("/")[0] for line in tracked.splitlines() if not line.startswith(".")}
    assert top <= {
        "workers", "orchestrator", "tests", "ops", "pyproject.toml", "README.md", "Procfile",
        "LICENSE", "CHANGELOG.md",
    }  # fmt: skip


def test_every_package_says_what_lives_in_it():
    packages = ["workers", "orchestrator", "tests", "ops"]
    packages += [
        f"workers/{name}"
        for name in ("coordination", "disk", "managers", "processes", "protocol", "texts", "trials")
    ]
    assert [name for name in packages if not (ROOT / name / "README.md").exists()] == []


def test_a_wheel_holds_the_scripts_and_the_type_markers(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    from zipfile import ZipFile

    (wheel,) = tmp_path.glob("*.whl")
    names = set(ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in ROOT.glob("workers/coordination/lua/*.lua")}
    assets = ROOT / "orchestrator" / "dashboard" / "assets"
    sources |= {str(path.relative_to(ROOT)) for path in assets.glob("*.*")}
    assert sources | {"workers/py.typed", "orchestrator/py.typed"} <= names
    assert not any(name.startswith(("tests", "ops")) for name in names)
