"""Where the descriptors of a pool process lead while its disk fills up, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

from workers.disk import room
from workers.disk.output_files import output_file

#: Prints in attempts while a disk, which is told to, is full; says where the descriptors led.
PROCESS = """
import json, os, sys, time
from pathlib import Path
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from workers.coordination.trial_output import Attempt
from workers.disk.output_spool import spools_in
from workers.logs import configure_logging
from workers.processes import output_capture
from workers.processes.output_capture import OutputCapture
from workers.settings import Settings

folder, is_full, found = Path(sys.argv[1]), False, {}
output_capture.has_room = lambda *_: not is_full
output_capture._CHECK_SECONDS = 0.0
places = {"nowhere": os.stat(os.devnull), "own": os.stat(sys.argv[2])}
own = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
silence = os.open(os.devnull, os.O_WRONLY)

def led():
    stats = [os.fstat(at) for at in (1, 2)]
    return [
        next((name for name, place in places.items() if os.path.samestat(stat, place)), "elsewhere")
        for stat in stats
    ]

def wait_until_led(*wanted):
    deadline = time.monotonic() + 60
    while led() != list(wanted) and time.monotonic() < deadline:
        time.sleep(0.001)
    return led()

settings = Settings(home=folder / "home", time_scale=0.01)
away = redis.Redis(port=1, retry=Retry(NoBackoff(), 0))
with OutputCapture(away, settings, folder) as capture:
    configure_logging(stream=os.fdopen(capture.own_error, "w", buffering=1, closefd=False))
    places["spool"] = os.stat(spools_in(folder)[0])
    with capture.of(Attempt("s", 0, 1, 100)):
        found["with room"] = led()
        os.dup2(own, 1)
    is_full = True
    with capture.of(Attempt("s", 0, 2, 200)):
        found["while it is full"] = led()
        print("lost")
        os.dup2(own, 1)
        os.dup2(own, 2)
    with capture.of(Attempt("s", 0, 3, 300)):
        found["led back"] = led()
    is_full = False
    with capture.of(Attempt("s", 0, 4, 400)):
        found["with room again"] = wait_until_led("spool", "spool")
        print("kept")
        copy = os.dup(1)
        os.dup2(own, 1)
        is_full = True
        found["an objective's own stays"] = wait_until_led("own", "nowhere")
        os.write(1, b"to its own file")
        os.dup2(copy, 1)
        found["its copy of before is not written to"] = wait_until_led("nowhere", "nowhere")
        os.dup2(own, 1)
        is_full = False
        found["what led nowhere is led back"] = wait_until_led("own", "spool")
        os.dup2(silence, 1)
        is_full = True
        found["what it silenced is as it was"] = wait_until_led("nowhere", "nowhere")
        is_full = False
        found["and stays silent"] = wait_until_led("nowhere", "spool")
        os.dup2(copy, 1)
found["closed"] = led()
print(json.dumps(found))
"""


def test_descriptors_lead_nowhere_while_the_disk_is_full_and_back_when_it_has_room(tmp_path):
    own = tmp_path / "own"
    own.touch()
    finished = subprocess.run(
        [sys.executable, "-c", PROCESS, str(tmp_path), str(own)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    *_, told = finished.stdout.splitlines()
    assert json.loads(told) == {
        "with room": ["spool", "spool"],
        "while it is full": ["nowhere", "nowhere"],
        "led back": ["nowhere", "nowhere"],
        "with room again": ["spool", "spool"],
        "an objective's own stays": ["own", "nowhere"],
        "its copy of before is not written to": ["nowhere", "nowhere"],
        "what led nowhere is led back": ["own", "spool"],
        "what it silenced is as it was": ["nowhere", "nowhere"],
        "and stays silent": ["nowhere", "spool"],
        "closed": ["elsewhere", "elsewhere"],
    }
    assert own.read_text() == "to its own file"
    text, _ = output_file(tmp_path / "home", "s", 0, 4, 400).read()
    assert text.partition("[trialfleet")[0].split() == ["kept"]


def test_where_no_room_can_be_taken_ahead_what_the_disk_has_free_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_allocate", lambda *_: next(iter(room._NOT_DONE)))
    with (tmp_path / "file").open("wb") as file:
        assert room.has_room(file.fileno(), 1)
        assert not room.has_room(file.fileno(), 2**60)
        room.give_back(file.fileno(), 1)
