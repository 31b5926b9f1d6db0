from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from workers.passwords import hide
from workers.protocol.errors import InvalidInputError, UnsealedError
from workers.protocol.messages import Drawn, RunTrial
from workers.protocol.seals import UNSEALED, Seal, TrialSeals
from workers.settings import Settings

OLD, NEW = "the-old-secret-of-the-fleet", "the-new-secret-of-the-fleet"
SEAL = Seal.of(NEW)

parts = st.lists(st.one_of(st.text(), st.integers(), st.lists(st.text(), max_size=3)), max_size=4)


@given(parts, parts)
def test_a_seal_fits_what_it_was_put_on_and_nothing_else(these, others):
    seal = SEAL.put("study", *these)
    assert SEAL.fits(seal, "study", *these)
    assert SEAL.fits(seal, "study", *others) == (these == others)
    assert not SEAL.fits(seal, "trial", *these)
    assert not Seal.of(OLD).fits(seal, "study", *these)
    assert not SEAL.fits(seal[:-1], "study", *these)


@pytest.mark.parametrize("seal", ["", None, "x", "é" * 64, "0" * 64])
def test_what_is_no_seal_fits_nothing(seal):
    assert not SEAL.fits(seal, "study", "s", "text")
    with pytest.raises(UnsealedError, match="FLEET_SECRET is set here, and the study .*: the way"):
        SEAL.check(seal, "study", "s", "text", what="the study", way="the way")


def test_without_a_secret_nothing_is_sealed_and_all_is_taken():
    assert UNSEALED.put("study", "s") == ""
    assert UNSEALED.fits("whatever", "study", "s")
    hint = RunTrial(study="s", number=1, epoch="e")
    assert hint.sealed(UNSEALED) == hint
    hint.check(UNSEALED)
    with pytest.raises(UnsealedError, match="no FLEET_SECRET here"):
        hint.sealed(SEAL).check(UNSEALED)


def test_a_hint_at_several_trials_is_signed_as_a_whole_and_taken_apart_into_signed_ones():
    hint = RunTrial(study="s", number=1, epoch="e", more=(2, 5)).sealed(SEAL)
    apart = hint.apart(SEAL)
    assert [each.number for each in apart] == [1, 2, 5]
    for each in apart:
        each.check(SEAL)
    for other in ({"more": (2,)}, {"more": ()}, {"more": (5, 2)}, {"number": 0}):
        with pytest.raises(UnsealedError):
            hint.model_copy(update=other).check(SEAL)
    with pytest.raises(UnsealedError, match="altered"):
        hint.model_copy(update={"more": (2, 6)}).apart(SEAL)


def test_the_first_secret_seals_and_all_are_accepted():
    both, old = Seal.of(f"{NEW},\n {OLD}\n"), Seal.of(OLD)
    assert both.fits(old.put("study", "s"), "study", "s")
    assert SEAL.fits(both.put("study", "s"), "study", "s")
    assert not both.is_latest(old.put("study", "s"), "study", "s")


def fields_of(seals, number, params, drawn="", **more):
    encoded = {name: json.dumps(value) for name, value in params.items()}
    named = {f"param:{name}": value for name, value in encoded.items()}
    return {**named, "drawn": drawn, "seal": seals.put(number, encoded, drawn), **more}


def test_a_record_is_its_own_trials_alone():
    seals = TrialSeals(SEAL, "s", "g", "work")
    fields = fields_of(seals, 3, {"x": 0.5, "y": "a"})
    seals.check(3, fields)
    others = [
        TrialSeals(SEAL, "t", "g", "work"),
        TrialSeals(SEAL, "s", "h", "work"),
        TrialSeals(SEAL, "s", "g", "other work"),
        TrialSeals(Seal.of(OLD), "s", "g", "work"),
    ]
    for each in others:
        with pytest.raises(UnsealedError, match="record of trial 3 of study"):
            each.check(3, fields)
    with pytest.raises(UnsealedError):
        seals.check(4, fields)
    for damaged in (
        {**fields, "param:x": "0.75"},
        {**fields, "drawn": "{}"},
        {**fields, "param:z": "1"},
        {**fields, "seal": "[]"},
        {name: value for name, value in fields.items() if name != "param:y"},
        {name: value for name, value in fields.items() if name != "seal"},
    ):
        with pytest.raises(UnsealedError):
            seals.check(3, damaged)


def test_what_is_asked_for_later_is_what_was_drawn_or_answered():
    seals = TrialSeals(SEAL, "s", "g", "work")
    drawn = json.dumps({"d": {"distribution": "{}", "value": 0.25}})
    answer = {"param:a": "7", "seal:a": seals.answer(3, "a", "7")}
    fields = fields_of(seals, 3, {}, drawn, **answer, **{"param:d": "0.25"})
    seals.check(3, fields)
    for forged in ({"param:d": "0.3"}, {"param:a": "8"}, {"seal:a": ""}):
        with pytest.raises(UnsealedError):
            seals.check(3, {**fields, **forged})
    with pytest.raises(UnsealedError):  # of another parameter
        seals.check(3, {**fields, "param:b": "7", "seal:b": answer["seal:a"]})


@pytest.mark.parametrize(
    ("value", "others"),
    [
        (math.nan, ["null", "1", "no JSON", '"nan"']),
        (1, ["true", "1.0", "{"]),
        (True, ["1"]),
        (math.inf, ["-Infinity"]),
        (None, ["0", "false"]),
        ("é\n", ['"é"']),
    ],
)
def test_what_was_drawn_is_taken_as_it_is_written(value, others):
    seals = TrialSeals(SEAL, "s", "g", "work")
    drawn = '{"d":' + Drawn(distribution="{}", value=value).model_dump_json() + "}"
    fields = fields_of(seals, 3, {}, drawn)
    seals.check(3, {**fields, "param:d": json.dumps(value)})
    for other in others:
        with pytest.raises(UnsealedError):
            seals.check(3, {**fields, "param:d": other})


def test_a_seal_costs_microseconds():
    seals = TrialSeals(SEAL, "s", "g", "work")
    fields = fields_of(seals, 3, {f"parameter_{index}": 0.1 * index for index in range(5)})
    told = 3, 1_700_000_000_000_000, "report", "100", "0.25"

    def seconds(call, count=200):
        begun = time.process_time()
        for _ in range(count):
            call()
        return (time.process_time() - begun) / count

    for call in (lambda: seals.check(3, fields), lambda: seals.told(*told)):
        best = min(seconds(call) for _ in range(10))
        assert best < 1e-4, "some 20 microseconds on an idle machine"


def test_settings_take_a_secret_and_never_show_it(tmp_path):
    file = tmp_path / "secret"
    file.write_text(f"{NEW}\n{OLD}\n")
    for settings in (
        Settings.from_environment({"FLEET_SECRET": f"{NEW},{OLD}"}),
        Settings.from_environment({"FLEET_SECRET_FILE": str(file)}),
        Settings(secret=SecretStr(f"{NEW},{OLD}")),
    ):
        assert settings.seal == Seal.of(f"{NEW},{OLD}")
        assert NEW not in f"{settings!r}{settings}{settings.model_dump()}{settings.seal!r}"
        assert NEW not in settings.model_dump_json()
        assert Settings.from_environment(settings.to_environment()).seal == settings.seal
        assert hide(f"a {NEW} b {OLD}") == "a *** b ***"
    assert not Settings().seal


def test_a_secret_that_cannot_be_one_is_refused_and_not_shown(tmp_path):
    file = tmp_path / "secret"
    file.write_text("\n")
    for environment, told in [
        ({"FLEET_SECRET": "tiny-secret"}, "16 characters"),
        ({"FLEET_SECRET": f"{NEW},tiny-secret"}, "16 characters"),
        ({"FLEET_SECRET": " , "}, "16 characters"),
        ({"FLEET_SECRET": ""}, "set and empty"),
        ({"FLEET_SECRET": " \n"}, "set and empty"),
        ({"FLEET_SECRET_FILE": ""}, "set and empty"),
        ({"FLEET_SECRET_FILE": str(file)}, "16 characters"),
        ({"FLEET_SECRET_FILE": str(tmp_path / "none")}, "cannot be read.*No such file"),
        ({"FLEET_SECRET_FILE": str(file), "FLEET_SECRET": NEW}, "give one of them"),
    ]:
        with pytest.raises(InvalidInputError, match=f"FLEET_SECRET.*{told}") as caught:
            Settings.from_environment(environment)
        assert "tiny-secret" not in str(caught.value)
        assert NEW not in str(caught.value)
