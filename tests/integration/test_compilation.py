"""`compile`: what is computed is the same; no length, trial or process has it compiled anew.

But for the test of the real one, the backend is `eager`: torch traces the model as for any other,
and what it found is computed as it stands.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from desk import StepTrial, as_the_first, assert_equal, resumed_after, run, study_of
from structlog.testing import capture_logs
from torch._dynamo.callback import callback_handler
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.utils import counters
from torch._inductor.exc import CppCompileError
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification
from waiting import wait_until

from workers.disk.cache_entry import MANIFEST
from workers.disk.file_locks import lock_file
from workers.managers import (
    CUDAManager,
    DirectoryManager,
    ModelManager,
    compile_watch,
)
from workers.managers.compilation import Compilation
from workers.protocol.errors import (
    DrainRequested,
    ObjectiveError,
    TransientError,
    WorkerLacksError,
)
from workers.trials.finetune import beginning, loop

#: What a torch that compiles warns of, and is not of this project.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")

SMALL = {"architecture": "bert", "hidden_size": 32, "num_hidden_layers": 1}

#: Trains in a process of its own.
PROGRAM = Path(__file__).parents[1] / "compiled_training.py"


@pytest.fixture
def by_eager(compile_by):
    compile_by("eager")


@pytest.fixture
def lengths(tmp_path):
    """Texts of 1 to 30 words, so that buckets have many lengths; 105 to train on."""
    path = tmp_path / "lengths.csv"
    lines = [
        f"{' '.join(['red', 'blue', 'six'][n % 3 :] * (1 + n % 10))},{n % 3}" for n in range(150)
    ]
    path.write_text("\n".join(["text,label", *lines]))
    return path


def of_lengths(texts, **settings):
    study = study_of(texts, save_model="all", batch_size=26, **settings)
    study["config"]["data"] |= {"max_length": 40}
    study["config"] |= {"epochs": 2, "evaluations_per_epoch": 1}
    return {**study, "metric": "loss", "direction": "minimize", "sampler": {"seed": 1}}


def evaluations(trial):
    written = json.loads((trial.result_directory / "metrics.json").read_text())["evaluations"]
    return [
        {name: value for name, value in each.items() if name != "texts_per_second"}
        for each in written
    ]


def num_graphs():
    return counters["stats"]["unique_graphs"]


def test_what_is_compiled_trains_and_is_resumed_as_what_is_not(desk, container, lengths, by_eager):
    place = desk(**of_lengths(lengths, micro_batch_size=9, objective="best"))
    plain = place.claim(0)
    expected = run(container, plain)
    resumed = resumed_after(place, 5, {"compile": True})
    saved = resumed.load_checkpoint()
    left = AutoModelForSequenceClassification.from_pretrained(plain.result_directory / "model")
    assert saved["model"].keys() == left.state_dict().keys()
    before = num_graphs()
    assert run(container, resumed) == expected
    assert num_graphs() - before == 2, "one to train and one to evaluate, whatever the lengths"
    assert evaluations(resumed) == evaluations(plain)
    again = AutoModelForSequenceClassification.from_pretrained(resumed.result_directory / "model")
    assert_equal(again.state_dict(), left.state_dict())


def test_texts_of_one_block_are_kept_apart_in_compiled_code_too(
    desk, container, tmp_path, by_eager
):
    path = tmp_path / "texts.jsonl"
    rows = [" ".join(["red", "green", "blue"][: 1 + n % 3] * (1 + n % 4)) for n in range(90)]
    path.write_text("\n".join(json.dumps({"text": row}) for row in rows))
    study = study_of(path, task="causal_lm", max_steps=3)
    study["config"]["data"] = {"source": str(path), "block_size": 16}
    study["config"]["model"] = {**SMALL, "architecture": "gpt2"}
    del study["config"]["epochs"]
    place = desk(**{**study, "metric": "loss", "direction": "minimize", "sampler": {"seed": 1}})
    expected = run(container, place.claim(0))
    assert run(container, as_the_first(place, place.claim(1, {"compile": True}))) == expected


class Told(StepTrial):
    """A trial that notes what it says of its preparation."""

    def __init__(self, trial):
        super().__init__(trial, -1, lambda: None)
        self.told = []

    def preparing(self, what, done=0, total=0):
        self.told.append((what, done))
        self._trial.preparing(what, done, total)


def test_while_a_model_is_compiled_the_trial_lives_and_says_what_it_does(
    desk, container, texts, compile_by, monkeypatch
):
    told = []

    def backend(graph, _):
        """Is done when it was heard of again, and a drain is no reason to be silent."""
        if not told:
            place.drain.set()
            place.held._progressed_at = began
            told.append(len(compiling(trial)))
            wait_until(lambda: len(compiling(trial)) >= told[0] + 3, "it says that it compiles")
            told.append(place.held._progressed_at)
        return graph

    def compiling(trial):
        return [done for what, done in trial.told if what == "seconds of compiling the model"]

    compile_by(backend)
    monkeypatch.setattr(compile_watch, "_TELL_SECONDS", 0.05)
    place = desk(**study_of(texts, compile=True))
    trial = Told(place.claim(0))
    began = -1e9
    with capture_logs() as logs, pytest.raises(DrainRequested):
        run(container, trial)
    assert told[1] > began, "or it would have been ended as one that hangs"
    assert [each["compilations"] for each in logs if each["event"] == "compiled"] == [1]


def test_a_training_leaves_nothing_of_itself_to_the_next(
    desk, container, texts, by_eager, monkeypatch
):
    models = []

    class Noted(Compilation):
        def __init__(self, model, *args, **named):
            super().__init__(model, *args, **named)
            models.append(weakref.ref(model))

    monkeypatch.setattr(beginning, "Compilation", Noted)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/as/it/was")
    place = desk(**study_of(texts, compile=True, max_steps=2))
    for number in range(2):
        before = num_graphs()
        run(container, place.claim(number))
        assert num_graphs() - before == 2, "a further trial is compiled as the first was"
    place.trial = None
    gc.collect()
    assert [each() for each in models] == [None] * 2
    assert _debug_get_cache_entry_list(BertForSequenceClassification.forward.__code__) == []
    assert callback_handler.start_callbacks == callback_handler.end_callbacks == []
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/as/it/was"
    assert "TRITON_CACHE_DIR" not in os.environ


def test_a_worker_without_a_compiler_says_so(desk, container, texts, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    place = desk(**study_of(texts, compile=True))
    with pytest.raises(WorkerLacksError, match=r"compile: .*'no-such-compiler'.*install g") as told:
        run(container, place.claim(0))
    assert told.value.is_of_study
    with pytest.raises(WorkerLacksError) as told:
        run(container, place.claim(1, {"compile": True}))
    assert not told.value.is_of_study, "another trial may do without"


def test_code_that_may_be_damaged_is_put_aside_and_compiled_again(container, compile_by):
    def backend(_graph, _inputs):
        raise ValueError("no ELF header")

    compile_by(backend)
    model = container.get(ModelManager).sequence_classifier(**SMALL, vocab_size=50, num_labels=2)
    cuda, directories = container.get(CUDAManager), container.get(DirectoryManager)

    def train():
        compiled = Compilation(model, "default", "fp32", cuda, directories)
        with compiled.open():
            compiled(input_ids=torch.ones(2, 8, dtype=torch.long))

    folder = directories._cache.folder / "compiled"
    with pytest.raises(ObjectiveError, match="(?s)the model does not compile here.*no ELF header"):
        train()
    assert list(folder.glob(f"*/{MANIFEST}")) == []
    with Compilation(model, "default", "fp32", cuda, directories).open():
        [kept] = folder.glob(f"*/{MANIFEST}")
        kept.with_name("code.so").write_bytes(b"")
    with pytest.raises(TransientError, match="(?s)put aside.*no ELF header"):
        train()
    assert list(folder.glob(f"*/{MANIFEST}")) == []


def test_of_processes_that_compile_alike_one_does_and_the_others_wait(container, compile_by):
    happened = []

    def backend(graph, _):
        happened.append("compiled")
        return graph

    def watch(what, _done, _total):
        if what == "seconds of compiling the model" and "told" not in happened:
            happened.append("told")
            others.release()

    compile_by(backend)
    model = container.get(ModelManager).sequence_classifier(**SMALL, vocab_size=50, num_labels=2)
    cuda, directories = container.get(CUDAManager), container.get(DirectoryManager)
    compiled = Compilation(model, "default", "fp32", cuda, directories, watch)
    with compiled.open():
        [folder] = [path.parent for path in directories._cache.folder.glob(f"*/*/{MANIFEST}")]
        others = lock_file(folder / ".compiling", create=True)
        compiled(input_ids=torch.ones(2, 8, dtype=torch.long))
        assert happened == ["told", "compiled"]
        lock_file(folder / ".compiling").release()  # it is free again


def test_code_that_another_training_uses_stays_where_it_is_and_nobody_else_takes_it(
    container, compile_by
):
    def backend(_graph, _inputs):
        raise ValueError("no ELF header")

    compile_by(backend)
    other = small_compilation(container)
    with other.open():  # of another process, say: its lock is its own
        [folder] = kept(container)
        (folder / "code.so").write_bytes(b"")
        compiled = small_compilation(container)
        with pytest.raises(TransientError, match="put aside"), compiled.open():
            compiled(input_ids=torch.ones(2, 8, dtype=torch.long))
        assert (folder / "code.so").exists(), "torch goes on to read and write there"
        with small_compilation(container).open():
            assert os.environ["TORCHINDUCTOR_CACHE_DIR"] != str(folder)
    with small_compilation(container).open():
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
        assert not (folder / "code.so").exists()


def test_a_training_is_as_quick_as_without_the_time_in_which_its_model_is_compiled(
    desk, container, texts, compile_by, monkeypatch
):
    compiled_for = 0.0

    def backend(graph, _):
        nonlocal compiled_for
        compiled_for += 1000.0
        return graph

    clock = SimpleNamespace(
        perf_counter=lambda: time.perf_counter() + compiled_for,
        monotonic=lambda: time.monotonic() + compiled_for,
    )
    compile_by(backend)
    monkeypatch.setattr(compile_watch, "time", clock)
    monkeypatch.setattr(loop, "time", clock)
    place = desk(**study_of(texts, compile=True, max_steps=4, log_every_steps=2))
    with capture_logs() as logs:
        run(container, place.claim(0))
    assert compiled_for >= 2000.0, "to train, and to evaluate"
    rates = [each["tokens_per_second"] for each in logs if each["event"] == "steps"]
    rates += [each["texts_per_second"] for each in logs if each["event"] == "evaluated"]
    assert len(rates) >= 3
    assert min(rates) > 1.0, "two steps of 16 texts"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_code_is_built_once_and_taken_by_every_process_that_follows(tmp_path):
    cold = trained(tmp_path, 0)
    assert cold["graphs_built"] >= 3 > cold["graphs_from_cache"], "two of a step, and an evaluation"
    assert cold["compilations"] == 2
    warm = trained(tmp_path, 2)
    assert (warm["graphs_built"], warm["compilations"]) == (0, 2)
    assert warm["graphs_from_cache"] == cold["graphs_built"]
    assert warm["losses"] == cold["losses"][2:], "dropout is drawn as where it goes on from"


def trained(folder, from_step):
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    command = [sys.executable, str(PROGRAM), str(folder), str(from_step)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("said", [
    "g++: fatal error: Killed signal terminated program cc1plus",
    "/usr/bin/ld: final link failed: No space left on device",
])  # fmt: skip
def test_a_compiler_that_is_ended_or_short_of_room_is_not_the_models_fault(
    container, compile_by, said
):
    def backend(*_):
        raise CppCompileError(["g++"], said)

    compile_by(backend)
    compiled = small_compilation(container)
    with pytest.raises(TransientError, match="it takes memory, and room"), compiled.open():
        compiled(input_ids=torch.ones(2, 8, dtype=torch.long))
    assert len(kept(container)) == 1, "nothing is put aside"


def test_whoever_is_to_end_ends_though_its_compiler_was_ended_first(container, compile_by):
    def backend(*_):
        raise CppCompileError(["g++"], "no reason at all")

    def watch(*_):
        raise DrainRequested

    compile_by(backend)
    compiled = small_compilation(container, watch)
    with pytest.raises(DrainRequested), compiled.open():
        compiled(input_ids=torch.ones(2, 8, dtype=torch.long))


def test_code_that_others_may_have_written_is_not_run(container, compile_by):
    compile_by("eager")
    with small_compilation(container).open():
        [folder] = kept(container)
    folder.chmod(0o777)
    compiled = small_compilation(container)
    with compiled.open():
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] != str(folder)
        compiled(input_ids=torch.ones(2, 8, dtype=torch.long))


def small_compilation(container, *watch):
    model = container.get(ModelManager).sequence_classifier(**SMALL, vocab_size=50, num_labels=2)
    cuda, directories = container.get(CUDAManager), container.get(DirectoryManager)
    return Compilation(model, "default", "fp32", cuda, directories, *watch)


def kept(container):
    folder = container.get(DirectoryManager)._cache.folder
    return [path.parent for path in folder.glob(f"*/*/{MANIFEST}")]
