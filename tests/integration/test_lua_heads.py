from __future__ import annotations

import re
from importlib.resources import files
from typing import get_args

import pytest

from workers.coordination.scripts import Script, Verb, script

FOLDER = files("workers.coordination") / "lua"
VERBS = sorted(
    path.name.removesuffix(".lua")
    for path in FOLDER.iterdir()
    if path.name.endswith(".lua") and not path.name.startswith("_")
)


def test_the_verbs_are_the_files():
    assert sorted(get_args(Verb)) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_a_head_says_what_the_body_does(verb):
    body = (FOLDER / f"{verb}.lua").read_text()
    head = Script.load(verb)
    code = "\n".join(line for line in body.splitlines() if not line.startswith("--"))
    assert body.startswith(f"-- {verb}: ")
    assert len(body.splitlines()) <= 60
    used_keys = {int(index) for index in re.findall(r"KEYS\[(\d+)\]", code)}
    used_arguments = {int(index) for index in re.findall(r"ARGV\[(\d+)\]", code)}
    assert max(used_keys) == len(head.keys)
    assert max(used_arguments, default=0) <= len(head.arguments)
    returned = set(re.findall(r"\{'([A-Z_]+)'", code))
    if "fail_attempt" in code:
        returned |= {"REQUEUED", "DEAD"}
    assert returned == head.answers


#: An identity that ended has ended in every epoch; a study's lead is a key that only expires;
#: what is wanted of a study, and said of it, is written into the study itself.
OF_ANY_EPOCH = {
    "process_gone", "lead", "unlead", "wish", "respec", "order", "publish", "begin", "drop_orders",
    "ship", "unship", "print", "hand_in", "stop", "handed",
}  # fmt: skip


def test_the_verbs_compare_the_epoch():
    comparing = {verb for verb in VERBS if Script.load(verb).keys[0] == "epoch"}
    assert set(VERBS) - comparing == OF_ANY_EPOCH


def test_a_call_that_differs_from_the_head_is_refused():
    definition = script("release")
    keys = {name: name for name in definition.keys}
    with pytest.raises(TypeError, match=r"release\.lua takes keys"):
        definition.order(keys, {"epoch": "e", "number": 0}, [])
    with pytest.raises(TypeError, match=r"release\.lua takes keys"):
        definition.order({}, {"epoch": "e", "number": 0, "token": 1}, [])
