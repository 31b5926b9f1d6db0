"""Numbers and names at their edges: what documents hold of them, and what the page makes of it."""

from __future__ import annotations

import json
import math
from itertools import cycle

import optuna
import pytest
from node import told_by_node
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.dashboard.answers import encode
from orchestrator.dashboard.curves import curves
from orchestrator.dashboard.importances import Importances
from orchestrator.dashboard.trial_columns import TrialColumns, param_for_chart

TRICK = "<img src=x onerror=alert(1)>%{x}&amp;"
LONG = TRICK + "n" * 10_000
NUMBERS = [
    0.0, -0.0, 1e308, -1e308, math.inf, -math.inf, 5e-324, -5e-324, 1.7976931348623157e308, 0.5,
    9007199254740993.0, 1e300, -1e300,
]  # fmt: skip
#: What each object of a browser has from its prototype is a name as any other.
ODD_NAMES = ["", "__proto__", "constructor", "toString", "1", "2020-01-01", LONG + "a", LONG + "b"]
CHOICES = ["", LONG + "a", LONG + "b", None, True, "None", 2**53 + 1, math.inf, math.nan, -0.0, "7"]
WHOLE = [2**53 + 1, 2**63, 10**305, -(10**305), 0]


def trials() -> list[optuna.trial.FrozenTrial]:
    """One for each number, with a parameter of each kind."""
    space = {
        "edge": FloatDistribution(-1e308, 1e308),
        "log": FloatDistribution(5e-324, 1e308, log=True),
        "whole": IntDistribution(-(10**305), 10**305),
        "kind": CategoricalDistribution(CHOICES),
        **dict.fromkeys(ODD_NAMES, FloatDistribution(0, 1)),
    }
    made = []
    kinds, whole = cycle(CHOICES), cycle(WHOLE)
    for number, value in enumerate(NUMBERS * 2):
        edge = value if math.isfinite(value) and abs(value) <= 1e308 else 0.0
        given = {
            "edge": edge,
            "log": max(abs(edge), 5e-324),
            "whole": next(whole),
            "kind": next(kinds),
            **dict.fromkeys(ODD_NAMES, number / 100),
        }
        trial = create_trial(
            state=TrialState.COMPLETE,
            values=[value, -value],
            params=given,
            distributions=space,
            intermediate_values={0: value, 2**53 - 1: math.nan},
        )
        trial.number = number
        made.append(trial)
    return made


def document(found: list[optuna.trial.FrozenTrial]) -> dict[str, object]:
    """What the page is sent, as a browser reads it: by the standard, which knows no NaN."""
    columns = TrialColumns()
    columns.take(found, 1)
    sent = {
        "trials": columns.since(-1),
        "curves": curves(found, best=range(3), running=()),
        "study": {"logs": ["log"], "metrics": [LONG], "directions": ["minimize", "maximize"]},
        "running": {"params": found[0].params, "value": found[4].values},
    }

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(encode(sent), parse_constant=refuse)


def test_documents_are_json_whose_numbers_a_browser_reads_as_they_are():
    def numbers(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [number for each in value for number in numbers(each)]
        return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []

    sent = document(trials())
    assert all(isinstance(each, float) or abs(each) < 2**53 for each in numbers(sent))
    charts = [sent["trials"]["values"], sent["trials"]["params"], sent["curves"]]
    assert all(each == 0 or 1e-300 <= abs(each) <= 1e300 or each == 2**53 - 1
               for each in numbers(charts))  # fmt: skip
    assert not [each for each in numbers(charts) if math.copysign(1, each) < 0 and each == 0]
    assert sent["running"]["value"] == ["Infinity", "-Infinity"]
    assert sent["running"]["params"]["whole"] == str(2**53 + 1)
    assert sent["running"]["params"][LONG + "a"] == 0
    assert len({param_for_chart(each) for each in (LONG + "a", LONG + "b")}) == 2


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (IntDistribution(1, 10**305, log=True), [10 ** (10 * at) for at in range(8)]),
        (FloatDistribution(-1e308, 1e308, step=1e300), [0.0] * 8),
    ],
)
def test_parameters_that_optuna_cannot_compare_are_said_to_be_so(distribution, values):
    study = optuna.create_study()
    for number, value in enumerate(values):
        given = {"params": {"p": value}, "distributions": {"p": distribution}}
        study.add_trial(create_trial(value=number, **given))
    found = Importances().of(study, study.get_trials())
    assert found["metrics"] == []
    assert "Error: " in found["problem"]


#: The page's scripts on a document, as far as they go without a browser.
SCRIPT = """
const charts = await import("./charts.js");
const { empty, merge } = await import("./study.js");
const { number, params } = await import("./words.js");
const { readFileSync } = await import("node:fs");
const given = JSON.parse(readFileSync("document.json", "utf8"));
const store = empty();
merge(store, given.trials);
const names = Object.keys(store.params).sort();
const shares = Object.fromEntries(names.map((name, at) => [name, at / 100]));
const host = "a".repeat(50);
const bars = [`${host} CPU slot 1`, `${host} CPU slot 2`, "b CPU slot 1"].map((lane, id) =>
  ({ id, trial: id, attempt: 1, lane, begun: 1, ended: 2, end: "COMPLETE", why: "" }));
const study = given.study;
const made = {
  history: charts.history(store, study), curves: charts.curves(given.curves, study),
  parallel: charts.parallel(store, study, names), front: charts.frontOf(store, study.directions),
  pareto: charts.pareto(store, study, charts.frontOf(store, study.directions)),
  importances: charts.importances({ metrics: [shares] }, study), timeline: charts.timeline(bars, 3),
  slices: names.map((name) => charts.slice(store, study, name)),
};
const polluted = Object.keys(Object.prototype).concat(Object.keys(Object));
console.log(JSON.stringify({ names, made, polluted, line: params(given.running.params),
  said: [-0, 5e-324, 1e308, "9007199254740993", null, Infinity].map((each) => number(each)) }));
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict:
    """What the page's scripts make of the documents, by Node.js."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "document.json").write_text(json.dumps(document(trials())))
    return told_by_node(folder, SCRIPT)


def by_axis(slices, kind):
    """Of the charts of parameters, those with an axis of a kind: the trace and the layout."""
    return [
        (trace, layout) for (trace,), layout, _ in slices if layout["xaxis"].get("type") == kind
    ]


def test_the_page_draws_every_parameter_whatever_it_is_called(drawn):
    assert drawn["polluted"] == []
    assert set(drawn["names"]) == {"edge", "log", "whole", "kind", *ODD_NAMES}
    for (trace,), layout, _ in drawn["made"]["slices"]:
        assert len(trace["x"]) > len(NUMBERS) // 2, layout["xaxis"]
        assert not [each for each in trace["x"] if each is None]


def test_no_two_things_have_one_label_and_none_is_read_as_markup(drawn):
    made = drawn["made"]
    (bars,), layout = made["importances"]
    assert len(set(bars["y"])) == len(bars["y"]) == len(drawn["names"])
    assert layout["yaxis"]["type"] == "category", "what is called 1 or as a date is no number"
    lanes = made["timeline"][1]["yaxis"]["categoryarray"]
    assert len(set(lanes)) == 3
    ((kinds, _),) = by_axis(made["slices"], "category")
    assert len(set(kinds["x"])) == len({param_for_chart(each) for each in CHOICES} - {None})
    text = json.dumps(made)
    assert "<img" not in text
    assert "%{" not in text
    assert len(text) < 500_000, "names of ten thousand signs are cut"


def test_axes_have_so_many_lines_at_most(drawn):
    ((_, layout),) = by_axis(drawn["made"]["slices"], "log")
    assert layout["xaxis"]["dtick"] == 31, "from 0.5 to 1e300"
    (trace,), _, _ = drawn["made"]["parallel"]
    assert max(len(each.get("tickvals", ())) for each in trace["dimensions"]) <= 12


def test_numbers_are_said_as_they_are(drawn):
    assert drawn["said"] == [
        "0",
        "4.94e-324",
        "1.00e+308",
        "9007199254740993",
        "\N{EN DASH}",
        "Infinity",
    ]
    assert len(drawn["line"]) < 3000
    assert f"whole {2**53 + 1}" in drawn["line"]


def test_a_time_of_another_day_is_said_in_one_zone(tmp_path):
    script = """import { clock } from "./words.js";
    console.log(JSON.stringify([clock(Date.UTC(2024, 0, 31, 23, 30) / 1000), clock(0)]));"""
    dash = "\N{EN DASH}"
    assert told_by_node(tmp_path, script, "Asia/Tokyo") == ["2024-02-01 08:30:00", dash]
    assert told_by_node(tmp_path, script, "America/New_York") == ["2024-01-31 18:30:00", dash]


FORMS = """
import { labelOf, numberOf, objectOf } from "./forms.js";
import { params, text } from "./words.js";
const tried = (make) => {
  try { return make(); } catch (error) { return `refused: ${error.message}`; }
};
const [whole, float] = [{ type: "int" }, { type: "float" }];
console.log(JSON.stringify({
  whole: ["9007199254740993", "-0", "1e3", "007", "1.5", "1e30"]
    .map((each) => tried(() => numberOf("n", whole, each))),
  float: ["1e-5", ".5", "0.30000000000000004", "007"].map((each) => numberOf("x", float, each)),
  objects: ['{"n": 9007199254740993}', "[1]", "null", "{"]
    .map((each) => tried(() => objectOf(each))),
  labels: ['"adam"', '"7"', "7", "9007199254740993", "null", '""', '" "', '{"a":[1]}', "NaN"]
    .map(labelOf),
  texts: [text({ a: [1] }), text(null), params({ kind: { a: 1 }, n: "x" })],
}));
"""


def test_forms_send_what_is_typed_and_name_each_choice(tmp_path):
    told = told_by_node(tmp_path, FORMS)
    large = str(2**53 + 1)
    assert told["whole"][:4] == [large, "-0", "1000", "7"]
    assert all(each.startswith("refused: n: ") for each in told["whole"][4:])
    assert told["float"] == ["1e-5", "0.5", "0.30000000000000004", "7"]
    assert told["objects"][0] == '{"n": 9007199254740993}'
    assert all(each.startswith("refused: ") for each in told["objects"][1:])
    assert told["labels"] == [
        "adam", "7", "7", large, "null", '""', '" "', '{"a":[1]}', "NaN",
    ]  # fmt: skip
    assert told["texts"] == ['{"a":[1]}', "null", 'kind {"a":1} \u00b7 n x']
