"""The report of a stranger's run: whatever its files hold is shown as text, or refused in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pfray.errors import StorageError
from pfray.reporting import figures, report
from pfray.reporting.remarks import headline, remarks
from pfray.reporting.report_input import read_trials
from pfray.reporting.summary import SECTIONS, Summary
from pfray.units import UNITS
from tests.reporting.test_report import Page, write_run
from tests.summaries import STORED, SUMMARY, TRIALS, changed

EVIL = "</script><img src=x onerror=alert(1)>\x1b[2J\ud800&amp;"
FULL = changed(
    exported={"stored": STORED, "images": 1000, "teacher_size_bytes": 8_200_000,
              "slow_operators": [{"operator": "MUL", "share": 0.5}]},
    metric={"name": "top-1", "higher_is_better": True, "is_share": True},
    costs={"teacher": {"sparsity": 0, "latency_ms": 6.1}, "compressed": {"sparsity": 0.75, "latency_ms": 5.9}},
    shared={"uniform": "compressed"}, own_seconds={"search": 5.0},
    choice={"origin": "searched", "trial": 3, "within_error": 2, "standard_error": 0.01,
            "rescored": [{"trial": 3, "origin": "searched", "score": 0.94, "standard_error": 0.01}]},
)  # fmt: skip
FULL["plan"] = {"a": 0.5, "b": 0.75}
FULL["uniform_plan"] = {"a": 0.5, "b": 0.5}
FULL["target"] = {"sparsity": 0.75, "latency_ms": "0.5x", "size_bytes": "0.1x", "bits": 4, "max_drop": 0.01}
FULL["limits"] = {"sparsity": 0.75, "latency_ms": 3.05, "size_bytes": 1_280_000, "bits": 4}


FIGURES = ("scores", "accuracy_by_cost", "plan_bars", "stage_bars")
# Sections whose keys are names of layers, stages and units.
NAMED = (
    "plan", "uniform_plan", "seconds", "own_seconds", "stored", "target", "limits", "costs", "shared",
)  # fmt: skip


@pytest.fixture(autouse=True)
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "get_plotlyjs", lambda: "")


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a page's time; the figures have tests of their own below."""
    for name in FIGURES:
        monkeypatch.setattr(figures, name, lambda *args: None)
    monkeypatch.setattr(report, "draw", lambda figure, name: "")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values, sections among them."""
    if path:
        yield path
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(each, (*path, key))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The tree with another value there, or, with a callable value, another key."""
    tree = inner = copy.deepcopy(tree)
    for key in path[:-1]:
        inner = inner[key]
    if callable(value):
        inner[value()] = inner.pop(path[-1])
    else:
        inner[path[-1]] = value
    return tree


def shown(folder: Path, tree: dict[str, Any]) -> str | None:
    """The page of a run with these files, None where it is refused in one line."""
    (folder / "search").mkdir(parents=True, exist_ok=True)
    (folder / "report.html").unlink(missing_ok=True)
    (folder / "summary.json").write_text(json.dumps(tree["summary"]))
    (folder / "search/trials.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in tree["trials"]))
    try:
        return report.write(folder).read_text(encoding="utf-8")
    except StorageError as error:
        message = str(error)
    assert message.isprintable()
    assert "Remedy: name the folder of a finished run" in message
    assert not (folder / "report.html").exists()
    return None


TREE = {"summary": FULL, "trials": TRIALS}


def evil(value: Any, section: str = "") -> Any:
    """Every text, and every name where any is allowed, replaced; the names still differ."""
    if isinstance(value, str):
        return EVIL
    if isinstance(value, list):
        return [evil(each) for each in value]
    if isinstance(value, dict):
        return {EVIL + key if section in NAMED else key: evil(each, key) for key, each in value.items()}
    return value


def test_markup_in_all_values_and_names_is_shown_and_not_obeyed_with_all_figures(tmp_path: Path) -> None:
    text = shown(tmp_path, evil(TREE))
    assert text is not None
    assert "<img" not in text
    assert "img" not in Page(text).tags
    assert Page(text).tags.count("script") == Page(shown(tmp_path, TREE) or "").tags.count("script")
    assert "</script><img src=x onerror=alert(1)>" in Page(text).text


@pytest.mark.usefixtures("without_figures")
def test_markup_in_any_value_or_name_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    pages = 0
    for path in places(TREE):
        if path in (("summary",), ("trials",)):
            continue
        for value in (EVIL, lambda: EVIL) if isinstance(path[-1], str) else (EVIL,):
            text = shown(tmp_path, put(TREE, path, value))
            if text is not None:
                pages += 1
                assert "<img" not in text, path
                assert "img" not in Page(text).tags, path
    assert pages > 100


WRONG = [[1], "x", 5, True, {}, {"a": [1]}, {"a": {"b": {}}}, [[]], 10**400, -1, [None], None]


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("value", WRONG)
def test_values_of_another_kind_are_one_line_or_left_out(value: Any, tmp_path: Path) -> None:
    for path in places(TREE):
        if path not in (("summary",), ("trials",)):
            shown(tmp_path, put(TREE, path, value))


@pytest.mark.parametrize("value", WRONG)
def test_figures_leave_out_values_of_another_kind(value: Any) -> None:
    measured = dict.fromkeys(SUMMARY["teacher"], value)
    trials = [{**trial, "score": value, "measurement": measured, "plan": value} for trial in TRIALS]
    assert len(figures.scores(trials).data) >= 1
    trials = [{**trial, "cost": {"macs": value}} for trial in trials] + [{**TRIALS[0], "cost": value}]
    costs = {name: {"macs": value} for name in figures.FINAL}
    run = Summary.parse({**SUMMARY, "costs": costs})
    final = dict.fromkeys(figures.FINAL, measured)
    assert len(figures.accuracy_by_cost(trials, final, UNITS["macs"], run).data) in (0, 8)
    assert len(figures.plan_bars({"a": value}, {"a": value}).data) == 2
    assert len(figures.stage_bars({"a": value}, {"a": value}).data) == 1


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_is_none_is_named(section: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {**SUMMARY, section: [1]}, TRIALS)
    with pytest.raises(StorageError, match=rf"summary\.json: {section} is '\[1\]', not a mapping\. Remedy"):
        report.write(folder)


def test_trials_without_a_number_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    wrong = [{"trial": value} for value in (EVIL, None, 1.5, True, -1, 2**31, [], {})]
    lines = [{"trial": 7, "origin": EVIL}, *wrong, {}, {"trial": 2, "measurement": 5}, {"trial": 1}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "[1]\n" + "[" * 100 + "\n")
    trials, unreadable = read_trials(path)
    assert [trial["trial"] for trial in trials] == [1, 7]
    assert trials[1]["origin"].endswith("\\ud800&amp;")
    assert unreadable == 12


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["summary.json", "search/trials.jsonl"])
@pytest.mark.parametrize("damage", [nested, directory, lambda path: path.write_bytes(b"\xff\n\x1b")])
def test_files_of_another_kind_are_one_line(name: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SUMMARY, TRIALS)
    damage(folder / name)
    try:
        text = report.write(folder).read_text()
    except StorageError as error:
        assert str(error).isprintable()  # noqa: PT017 (trials may be left out)
    else:
        assert name == "search/trials.jsonl"
        assert "lines of trials.jsonl cannot be read" in text


def test_what_is_printed_of_a_run_is_one_line_without_the_terminals_commands() -> None:
    summary = {**FULL, "experiment": "a\n\x1b[2Jb", "target": {"sparsity": 0.5, "\x07": "x\r"}}
    summary["exported"] = {"stored": {"la\nyer": {"type": "float", "bits": 3, "reason": "be\x1bcause"}}}
    parsed = Summary.parse(summary)
    for line in (headline(parsed), *remarks(parsed)):
        assert line.isprintable()
    assert headline(parsed).startswith("a\\n\\x1b[2Jb: 50 % sparsity, at most x\\r \\x07")
    assert any("la\\nyer: be\\x1bcause" in line for line in remarks(parsed))
