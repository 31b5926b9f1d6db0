"""Code that travels: side by side in one process, refused where it is not to run, and removed."""

from __future__ import annotations

import stat
import sys
from contextlib import suppress

import pytest
import redis
from hand_fleet import Fleet, turn_until
from one_process_fleet import OneProcessFleet
from structlog.testing import capture_logs

from orchestrator.handle import StudyHandle
from orchestrator.local.delete_study import delete_study
from orchestrator.storage.attributes import code_of
from orchestrator.storage.kept_package import keep_package
from orchestrator.submission.submit import submit
from workers.coordination import keys
from workers.coordination.packages import Packages
from workers.coordination.studies import Studies
from workers.disk import durable
from workers.protocol.errors import InvalidInputError, PackageError, StudyExistsError, UnsealedError
from workers.protocol.packages import Package, PackedFile, pack
from workers.protocol.seals import Seal
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState
from workers.settings import Settings
from workers.trials.shipped_code import ShippedCode

SECRET, OTHER = "the-secret-of-this-fleet", "the-secret-of-another-fleet"

#: Tells which version of its modules it finds: here, in a loader's process, and in a program.
OBJECTIVE = """
import subprocess, sys
import version
from tools import rows

def objective(trial):
    trial.set_user_attr("file", __file__)
    if trial.number == 0 and trial.study_name != "same":
        from torch.utils.data import DataLoader
        loader = DataLoader(rows.Rows(), num_workers=1, multiprocessing_context="spawn")
        trial.set_user_attr("loaded", [int(batch) for batch in loader])
        command = [sys.executable, "-m", "tools.tell"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        trial.set_user_attr("told", int(told))
    return version.VALUE
"""

ROWS = """
import version

class Rows:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return version.VALUE
"""


def with_secret(settings, secret=SECRET, accept=("signed",)):
    return Settings(
        redis_url=settings.redis_url,
        home=settings.home,
        cache=settings.cache,
        time_scale=0.1,
        secret=secret,
        accept_code=accept,
    )


@pytest.fixture(autouse=True)
def process_as_it_was(monkeypatch):
    """W&B is off, and what was imported here is no other test's."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    before = set(sys.modules)
    yield
    for name in {"train", "version", "tools", "tools.rows"} & sys.modules.keys() - before:
        del sys.modules[name]


@pytest.fixture
def lab(tmp_path):
    """Gives the folder of a study whose modules say a number."""

    def made(name, value):
        folder = tmp_path / name
        (folder / "tools").mkdir(parents=True, exist_ok=True)
        (folder / "train.py").write_text(OBJECTIVE)
        (folder / "version.py").write_text(f"VALUE = {value}\n")
        (folder / "tools" / "__init__.py").write_text("")
        (folder / "tools" / "rows.py").write_text(ROWS)
        (folder / "tools" / "tell.py").write_text("import version\nprint(version.VALUE)\n")
        return folder

    return made


def spec_of(name, objective="train.py:objective", trials=2, ship=(".",)):
    return StudySpec(name=name, objective=objective, trials=trials, code={"ship": list(ship)})


def run_by_turns(fleet, *names):
    def are_over():
        for name in names:
            for number in sorted(fleet.studies.leases(name).queued())[:1]:
                fleet.run_queued_one(name, number)
        return all(StudyHandle(name, fleet.config).status().is_over for name in names)

    fleet.until(are_over, "all are over", 60.0)


def test_versions_of_one_module_run_by_turns_in_one_process(
    client, server, settings, tmp_path, lab
):
    config = with_secret(settings)
    folders = {"old": lab("old", 1), "new": lab("new", 2), "same": lab("same", 2)}
    with OneProcessFleet(client, server, config, tmp_path) as fleet:
        for name, folder in folders.items():
            submit(spec_of(name), config, import_directory=folder)
        run_by_turns(fleet, *folders)
        for name, value in [("old", 1.0), ("new", 2.0), ("same", 2.0)]:
            study = StudyHandle(name, config).study
            first, second = study.trials
            assert [first.value, second.value] == [value, value]
            if name != "same":
                assert (first.user_attrs["loaded"], first.user_attrs["told"]) == ([value], value)
            assert first.user_attrs["file"].startswith(str(config.cache / "code"))
            digest = fleet.studies.spec(name).code.package
            ran = code_of(first.user_attrs, study.user_attrs)
            assert (ran["package"], ran["file"]) == (digest, "train.py")
        unpacked = sorted((config.cache / "code").glob("[!.]*"))
        assert len(unpacked) == 2, "what is the same is unpacked once"
        for path in unpacked[0].joinpath("files").rglob("*"):
            assert not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
            assert path.name != "__pycache__"


def test_what_a_worker_does_not_take_is_left_and_said(client, server, settings, tmp_path, lab):
    config, closed = with_secret(settings), with_secret(settings, accept=())
    with (
        OneProcessFleet(client, server, config, tmp_path, worker=closed) as fleet,
        capture_logs() as logs,
    ):
        submit(spec_of("s"), config, import_directory=lab("lab", 1))
        leases = fleet.studies.leases("s")
        fleet.until(leases.queued, "its trials wait")
        number = min(leases.queued())
        fleet.run_queued_one("s", number)
        record = leases.record(number)
        assert (record.state, record.attempt) == (TrialState.QUEUED, 0)
    (told,) = [each for each in logs if each["event"] == "study_refused"]
    assert "start it with FLEET_ACCEPT_CODE=signed" in told["reason"]
    assert not (config.cache / "code").exists()


@pytest.fixture
def shipped(client, settings, lab):
    """A study that was handed in with the secret."""
    handle = submit(spec_of("s"), with_secret(settings), import_directory=lab("lab", 1))
    return handle.spec()


FORGED = pack({"train.py": PackedFile(b"raise SystemExit\n")})


def put_another(client, digest):
    """What an attacker would put there: code of his own under the study's digest."""
    Packages(client).ship("s", Package(digest, FORGED.content))
    client.hset(keys.code(digest), "study:s", Seal.of(SECRET).put("package", "s", digest))


BROKEN = {
    "no package": (lambda client, digest: client.delete(keys.code(digest)), "is not in Redis"),
    "no seal": (
        lambda client, digest: client.hset(keys.code(digest), "study:s", ""),
        "is not signed",
    ),
    "another study's seal": (
        lambda client, digest: client.hset(
            keys.code(digest), "study:s", Seal.of(SECRET).put("package", "t", digest)
        ),
        "signed with another secret, or was altered",
    ),
    "another content": (put_another, "its content is another one's"),
    "no content": (lambda client, digest: client.hset(keys.code(digest), "content", "%"), "s"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_only_what_was_signed_for_the_study_is_unpacked(client, settings, shipped, case):
    config = with_secret(settings)
    BROKEN[case][0](client, shipped.code.package)
    with pytest.raises(InvalidInputError, match=BROKEN[case][1]):
        ShippedCode(client, config).root_of(shipped)
    assert not list((config.cache / "code").glob("[!.]*"))


def test_who_may_run_it_is_the_workers_to_say(client, settings, shipped):
    digest = shipped.code.package
    with pytest.raises(UnsealedError):
        ShippedCode(client, with_secret(settings, OTHER)).root_of(shipped)
    for config in (with_secret(settings, None, ()), with_secret(settings, None, ("0" * 64,))):
        with pytest.raises(PackageError, match="takes no code that travels"):
            ShippedCode(client, config).root_of(shipped)
    by_name = ShippedCode(client, with_secret(settings, None, (digest,)))
    assert (by_name.root_of(shipped) / "train.py").read_text() == OBJECTIVE
    small = with_secret(settings).model_copy(update={"code_size": 10, "cache": settings.home})
    with pytest.raises(PackageError, match="larger than|more than"):
        ShippedCode(client, small).root_of(shipped)
    with pytest.raises(InvalidInputError, match="FLEET_ACCEPT_CODE=signed needs FLEET_SECRET"):
        with_secret(settings, None).check_worker()
    with pytest.raises(InvalidInputError, match="'all' is neither 'signed' nor the digest"):
        Settings.build({"accept_code": ("all",)})


def test_what_was_altered_on_disk_is_unpacked_again(client, settings, shipped):
    config = with_secret(settings)
    running = ShippedCode(client, config)
    file = running.root_of(shipped) / "train.py"
    file.chmod(0o644)
    file.write_text("raise SystemExit\n")
    again = ShippedCode(client, config).root_of(shipped)
    assert (again / "train.py").read_text() == OBJECTIVE
    assert file.exists(), "nothing is taken from under what runs there"
    del running
    ShippedCode(client, config).root_of(shipped)
    assert not file.exists()


def test_what_others_write_beside_the_files_of_a_package_is_left_to_them(client, settings, shipped):
    config = with_secret(settings)
    root = ShippedCode(client, config).root_of(shipped)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755)  # as to a worker that is run by root
    root.joinpath("train.py").chmod(0o644)
    for path in root.rglob("*.py"):
        path.chmod(0o644)
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "train.nbi").write_text("x")
    for _ in range(2):
        assert ShippedCode(client, config).root_of(shipped) == root
    assert (root / "__pycache__" / "train.nbi").exists()


def test_a_cache_that_is_removed_under_a_worker_is_filled_again(client, settings, shipped):
    config = with_secret(settings)
    code = ShippedCode(client, config)
    root = code.root_of(shipped)
    durable.remove(config.cache)
    assert not root.exists()
    assert code.root_of(shipped) == root
    assert (root / "train.py").read_text() == OBJECTIVE


def test_a_submission_that_is_not_taken_leaves_no_package(client, settings, lab, monkeypatch):
    config = with_secret(settings)

    def refuse(*_, **__):
        raise redis.ReadOnlyError("the Redis has become a replica")

    monkeypatch.setattr(Studies, "hand_in", refuse)
    with pytest.raises(redis.ReadOnlyError):
        submit(spec_of("s"), config, import_directory=lab("lab", 1))
    assert client.keys("fleet:code:*") == []
    monkeypatch.undo()
    told = []
    submit(spec_of("t"), config, import_directory=lab("lab", 1), tell=told.append)
    assert any("files that travel with the study: 5, of" in each for each in told)


def test_who_has_no_secret_takes_no_seal_from_a_package(client, settings, shipped, lab):
    with pytest.raises(UnsealedError):
        submit(spec_of("s"), with_secret(settings, None, ()), import_directory=lab("lab", 1))
    assert ShippedCode(client, with_secret(settings)).root_of(shipped)


def test_what_an_orchestrator_kept_mends_what_was_altered_in_redis(client, settings, shipped):
    config, digest = with_secret(settings), shipped.code.package
    packages = Packages(client, config.seal)
    whole = packages.fetch("s", digest)
    keep_package(packages, shipped, config)
    put_another(client, digest)
    keep_package(packages, shipped, config)
    assert packages.fetch("s", digest) == whole
    (kept,) = (config.home / "studies" / "s").glob("code-*")
    kept.write_bytes(b"cut off")
    keep_package(packages, shipped, config)
    assert kept.read_bytes() == whole.content


def test_changed_code_is_another_study_and_the_last_one_takes_its_package_along(
    client, settings, tmp_path, lab
):
    fleet, folder = Fleet(client, with_secret(settings), tmp_path), lab("lab", 1)
    config = fleet.settings
    names = ("s", "t")
    for name in names:
        submit(spec_of(name), config, import_directory=folder)
    digest = Studies(client).spec("s").code.package
    with fleet.service() as service:
        turn_until(service, lambda: Studies(client).leases("s").queued(), "it is driven")
    (folder / "version.py").write_text("VALUE = 3\n")
    with pytest.raises(StudyExistsError, match=r"exists with other code.*choose another"):
        submit(spec_of("s"), config, import_directory=folder)
    assert client.keys("fleet:code:*") == [keys.code(digest)]
    delete_study("s", config, cancels=True)
    assert client.hget(keys.code(digest), "study:s") is None
    assert Packages(client, config.seal).fetch("t", digest)
    delete_study("t", config, cancels=True)
    assert client.keys("fleet:code:*") == []


def test_a_redis_that_lost_its_data_is_given_the_code_again(client, settings, tmp_path, lab):
    fleet = Fleet(client, with_secret(settings), tmp_path)
    fleet.pretend_worker()
    submit(spec_of("s"), fleet.settings, import_directory=lab("lab", 1))
    digest = Studies(client).spec("s").code.package
    package = Packages(client).fetch("s", digest)
    with fleet.service() as service:
        turn_until(service, lambda: Studies(client).leases("s").queued(), "it is driven")
        client.flushall()
        fleet.pretend_worker()

        def is_back():
            with suppress(InvalidInputError):
                return Packages(client, fleet.settings.seal).fetch("s", digest) == package

        turn_until(service, is_back, "the code is there again")


def test_what_is_not_shipped_is_missed_when_the_study_is_handed_in(client, settings, lab):
    with pytest.raises(
        InvalidInputError, match="objective = 'train.py:.*No module named 'version'"
    ):
        submit(
            spec_of("s", ship=["train.py", "tools"]),
            with_secret(settings),
            import_directory=lab("lab", 1),
        )
    assert client.keys("fleet:code:*") == []
