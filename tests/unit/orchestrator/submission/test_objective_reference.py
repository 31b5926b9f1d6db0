"""From what a script holds to the name by which a worker imports it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap

import pytest

from orchestrator.submission.objective_reference import reference_to
from orchestrator.submission.study import Study
from workers.protocol.errors import InvalidInputError


def top_level(trial):
    return 0.0


def noisy(function):
    def call(*args):
        return function(*args)

    return call


class Model:
    def __call__(self, trial):
        return 1.0

    def fit(self, trial):
        return 2.0

    @classmethod
    def made(cls, trial):
        return 3.0

    @staticmethod
    def static(trial):
        return 4.0


class Holder:
    model = Model()


class Speechless:
    def __repr__(self):
        raise RuntimeError("no")

    def __call__(self, trial):
        return 0.0


model = Model()
fit = Model().fit
partial = functools.partial(top_level)
decorated = noisy(top_level)
hidden = functools.wraps(top_level)(noisy(top_level))
anonymous = lambda trial: 0.0  # noqa: E731 - as people write it


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (top_level, "top_level"), (model, "model"), (model.fit, "model.fit"), (fit, "fit"),
        (partial, "partial"), (decorated, "decorated"), (hidden, "hidden"),
        (anonymous, "anonymous"), (Model.made, "Model.made"), (Model.static, "Model.static"),
        (Model().made, "Model.made"),
    ],
)  # fmt: skip
def test_whatever_has_a_name_in_its_module_travels_by_it(objective, name):
    assert reference_to(objective) == f"{__name__}:{name}"
    assert Study(objective, sampler="random", trials=3).spec.objective == f"{__name__}:{name}"


@pytest.mark.parametrize(
    ("objective", "shown"),
    [
        (lambda trial: 0.0, "<lambda>"), (Model(), "Model object"), (Model().fit, "Model.fit"),
        (functools.partial(top_level), "functools.partial"), (noisy(top_level), "call"),
        (Holder.model, "Model object"), (Speechless(), "of type Speechless"),
    ],
)  # fmt: skip
def test_what_no_module_has_a_name_for_is_refused_with_the_way_out(objective, shown):
    with pytest.raises(InvalidInputError, match="give it a name there") as refused:
        Study(objective)
    assert shown in str(refused.value)


def test_the_place_of_an_anonymous_function_is_told():
    file = __file__.rpartition("/")[2]
    with pytest.raises(InvalidInputError, match=rf"<lambda> \({file}:\d+\): a worker"):
        Study(lambda trial: 0.0)


def test_what_cannot_be_called_is_refused():
    with pytest.raises(InvalidInputError, match=r"objective = 5: give a function"):
        Study(5)


SCRIPT = """
import functools
from orchestrator.submission.objective_reference import reference_to
import library
from library import shared

def train(trial, width): return width
class Model:
    def fit(self, trial): return 1
model = Model()
partial = functools.partial(train, width=3)

def tell(objective):
    try:
        print("found", reference_to(objective))
    except Exception as error:
        print(error)

print(reference_to(train), reference_to(model.fit), reference_to(partial), reference_to(shared))

if __name__ == "__main__":
    from library import other as brought
    late = functools.partial(train, width=4)
    print(reference_to(brought))
    tell(late)
    tell(Model().fit)
    tell(functools.partial(train, width=5))
"""


def run_in(folder, *arguments, typed=None):
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.check_output(
        [sys.executable, *arguments], cwd=folder, env=environment, input=typed, text=True
    ).splitlines()


def test_a_script_is_named_by_its_file_and_what_only_it_has_is_refused(tmp_path):
    (tmp_path / "library.py").write_text("def shared(trial): pass\ndef other(trial): pass\n")
    (tmp_path / "pack").mkdir()
    for file, arguments, name in [
        ("train.py", ["train.py"], f"{tmp_path}/train.py"),
        ("pack/train.py", ["-m", "pack.train"], "pack.train"),
    ]:
        (tmp_path / file).write_text(SCRIPT)
        first, second, *others = run_in(tmp_path, *arguments)
        names = ["train", "model.fit", "partial"]
        assert first.split() == [*(f"{name}:{each}" for each in names), "library:shared"]
        assert second == "library:other"
        late, *unnamed = others
        assert late.startswith("objective 'late' is set below `if __name__ == \"__main__\":`")
        assert [("give it a name there" in line) for line in unnamed] == [True, True]


def test_what_was_typed_is_refused_and_what_was_imported_is_not(tmp_path):
    (tmp_path / "library.py").write_text("def shared(trial): return 0\nmodel = shared\n")
    typed = textwrap.dedent("""
        from orchestrator.submission.objective_reference import reference_to
        from library import shared
        def objective(trial): return 0
        print(reference_to(shared))
        try: print(reference_to(objective))
        except Exception as error: print(error)
    """)
    imported, refused = run_in(tmp_path, typed=typed)
    assert imported == "library:shared"
    assert "typed into an interactive session" in refused


CELL = "def objective(trial): return 0\\ncell_lambda = lambda trial: 0"


@pytest.mark.parametrize("name", ["objective", "cell_lambda"])
def test_functions_of_a_notebook_are_refused_by_name_also_where_it_has_a_file(tmp_path, name):
    # as kernels run cells: compiled under a name of their own, in the main program's namespace
    (tmp_path / "notebook.py").write_text(
        "from orchestrator.submission.study import Study\n"
        f"exec(compile('{CELL}', '/tmp/ipykernel_7/1234.py', 'exec'))\n"
        f"try: Study({name})\n"
        "except Exception as error: print(error)\n"
    )
    (told,) = run_in(tmp_path, "notebook.py")
    assert "was typed into an interactive session or a notebook" in told
    assert ("<lambda>" if "lambda" in name else name) in told
