"""What is done when a study has ended: commands and web hooks, bounded in time."""

from __future__ import annotations

import http.server
import json
import threading

import pytest
from waiting import wait_until

from orchestrator.driving.on_end import EndHook
from orchestrator.status import StudyStatus
from workers.protocol.states import StudyState

STATUS = StudyStatus(
    study="s",
    state=StudyState.FINISHED,
    objective="o",
    metrics=[],
    directions=["minimize"],
    wanted=1,
    trials={"complete": 1},
    wall_seconds=float("inf"),
    busy_seconds=0.0,
    slots=0,
)


def told(hook, *, allowed=("*",), most_seconds=20.0):
    """The problem of a hook that has come to its end; None for none."""
    end = EndHook("s", allowed, most_seconds)
    answer = wait_until(lambda: end.tell(hook, STATUS), "it is done")
    return answer.problem


def test_a_command_gets_the_status_as_json_on_its_standard_input(tmp_path):
    assert told(f'cat > {tmp_path}/got.json && test "$FLEET_STUDY" = s') is None
    document = json.loads((tmp_path / "got.json").read_text(), parse_constant=pytest.fail)
    assert (document["study"], document["state"], document["wall_seconds"]) == (
        "s", "finished", "Infinity",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("echo first; echo it broke >&2; exit 3", "it ended with code 3: first it broke"),
        ("exit 1", "no output"),
        ("/nowhere/at/all", "it ended with code 127"),
        ("head -c 1 > /dev/null; exit 4", "code 4"),
        ("yes | head -c 3000000; exit 5", "it ended with code 5: y"),
    ],
)
def test_a_command_that_fails_is_said_with_the_end_of_its_output(command, problem):
    assert problem in " ".join(told(command).split())


def test_a_command_that_goes_on_is_ended_with_all_that_it_started(tmp_path):
    assert "it took over 1 s" in told("sleep 100 & sleep 100", most_seconds=1.0)


def test_only_what_this_orchestrator_allows_is_run(tmp_path):
    command = f"touch {tmp_path}/ran"
    for allowed in ((), ("touch",), ("https://hooks.example.org/",)):
        assert "FLEET_ON_END" in told(command, allowed=allowed)
    assert not (tmp_path / "ran").exists()
    assert told(command, allowed=(command,)) is None
    assert (tmp_path / "ran").exists()
    assert "FLEET_ON_END" in told("http://127.0.0.1:1/x", allowed=("http://127.0.0.2",))


class Hook(http.server.BaseHTTPRequestHandler):
    got: list = []  # noqa: RUF012 - of one test

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(500 if "broken" in self.path else 204)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hooks():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Hook.got.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_web_hook_gets_the_status_as_the_body_of_a_post(hooks):
    assert told(f"{hooks}/secret", allowed=(f"{hooks}/",)) is None
    ((path, kind, document),) = Hook.got
    assert (path, kind, document["state"]) == ("/secret", "application/json", "finished")


def test_a_web_hook_that_fails_is_said_without_what_may_be_secret(hooks):
    problem = told(f"{hooks}/broken/secret")
    assert "127.0.0.1 answered 500" in problem
    assert "secret" not in problem
    assert "secret" not in told("http://127.0.0.1:1/secret")


def test_what_is_under_way_when_the_orchestrator_ends_is_ended(tmp_path):
    end = EndHook("s", ("*",))
    assert end.tell(f"touch {tmp_path}/began; sleep 100", STATUS) is None
    wait_until((tmp_path / "began").exists, "it has begun")
    end.close()
