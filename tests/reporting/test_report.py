from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pfray.errors import StorageError
from pfray.reporting import report
from pfray.reporting.summary import Summary
from tests.summaries import STORED, SUMMARY, TRIALS, changed, measurement, trial


def write_run(folder: Path, summary: dict[str, Any], trials: list[dict[str, Any]]) -> Path:
    (folder / "search").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "search/trials.jsonl").write_text("".join(json.dumps(t) + "\n" for t in trials))
    return folder


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
    expected = (
        "mobilenet_sparse: 75 % sparsity, accuracy 97.8 % -> 97.5 %, packed file 12.9 MB -> 3.6 MB (0.28x), "
        "latency 6.10 ms -> 5.90 ms (0.97x)"
    )
    assert report.headline(Summary.parse(SUMMARY)) == expected
    assert expected in page.text


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
    for cell in ("97.80 %", "97.50 % -0.30 points", "3,200,000", "810,000 0.25x", "3.6 MB 0.28x", "4.1 MB",
                 "5.90 ms", "0.0900 1.12x"):  # fmt: skip
        assert cell in page.text, cell
    assert "its outputs differ from PyTorch's by at most 2.5e-06" in page.text


def test_the_exported_file_is_compared_with_the_teachers_file(tmp_path: Path) -> None:
    summary = changed(exported={"teacher_size_bytes": 8_200_000, "images": 1000})
    text = Page(report.write(write_run(tmp_path / "run", summary, TRIALS)).read_text()).text
    assert "97.40 % first 1,000 images" in text
    assert "4.1 MB 0.50x" in text
    assert "the teacher's file has 8.2 MB and takes 6.10 ms" in text


def test_the_score_the_chosen_plan_and_the_time_are_explained(tmp_path: Path) -> None:
    summary = changed(choice={"origin": "uniform", "moved": "further", "score": -1.18}, limits={"latency_ms": 1.2},
                      own_seconds={"data": 0.4, "search": 20.0}, objective="agreement")  # fmt: skip
    text = Page(report.write(write_run(tmp_path / "run", summary, TRIALS)).read_text()).text
    assert "chosen uniform (trial 3), compressed further to meet 1.20 ms" in text
    assert "score agreement -1.18" in text
    assert "Score, agreement: minus the KL divergence" in text
    assert "20 s in the last attempt, 284 s with the interrupted ones before." in text
    assert "Cost and accuracy" in text


def test_a_score_that_is_the_metric_goes_by_its_name(tmp_path: Path) -> None:
    metric = {"name": "<mse>", "higher_is_better": False, "is_share": False}
    summary = changed(metric=metric, choice={"score": -0.1286}, objective="accuracy")
    text = Page(report.write(write_run(tmp_path / "run", summary, TRIALS)).read_text()).text
    assert "score <mse> 0.1286" in text
    assert "A on validation images (A: minus the <mse>). Higher is better." in text
    assert "Cost and <mse>" in text


def test_remarks_are_on_the_page(tmp_path: Path) -> None:
    summary = changed(exported={"latency_ms": 6.2}, compressed={"accuracy": 0.97})
    text = Page(report.write(write_run(tmp_path / "run", summary, TRIALS)).read_text()).text
    assert "smaller but not faster: 6.20 ms against 6.10 ms" in text
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


def test_the_report_lists_how_the_file_has_each_layer(tmp_path: Path) -> None:
    summary = changed(exported={"stored": STORED})
    text = Page(report.write(write_run(tmp_path / "run", summary, TRIALS)).read_text(encoding="utf-8")).text
    assert "Stored as" in text
    assert "a 3 int4 exact; its inputs are rounded" in text
    assert "conv1 float float not quantized" in text
    assert "d 2 float with int8's nearest levels the outputs <differ>" in text


def test_results_without_test_data_are_said_to_be_of_the_validation_data(tmp_path):
    summary = {**SUMMARY, "measured_on": "validation"}
    text = Page(report.write(write_run(tmp_path / "run", summary, TRIALS)).read_text()).text
    assert "Measured on the validation split, which the search has seen" in text
    assert "the test split" not in text
    assert Summary.parse(summary).to_dict()["measured_on"] == "validation"
