"""Plans as JSON: what is wrong with one is said in a few words."""

from __future__ import annotations

import pytest

from pfray.search._plan_file import parse_file, plan_mistakes
from pfray.space import CompressionSpace, Knob

SPACE = CompressionSpace(
    (Knob("conv", 0.1, 1.0), Knob("fc", 0.0, 1.0, choices=(0.0, 0.25, 1.0)), Knob("lr", 2, 8, integer=True)),
    lambda values: {"params": float(values.sum())},
)
PLAN = {"conv": 0.5, "fc": 0.25, "lr": 4}


@pytest.mark.parametrize(("change", "wrong"), [
    ({}, []),
    ({"conv": 1.5}, ["conv: 1.5 is not allowed. Allowed: 0.1 to 1"]),
    ({"conv": True}, ["conv: True is not allowed. Allowed: a number from 0.1 to 1"]),
    ({"conv": "many\n"}, ["conv: 'many\\n' is not allowed. Allowed: a number from 0.1 to 1"]),
    ({"conv": float("nan")}, ["conv: nan is not allowed. Allowed: 0.1 to 1"]),
    ({"conv": 10**400}, ["conv: 100000000000000000...0000000000000000000 is not allowed. Allowed: 0.1 to 1"]),
    ({"fc": 0.3}, ["fc: 0.3 is not allowed. Allowed: some values only, of which 0.25 and 1.0 are next to it"]),
    ({"lr": 2.5}, ["lr: 2.5 is not allowed. Allowed: whole numbers"]),
    ({"cnv": 0.5}, ["unknown knob 'cnv'. Did you mean 'conv'?"]),
])  # fmt: skip
def test_what_is_wrong_with_a_plan_is_said_with_what_is_allowed(change, wrong):
    assert plan_mistakes({**PLAN, **change}, SPACE) == wrong


def test_knobs_that_are_missing_are_named_and_what_is_no_plan_is_shown():
    assert plan_mistakes({"conv": 0.5}, SPACE) == ["values are missing for 'fc', 'lr'"]
    assert plan_mistakes({"conv": 0.5, "lr": 4, "fcc": 1}, SPACE) == [
        "unknown knob 'fcc'. Did you mean 'fc'?", "a value is missing for 'fc'",
    ]  # fmt: skip
    assert plan_mistakes([1, 2], SPACE) == ["[1, 2] is no plan, which is knob names with their values"]


@pytest.mark.parametrize(("content", "reason"), [
    (b'{"a": 1,\n"a": 2}', "'a' is given twice"),
    (b'{"a": 1,\n', "it is no JSON: .* at line 2"),
    (b"\xff\xfe", "it is no UTF-8 text"),
    (b"[" * 100_000, "it is nested too deeply"),
    (b"", "it is no JSON"),
])  # fmt: skip
def test_a_file_that_is_no_json_is_refused_with_the_reason(tmp_path, content, reason):
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        parse_file(tmp_path / "plan.json")


def test_no_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        parse_file(tmp_path / "none.json")
    with pytest.raises(ValueError, match="it is no file"):
        parse_file(tmp_path)
