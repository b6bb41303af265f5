from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pfray import figures, report
from pfray.errors import StorageError


def measurement(**changes: Any) -> dict[str, Any]:
    return {
        "accuracy": 0.978, "loss": 0.08, "params": 3_200_000, "nonzero_params": 3_200_000, "macs": 11_600_000,
        "size_bytes": 12_900_000, "latency_ms": None, **changes,
    }  # fmt: skip


KNOBS = [f"features.{i}.0" for i in range(1, 27)] + ["classifier"]
SUMMARY: dict[str, Any] = {
    "experiment": "mobilenet_sparse", "learner": "weight_sparse", "searcher": "tpe", "seed": 0,
    "target": {"sparsity": 0.75},
    "teacher": measurement(),
    "uniform": measurement(accuracy=0.971, loss=0.11, nonzero_params=820_000, size_bytes=3_700_000),
    "allocate": measurement(accuracy=0.973, loss=0.1, nonzero_params=820_000, size_bytes=3_700_000),
    "compressed": measurement(accuracy=0.975, loss=0.09, nonzero_params=810_000, size_bytes=3_600_000),
    "exported": {"path": "model.tflite", "size_bytes": 4_100_000, "accuracy": 0.974, "latency_ms": 5.9,
                 "teacher_latency_ms": 6.1, "max_abs_diff": 2.5e-6},
    "plan": {knob: 0.5 + 0.45 * i / len(KNOBS) for i, knob in enumerate(KNOBS)},
    "uniform_plan": dict.fromkeys(KNOBS, 0.75),
    "trials": {"finished": 4, "failed": 1, "best": 3},
    "seconds": {"data": 0.4, "teacher": 61.2, "search": 93.7, "finalize": 120.1, "export": 8.3},
}  # fmt: skip


def trial(number: int, origin: str, score: float | None, error: str | None = None) -> dict[str, Any]:
    measured = None if score is None else measurement(accuracy=score, nonzero_params=810_000 + number, size_bytes=None)
    return {
        "trial": number, "origin": origin, "plan": {"features.1.0": 0.75}, "score": score,
        "cost": {"sparsity": 0.75, "params": 810_000}, "measurement": measured, "seconds": 0.4, "error": error,
    }  # fmt: skip


TRIALS = [
    trial(0, "uniform", 0.91),
    trial(1, "heuristic", 0.93),
    trial(2, "searched", None, "RuntimeError: weight <3> & loss is nan\n  at step 7"),
    trial(3, "searched", 0.95),
    trial(4, "random", 0.90),
]


def write_run(folder: Path, summary: dict[str, Any], trials: list[dict[str, Any]]) -> Path:
    (folder / "search").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "search/trials.jsonl").write_text("".join(json.dumps(t) + "\n" for t in trials))
    return folder


def changed(**changes: Any) -> dict[str, Any]:
    """SUMMARY with single fields of its records replaced: ``compressed={"accuracy": 0.9}``."""
    summary = copy.deepcopy(SUMMARY)
    for key, value in changes.items():
        summary[key] = {**summary.get(key, {}), **value} if isinstance(value, dict) else value
    return summary


class Page(HTMLParser):
    """The text a reader sees, the addresses a browser would load, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside, self.words, self.scripts, self.loads = "", [""], [""], [""]
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.tags.append(tag)
        self.loads += [f"{tag} {value}" for key, value in attrs if key in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "run", SUMMARY, TRIALS)


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    path = report.write(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_headline_says_what_came_out_in_one_sentence(page: Page) -> None:
    expected = "mobilenet_sparse: 75 % sparsity, accuracy 97.8 % -> 97.5 %, packed file 12.9 MB -> 3.6 MB (0.28x)"
    assert report.headline(SUMMARY) == expected
    assert expected in page.text


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"sparsity": 0.925, "max_drop": 0.01}, "92.5 % sparsity"),
        ({"params": "0.4x"}, "at most 0.4x params"),
        ({"params": 800_000}, "at most 800,000 params"),
    ],
)
def test_the_headline_names_the_target_in_its_unit(target: dict, words: str) -> None:
    assert f"mobilenet_sparse: {words}, accuracy" in report.headline({**SUMMARY, "target": target})


def test_the_page_loads_nothing_and_holds_plotly_once(page: Page) -> None:
    assert page.loads == [""]
    assert "link" not in page.tags
    assert "img" not in page.tags
    scripts = "\n".join(page.scripts)
    assert len(re.findall(r"\* plotly\.js v", scripts)) == 1
    assert scripts.count("Plotly.newPlot(") >= 4


def test_no_temporary_file_is_left_and_the_same_run_gives_the_same_page(run: Path, page: Page) -> None:
    first = (run / "report.html").read_bytes()
    assert report.write(run).read_bytes() == first
    assert sorted(p.name for p in run.iterdir()) == ["report.html", "search", "summary.json"]


def test_errors_and_plans_of_failed_trials_are_shown_escaped(run: Path, page: Page) -> None:
    assert "RuntimeError: weight <3> & loss is nan at step 7" in page.text
    assert "weight &lt;3&gt; &amp; loss" in (run / "report.html").read_text()
    assert "trial 2 (searched)" in page.text
    assert '{ "features.1.0": 0.75 }' in page.text
    assert "1 of 5 trials failed" in page.text


def test_markup_in_any_name_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    summary = changed(exported={"path": evil}, plan={evil: 0.5}, seconds={evil: 1.0})
    summary.update(experiment=evil, learner=evil, searcher=evil)
    bad = trial(0, evil, 0.9)
    text = report.write(write_run(tmp_path / "run", summary, [bad, trial(1, evil, None, evil)])).read_text()
    assert evil not in text
    assert "alert(1)" in Page(text).text


def test_the_table_gives_every_number_and_its_ratio_to_the_teacher(page: Page) -> None:
    for cell in ("97.80 %", "97.50 % -0.30 points", "3,200,000", "810,000 0.25x", "3.6 MB 0.28x", "4.1 MB 0.32x",
                 "5.9 ms 0.97x", "0.0900 1.12x"):  # fmt: skip
        assert cell in page.text, cell
    assert "its outputs differ from PyTorch's by at most 2.5e-06" in page.text


def test_the_exported_file_is_compared_with_the_teachers_file(tmp_path: Path) -> None:
    summary = changed(exported={"teacher_size_bytes": 8_200_000, "images": 1000})
    text = Page(report.write(write_run(tmp_path / "run", summary, TRIALS)).read_text()).text
    assert "97.40 % first 1,000 images" in text
    assert "4.1 MB 0.50x" in text
    assert "the teacher's file has 8.2 MB and takes 6.1 ms" in text


def test_nothing_is_held_back_when_the_result_is_good() -> None:
    assert report.remarks({**SUMMARY, "trials": {"finished": 4, "failed": 0, "best": 3}}) == []


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"exported": {"latency_ms": 6.2}}, "smaller but not faster: 6.2 ms against 6.1 ms"),
        ({"exported": {"latency_ms": 6.1}}, "smaller but not faster: 6.1 ms against 6.1 ms"),
        ({"exported": {"latency_ms": 0.0612, "teacher_latency_ms": 0.06}},
         "smaller but not faster: 0.061 ms against 0.060 ms"),
        ({"exported": {"latency_ms": 7.0}, "compressed": {"size_bytes": 13e6}},
         "neither smaller nor faster: 7.0 ms against 6.1 ms"),
        ({"exported": {"latency_ms": 7.0}, "compressed": {"size_bytes": None}}, "not faster: 7.0 ms against 6.1 ms"),
        ({"exported": None, "compressed": {"latency_ms": 9.0}, "teacher": {"latency_ms": 8.0}},
         "smaller but not faster: 9.0 ms against 8.0 ms"),
        ({"compressed": {"accuracy": 0.971}, "allocate": {"accuracy": 0.97}},
         "the searched plan did not beat the uniform plan: 97.10 % against 97.10 % on the test split"),
        ({"compressed": {"accuracy": 0.95}, "allocate": {"accuracy": 0.94}},
         "the searched plan did not beat the uniform plan: 95.00 % against 97.10 % on the test split"),
        ({"compressed": {"accuracy": 0.972}},
         "the searched plan did not beat the allocate plan: 97.20 % against 97.30 % on the test split"),
        ({"choice": {"origin": "allocate"}},
         "no searched plan scored better than 'allocate', which needs no search"),
        ({"choice": {"origin": "searched", "within_error": 7, "standard_error": 0.0134}},
         "the best 7 plans are within one standard error (0.013) of the best score, so the choice among them is close "
         "to chance. More search.validation_images tell them apart"),
        ({"target": {"max_drop": 0.002}}, "the goal is missed: 0.30 points lost, 0.20 allowed (target.max_drop)"),
    ],
)  # fmt: skip
def test_what_a_reader_must_know_is_said(changes: dict, remark: str) -> None:
    assert report.remarks(changed(**changes, trials={"failed": 0})) == [remark]


@pytest.mark.parametrize(
    "changes",
    [
        {"exported": {"latency_ms": 6.0}},
        {"exported": {"latency_ms": None}},
        {"exported": None},
        {"uniform": {"accuracy": None}},
        {"uniform": None},
        {"target": {"max_drop": 0.01}},
    ],
)
def test_remarks_are_silent_where_nothing_is_wrong_or_known(changes: dict) -> None:
    assert report.remarks(changed(**changes, trials={"failed": 0})) == []


def test_remarks_are_on_the_page(tmp_path: Path) -> None:
    summary = changed(exported={"latency_ms": 6.2}, compressed={"accuracy": 0.97})
    text = Page(report.write(write_run(tmp_path / "run", summary, TRIALS)).read_text()).text
    assert "smaller but not faster: 6.2 ms against 6.1 ms" in text
    assert "the searched plan did not beat the uniform plan" in text


def test_null_fields_are_left_out(tmp_path: Path) -> None:
    nothing = dict.fromkeys(measurement())
    summary = {**SUMMARY, "teacher": nothing, "uniform": None, "compressed": nothing, "exported": None, "plan": {},
               "uniform_plan": {}, "seconds": {}, "trials": {"finished": 0, "failed": 0, "best": None}}  # fmt: skip
    text = Page(report.write(write_run(tmp_path / "run", summary, [])).read_text()).text
    assert "mobilenet_sparse: 75 % sparsity" in text
    assert "Nothing was exported." in text
    assert "None" not in text
    assert "nan" not in text


def test_scores_that_are_not_numbers_count_as_failed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SUMMARY, [trial(0, "uniform", 0.9), trial(1, "searched", float("nan"))])
    assert "trial 1 (searched)" in Page(report.write(folder).read_text()).text


def test_half_a_line_of_a_killed_run_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SUMMARY, TRIALS)
    with (folder / "search/trials.jsonl").open("a") as file:
        file.write('{"trial": 5, "orig')
    assert "1 of 6 lines of trials.jsonl cannot be read" in Page(report.write(folder).read_text()).text


@pytest.mark.parametrize("name", ["summary.json", "search/trials.jsonl"])
def test_a_missing_file_of_the_run_is_named(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run", SUMMARY, TRIALS)
    (folder / name).unlink()
    with pytest.raises(StorageError, match=rf"{name}.*Remedy"):
        report.write(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_summary_is_named(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path / "run", SUMMARY, TRIALS)
    (folder / "summary.json").write_text(text)
    with pytest.raises(StorageError, match=r"summary.json: .*Remedy"):
        report.write(folder)


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_scores_are_coloured_by_origin_with_the_best_so_far_and_the_failed_ones() -> None:
    found = traces(figures.scores(TRIALS))
    assert set(found) == {"best so far", "uniform", "heuristic", "random", "searched", "failed"}
    assert found["best so far"].x == (0, 1, 3, 4)
    assert found["best so far"].y == (0.91, 0.93, 0.95, 0.95)
    assert found["searched"].x == (3,)
    assert found["failed"].x == (2,)
    colours = {found[name].marker.color for name in ("uniform", "heuristic", "random", "searched")}
    assert len(colours) == 4


def test_accuracy_by_cost_shows_trials_and_labels_the_results() -> None:
    final = {name: SUMMARY[name] for name in figures.FINAL}
    found = traces(figures.accuracy_by_cost(TRIALS, final, "nonzero_params"))
    assert found["searched (validation)"].x == (810_003,)
    assert found["teacher (test)"].x == (3_200_000,)
    assert found["compressed (test)"].y == (0.975,)
    assert [found[f"{name} (test)"].text for name in figures.FINAL] == [(name,) for name in figures.FINAL]
    assert len({found[f"{name} (test)"].marker.color for name in figures.FINAL}) == 4


def test_every_knob_has_the_chosen_and_the_uniform_value_side_by_side() -> None:
    found = traces(figures.plan_bars({"a": 0.5, "b": True}, {"a": 0.75, "b": False}))
    assert found["chosen"].y == ("a", "b")
    assert found["chosen"].x == (0.5, 1.0)
    assert found["uniform"].x == (0.75, 0.0)


def test_stages_keep_their_order() -> None:
    (bars,) = figures.stage_bars(SUMMARY["seconds"]).data
    assert bars.y == ("data", "teacher", "search", "finalize", "export")
    assert bars.text[1] == "61.2 s"


STORED = {
    "conv1": {"bits": None, "type": "float", "reason": "not quantized", "rounds": False},
    "a": {"bits": 3, "type": "int4", "reason": "exact; its inputs are rounded to 8 bits as they come", "rounds": True},
    "b": {"bits": 5, "type": "int8", "reason": "to the nearest, at most 0.4 % of the largest weight off",
          "rounds": True},
    "c": {"bits": 6, "type": "int8", "reason": "exact", "rounds": False},
    "d": {"bits": 2, "type": "float", "reason": "with int8's nearest levels the outputs <differ>", "rounds": False},
}  # fmt: skip


def test_the_report_lists_how_the_file_has_each_layer(tmp_path: Path) -> None:
    summary = changed(exported={"stored": STORED})
    text = Page(report.write(write_run(tmp_path / "run", summary, TRIALS)).read_text(encoding="utf-8")).text
    assert "Stored as" in text
    assert "a 3 int4 exact; its inputs are rounded" in text
    assert "conv1 float float not quantized" in text
    assert "d 2 float with int8's nearest levels the outputs <differ>" in text


def test_the_remarks_name_what_the_file_rounds_and_what_stays_float() -> None:
    notes = report.remarks(changed(exported={"stored": STORED}))
    assert [note for note in notes if ".tflite" in note] == [
        "float in the .tflite, d: with int8's nearest levels the outputs <differ>",
        "the .tflite rounds to 8 bits what its int4 layers read: a",
        "the .tflite has int8's levels nearest to the model's, not the same: b",
    ]
    assert not any(".tflite" in note for note in report.remarks(SUMMARY))


@pytest.mark.parametrize(("target", "size", "told"), [
    ({"size_bytes": 3_000_000}, 3_100_000, None), ({"size_bytes": 3_000_000}, 3_200_000, ("3.2 MB", "3.0 MB")),
    ({"size_bytes": "0.5x"}, 6_700_000, None), ({"size_bytes": "0.5x"}, 6_900_000, ("6.9 MB", "6.4 MB")),
])  # fmt: skip
def test_a_packed_file_that_is_larger_than_the_target_is_told(target, size, told) -> None:
    summary = changed(target=target, compressed={"size_bytes": size})
    notes = [note for note in report.remarks({**summary, "target": target}) if "size_bytes" in note]
    starts = [f"the packed file has {told[0]}, target.size_bytes is {told[1]}: it counts parameters"] if told else []
    assert [note[: len(start)] for note, start in zip(notes, starts, strict=True)] == starts


@pytest.mark.parametrize(("stored", "said"), [(4.9, False), (5.1, True)])
def test_bits_of_all_parameters_are_told_where_many_stay_float(stored, said) -> None:
    summary = changed(compressed={"stored_bits": stored * SUMMARY["compressed"]["params"]})
    notes = report.remarks({**summary, "target": {"bits": 4}})
    expected = "4 bits hold for the layers that are quantized; all parameters have 5.1 on average, as the others stay "
    assert (f"{expected}float" in notes) == said


def test_operators_without_an_int8_kernel_are_remarked_and_layers_left_out_on_purpose_are_not() -> None:
    stored = {f"act{i}": {"bits": None, "type": "float", "reason": "no int8 kernel for silu"} for i in range(6)}
    stored["fc"] = {"bits": None, "type": "float", "reason": "left out by the plan or by learner.skip"}
    notes = report.remarks(changed(exported={"stored": stored}))
    expected = "float in the .tflite, act0, act1, act2 and 3 more: no int8 kernel for silu"
    assert [note for note in notes if ".tflite" in note] == [expected]
