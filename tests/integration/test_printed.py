"""What trials print, from the descriptor to Redis, the disk, the store and the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis
from disks import fill, small_disk
from typer.testing import CliRunner
from waiting import wait_until

from orchestrator.cli import app
from orchestrator.handle import StudyHandle
from orchestrator.local.servers import EmbeddedRedis
from orchestrator.status_building import build_status
from orchestrator.storage.printed import printed_by
from orchestrator.storage.tally import Tally
from workers.coordination import keys
from workers.coordination.deletions import Deletions
from workers.coordination.identity import ProcessIdentity
from workers.coordination.studies import Studies, ensure_epoch
from workers.coordination.trial_output import KEPT_BYTES, Attempt, Printed, TrialOutput
from workers.disk import output_spool
from workers.disk.output_files import output_file
from workers.disk.output_spool import OutputSpool, new_spool, spools_in
from workers.disk.scratch import make_scratch, name_scratch
from workers.disk.uploads import Errand, Uploads
from workers.passwords import learn
from workers.processes import output_keeper
from workers.processes.cleaner import Cleaner
from workers.processes.output_keeper import OutputKeeper, keep_rest
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.processes.uploader import Uploader
from workers.protocol.errors import InvalidInputError
from workers.protocol.messages import Result
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind, TrialState
from workers.settings import Settings

FIRST, SECOND = Attempt("s", 0, 1, 100), Attempt("s", 0, 2, 200)


@pytest.fixture
def output(client):
    ensure_epoch(client)
    Studies(client).submit(StudySpec(name="s", objective="m:f", trials=2))
    return TrialOutput(client)


def texts(output):
    return {each.attempt: each.text for each in output.of("s", 0)}


def test_what_is_told_twice_is_kept_once(output, client):
    output.keep([Printed(FIRST, 0, "one\n", is_over=False)] * 2)
    output.keep([Printed(FIRST, 2, "e\ntwo\n", is_over=False)])
    assert texts(output) == {1: "one\ntwo\n"}
    output.keep([Printed(FIRST, 100, "later\n", is_over=True)])
    (kept,) = output.of("s", 0)
    assert (kept.text, kept.end, kept.is_over) == ("later\n", 106, True), "what lay between is lost"
    assert client.pttl(keys.output("s", 0)) > 0


def test_redis_keeps_the_last_of_a_trial_and_no_half_character(output):
    output.keep([Printed(FIRST, 0, "ä" * 20_000, is_over=True)])
    output.keep([Printed(SECOND, 0, "x" + "ö" * 30_000, is_over=False)])
    kept = texts(output)
    assert len(kept[2]) == 30_001
    assert set(kept[1]) == {"ä"}
    assert len((kept[1] + kept[2]).encode()) in range(KEPT_BYTES - 1, KEPT_BYTES + 1)
    output.keep([Printed(SECOND, 60_001, "ü" * 32_768, is_over=True)])
    assert texts(output) == {1: "", 2: "ü" * 32_768}


def test_nothing_is_kept_of_a_study_that_is_gone_and_it_goes_with_its_study(output, client):
    output.keep([Printed(FIRST._replace(study="t"), 0, "one\n", is_over=False)])
    assert not client.exists(keys.output("t", 0))
    output.keep([Printed(FIRST, 0, "one\n", is_over=False)])
    Studies(client).forget("s")
    assert not client.exists(keys.output("s", 0))


def test_of_a_study_that_was_submitted_again_the_earlier_ones_output_is_not_shown(
    output, settings, client
):
    def printed(text, token):
        attempt = Attempt("s", 0, 1, token, text)
        file = output_file(settings.home, *attempt)
        file.write(0, text)
        output.keep([Printed(attempt, 0, text, is_over=True)])

    studies, handle = Studies(client), StudyHandle("s", settings)
    studies.begin("s", "former", "here")
    printed("former", 100)
    assert [each.text for each in handle.printed(0)] == ["former"]
    studies.forget("s")
    studies.submit(StudySpec(name="s", objective="m:f", trials=2))
    printed("former", 150)  # of a process that did not hear of it
    assert handle.printed(0) == [], "the new one has not begun"
    studies.begin("s", "latter", "here")
    printed("latter", 200)
    printed("former", 250)
    assert [(each.text, each.token) for each in handle.printed(0)] == [("latter", 200)]
    without_redis = printed_by(settings, None, "s", 0, "latter")
    assert [each.text for each in without_redis] == ["latter"]


#: A pool process, as far as printing goes: two attempts, then it is killed in a third.
PROCESS = """
import ctypes, logging, os, signal, subprocess, sys, threading, warnings
from pathlib import Path
from workers.coordination.rights import Role
from workers.coordination.connection import connect
from workers.coordination.trial_output import Attempt
from workers.logs import configure_logging, get_logger
from workers.processes.output_capture import OutputCapture
from workers.settings import Settings

settings = Settings.from_environment()
print("before any trial", flush=True)
with OutputCapture(connect(settings, Role.USER), settings, Path(sys.argv[1])) as capture:
    configure_logging(stream=os.fdopen(capture.own_error, "w", buffering=1, closefd=False))
    capture.hear_objectives()
    with capture.of(Attempt("s", 0, 1, 100)):
        print("printed", os.environ["HF_TOKEN"])
        print("to stderr", file=sys.stderr)
        logging.getLogger("mine").warning("logged %s", "once")
        logging.getLogger("mine").warning("%d", "no number")
        get_logger("workers.trials.runner").info("fleets_own")
        get_logger("workers.trials.ending").error("attempt_failed", exception="Traceback of it")
        warnings.warn("careful")
        libc = ctypes.CDLL(None)
        libc.printf(b"from C, no newline")
        subprocess.run(["sh", "-c", "echo; echo from a child; echo child error >&2"], check=True)
        os.write(1, b"bytes \\xff\\xfe\\n")
        os.close(1)
        threading.Event().wait(0.6)  # whoever looks after descriptors may look again
    print("between", file=sys.stderr)
    with capture.of(Attempt("s", 1, 1, 150)):
        # a thread that waits in C keeps its own stream locked
        libc.fdopen.restype = ctypes.c_void_p
        waited_for = ctypes.c_void_p(libc.fdopen(os.pipe()[0], b"r"))
        threading.Thread(target=libc.fgetc, args=(waited_for,), daemon=True).start()
        threading.Event().wait(0.3)
        error, sys.stderr = sys.stderr, type("Odd", (), {"flush": lambda: None})()
    sys.stderr = error
    with capture.of(Attempt("s", 0, 2, 200)):
        print("the second attempt")
        sys.stdout.write("last words")
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_all_that_writes_to_the_descriptors_is_kept_of_its_attempt_last_words_too(
    output, settings, client, tmp_path
):
    secret = "hf_abcdefgh"
    environment = {**os.environ, **settings.to_environment(), "HF_TOKEN": secret}
    learn(secret)
    folder = tmp_path / "scratch"
    folder.mkdir()
    finished = subprocess.run(
        [sys.executable, "-c", PROCESS, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == -9, finished.stderr
    (spool,) = spools_in(folder)
    keep_rest(client, settings, spool)
    first, second = printed_by(settings, client, "s", 0)
    printed = first.text.splitlines()
    assert printed[:2] == ["printed ***", "to stderr"]
    assert printed[2].endswith("WARNING mine: logged once")
    for part in (
        "%d",
        "Traceback of it", "UserWarning: careful", "from C, no newline", "from a child",
        "child error", "bytes \N{REPLACEMENT CHARACTER}",
    ):  # fmt: skip
        assert part in first.text
    assert "fleets_own" not in first.text
    assert "between" not in first.text + second.text
    assert second.text == "the second attempt\nlast words"
    assert second.is_over
    assert printed_by(settings, client, "s", 1) == [], "one that printed nothing"
    assert texts(output) == {1: first.text, 2: second.text}, "Redis has the same"
    everywhere = "".join(path.read_text() for path in Path(settings.home).rglob("*.log"))
    assert secret not in everywhere + finished.stdout + finished.stderr
    assert finished.stdout.startswith("before any trial\n")
    assert "fleets_own" in finished.stderr
    assert "logged once" in finished.stderr
    assert "logged once" not in finished.stdout, "it is in the log already"
    assert not client.exists(keys.output("s", 1))


#: One that prints as it is told to, a line of its standard input at a time.
STEERED = """
import os, sys
from pathlib import Path
from workers.coordination.rights import Role
from workers.coordination.connection import connect
from workers.coordination.trial_output import Attempt
from workers.logs import configure_logging
from workers.processes.output_capture import OutputCapture
from workers.settings import Settings

def told():
    return sys.stdin.readline().strip()

settings = Settings.from_environment()
with OutputCapture(connect(settings, Role.USER), settings, Path(sys.argv[1])) as capture:
    own = os.fdopen(capture.own_error, "w", buffering=1, closefd=False)
    configure_logging(stream=own)
    for number in (1, 2, 3):
        with capture.of(Attempt("s", 0, number, 100 * number)):
            while (count := told()) != "end":
                for _ in range(int(count)):
                    print(str(number) * 999)
                own.write("done\\n")
"""


def test_printing_goes_on_while_the_disk_of_what_is_captured_is_full(
    output, settings, client, tmp_path
):
    log = tmp_path / "log"
    with (
        small_disk(tmp_path / "disk", 2048) as filler,
        log.open("wb") as sink,
        subprocess.Popen(
            [sys.executable, "-c", STEERED, str(filler.parent)],
            env={**os.environ, **settings.to_environment()},
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=sink,
            text=True,
        ) as process,
    ):
        num_done = 0

        def tell(line):
            process.stdin.write(f"{line}\n")
            process.stdin.flush()

        def print_lines(count):
            nonlocal num_done
            num_done += 1
            tell(count)
            wait_until(lambda: log.read_text().count("done\n") == num_done, "it has printed")

        print_lines(1)
        fill(filler)
        print_lines(300)  # as much as fits into the room that was taken ahead
        wait_until(lambda: "output_lost" in log.read_text(), "the disk is full")
        print_lines(5000)
        tell("end")
        print_lines(5000)  # of the second attempt
        assert log.read_text().count("output_lost") == 1, "said once"
        filler.unlink()
        wait_until(lambda: "output_kept_again" in log.read_text(), "there is room")
        print_lines(2)
        for line in ("end", 3, "end"):
            tell(line)
        process.stdin.close()
        assert process.wait(60) == 0, log.read_text()
    first, second, third = printed_by(settings, client, "s", 0)
    assert first.text.count("1" * 999) == 301
    assert "[trialfleet: the disk is full; what is printed from here on is lost]" in first.text
    assert first.is_over
    told, _, rest = second.text.partition("\n")
    assert told == "[trialfleet: the disk was full; what was printed before this is lost in part]"
    assert rest == ("2" * 999 + "\n") * 2
    assert third.text == ("3" * 999 + "\n") * 3
    assert "Error" not in log.read_text()


def test_a_keeper_that_hangs_does_not_keep_its_process_from_ending(
    output, settings, client, tmp_path, monkeypatch
):
    monkeypatch.setattr(output_keeper, "_END_SECONDS", 0.2)
    path, descriptor = new_spool(tmp_path)
    hangs, goes_on = threading.Event(), threading.Event()

    def hang():
        hangs.set()
        goes_on.wait(60)

    with OutputSpool(path) as spool:
        with OutputKeeper(client, settings, spool, -1, hang) as keeper:
            assert hangs.wait(60)
        assert not keeper.is_done
        goes_on.set()
        wait_until(lambda: keeper.is_done, "it ends when the disk answers")
    os.close(descriptor)


def test_what_was_kept_by_one_who_was_killed_before_he_noted_it_is_kept_once(
    output, settings, client, tmp_path
):
    path, descriptor = new_spool(tmp_path)
    with OutputSpool(path) as spool:
        os.write(descriptor, spool.marks.of(FIRST) + b"one\ntwo\n")
        noted = path.with_suffix(".read")
        before = path.read_bytes(), noted.read_bytes()
    keep_rest(client, settings, path)
    for length in (8, 5, 0):  # all of it was written, or a part of it, or nothing
        path.write_bytes(before[0])
        noted.write_bytes(before[1])
        kept = output_file(settings.home, "s", 0, 1, 100)
        os.truncate(kept.path, length)
        os.write(descriptor, b"last words")
        keep_rest(client, settings, path)
        assert kept.read() == ("one\ntwo\nlast words", 18)
    assert texts(output) == {1: "one\ntwo\nlast words"}
    os.close(descriptor)


def test_what_an_attempt_printed_is_counted_from_its_own_beginning(
    output, settings, client, tmp_path, monkeypatch
):
    """Also where the one before it was passed over, in part or as a whole."""
    monkeypatch.setattr(output_spool, "_MOST_UNREAD", 1000)
    path, descriptor = new_spool(tmp_path)
    third = SECOND._replace(number=3, token=300)
    with OutputSpool(path) as spool:
        keeper = OutputKeeper(client, settings, spool, -1)
        os.write(descriptor, spool.marks.of(FIRST) + b"one\n")
        keeper.keep()
        os.write(descriptor, b"a\n" * 2000 + spool.marks.of(SECOND) + b"b\n" * 2000)
        os.write(descriptor, spool.marks.of(third) + b"three\n")
        keeper.keep()
    os.close(descriptor)
    first, second, third = output.of("s", 0)
    assert first.text == "one\n\n[trialfleet: 4000 bytes left out]\n"
    assert [each.is_over for each in (first, second, third)] == [True, True, False]
    for kept in (first, second, third):
        file = output_file(settings.home, "s", 0, kept.attempt, kept.token)
        assert file.read() == (kept.text, kept.end), "Redis and the file count alike"
        assert kept.end == len(kept.text)


def test_a_file_goes_on_when_its_disk_has_room_again(output, settings, client, tmp_path):
    path, descriptor = new_spool(tmp_path)
    with small_disk(settings.home, 64) as filler, OutputSpool(path) as spool:
        os.write(descriptor, spool.marks.of(FIRST) + b"one\n")
        keeper = OutputKeeper(client, settings, spool, -1)
        keeper.keep()
        fill(filler)
        os.write(descriptor, b"x" * 20_000 + b"\n")
        keeper.keep()
        filler.unlink()
        os.write(descriptor, b"two\n")
        keeper.keep()
        text, end = output_file(settings.home, "s", 0, 1, 100).read()
        assert (text[:4], text[-4:]) == ("one\n", "two\n")
        assert spool.printed - spool.lost == end
    os.close(descriptor)


def test_a_full_disk_costs_nothing_of_what_redis_keeps(output, settings, client, tmp_path):
    with small_disk(tmp_path / "disk", 64) as filler:
        path, descriptor = new_spool(filler.parent)
        with OutputSpool(path) as spool:
            os.write(descriptor, spool.marks.of(FIRST) + b"one\n" + spool.marks.of(SECOND) + b"two")
        os.close(descriptor)
        path.with_suffix(".read").unlink()  # its process was killed before it read anything
        fill(filler)
        there = settings.model_copy(
            update={"home": filler.parent / "home", "store": f"file://{tmp_path}/store"}
        )
        keep_rest(client, there, path)
    assert texts(output) == {1: "one\n", 2: "two"}


def test_output_is_kept_while_nobody_reads_the_worker_s_own(output, settings, client, tmp_path):
    path, descriptor = new_spool(tmp_path)
    reader, writer = os.pipe()
    with OutputSpool(path) as spool, OutputKeeper(client, settings, spool, writer):
        os.write(descriptor, spool.marks.of(FIRST) + b"x" * 500_000 + b"\none\n")
        wait_until(lambda: texts(output).get(1, "").endswith("one\n"), "it is kept")
        os.write(descriptor, b"two\n")
        wait_until(lambda: texts(output)[1].endswith("two\n"), "and what comes after it")
    for each in (descriptor, reader, writer):
        os.close(each)


def test_what_cannot_be_kept_of_a_dead_process_is_removed_all_the_same(settings, client):
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    identity = ProcessIdentity.of(process.pid)
    process.kill()
    process.wait()
    folder = name_scratch(identity)
    make_scratch(folder)
    (folder / f"output-{'0' * 16}").mkdir()  # no file: whatever is read of it is refused
    registry = ProcessRegistry(client, settings.times.scaled(100))
    record = ProcessRecord(registry, ProcessKind.TRIAL, fields={"scratch": [str(folder)]})
    record.identity = identity
    record.register()
    cleaner = Cleaner(client, registry, settings)
    cleaner.clean_up_after(identity)
    cleaner.close()
    assert not folder.exists()
    assert registry.find(identity) is None


@pytest.fixture
def say(settings, monkeypatch):
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)

    def said(*words):
        found = CliRunner().invoke(app, [str(word) for word in words])
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        return found.stdout

    return said


def test_logs_shows_each_attempt_and_names_what_there_is_not(output, say, settings, client):
    leases = Studies(client).leases("s")
    leases.enqueue(0, {})
    _publish_trials(client, 2)
    output.keep([Printed(FIRST, 0, "one\n", is_over=True), Printed(SECOND, 0, "two", is_over=True)])
    assert say("logs", "s", 0) == "--- attempt 1 ---\none\n--- attempt 2 ---\ntwo\n"
    assert say("logs", "s", 0, "--attempt", 2) == "two\n"
    told = json.loads(say("logs", "s", 0, "--json"))
    assert [each["text"] for each in told["attempts"]] == ["one\n", "two"]
    assert say("logs", "s", 1) == ""
    for words, reason in [
        (["s", 0, "--attempt", 7], "these attempts printed something: 1, 2"),
        (["s", 5], "study 's' has 2 trials, from 0"),
        (["t", 0], "study 't' is not known"),
    ]:
        with pytest.raises(InvalidInputError, match=reason):
            say("logs", *words)


def test_following_shows_each_part_once_until_the_trial_has_ended(output, say, settings, client):
    _publish_trials(client, 1)
    output.keep(
        [Printed(FIRST, 0, "one\n", is_over=True), Printed(SECOND, 0, "two\n", is_over=True)]
    )
    output_file(settings.home, "s", 0, 1, 100).write(0, "one\n")
    # of its record, nothing is left: it has ended
    assert say("logs", "s", 0, "--follow") == "one\n--- attempt 2 ---\ntwo\n"
    lines = say("logs", "s", 0, "--follow", "--json").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["one\n", "two\n"]


@pytest.mark.parametrize("has_url", [True, False])
def test_following_outlives_a_redis_that_is_away_and_ends_with_the_trial(tmp_path, has_url):
    home = tmp_path / "home"
    with EmbeddedRedis(home) as server:
        settings = Settings(redis_url=server.url, home=home)  # it waits for a whole lease
        client = redis.Redis.from_url(server.url, decode_responses=True)
        ensure_epoch(client)
        Studies(client).submit(StudySpec(name="s", objective="m:f", trials=1))
        _publish_trials(client, 1)
        leases = Studies(client).leases("s")
        leases.enqueue(0, {})
        token = leases.claim(0, "hand", 600.0).token
        attempt, shown, said = Attempt("s", 0, 1, token), tmp_path / "shown", tmp_path / "said"
        output = TrialOutput(client)
        environment = {**os.environ, **settings.to_environment()}
        if not has_url:  # it is found by the home
            del environment["FLEET_REDIS_URL"]
        with shown.open("w") as out, said.open("w") as error:
            words = [sys.executable, "-m", "orchestrator", "logs", "s", "0", "--follow"]
            follower = subprocess.Popen(words, env=environment, stdout=out, stderr=error)
        try:
            output.keep([Printed(attempt, 0, "one\n", is_over=False)])
            wait_until(lambda: shown.read_text() == "one\n", "it is followed")
            os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda: "no news: " in said.read_text(), "it is said")
            time.sleep(2.0)  # it has looked again, and found neither fleet nor study
            wait_until(server.revive, "Redis is back")
            assert follower.poll() is None
            output.keep([Printed(attempt, 4, "two\n", is_over=False)])
            wait_until(
                lambda: shown.read_text() == "one\ntwo\n" or follower.poll() is not None,
                "it goes on",
            )
            assert follower.poll() is None, said.read_text()
            output.keep([Printed(attempt, 8, "three\n", is_over=True)])
            leases.commit(0, token, TrialState.COMPLETE, Result(values=[1.0]))
            assert follower.wait(60) == 0, said.read_text()
        finally:
            follower.kill()
            follower.wait()
            client.close()
    assert shown.read_text() == "one\ntwo\nthree\n"


def test_the_store_has_what_neither_this_home_nor_redis_has(output, settings, client, tmp_path):
    (tmp_path / "store").mkdir()
    there = settings.model_copy(update={"store": f"file://{tmp_path}/store"})
    printed = "x" * 100_000
    # as the keeper does at an attempt's end
    output_file(there.home, "s", 0, 1, 100).write(0, printed)
    Uploads(there.home, has_store=True).add(Errand("output", "s", 0, 100, 1))
    output.keep([Printed(FIRST, 0, printed, is_over=True)])
    uploader = Uploader(client, there)
    uploader.turn()
    assert uploader.setbacks() == []
    here = there.model_copy(update={"home": tmp_path / "elsewhere"})
    (found,) = printed_by(here, client, "s", 0)
    assert (found.source, found.text) == ("store", printed)
    (kept,) = printed_by(here.model_copy(update={"store": None}), client, "s", 0)
    assert (kept.source, kept.is_whole, len(kept.text)) == ("redis", False, KEPT_BYTES)
    assert StudyHandle("s", here).printed(0, asks_store=False) == [kept]
    Deletions(client).finish("s")
    Uploads(there.home, has_store=True).add(Errand("delete", "s"))
    uploader.turn()
    assert printed_by(here, client, "s", 0) == []


def _publish_trials(client, count):
    studies = Studies(client)
    spec = studies.spec("s")
    status = build_status(spec, Tally(spec.all_directions))
    status.trials["queued"] = count
    client.hset(keys.study("s"), "fact:status", status.model_dump_json())
