"""The managers' public face, as a user's script meets it, in every kind of process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from face import FaceDataset, first_row, send_face
from torch.utils.data import DataLoader
from waiting import wait_until

from workers import managers
from workers.managers import cleanup_managers, initialize_factory
from workers.managers.process_init import ensure_process_initialized
from workers.protocol.errors import InvalidInputError, NotInitializedError


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    yield {"home": str(tmp_path / "home")}
    cleanup_managers()


def in_child(config, method):
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=send_face, args=(config, sender))
    child.start()
    assert receiver.poll(60), "the child says nothing"
    seen = receiver.recv()
    child.join()
    assert child.exitcode == 0
    return seen


def test_in_the_main_process_every_manager_is_had_by_name(config):
    container = initialize_factory(config)
    getters = [name for name in managers.__all__ if name.startswith("get_")]
    found = [getattr(managers, name)() for name in getters]
    assert {type(manager) for manager in found} == set(managers.MANAGERS)
    assert initialize_factory(config) is container
    cleanup_managers()
    cleanup_managers()
    with pytest.raises(NotInitializedError, match="ensure_process_initialized"):
        managers.get_model_manager()


def test_a_process_that_only_reads_data_starts_neither_cuda_nor_wandb(config, monkeypatch):
    started = []
    monkeypatch.setattr(managers.CUDAManager, "_choose", lambda *_: started.append("CUDA"))
    monkeypatch.setattr(managers.WandbManager, "open", lambda *_: started.append("W&B"))
    initialize_factory(config)
    managers.get_data_manager()
    managers.get_tokenizer_manager()
    managers.get_directory_manager().scratch()
    assert started == []
    managers.get_wandb_manager()
    tensors = managers.get_tensor_manager()
    tensors.clear_memory()
    assert started == ["W&B"]
    assert tensors.device is None
    assert started == ["W&B", "CUDA"]


def test_a_bad_config_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidInputError, match="hoem"):
        initialize_factory({"hoem": str(tmp_path)})


def test_a_spawned_child_builds_its_own(config):
    initialize_factory(config)
    seen = in_child(config, "spawn")
    assert seen["refusal"].startswith("NotInitializedError")
    assert "ensure_process_initialized" in seen["refusal"]
    assert seen["is_idempotent"]
    assert seen["scratch_exists"]
    assert seen["managers"] == ["ModelManager", "DataManager"]
    assert not Path(seen["scratch"]).exists(), "the child's managers were closed at its end"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_refused_the_parents_and_builds_its_own(config):
    initialize_factory(config)
    own = managers.get_directory_manager().scratch()
    seen = in_child(config, "fork")
    assert seen["refusal"].startswith("ForeignProcessError")
    assert "ensure_process_initialized" in seen["refusal"]
    assert seen["scratch"] != str(own)
    assert own.exists(), "the child did not run the parent's teardown"
    assert managers.get_directory_manager().scratch() == own


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_dataloader_worker_builds_its_own(config, method):
    initialize_factory(config)
    loader = DataLoader(
        FaceDataset(config),
        num_workers=1,
        multiprocessing_context=method,
        collate_fn=first_row,
    )
    first, second = list(loader)
    expected = "NotInitializedError" if method == "spawn" else "ForeignProcessError"
    assert first["refusal"].startswith(expected)
    assert second["refusal"] == "", "the second row finds the managers of the first"
    assert first["pid"] == second["pid"] != os.getpid()
    assert first["managers"] == ["ModelManager", "DataManager"]
    wait_until(lambda: not Path(first["scratch"]).exists(), "the loader's scratch is removed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None])
def test_a_script_that_ends_leaves_no_scratch_directory(tmp_path, number):
    program = (
        "import signal, time\n"
        # a shell that runs the tests in the background has SIGINT ignored, for children too
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from workers.managers import initialize_factory, get_directory_manager\n"
        f"initialize_factory({{'home': {str(tmp_path)!r}}})\n"
        "print(get_directory_manager().scratch(), flush=True)\n"
        + ("" if number is None else "time.sleep(60)\n")
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "WANDB_MODE": "disabled"},
    ) as script:
        scratch = Path(script.stdout.readline().strip())
        if number is not None:
            assert scratch.exists()
            script.send_signal(number)
        script.wait(60)
    assert not scratch.exists()
    if number is not None:
        assert script.returncode in {-number, 1}


def test_the_container_is_the_same_in_every_thread(config):
    container = ensure_process_initialized(config)
    assert container.is_open_here
