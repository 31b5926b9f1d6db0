from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.commands import control
from orchestrator.status import Best, EndedTrial, RetriedTrial, RunningTrial, StudyStatus
from orchestrator.views.screen import LiveView, draw
from orchestrator.views.watch import (
    PlainView,
    draw_studies,
    open_view,
    print_summary,
    summary,
    with_former,
)
from workers.protocol.states import StudyState, Wish

ENDED = [
    EndedTrial(number=0, state="complete", value=0.5, params={"lr": 0.001, "c": None}, seconds=3.0),
    EndedTrial(
        number=1, state="dead", attempts=3, losses=2, error="ValueError: [bad]\nmore", seconds=1.0
    ),
]
STATUS = StudyStatus(
    study="s",
    state="running",
    objective="finetune",
    metrics=["accuracy"],
    directions=["maximize"],
    wanted=5,
    trials={
        "queued": 1, "running": 1, "complete": 1, "pruned": 0, "failed": 0, "dead": 1,
        "cancelled": 0,
    },
    best=Best(number=0, value=0.5, params={"lr": 0.001}),
    wall_seconds=12.0,
    busy_seconds=20.0,
    losses=3,
    slots=2,
    top=ENDED[:1],
    recent=ENDED,
    running=[RunningTrial(number=2, attempt=2, step=17, value=0.4, params={"lr": 0.01})],
)  # fmt: skip


def text_of(renderable) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(renderable)
    return console.file.getvalue()


def test_away_from_a_terminal_each_trial_that_ends_is_one_line_once():
    console = Console(file=io.StringIO(), width=40)
    view = open_view(console)
    assert isinstance(view, PlainView)
    with view:
        view.update(STATUS)
        view.update(STATUS)
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "s running  2 slots  12 s  1 queued, 1 running, 1 complete, 1 dead  3 processes lost",
        "trial 0 complete accuracy=0.5 (3.0 s)  lr=0.001 c=null  [2/5]",
        "trial 1 dead  (1.0 s, attempt 3, 2 processes lost) ValueError: [bad]  [2/5]",
    ]


def test_what_trials_do_before_their_steps_is_shown_and_said_when_it_is_news():
    def at(activity):
        (running,) = STATUS.running
        return STATUS.model_copy(
            update={"running": [running.model_copy(update={"activity": activity})]}
        )

    assert "rows read: 3 of 9" in text_of(draw(at("rows read: 3 of 9")))
    console = Console(file=io.StringIO(), width=40)
    with open_view(console) as view:
        for activity in (None, "rows read: 3", "rows read: 3", "rows \x1b[2Jread: 4", None):
            view.update(at(activity))
    lines = console.file.getvalue().splitlines()
    assert [line for line in lines if line.startswith("trial 2")] == [
        "trial 2: rows read: 3",
        "trial 2: rows \\x1b[2Jread: 4",
    ]


def test_on_a_terminal_the_study_is_drawn_in_place():
    view = open_view(Console(file=io.StringIO(), force_terminal=True))
    assert isinstance(view, LiveView)
    drawn = text_of(draw(STATUS))
    for part in ("2/5 trials", "accuracy=0.5  trial 0", "  17 ", "ValueError"):
        assert part in drawn


def test_the_summary_names_the_best_trial_its_parameters_and_the_errors():
    text = text_of(summary(STATUS))
    for part in ("best: trial 0  accuracy=0.5", "lr = 0.001", "top trials", "ValueError: [bad]"):
        assert part in text
    assert "no trial is complete" in text_of(summary(STATUS.model_copy(update={"best": None})))


def test_the_summary_fits_a_narrow_terminal_and_is_whole_lines_elsewhere(tmp_path):
    params = {"learning_rate": 0.001, "batch_size": 32, "model.name": "google/" + "long-" * 10}
    ended = ENDED[0].model_copy(update={"params": params})
    best = Best(number=0, value=0.5, params=params)
    long = {"results": str(tmp_path), "top": [ended] * 5, "best": best, "stalled": "no worker"}
    for update in ({}, {"best": None}, {"front": 1}):
        status = STATUS.model_copy(update={**long, **update})
        whole = Console(file=io.StringIO(), width=40)
        print_summary(status, whole)
        narrow = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
        print_summary(status, narrow)
        told, lines = whole.file.getvalue(), narrow.file.getvalue().splitlines()
        wide = [line.strip() for line in lines if len(line.rstrip()) > 40]
        assert all(" " not in line for line in wide), "one word each, which stays in one piece"
        assert not any(line.startswith("processes lost") for line in lines)
        assert "trial 1 dead  (1.0 s, attempt 3, 2 processes lost) ValueError: [bad]\n" in told
        if status.best is not None:
            assert f"results: {tmp_path}/<trial>/result\n" in told
            assert wide[-1] == f"{tmp_path}/<trial>/result"
            assert sum("  0.5      3.0  lear" in line for line in lines) == 5
            assert told.count("learning_rate=0.001 batch_size=32 model.name=google/long-") == 5


def test_what_a_study_was_in_a_narrower_space_is_named():
    assert "narrower space: study s@1 of its storage" in text_of(
        draw(STATUS.model_copy(update={"former": "s@1"}))
    )
    assert "narrower" not in text_of(draw(STATUS))


def test_slots_that_take_no_trials_are_told_once_and_drawn_with_the_reason():
    refused = STATUS.model_copy(update={"put_aside": ["0 (GPU-1) of box: CUDA does not work here"]})
    console = Console(file=io.StringIO(), width=200)
    with open_view(console) as view:
        view.update(refused)
        view.update(refused)
    line = "takes no trials: 0 (GPU-1) of box: CUDA does not work here"
    assert console.file.getvalue().count(line) == 1
    assert line in text_of(draw(refused))
    assert line in text_of(summary(refused))


def test_what_was_asked_of_a_study_is_shown_and_said_once():
    console = Console(file=io.StringIO(), width=100)
    states = [
        ("running", "run"), ("running", "stop"), ("paused", "pause"), ("paused", "pause_now"),
        ("cancelling", "cancel"), ("cancelled", "cancel"),
    ]  # fmt: skip
    shown = [STATUS.model_copy(update={"state": StudyState(s), "wish": Wish(w)}) for s, w in states]
    with open_view(console) as view:
        for status in shown:
            view.update(status)
    lines = [line for line in console.file.getvalue().splitlines() if " is " in line]
    assert lines == ["s is running, stopping", "s is paused", "s is cancelling", "s is cancelled"]
    assert "running, stopping" in text_of(draw(shown[1]))
    assert "paused" in text_of(draw(shown[2]))


@pytest.mark.parametrize(("wish", "how"), [("stop", "stopped"), ("cancel", "cancelled")])
def test_a_study_that_people_have_ended_says_so_and_what_has_it_go_on(wish, how, capsys):
    told = f"no further trial begins: it was {how}; `trialfleet resume s` lets it go on"
    ended = STATUS.model_copy(update={"wish": Wish(wish)})
    over = ended.model_copy(update={"state": StudyState.FINISHED})
    assert told in text_of(draw(ended))
    assert told in text_of(summary(over))
    control._tell(ended, as_json=False)
    assert told in capsys.readouterr().out
    # one that had come to its end, or to a limit of its own, by then
    by_itself = {"wanted": STATUS.num_ended}, {"ended_by": "its timeout is used up"}
    for update in by_itself:
        assert "resume" not in text_of(summary(over.model_copy(update=update)))
    assert "resume" not in text_of(summary(STATUS))


def test_the_last_trial_is_told_before_that_its_study_is_over():
    console = Console(file=io.StringIO(), width=200)
    over = STATUS.model_copy(update={"state": StudyState.FINISHED})
    with open_view(console) as view:
        view.update(STATUS.model_copy(update={"recent": []}))
        view.update(over)
        view.update(over)
    lines = console.file.getvalue().splitlines()[1:]
    assert lines[-1] == "s is finished"
    assert len([line for line in lines if line.startswith("trial ")]) == len(STATUS.recent) > 0


def test_what_is_tried_again_is_said_once_and_drawn_with_its_cause():
    retried = RetriedTrial(number=3, attempt=2, cause="died", retry_ms=0, detail="process 7 died")
    shown = STATUS.model_copy(update={"retried": [retried], "requeued": {"died": 1}})
    console = Console(file=io.StringIO(), width=200)
    with open_view(console) as view:
        view.update(shown)
        view.update(shown)
    line = "trial 3 goes on in attempt 2: its process died under it: process 7 died"
    assert console.file.getvalue().count(line) == 1
    drawn = text_of(draw(shown))
    assert "1 tried again (died 1)" in drawn
    assert "3 again  attempt 2 in 0s  its process died under it" in drawn


def test_studies_as_they_were_in_narrower_spaces_stand_below_the_one_that_goes_on():
    console = Console(file=io.StringIO(), width=200)
    listed = with_former([STATUS.model_copy(update={"former": f"{STATUS.study}@2"}), STATUS])
    assert [each.study for each in listed] == [
        STATUS.study, f"{STATUS.study}@2", f"{STATUS.study}@1", STATUS.study
    ]  # fmt: skip
    former = listed[1].model_dump(mode="json")
    assert former == {"study": f"{STATUS.study}@2", "state": "former", "of": STATUS.study}
    console.print(draw_studies(listed))
    assert f"the former space of {STATUS.study}" in console.file.getvalue()


#: What an objective may put into its names, choices and errors: a terminal would act on it.
ACTS = "\x1b]0;title\x07\x1b[2J\x9b1m\u202ertl\rover"


def told_by_the_lines(status):
    console = Console(file=io.StringIO(), width=40)
    with PlainView(console) as view:
        view.update(status)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "tell",
    [
        told_by_the_lines,
        lambda status: text_of(draw(status)),
        lambda status: text_of(summary(status)),
    ],
)
def test_a_terminal_acts_on_nothing_that_an_objective_named(tell):
    failed = EndedTrial(number=1, state="failed", error=f"ValueError: {ACTS}", seconds=1.0)
    complete = ENDED[0].model_copy(update={"params": {ACTS: ACTS}})
    told = tell(
        STATUS.model_copy(
            update={
                "best": Best(number=0, value=0.5, params={ACTS: ACTS}),
                "top": [complete],
                "recent": [complete, failed],
                "stalled": ACTS,
                "put_aside": [ACTS],
                "set_aside": [ACTS],
            }
        )
    )
    assert "\\x1b]0;title" in told
    assert all(sign.isprintable() for sign in told.replace("\n", ""))
