"""Rows and columns of the table of results."""

from __future__ import annotations

import re
from typing import Any

from pfray.reporting.summary import Summary
from pfray.reporting.table import results_table
from tests.summaries import SUMMARY, changed, summary


def cells(**changes: Any) -> dict[str, dict[str, str]]:
    """Text of each cell, by row and column; the number and its small print with a space between."""
    target = changes.pop("target", SUMMARY["target"])
    text = results_table(Summary.parse({**changed(**changes), "target": target}))
    head, body = re.search(r"<thead>(.*)</thead><tbody>(.*)</tbody>", text).groups()  # type: ignore[union-attr]
    titles = re.findall(r"<th scope=col>(.*?)</th>", head)
    rows = {}
    for row in re.findall(r"<tr>(.*?)</tr>", body):
        name = plain(re.search(r"<th scope=row>(.*?)</th>", row).group(1))  # type: ignore[union-attr]
        rows[name] = dict(zip(titles, map(plain, re.findall(r"<td>(.*?)</td>", row)), strict=True))
    return rows


def plain(markup: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", markup).replace("&ndash;", "-").split())


COSTS = {"teacher": {"latency_ms": 6.1, "bits": 32.0}, "uniform": {"bits": 4.0}, "compressed": {"bits": 3.5}}


def test_the_units_of_the_target_come_first_and_once() -> None:
    rows = cells(target={"latency_ms": "0.5x", "macs": "0.5x", "max_drop": 0.1}, compressed={"latency_ms": 5.9})
    assert list(rows["teacher"])[:4] == ["accuracy", "latency", "MACs", "loss"]
    assert len(rows["teacher"]) == len(set(rows["teacher"]))
    assert list(cells(target={"bits": 4}, costs=COSTS)["teacher"])[:3] == ["accuracy", "bits a weight", "loss"]
    assert [row["bits a weight"] for row in cells(target={"bits": 4}, costs=COSTS).values()] == [
        "32", "4 0.12x", "-", "3.5 0.11x", "-",
    ]  # fmt: skip


def test_packed_files_and_tflite_files_are_in_columns_of_their_own() -> None:
    rows = cells(exported={"teacher_size_bytes": 8_200_000})
    packed = ["12.9 MB", "3.7 MB 0.29x", "3.7 MB 0.29x", "3.6 MB 0.28x", "-"]
    assert [row["packed file"] for row in rows.values()] == packed
    assert [row[".tflite file"] for row in rows.values()] == ["8.2 MB", "-", "-", "-", "4.1 MB 0.50x"]


def test_baselines_that_were_timed_have_a_latency() -> None:
    timed = {"uniform": {"latency_ms": 3.05}, "teacher": {"latency_ms": 6.1}, "compressed": {"latency_ms": 2.9}}
    rows = cells(target={"latency_ms": "0.5x"}, exported={"latency_ms": 2.9, "teacher_latency_ms": 6.1}, **timed)
    times = ["6.10 ms", "3.05 ms 0.50x", "-", "2.90 ms 0.48x", "2.90 ms 0.48x"]
    assert [row["latency"] for row in rows.values()] == times
    assert "of their files before training" in results_table(summary(**timed))
    assert "of their files before training" not in results_table(summary())


def test_a_baseline_that_shares_a_training_says_so() -> None:
    assert "uniform same plan and training as compressed" in cells(shared={"uniform": "compressed"})


def test_a_metric_has_its_name_and_sign() -> None:
    metric = {"name": "mse", "higher_is_better": False, "is_share": False}
    rows = cells(metric=metric, teacher={"accuracy": -0.0123}, compressed={"accuracy": -0.014}, exported=None)
    assert rows["compressed"]["mse (lower is better)"] == "0.014 +0.0017"
