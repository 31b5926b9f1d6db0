"""Each way out of each command: one line, an exit code, one document of strict JSON."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys

import pytest
import redis
import typer
import yaml
from sqlalchemy.exc import OperationalError

from orchestrator import cli
from orchestrator.handle import StudyHandle
from orchestrator.views import json_output
from orchestrator.views.complaints import complaint_of
from workers import passwords
from workers.protocol.errors import FleetError, InvalidInputError, StudyNotKnownError


def commands(group=None, path=()):
    """Every command with its own path, so that a new one is held to the same."""
    group = typer.main.get_command(cli.app) if group is None else group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())


def arguments_of(command):
    """Something for each argument that has to be given."""
    return ["nothing-of-this-name" for each in command.params if each.param_type_name == "argument"]


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    """Run a command line in this process: its exit code, stdout and stderr."""

    def said(*words, **environment):
        monkeypatch.setattr(json_output, "_printed", False)
        monkeypatch.setattr(sys, "argv", ["trialfleet", *words])
        for name, value in {"FLEET_HOME": str(tmp_path / "home"), **environment}.items():
            monkeypatch.setenv(name, value)
        hook, of_threads = sys.excepthook, cli.threading.excepthook
        try:
            with pytest.raises(SystemExit) as end:
                cli.main()
        finally:
            sys.excepthook, cli.threading.excepthook = hook, of_threads
        shown = capsys.readouterr()
        return end.value.code, shown.out, shown.err

    monkeypatch.chdir(tmp_path)
    return said


def strict(text):
    def refuse(token):
        raise AssertionError(f"{token} is none of JSON's")

    return json.loads(text, parse_constant=refuse)


def assert_candid(found, code=None):
    """One line that says it, and the same in the one document."""
    exit_code, out, err = found
    error = strict(out)["error"]
    assert error["exit_code"] == exit_code != 0
    assert "Traceback" not in err
    (line,) = [each for each in err.splitlines() if each.startswith("trialfleet: ")]
    assert line == f"trialfleet: {error['message']}"
    assert code in {None, exit_code}
    return error


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_what_is_mistyped_is_told_in_one_line_and_one_document(say, path):
    error = assert_candid(say(*path, "--json", "--no-such-option"), 2)
    assert error["kind"] == "UsageError"
    assert "--no-such-option" in error["message"]
    assert error["message"].endswith(f"see `trialfleet {' '.join(path)} --help`")
    if any(each.required for each in COMMANDS[path].params):
        assert "Missing argument" in assert_candid(say(*path, "--json"), 2)["message"]
    code, out, err = say(*path, "--no-such-option")
    assert (code, out) == (2, "")
    assert err.startswith("trialfleet: No such option: --no-such-option")
    assert len(err.splitlines()) == 1


#: Circumstances in which most commands cannot do what they are to do.
CIRCUMSTANCES = {
    "Redis is away": {"FLEET_REDIS_URL": "redis://127.0.0.1:1/0"},
    "no Redis URL": {"FLEET_REDIS_URL": "http://x"},
    "a home that cannot be": {"FLEET_HOME": "/dev/null/home", "FLEET_CACHE": "/dev/null/cache"},
    "a setting that is none": {"FLEET_SLOTS": "many"},
    "a database that is not there": {"FLEET_STORAGE": "sqlite:////dev/null/x.db"},
    "a database of no kind": {"FLEET_STORAGE": "mysterious://u:hunter2@h/d"},
}


#: Those in which a command that serves would do so.
SERVED = {
    ("serve",): {each for each in CIRCUMSTANCES if "Redis" not in each},
    ("dashboard",): CIRCUMSTANCES.keys() - {"a setting that is none"},
}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_whatever_is_the_matter_each_command_answers_in_strict_json(say, path):
    words = [*path, *arguments_of(COMMANDS[path]), "--json"]
    for circumstance, environment in CIRCUMSTANCES.items():
        if circumstance in SERVED.get(path, ()):
            continue  # it would serve, and say what is the matter there
        found = say(*words, **environment)
        assert "Traceback" not in found[2], circumstance
        assert "hunter2" not in found[1] + found[2]
        document = strict(found[1])
        if found[0] == 1 and "groups" in document:
            continue  # it was asked what is the matter
        if found[0] != 0:
            assert_candid(found)
            assert "this is a fault of trialfleet" not in document["error"]["message"], circumstance


@pytest.mark.parametrize(
    "name", ["x/../..", "ü\udc80", "", "a b", "{s}", "*", "x" * 200, "\n", "-"]
)
@pytest.mark.parametrize("path", [path for path, each in COMMANDS.items() if arguments_of(each)])
def test_a_name_of_odd_characters_is_a_name_that_is_not_known(say, path, name):
    error = assert_candid(say(*path, "--json", "--", name), 2)
    assert error["kind"] != "UnicodeEncodeError"
    with pytest.raises(StudyNotKnownError, match="no study has such a name"):
        StudyHandle(name)


ERRORS = {
    InvalidInputError("x = 3: give 4"): (2, "x = 3: give 4"),
    StudyNotKnownError("no such"): (2, "no such"),
    FleetError("two\nlines"): (1, "two lines"),
    KeyboardInterrupt(): (130, "interrupted"),
    EOFError(): (130, "interrupted"),
    typer.Abort(): (130, "interrupted"),
    typer.BadParameter("bad"): (2, "Invalid value: bad; see `trialfleet --help`"),
    redis.ConnectionError("gone"): (1, "Redis failed in the middle of it: gone; try again"),
    OSError(errno.ENOSPC, "No space left on device", "/f"): (1, "/f: No space left on device"),
    PermissionError(errno.EACCES, "Permission denied", "/f"): (1, "/f: Permission denied"),
    OperationalError("select", {}, sqlite3.OperationalError("disk I/O error")): (
        1, "the database failed: disk I/O error; mend it and try again"
    ),
}  # fmt: skip

UNFORESEEN = [
    ValueError("a\nb"), sqlite3.OperationalError("locked"), yaml.YAMLError("odd"), MemoryError(),
    RecursionError("deep"), AssertionError(), KeyError("k"),
    UnicodeDecodeError("a", b"", 0, 1, "r"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_each_kind_of_error_has_its_line_and_its_code(error):
    complaint = complaint_of(error)
    assert (complaint.exit_code, complaint.message) == ERRORS[error]


@pytest.mark.parametrize("error", UNFORESEEN, ids=repr)
def test_what_nobody_foresaw_is_one_line_too_and_its_traceback_is_kept(error, say, tmp_path):
    def fail():
        raise error

    app, cli.app = cli.app, lambda **_: fail()
    try:
        told = assert_candid(say("status", "--json"), 1)
    finally:
        cli.app = app
    log = tmp_path / "home" / "logs" / "errors.log"
    assert str(log) in told["message"]
    assert "\n" not in told["message"]
    assert "in fail" in log.read_text()


def test_infinity_and_nan_are_no_tokens_of_the_documents(say, capsys):
    json_output.print_json({"a": [float("inf"), float("nan")], "b": -float("inf")})
    assert strict(capsys.readouterr().out) == {"a": ["Infinity", "NaN"], "b": "-Infinity"}


def test_documents_hide_what_is_secret_but_for_one_that_is_asked_for_it(capsys):
    passwords.learn("canary-of-a-token")
    json_output.print_json({"canary-of-a-token": ["at canary-of-a-token"]})
    assert strict(capsys.readouterr().out) == {"***": ["at ***"]}
    json_output.print_json_line({"url": "#canary-of-a-token"})
    assert strict(capsys.readouterr().out) == {"url": "#***"}
    json_output.print_json_in_confidence({"url": "#canary-of-a-token"})
    assert strict(capsys.readouterr().out) == {"url": "#canary-of-a-token"}


def shell(line, tmp_path, **environment):
    program = f"{sys.executable} -m orchestrator"
    return subprocess.run(
        ["bash", "-c", line.replace("trialfleet", program)],
        env={**os.environ, "FLEET_HOME": str(tmp_path / "h"), **environment},
        capture_output=True,
        check=False,
    )


def test_who_reads_the_output_and_in_which_encoding_makes_no_traceback(tmp_path):
    (tmp_path / "ü.yaml").write_text("name: s\nobjective: finetune\nspce: {}\n")
    lines = {
        "trialfleet schema | true; exit ${PIPESTATUS[0]}": {0, 1},
        "trialfleet schema | head -c 10 >/dev/null; exit ${PIPESTATUS[0]}": {0, 1},
        "trialfleet schema > /dev/full": {1},
        "trialfleet schema >&-": {0, 1},
        "trialfleet status nope 2>&-": {2},
        "trialfleet status nope <&- >&- 2>&-": {2},
    }
    for line, codes in lines.items():
        ended = shell(line, tmp_path)
        told = ended.stderr.decode()
        assert ended.returncode in codes, (line, told)
        assert "Traceback" not in told, line
        assert "Exception ignored" not in told, line
    ended = shell(
        f"trialfleet submit '{tmp_path}/ü.yaml' --json", tmp_path, PYTHONIOENCODING="ascii"
    )
    assert ended.returncode == 2
    assert "ü.yaml" in json.loads(ended.stdout.decode("ascii"))["error"]["message"]


def test_a_terminal_acts_on_nothing_of_what_is_complained_of(say):
    _code, _out, err = say("enqueue", "s", "x=\x1b]0;title\x07\u202e")
    assert "\\x1b]0;title\\x07" in err
    assert all(sign.isprintable() for sign in err.replace("\n", ""))
