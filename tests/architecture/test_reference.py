"""The reference of settings, commands and study keys is what the code says, and leaves none out."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from workers.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "ops" / "guides" / "reference"

#: Variables that a process of the fleet sets for those it starts, or tests for what they watch.
INTERNAL = {
    "FLEET_DRAIN_FILE",
    "FLEET_EVENTS",
    "FLEET_GPU_LOCKS",
    "FLEET_IMPORTING",
    "FLEET_SCRATCH_ROOT",
    "FLEET_STUDY",
}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "ops" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_page_is_what_the_code_says(reference):
    old = [
        name for name, text in reference.pages().items()
        if (PAGES / name).read_text() != text
    ]  # fmt: skip
    assert old == [], "run python ops/reference.py"


def test_each_setting_and_key_is_described(reference):
    assert reference.undescribed() == []


def test_each_variable_in_the_code_is_a_setting_or_internal():
    tops = ("workers", "orchestrator")
    code = [path.read_text() for top in tops for path in (ROOT / top).rglob("*.py")]
    named = set(re.findall(r"\bFLEET_[A-Z][A-Z_]*[A-Z]\b", "\n".join(code)))
    known = {f"FLEET_{name.upper()}" for name in Settings.model_fields}
    known |= set(re.findall(r"FLEET_[A-Z_]*[A-Z]", (PAGES / "commands.md").read_text()))
    assert named - known - INTERNAL == set()
