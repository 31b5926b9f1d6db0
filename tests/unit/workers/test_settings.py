from __future__ import annotations

from pathlib import Path

import pytest

from workers.protocol.errors import InvalidInputError
from workers.settings import Settings, mistyped_variables
from workers.times import Times


def test_settings_survive_a_childs_environment():
    settings = Settings(
        redis_url="redis://127.0.0.1:1/0", home=Path("/x"), slots=3, objectives=("a.b", "/c.py")
    )
    assert Settings.from_environment(settings.to_environment()) == settings


def test_empty_variables_count_as_unset():
    assert Settings.from_environment({"FLEET_SLOTS": "", "FLEET_OBJECTIVES": ""}) == Settings()


def test_the_default_home_is_the_users_and_absolute():
    assert Settings().home == Path.home() / ".trialfleet"


@pytest.mark.parametrize(
    ("variable", "value"), [("FLEET_SLOTS", "0"), ("FLEET_SLOTS", "two"), ("FLEET_TIME_SCALE", "0")]
)
def test_a_bad_variable_is_named_with_its_value(variable, value):
    with pytest.raises(InvalidInputError, match=f"{variable}.*{value}"):
        Settings.from_environment({variable: value})


def test_variables_that_were_to_be_settings_are_found_and_no_others():
    assert mistyped_variables(
        {
            "FLEET_SECRT": "x", "FLEET_REDIS": "redis://a", "FLEET_Home": "/x", "FLEET_SLOTS": "2",
            "FLEET_DASHBOARD_TOKEN": "t", "FLEET_QUEUES": "a", "FLEET_REDIS_SERVICE_HOST": "1",
            "MY_FLEET_SECRT": "x", "FLEETSECRET": "x", "FLEET_": "",
        }
    ) == {
        "FLEET_SECRT": "FLEET_SECRET",
        "FLEET_REDIS": "FLEET_REDIS_URL",
        "FLEET_Home": "FLEET_HOME",
    }  # fmt: skip
    assert mistyped_variables(Settings(slots=3, secret="s" * 16).to_environment()) == {}


def test_an_unknown_setting_is_refused_with_those_that_there_are():
    with pytest.raises(InvalidInputError, match=r"slotz.*the settings are redis_url, storage"):
        Settings.build({"slotz": 1})


def test_scaling_keeps_the_holder_silent_before_its_lease_ends():
    for factor in (1.0, 0.1, 0.01):
        times = Times().scaled(factor)
        assert times.beat < times.holder < times.lease < times.lease + times.grace
        assert times.beat == pytest.approx(10 * factor)
