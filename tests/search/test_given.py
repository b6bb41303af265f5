"""The user's own plan: tried as it is, or refused with what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfray.config.component import Component
from pfray.errors import ConfigError, StorageError
from pfray.search.given import Given, Settings
from pfray.space import CompressionSpace, Knob
from pfray.workflow.components import component_mistakes
from tests.search.toy import GIVEN, LIMITS, SPACE, drive

# Keep ratios of two layers with 100 and 300 weights.
COUNTED = CompressionSpace(
    (Knob("conv1", 0.1, 1.0), Knob("fc", 0.1, 1.0)), lambda v: {"params": float(100 * v[0] + 300 * v[1])}
)


def given(path: Path, content: object, space=SPACE, limits=LIMITS, **options) -> Given:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return Given(space, limits, Settings(str(path)), **options)


def refusal(path: Path, content: object, **arguments) -> str:
    with pytest.raises(ConfigError) as error:
        given(path, content, **arguments)
    return str(error.value)


@pytest.mark.parametrize("content", [
    GIVEN, {"experiment": "x", "plan": GIVEN, "uniform_plan": {}}, {"trial": 3, "plan": GIVEN},
])  # fmt: skip
def test_a_plan_a_whole_summary_and_a_line_of_trials_are_taken_as_they_are(tmp_path, content):
    searcher = given(tmp_path / "plan.json", content)
    assert drive(searcher) == [{"trial": 0, "origin": "given", "plan": GIVEN}]
    assert searcher.finished()
    assert searcher.best()["plan"] == GIVEN


def test_a_plan_that_compresses_further_than_asked_is_not_moved(tmp_path):
    plan = {"fc": 0.25, "conv1": 0.5}
    searcher = given(tmp_path / "plan.json", plan, COUNTED, {"params": 200.0})
    assert drive(searcher, outcome=lambda entry: {"score": 1.0})[0]["plan"] == {"conv1": 0.5, "fc": 0.25}


@pytest.mark.parametrize(("limits", "miss"), [
    ({"params": 100.0}, "target.params: it has 125, and 100 or less is asked for (25 % away)"),
    ({"params": 124.99}, "target.params: it has 125, and 124.99 or less is asked for (0.008 % away)"),
])  # fmt: skip
def test_a_plan_that_misses_the_target_is_refused_with_by_how_much(tmp_path, limits, miss):
    message = refusal(tmp_path / "plan.json", {"conv1": 0.5, "fc": 0.25}, space=COUNTED, limits=limits)
    assert message == (f"search.plan: {tmp_path}/plan.json: the plan misses {miss}. Remedy: change the plan, or "
                       "target.params=125")  # fmt: skip


def test_the_target_that_is_named_as_the_remedy_is_one_that_the_plan_meets(tmp_path):
    plan = {**GIVEN, "layer3": 0.8123456789}
    message = refusal(tmp_path / "plan.json", plan)
    cost, met = SPACE.costs(plan)["sparsity"], float(message.rpartition("target.sparsity=")[2])
    assert f"it has {cost:.9g}, and 0.75 or more is asked for" in message
    assert cost - 1e-5 < met <= cost
    assert drive(given(tmp_path / "plan.json", plan, limits={"sparsity": met}))[0]["plan"] == plan
    plan = {"conv1": 0.123456789, "fc": 0.987654321}
    message = refusal(tmp_path / "plan.json", plan, space=COUNTED, limits={"params": 300.0})
    given(tmp_path / "plan.json", plan, COUNTED, {"params": float(message.rpartition("=")[2])})


def test_each_mistake_is_a_line_and_no_more_than_a_few(tmp_path):
    plan = {**GIVEN, "layer1": 7, "layer2": "half", "lyer3": 0.5, "finetune.lr": 0.01}
    message = refusal(tmp_path / "plan.json", plan)
    where = f"search.plan: {tmp_path}/plan.json: "
    assert message.splitlines() == [
        f"{where}'finetune.lr' is a setting that is not searched here. Remedy: take it out of the plan, and give the "
        "experiment its value, 0.01",
        f"{where}unknown knob 'lyer3'. Did you mean 'layer3'?",
        f"{where}layer1: 7 is not allowed. Allowed: 0 to 0.98",
        f"{where}layer2: 'half' is not allowed. Allowed: a number from 0 to 0.98",
    ]
    lines = refusal(tmp_path / "plan.json", dict.fromkeys(SPACE.names, 9)).splitlines()
    assert len(lines) == 5
    assert lines[-1] == f"{where}2 mistakes more"
    assert refusal(tmp_path / "plan.json", {"layer0": 0.5}) == (
        f"{where}values are missing for 'layer1', 'layer2', 'layer3', 'layer4' and 1 more"
    )


def test_searched_settings_are_part_of_the_plan(tmp_path):
    rate = Knob("finetune.lr", compressed=1e-4, full=1e-1, scale="log", kind="setting", default=2e-2)
    space = SPACE.with_free((rate,))
    assert "a value is missing for 'finetune.lr'" in refusal(tmp_path / "plan.json", GIVEN, space=space)
    plan = {**GIVEN, "finetune.lr": 0.003}
    assert drive(given(tmp_path / "plan.json", plan, space), outcome=lambda e: {"score": 1.0})[0]["plan"] == plan


@pytest.mark.parametrize(("content", "reason"), [
    ("", "it is no JSON"), ('{"layer0": 0.5, "layer0": 0.6}', "'layer0' is given twice"), ("{", "it is no JSON"),
])  # fmt: skip
def test_a_file_that_is_no_json_is_refused_in_one_line(tmp_path, content, reason):
    message = refusal(tmp_path / "plan.json", content)
    assert message.startswith(f"search.plan: {tmp_path}/plan.json cannot be used ({reason}")
    assert message.endswith("Remedy: a JSON file of knob names and values, or a run's summary.json")
    assert "\n" not in message
    assert "is no plan" in refusal(tmp_path / "plan.json", [1])


@pytest.mark.parametrize("nowhere", ["~nobody-at-all/plan.json", "a\0b", "x" * 5000, "\x1b[31m"])
def test_a_path_that_leads_nowhere_is_refused_in_one_short_line(nowhere):
    with pytest.raises(ConfigError, match=r"cannot be used \(") as error:
        Given(SPACE, LIMITS, Settings(nowhere))
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()


def test_no_file_and_no_setting_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none.json cannot be used \(there is no such file\)\. Remedy: a JSON file"):
        Given(SPACE, LIMITS, Settings(str(tmp_path / "none.json")))
    with pytest.raises(ConfigError, match=r"search.plan: missing\. Remedy: a JSON file"):
        Given(SPACE, LIMITS, Settings())
    (line,) = component_mistakes({"search": Component(name="given", settings={"pln": "plan.json"})})
    assert line.endswith("Did you mean 'plan'?")


def test_a_run_does_not_go_on_with_another_plan(tmp_path):
    (tmp_path / "search").mkdir()
    drive(given(tmp_path / "plan.json", GIVEN, folder=tmp_path / "search"))
    again = given(tmp_path / "plan.json", GIVEN, folder=tmp_path / "search")
    assert again.resume() is None
    assert again.finished()
    other = given(tmp_path / "plan.json", {**GIVEN, "layer5": 0.9}, folder=tmp_path / "search")
    with pytest.raises(StorageError, match=r"trial 0 is of another plan than search.plan has now\. Remedy: put that"):
        other.resume()
