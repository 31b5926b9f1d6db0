"""Nothing is unpickled that came over the network or lies on a disk: data is never code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.submission import study_file

ROOT = Path(__file__).parents[2]

#: Modules whose reading runs whatever was written.
UNPICKLING = {
    "pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve",
    "marshal", "jsonpickle", "hickle",
}  # fmt: skip

#: What of them reads nothing.
HARMLESS = {"dumps", "dump", "UnpicklingError", "PicklingError", "PickleError"}

#: The one exception: a child is handed the sampler by the orchestrator that starts it, through its
#: own standard input, a pipe that nobody else has. Samplers are users' classes, known to Python
#: alone; whoever could write there could write into the orchestrator itself.
EXCEPTIONS = {("orchestrator/driving/sampler_process.py", "pickle.loads")}


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """What an expression names, through the imports of its file; empty if it is no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value, names)):
        return f"{owner}.{node.attr}"
    return ""


def imported_names(tree: ast.AST) -> dict[str, str]:
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                # `import a.b` binds a
                found[each.asname or each.name.split(".")[0]] = (
                    each.name if each.asname else each.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for each in node.names:
                found[each.asname or each.name] = f"{node.module}.{each.name}"
    return found


def is_true(call: ast.Call, keyword: str) -> bool:
    return any(
        each.arg == keyword and isinstance(each.value, ast.Constant) and each.value.value is True
        for each in call.keywords
    )


def has_keyword(call: ast.Call, keyword: str) -> bool:
    return any(each.arg in {keyword, None} for each in call.keywords)


def is_unsafe_call(call: ast.Call, name: str) -> bool:
    if name == "torch.load":
        return not is_true(call, "weights_only")
    if name in {"numpy.load", "numpy.lib.format.read_array"}:
        return has_keyword(call, "allow_pickle")
    if name in {"yaml.load", "yaml.load_all"}:
        loaders = [each.value for each in call.keywords if each.arg == "Loader"]
        return [ast.unparse(each) for each in [*call.args[1:], *loaders]] != ["_Loader"]
    return name in {
        "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
        "pandas.read_pickle", "torch.jit.load", "torch.package.PackageImporter",
    }  # fmt: skip


def unpicklings(source: str) -> Iterator[str]:
    """What a file reads that may run whatever was written."""
    tree = ast.parse(source)
    names = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and is_unsafe_call(node, dotted(node.func, names)):
            yield dotted(node.func, names)
        if isinstance(node, (ast.Attribute, ast.Name)):
            owner, _, attribute = dotted(node, names).rpartition(".")
            if owner.split(".")[0] in UNPICKLING and attribute not in HARMLESS:
                yield f"{owner}.{attribute}"


def test_nothing_is_unpickled_but_what_a_process_hands_its_own_child():
    found = set()
    for package in ("workers", "orchestrator"):
        for path in (ROOT / package).rglob("*.py"):
            own = path.relative_to(ROOT).as_posix()
            found |= {(own, name) for name in unpicklings(path.read_text())}
    assert found == EXCEPTIONS


def test_study_files_are_read_by_a_loader_that_makes_plain_data():
    assert issubclass(study_file._Loader, yaml.SafeLoader)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "from pickle import loads as read\nread(text)",
        "import pickle as p\np.Unpickler(file).load()",
        "import pickle\nread = pickle.loads",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "from torch import load\nload(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import joblib\njoblib.load(path)",
        "import shelve\nshelve.open(path)",
        "import dill\ndill.loads(text)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.load(text, yaml.UnsafeLoader)",
        "import yaml\nyaml.full_load(text)",
    ],
)
def test_each_way_to_unpickle_is_seen(source):
    assert list(unpicklings(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, mmap_mode='r')",
        "import pickle\npickle.dumps(sampler)",
        "import json\njson.load(file)",
    ],
)
def test_what_reads_plain_data_is_let_pass(source):
    assert not list(unpicklings(source))
