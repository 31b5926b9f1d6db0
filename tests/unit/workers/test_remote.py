from __future__ import annotations

import errno
import hashlib
import shutil
import socket
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest

from workers.managers.hub import HubManager
from workers.protocol.errors import RemoteUnavailableError, WorkerLacksError
from workers.remote.faults import wanted_pause, will_pass
from workers.remote.hub import commit_of, is_on_hub, model_folder
from workers.remote.patience import Patience
from workers.settings import Settings

QUICK = Patience(pause_seconds=0.02)

FILES = {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": "x", "onnx/a.bin": "y"}


def ask(hub, name="me/model"):
    return QUICK.ask("the model", lambda: commit_of("model", name, None))


@pytest.mark.parametrize("fault", [429, 408, 500, 502, 503, 504, "reset"])
def test_a_hub_that_does_not_answer_is_asked_again(hub, fault):
    sha = hub.repo("models", "me/model").commit(FILES)
    hub.faults = [fault, fault]
    assert ask(hub) == sha
    assert hub.faults == []


@pytest.mark.parametrize("fault", [429, 503, "reset"])
def test_a_hub_that_never_answers_is_told_as_one_that_does_not_answer_for_now(hub, fault):
    hub.repo("models", "me/model").commit(FILES)
    hub.always = fault
    with pytest.raises(RemoteUnavailableError, match="the model cannot be read for now: "):
        ask(hub)
    assert len(hub.requests) >= 4
    with pytest.raises(RemoteUnavailableError, match="the model cannot be read for now: "):
        QUICK.ask("the model", lambda: model_folder("me/model", with_weights=True))


@pytest.mark.parametrize("fault", [401, 403, 404, 410, 501])
def test_what_is_wrong_fails_at_once(hub, fault):
    hub.always = fault
    with pytest.raises(OSError, match=str(fault)):
        ask(hub)
    assert len(hub.requests) == 1


def test_a_gated_or_missing_repository_or_revision_is_wrong(hub):
    hub.repo("models", "me/gated").is_gated = True
    hub.repo("models", "me/model").commit(FILES)
    for name, revision in [("me/gated", None), ("me/none", None), ("me/model", "nope")]:
        hub.requests.clear()
        with pytest.raises(OSError, match="4"):
            QUICK.ask("it", lambda name=name, revision=revision: commit_of("model", name, revision))
        assert len(hub.requests) == 1


def test_a_server_is_left_alone_for_as_long_as_it_wants(hub):
    hub.repo("models", "me/model").commit(FILES)
    hub.faults = [(429, {"Retry-After": "0.1"})]
    started_at = time.monotonic()
    ask(hub)
    assert time.monotonic() - started_at > 0.07
    hub.faults = [(503, {"Retry-After": "120"})]
    with pytest.raises(RemoteUnavailableError) as caught:
        ask(hub)
    assert caught.value.pause_seconds == 120, "the slot is given to another trial meanwhile"
    hub.faults = [(503, {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"})]
    with pytest.raises(RemoteUnavailableError) as caught:
        ask(hub)
    assert caught.value.pause_seconds == 3600, "and not for ever"


def test_a_refused_connection_and_a_name_that_does_not_resolve_pass(hub, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", "http://no-such-host.invalid"):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        with pytest.raises(RemoteUnavailableError):
            ask(hub)


def test_a_server_that_says_nothing_is_asked_again(hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)

        def call():
            return huggingface_hub.HfApi().repo_info("me/model", timeout=0.05)

        with pytest.raises(RemoteUnavailableError, match="timed out"):
            QUICK.ask("the model", call)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN])
def test_a_file_share_that_is_away_passes(code):
    answers = [OSError(code, "share"), OSError(code, "share"), None]

    def read():
        problem = answers.pop(0)
        if problem is not None:
            raise problem
        return "text"

    assert QUICK.ask("the file", read) == "text"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no"), PermissionError(errno.EACCES, "no"),
        OSError(errno.ENOSPC, "full"), ValueError("no"), OSError("no config.json"),
    ],
)  # fmt: skip
def test_what_no_time_mends_does_not_pass(error):
    assert not will_pass(error)
    assert wanted_pause(error) == 0


def test_who_waited_already_is_not_waited_for_again():
    calls = []

    def inner():
        calls.append(1)
        raise ConnectionResetError

    with pytest.raises(RemoteUnavailableError, match="inner"):
        QUICK.ask("outer", lambda: QUICK.ask("inner", inner))
    assert len(calls) == 4


def test_a_network_that_is_switched_off_is_no_fault_that_passes(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="offline") as caught:
        ask(hub, "me/never-fetched")
    assert not will_pass(caught.value)


def test_of_a_model_what_loading_reads_is_fetched_and_no_more(hub):
    sha = hub.repo("models", "me/model").commit(FILES)
    folder = model_folder("me/model", with_weights=False)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]
    assert model_folder(f"me/model@{sha}", with_weights=True) == folder
    assert (folder / "model.safetensors").exists()
    assert not (folder / "onnx").exists()
    old = {"config.json": "{}", "pytorch_model.bin": "x"}
    hub.repo("models", "me/old").commit(old)
    assert (model_folder("me/old@main", with_weights=True) / "pytorch_model.bin").exists()


def test_a_path_is_never_asked_of_a_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_on_hub("me/model")
    (tmp_path / "me" / "model").mkdir(parents=True)
    assert not is_on_hub("me/model")
    assert not is_on_hub("/me/model")
    assert not is_on_hub("./me")


@pytest.fixture
def fetching(hub, tmp_path):
    """What fetches models in a worker's process."""
    hub.repo("models", "me/model").commit(FILES)
    return HubManager(Settings(home=tmp_path, time_scale=0.02))


@pytest.mark.parametrize("removed", [".", "blobs", "snapshots"])
def test_what_is_taken_out_of_the_hubs_cache_is_fetched_again(fetching, removed):
    folder = Path(fetching.model_files("the model", "me/model", with_weights=True))
    shutil.rmtree(folder.parents[1] / removed)
    again = Path(fetching.model_files("the model", "me/model", with_weights=True))
    assert (again / "model.safetensors").read_text() == "x"


def test_what_is_fetched_is_asked_for_once(fetching, hub):
    fetching.model_files("the model", "me/model", with_weights=True)
    hub.requests.clear()
    fetching.model_files("the model", "me/model", with_weights=True)
    assert hub.requests == []


def test_what_was_not_fetched_before_the_network_was_switched_off_may_lie_on_other_hosts(
    fetching, monkeypatch
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WorkerLacksError, match="the model is not among what was fetched here"):
        fetching.model_files("the model", "me/model", with_weights=True)


def test_a_path_that_is_not_here_may_be_on_other_hosts(fetching, tmp_path):
    assert fetching.model_files("it", str(tmp_path), with_weights=True) == str(tmp_path)
    with pytest.raises(WorkerLacksError, match="it does not load .there is no such path"):
        fetching.model_files("it", str(tmp_path / "gone"), with_weights=True)


class Drained(BaseException):
    pass


def drained_when_told(times):
    """Ends the waiting when it is told of it for the last time of so many."""
    told = iter(range(times - 1))

    def watch(*_):
        if next(told, None) is None:
            raise Drained

    return watch


def aside():
    """The threads that wait for a hub, or did when somebody still waited for them."""
    return [thread for thread in threading.enumerate() if thread.name == "remote"]


@pytest.fixture
def nobody_left_aside(hub):
    yield
    hub.always = 404
    for thread in aside():
        thread.join(60)
    assert aside() == []


@pytest.mark.parametrize("fault", ["reset", 503])
def test_who_waits_for_a_hub_need_not_wait_to_the_end(hub, tmp_path, fault):
    manager = HubManager(Settings(home=tmp_path))
    hub.always = fault
    with manager.watched(drained_when_told(2)), pytest.raises(Drained):
        manager.ask("it", lambda: commit_of("model", "me/model", None))
    assert len(hub.requests) < 4, "not all that would have been tried"


@pytest.fixture
def held_file(hub):
    """A file of `me/model` that another process fetches: the library waits for it, for ever."""
    hub.repo("models", "me/model").commit(FILES)
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE)
    etag = hashlib.sha1(FILES["config.json"].encode()).hexdigest()
    lock = folder / ".locks" / "models--me--model" / f"{etag}.lock"
    lock.parent.mkdir(parents=True)
    growing = folder / "models--me--model" / "blobs" / f"{etag}.of-another.incomplete"
    growing.parent.mkdir(parents=True)
    with huggingface_hub.utils.WeakFileLock(lock):
        yield growing


@pytest.mark.usefixtures("nobody_left_aside", "held_file")
def test_a_download_that_hangs_is_given_up_though_it_counts_as_progress(tmp_path):
    manager = HubManager(Settings(home=tmp_path, time_scale=0.002))
    signs = []
    with (
        manager.watched(lambda *said: signs.append(said)),
        pytest.raises(
            RemoteUnavailableError, match="it cannot be .*: nothing of it arrived for 0.6 s"
        ),
    ):
        manager.model_files("it", "me/model", with_weights=True)
    assert signs, "it counted so while something might have arrived"


@pytest.mark.usefixtures("nobody_left_aside")
def test_a_download_is_waited_for_while_something_arrives_and_somebody_waits(tmp_path, held_file):
    manager = HubManager(Settings(home=tmp_path, time_scale=0.002))
    patient_until = time.monotonic() + 2.0

    def arrives(*_):
        held_file.write_bytes(bytes(held_file.stat().st_size + 1 if held_file.exists() else 1))
        if time.monotonic() > patient_until:  # three times as long as nothing may arrive
            raise Drained

    with manager.watched(arrives), pytest.raises(Drained):
        manager.model_files("it", "me/model", with_weights=True)
