"""`FLEET_STORE`: homes that share no disk, and a store that fails."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from desk import Desk
from s3_server import CREDENTIALS, S3Server, closed_port

from orchestrator.handle import StudyHandle
from workers.containers import Container
from workers.coordination.deletions import Deletions
from workers.coordination.identity import ProcessIdentity
from workers.coordination.studies import Studies
from workers.disk.ended_trials import EndedTrials
from workers.disk.object_store import ObjectStore, StoreAwayError
from workers.disk.outbox import Outbox, OutboxEntry
from workers.disk.results import draft_directory, publish, result_directory
from workers.disk.store_layout import checkpoint_key
from workers.disk.uploads import Errand, Uploads
from workers.managers import MANAGERS
from workers.processes.registry import ProcessRecord
from workers.processes.uploader import Uploader
from workers.protocol.errors import InvalidInputError, TransientError
from workers.protocol.messages import Result
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState
from workers.settings import Settings


@pytest.fixture(scope="module")
def s3():
    with S3Server() as server:
        yield server


@pytest.fixture
def s3_url(s3, monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    import s3fs

    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("fleet")
    yield "s3://fleet/some/place"
    s3.status, s3.only = None, ""
    s3.gate.set()
    files.rm("fleet", recursive=True)


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path):
    return request.getfixturevalue("s3_url" if request.param == "s3" else "file_url")


@pytest.fixture
def file_url(tmp_path):
    (tmp_path / "st").mkdir()
    return f"file://{tmp_path}/st"


class Host:
    """A worker's home, with its uploader, and a desk that claims trials there."""

    def __init__(self, name, client, settings, tmp_path, url):
        self.settings = settings.model_copy(update={"home": tmp_path / name, "store": url})
        self.container = Container(MANAGERS, [self.settings, ProcessRecord()])
        self.desk = Desk(client, self.settings, self.container.open(), SPEC)
        self.uploads = Uploads(self.settings.home, has_store=True)
        self.uploader = Uploader(client, self.settings)

    def go_away(self):
        """Have others not see this home's disk, as where hosts share none."""
        self.settings.home.rename(self.settings.home.with_name("unseen"))

    def come_back(self):
        self.settings.home.with_name("unseen").rename(self.settings.home)

    def upload(self):
        self.uploader._setbacks.forget_others(())  # as if the pause after a failure were over
        self.uploader.turn()


SPEC = StudySpec(name="s", objective="m:f")


@pytest.fixture
def host(client, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    made = []

    def make(name, url):
        made.append(Host(name, client, settings, tmp_path, url))
        return made[-1]

    yield make
    for each in made:
        each.container.close()


def test_another_home_goes_on_from_what_the_store_has(host, url):
    here, there = host("here", url), host("there", url)
    trial = here.desk.claim()
    for step in (1, 2, 3):
        trial.save_checkpoint(step, {"weights": torch.full((4,), float(step))})
        trial.await_checkpoint()
        here.upload()
    keys = ObjectStore.of(here.settings).keys("checkpoints/s/unnamed/0/")
    assert [key.rpartition("/")[2] for key in keys] == ["step-000000002", "step-000000003"]
    assert here.uploads.waiting() == []
    here.desk.leases.release(0, here.desk.held.token)
    here.go_away()
    elsewhere = there.desk.hold(0)
    assert elsewhere.load_checkpoint()["weights"].tolist() == [3.0] * 4
    elsewhere.save_checkpoint(4, {"weights": torch.zeros(4)})
    elsewhere.await_checkpoint()
    there.upload()
    there.desk.leases.release(0, there.desk.held.token)
    here.come_back()
    there.go_away()
    assert here.desk.hold(0).load_checkpoint()["weights"].tolist() == [0.0] * 4, "and back"


def test_nothing_of_a_deleted_study_is_taken_for_that_of_a_new_one_of_its_name(
    host, client, file_url
):
    here, there = host("here", file_url), host("there", file_url)
    store = ObjectStore.of(here.settings)
    here.desk.leases = Studies(client).leases("s", generation="old")
    here.desk.claim().save_checkpoint(1, {"of": "the old study"})
    here.desk.trial.await_checkpoint()
    here.upload()
    for token, text in ((9, "the old study"), (10, "the old study")):
        leave_result(here, text)
        here.uploads.add(Errand("result", "s", 0, token, generation="old"))
        here.upload()
    here.uploads.add(Errand("delete", "s"))
    Deletions(client).begin("s")
    Deletions(client).finish("s")
    here.go_away()
    there.desk.studies.submit(SPEC)
    there.desk.studies.begin("s", "new", "a place")
    there.desk.leases = Studies(client).leases("s", generation="new")
    trial = there.desk.claim()
    trial.save_checkpoint(5, {"of": "the new study"})
    trial.await_checkpoint()
    there.desk.leases.release(0, there.desk.held.token)
    there.settings.home.rename(there.settings.home.with_name("lost"))
    assert there.desk.hold(0).load_checkpoint() is None
    assert there.desk.leases.record(0).num_anew == 1, "it is told that it begins anew"
    held = there.desk.held
    held.leases.commit(0, held.token, TrialState.COMPLETE, Result(values=[0.5]))
    for token, text in ((held.token, "the new study"), (held.token + 1, "nobody's")):
        leave_result(there, text)
        there.uploads.add(Errand("result", "s", 0, token, generation="new"))
        there.upload()
    there.settings.home.rename(there.settings.home.with_name("lost too"))
    folder = StudyHandle("s", there.settings).fetched_result(0)
    assert (folder / "text").read_text() == "the new study"
    here.come_back()
    here.upload()
    assert {key.split("/")[2] for key in store.keys("")} == {"new"}


def leave_result(host, text):
    draft = draft_directory(host.settings.home, "s", 0, 1)
    draft.mkdir(parents=True)
    (draft / "text").write_text(text)
    publish(host.settings.home, "s", 0, draft)


def put_by_hand(root, key, manifest, **files):
    folder = root / key
    for name, content in files.items():
        (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "files" / name).write_text(content)
    (folder / "manifest.json").write_text(
        manifest if isinstance(manifest, str) else json.dumps({"files": manifest})
    )


@pytest.mark.parametrize(
    "manifest",
    [
        {"/tmp/escaped": 1},
        {"../escaped": 1},
        {"a/../../escaped": 1},
        {"a//b": 1},
        {"./a": 1},
        {"": 1},
        {"a/": 1},
        {"..\\escaped": 1},
        {"a\0b": 1},
        {"a": 1, "a/b": 1},
        {"a": -1},
        {"a": "1"},
        {"a": True},
        {"a": 1.0},
        {"a": None},
        ["a"],
        '{"files": {"a": 1',
        "[]",
        "",
        "\x00",
        {"a": 2},
        {"a": 1, "missing": 1},
    ],
)
def test_what_a_manifest_does_not_fit_is_absent_and_nothing_is_written_elsewhere(
    tmp_path, file_url, manifest, capsys
):
    root = tmp_path / "st"
    put_by_hand(root, "results/s/g/0/1", manifest, a="x")
    (root / "results/s/g/0/1/escaped").write_text("x")
    target = tmp_path / "home" / "deep" / "got"
    target.parent.mkdir(parents=True)
    store = ObjectStore(file_url)
    assert not store.get("results/s/g/0/1", target)
    assert not store.get("results/s/g/0/1", target)
    assert list((tmp_path / "home").rglob("*")) == [target.parent]
    assert "".join(capsys.readouterr()).count("not_whole_in_store") == 1, "said, once"
    assert not list(tmp_path.glob("escaped"))


def test_files_of_a_trainer_go_to_another_home_too(host, url, tmp_path):
    here, there = host("here", url), host("there", url)
    folder = tmp_path / "checkpoint-7"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights").write_bytes(b"w" * 1000)
    (folder / "empty").touch()
    here.desk.claim().save_checkpoint_files(7, folder)
    here.upload()
    here.desk.leases.release(0, here.desk.held.token)
    here.go_away()
    found = there.desk.hold(0).load_checkpoint_files()
    assert (found / "checkpoint-7" / "deep" / "weights").read_bytes() == b"w" * 1000
    assert (found / "checkpoint-7" / "empty").exists()


def test_where_the_last_checkpoint_did_not_reach_the_store_the_one_before_is_used(host, url):
    here, there = host("here", url), host("there", url)
    trial = here.desk.claim()
    trial.save_checkpoint(1, {"step": 1})
    trial.await_checkpoint()
    here.upload()
    trial.save_checkpoint(2, {"step": 2})
    trial.await_checkpoint()  # and the host is lost
    here.desk.leases.release(0, here.desk.held.token)
    here.go_away()
    assert there.desk.hold(0).load_checkpoint() == {"step": 1}


def test_an_attempt_that_lost_its_trial_uploads_nothing_more(host, url):
    here, there = host("here", url), host("there", url)
    first = here.desk.claim()
    first.save_checkpoint(5, {"by": "first"})
    first.await_checkpoint()
    here.desk.leases.release(0, here.desk.held.token)
    second = there.desk.hold(0)
    second.save_checkpoint(6, {"by": "second"})
    second.await_checkpoint()
    there.upload()
    here.upload()  # it was stopped, and goes on
    keys = ObjectStore.of(here.settings).keys("checkpoints/s/unnamed/0/")
    assert [key.split("/")[4] for key in keys] == [str(there.desk.held.token)]
    assert here.uploads.waiting() == []


@pytest.mark.parametrize("fault", ["503 Slow Down", "507 Insufficient Storage", "403 Forbidden"])
def test_a_store_that_fails_is_said_and_gets_all_when_it_is_well_again(host, s3, s3_url, fault):
    here, there = host("here", s3_url), host("there", s3_url)
    trial = here.desk.claim()
    s3.status, s3.only = fault, "manifest.json"  # when the files lie there
    trial.save_checkpoint(1, {"step": 1})
    trial.await_checkpoint()
    here.upload()
    (told,) = here.uploader.setbacks()
    assert "not_uploaded" in told
    assert s3_url in told
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in told
    assert not here.uploads.is_waiting("s", 0), "nobody waits for a store that is away"
    trial.save_checkpoint(2, {"step": 2})
    trial.await_checkpoint()
    s3.only = ""
    here.desk.leases.release(0, here.desk.held.token)
    here.go_away()
    with pytest.raises(TransientError, match="FLEET_STORE=s3://fleet"):
        there.desk.hold(0).load_checkpoint()
    s3.status = None
    here.come_back()
    here.upload()
    assert here.uploader.setbacks() == []
    here.go_away()
    assert there.desk.trial.load_checkpoint() == {"step": 2}


def test_a_store_that_refuses_connections_is_away(tmp_path, s3_url):
    store = ObjectStore(s3_url, f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(StoreAwayError, match="FLEET_STORE=s3://fleet"):
        store.keys("checkpoints/")


def test_training_goes_on_beside_a_store_that_is_slow(host, s3, s3_url, capsys):
    here = host("here", s3_url)
    trial = here.desk.claim()
    trial.save_checkpoint(1, {"step": 1})
    trial.await_checkpoint()
    s3.gate.clear()
    uploading = threading.Thread(target=here.upload)
    uploading.start()
    for step in (2, 3, 4):
        trial.progress(step)
        trial.save_checkpoint(step, {"step": step})
    trial.await_checkpoint()
    assert uploading.is_alive()
    assert here.uploads.is_waiting("s", 0)
    trial.await_upload(0.1)
    assert "upload_not_awaited" in "".join(capsys.readouterr())
    s3.gate.set()
    uploading.join(60.0)
    assert not uploading.is_alive()
    here.upload()
    trial.await_upload(60.0)
    assert "upload_not_awaited" not in "".join(capsys.readouterr())
    keys = ObjectStore.of(here.settings).keys("checkpoints/s/unnamed/0/")
    assert keys[-1].endswith("step-000000004")


def test_what_was_broken_off_is_not_there_and_is_made_good(tmp_path, s3, s3_url):
    store = ObjectStore(s3_url)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(name)
    s3.status, s3.only = "403 Forbidden", "/b"
    with pytest.raises(StoreAwayError):
        store.put("results/s/unnamed/0/7", folder)
    s3.status = None
    assert store.keys("results/") == []
    assert not store.get("results/s/unnamed/0/7", tmp_path / "got")
    assert not (tmp_path / "got").exists()
    (folder / "a").unlink()
    store.put("results/s/unnamed/0/7", folder)
    assert store.get("results/s/unnamed/0/7", tmp_path / "got")
    assert [path.name for path in (tmp_path / "got").iterdir()] == ["b"]
    store.remove("results/")
    assert store.keys("") == []


def test_a_directory_keeps_no_folder_of_what_is_removed(file_url, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "w").touch()
    store, trial = ObjectStore(file_url), "checkpoints/s/unnamed/0/"
    for step in (1, 2):
        store.put(checkpoint_key("s", None, 0, 5, step), tmp_path / "made")
    store.remove(f"{checkpoint_key('s', None, 0, 5, 1)}/")
    assert store.keys(trial) == [checkpoint_key("s", None, 0, 5, 2)]
    assert [path.name for path in (tmp_path / "st" / trial / "5").iterdir()] == ["step-000000002"]
    store.remove(trial)
    assert not (tmp_path / "st" / trial).exists()
    store.remove(trial)


def test_results_are_taken_home_from_the_store_and_go_with_their_study(host, url, client, tmp_path):
    here, there = host("here", url), host("there", url)
    here.desk.claim().save_checkpoint(1, {"step": 1})
    here.desk.trial.await_checkpoint()
    here.upload()
    draft = draft_directory(here.settings.home, "s", 0, here.desk.held.token)
    (draft / "model").mkdir(parents=True)
    (draft / "model" / "weights").write_text("w")
    (draft / "metrics.json").write_text("{}")
    held = here.desk.held
    held.leases.commit(0, held.token, TrialState.COMPLETE, Result(values=[0.5]))
    publish(here.settings.home, "s", 0, draft)
    here.uploads.add(Errand("result", "s", 0, held.token))
    EndedTrials(client, here.settings.home, here.uploads).remove()
    here.upload()
    store = ObjectStore.of(here.settings)
    assert store.keys("") == [f"results/s/unnamed/0/{held.token}"], (
        "and no checkpoint of an ended trial"
    )
    folder = StudyHandle("s", there.settings).fetched_result(0)
    assert (folder / "model" / "weights").read_text() == "w"
    studies = Studies(client)
    studies.facts.publish("s", {"kept_models": {"best": [], "num_known": 1, "open": []}})
    EndedTrials(client, here.settings.home, here.uploads).remove()
    here.upload()
    assert store.get(f"results/s/unnamed/0/{held.token}", tmp_path / "got")
    assert [path.name for path in (tmp_path / "got").iterdir()] == ["metrics.json"]
    here.uploads.add(Errand("delete", "s"))
    here.upload()
    assert store.keys("") != [], "a study of this name is there"
    Deletions(client).begin("s")
    Deletions(client).finish("s")
    EndedTrials(client, here.settings.home, here.uploads).remove()
    here.upload()
    assert store.keys("") == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("store", "s3://", "s3://bucket/prefix or file:///path"),
        ("store", "gs://bucket", "s3://bucket/prefix or file:///path"),
        ("store", "/a/path", "s3://bucket/prefix or file:///path"),
        ("store", "file://host/path", "s3://bucket/prefix or file:///path"),
        ("store", "s3://bucket/x?versionId=1", "s3://bucket/prefix or file:///path"),
        ("store", "s3://key:hidden-word@bucket", "leave credentials to the environment"),
        ("store_endpoint", "localhost:9000", "http://host:port"),
        ("store_endpoint", "http://key:hidden-word@host", "without credentials"),
    ],
)
def test_what_is_no_store_is_refused_and_no_secret_is_shown(name, value, says):
    with pytest.raises(InvalidInputError, match=f"FLEET_{name.upper()}") as refused:
        Settings.build({name: value})
    assert says in str(refused.value)
    assert "hidden-word" not in str(refused.value)


def test_an_outbox_notes_what_it_published(client, tmp_path):
    leases = Studies(client).leases("s")
    for has_store in (False, True):
        uploads = Uploads(tmp_path, has_store=has_store)
        outbox = Outbox(tmp_path, uploads)
        draft = draft_directory(tmp_path, "s", 4, 7)
        draft.mkdir(parents=True)
        entry = OutboxEntry(
            study="s",
            number=4,
            epoch=leases.epoch,
            generation="g",
            token=7,
            state=TrialState.COMPLETE,
            result=Result(values=[0.5]),
            owner=ProcessIdentity.current(),
            files=draft,
        )
        outbox.write(entry)
        outbox.settle(entry, "OK", leases)
        assert result_directory(tmp_path, "s", 4).is_dir()
        if not has_store:
            assert not (tmp_path / "uploads").exists(), "without a store nothing is noted"
    (tmp_path / "uploads" / "strange@name").touch()
    assert uploads.waiting() == [Errand("result", "s", 4, 7, generation="g")]


def test_a_root_that_is_missing_is_away_and_never_made(host, client, tmp_path, s3_url):
    missing = tmp_path / "not" / "mounted"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("a")
    for url in (f"file://{missing}", "s3://no-such-bucket/x"):
        here = host(urlsplit(url).scheme, url)
        store = ObjectStore.of(here.settings)
        with pytest.raises(InvalidInputError, match=f"FLEET_STORE={url}: there is no such"):
            here.uploader.check_store()
        for act in (
            lambda store=store: store.put("results/s/g/0/1", folder),
            lambda store=store: store.get("results/s/g/0/1", tmp_path / "got"),
            lambda store=store: store.keys("results/"),
            lambda store=store: store.remove("results/"),
        ):
            with pytest.raises(StoreAwayError, match=f"FLEET_STORE={url}"):
                act()
        trial = here.desk.claim()
        trial.save_checkpoint(1, {"step": 1})
        trial.await_checkpoint()
        here.upload()
        assert len(here.uploads.waiting()) == 1, "the errand stays"
        assert "store_away" in here.uploader.setbacks()[0]
        here.desk.leases.release(0, here.desk.held.token)
        here.go_away()
        with pytest.raises(TransientError, match="no such"):
            here.desk.hold(0).load_checkpoint()
        Studies(client).forget("s")
        here.settings.home.with_name("unseen").rename(tmp_path / f"old {here.settings.home.name}")
    assert not missing.parent.exists()


def test_a_store_that_does_not_answer_at_the_start_is_away(host, s3_url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    here = host("here", s3_url)
    here.uploader.check_store()
    assert "store_away" in here.uploader.setbacks()[0]


def test_names_such_as_files_and_manifest_hide_nothing(tmp_path):
    root = tmp_path / "files" / "manifest.json" / "files"
    root.mkdir(parents=True)
    store = ObjectStore(f"file://{root}")
    folder = tmp_path / "folder"
    (folder / "files" / "results").mkdir(parents=True)
    for name in ("manifest.json", "files/manifest.json", "files/results/manifest.json"):
        (folder / name).write_text("{}")
    keys = ["checkpoints/files/files/0/1/step-000000001", "results/files/files/0/1"]
    for key in keys:
        store.put(key, folder)
    assert store.keys("") == keys
    assert store.keys("results/files/") == keys[1:]
    assert store.get(keys[0], tmp_path / "got")
    assert len(list((tmp_path / "got").rglob("manifest.json"))) == 3
    store.remove("checkpoints/files/")
    assert store.keys("") == keys[1:]


@pytest.mark.parametrize("damage", ["truncated", "size", "missing"])
def test_a_checkpoint_that_is_not_whole_in_the_store_gives_way_to_the_one_before(
    host, file_url, tmp_path, damage
):
    here, there = host("here", file_url), host("there", file_url)
    trial = here.desk.claim()
    for step in (1, 2):
        trial.save_checkpoint(step, {"step": step})
        trial.await_checkpoint()
        here.upload()
    (last,) = (tmp_path / "st").rglob("step-000000002")
    if damage == "truncated":
        (last / "manifest.json").write_text('{"files": {"st')
    elif damage == "size":
        (last / "files" / "state.pt").write_text("short")
    else:
        (last / "files" / "state.pt").unlink()
    here.desk.leases.release(0, here.desk.held.token)
    here.go_away()
    assert there.desk.hold(0).load_checkpoint() == {"step": 1}


def test_what_lies_here_is_taken_before_a_store_is_asked_that_is_away(host, file_url, tmp_path):
    here = host("here", file_url)
    trial = here.desk.claim()
    for step in (1, 2):
        trial.save_checkpoint(step, {"step": step})
        trial.await_checkpoint()
    here.desk.leases.release(0, here.desk.held.token)
    trial = here.desk.hold(0)
    (tmp_path / "st").rmdir()
    for step, expected in ((2, {"step": 1}), (1, None)):
        (state,) = here.settings.home.rglob(f"step-{step:09d}/state.pt")
        state.write_text("damaged")
        if expected is None:
            with pytest.raises(TransientError, match="no such directory"):
                trial.load_checkpoint()
        else:
            assert trial.load_checkpoint() == expected


def test_a_trial_that_began_anew_loses_neither_what_is_accepted_nor_its_upload(
    host, client, file_url
):
    here, there = host("here", file_url), host("there", file_url)
    trial = here.desk.claim()
    for step in (100, 200):
        trial.save_checkpoint(step, {"step": step})
        trial.await_checkpoint()
        here.upload()
    here.uploads.add(Errand("checkpoint", "s", 0, 99, 300))  # of before, with a higher token
    Studies(client).forget("s")  # Redis lost its data
    trial = here.desk.claim()
    for step in (1, 2, 3):
        trial.save_checkpoint(step, {"step": step})
        trial.await_checkpoint()
        assert Path(here.desk.leases.record(0).checkpoint.uri).exists()
    here.upload()
    assert here.uploads.waiting() == []
    steps = [key[-1] for key in ObjectStore.of(here.settings).keys("checkpoints/")]
    assert steps == ["3"], "and what is further is of no use"
    here.desk.leases.release(0, here.desk.held.token)
    here.go_away()
    assert there.desk.hold(0).load_checkpoint() == {"step": 3}


def test_an_errand_that_fails_by_itself_holds_up_no_other(host, file_url, tmp_path):
    here = host("here", file_url)
    for number, name in enumerate(("a" * 200 + "/" + "b" * 200, "plain")):
        draft = draft_directory(here.settings.home, "s", number, 1)
        (draft / name).parent.mkdir(parents=True)
        (draft / name).write_text("x")
        publish(here.settings.home, "s", number, draft)
        here.uploads.add(Errand("result", "s", number, 1))
    # where the first is to lie, there is something in the way
    blocked = tmp_path / "st" / "results" / "s" / "unnamed" / "0"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    trial = here.desk.claim(2)
    trial.save_checkpoint(1, {"step": 1})
    trial.await_checkpoint()
    here.upload()
    found = ObjectStore.of(here.settings).keys("")
    assert [key.split("/")[3] for key in found] == ["2", "1"]
    (told,) = here.uploader.setbacks()
    assert told.startswith("result@s@0@1@")
    assert "not_uploaded" in told
    assert here.uploads.waiting() == [Errand("result", "s", 0, 1)]
    blocked.unlink()
    here.upload()
    assert here.uploads.waiting() == []
    assert here.uploader.setbacks() == []


def test_what_is_removed_here_is_noted_for_the_store_first(host, file_url, client, monkeypatch):
    here = host("here", file_url)
    here.desk.claim().save_checkpoint(1, {"step": 1})
    here.desk.trial.await_checkpoint()
    noted = []

    def add(uploads, errand):
        lies_here = (here.settings.home / "checkpoints" / "s" / "0").exists()
        noted.append((errand.kind, lies_here))

    monkeypatch.setattr(Uploads, "add", add)
    here.desk.trial._checkpointing._store.remove("s", None, 0)
    assert noted == [("forget", True)]


def test_nobody_waits_for_a_home_without_a_store_or_for_an_errand_that_failed(tmp_path, capsys):
    errand = Errand("checkpoint", "s", 0, 1, 1)
    uploads = Uploads(tmp_path, has_store=True)
    uploads.add(errand)
    assert uploads.is_waiting("s", 0)
    assert not Uploads(tmp_path, has_store=False).is_waiting("s", 0)
    uploads.failed(errand, "it cannot be read")
    assert not uploads.is_waiting("s", 0)
    assert uploads.waiting() == [errand]
    (tmp_path / "full").write_text("no folder can be made below a file")
    Uploads(tmp_path / "full", has_store=True).add(errand)
    assert "upload_not_noted" in "".join(capsys.readouterr())
