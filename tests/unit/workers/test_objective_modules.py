from __future__ import annotations

import gc
import itertools
import sys
from types import ModuleType

import pytest

from workers.trials.objective_modules import ObjectiveModules


@pytest.fixture
def imports_beside():
    """Code that imports something whenever the interpreter may run any: here, of its collector."""
    names = (f"imported_beside_{number}" for number in itertools.count())
    made = []

    def import_one(phase, _info):
        if phase == "start" and len(made) < 20_000:
            name = next(names)
            made.append(name)
            sys.modules[name] = ModuleType(name)

    threshold = gc.get_threshold()
    gc.callbacks.append(import_one)
    gc.set_threshold(1)
    yield
    gc.set_threshold(*threshold)
    gc.callbacks.remove(import_one)
    for name in made:
        del sys.modules[name]


def test_a_module_is_loaded_while_other_code_imports(tmp_path, imports_beside):
    modules = ObjectiveModules()
    file = tmp_path / "loaded_while_others_import.py"
    file.write_text("def objective(trial):\n    return 1.0\n")
    before = list(sys.argv), list(sys.path)
    try:
        for _ in range(5):
            assert modules.load(str(file)).objective(None) == 1.0
    finally:
        sys.argv[:], sys.path[:] = before
        sys.modules.pop("loaded_while_others_import", None)
