"""A run's metrics, read where Prometheus reads them: at the port that Ray exports them at."""

from __future__ import annotations

import time
import urllib.request
from types import SimpleNamespace

import pytest
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pfray.cluster.ray_cluster import ray_session
from pfray.config.schema import load
from pfray.reporting.observers import Observers
from pfray.reporting.progress import Progress
from pfray.reporting.prometheus import per_minute
from pfray.run import run
from pfray.search._trial_log import read_trials


def test_the_rate_is_that_of_the_times_between_the_trials():
    assert per_minute([10.0, 12.0, 14.0, 11.0, 16.0]) == pytest.approx(40.0)
    assert per_minute([10.0]) is None
    assert per_minute([10.0, 10.0]) is None


def exported(experiment: str) -> dict[tuple[str, str], float]:
    """(name, stage) to value, of one run's metrics."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (sample.name.removeprefix("ray_pfray_"), sample.labels.get("stage", "")): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("experiment") == experiment
    }


def test_a_runs_numbers_are_exported_by_ray(ray_cluster, tmp_path, quick):
    path = tmp_path / "measured.yaml"
    learner = {"name": "tests.faults:Faulty", "fault": "raise", "at": 3, "counter": str(tmp_path / "counter")}
    raw = {**quick, "learner": learner, "finetune": {"epochs": 0}, "export": {"tflite": False}}
    path.write_text(yaml.safe_dump(raw))
    records = read_trials(run(load(path)) / "search" / "trials.jsonl")
    # A driver hands its metrics over every ten seconds.
    deadline = time.monotonic() + 60
    while (found := exported("measured")).get(("stage", "search")) != 0:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert found[("trials_done", "")] == 5
    assert found[("trials_failed", "")] == 1
    assert found[("best_score", "")] == max(record["score"] for record in records if record["score"] is not None)
    assert found[("candidates_per_minute", "")] == pytest.approx(
        per_minute([record["finished_at"] for record in records])
    )


def test_a_dashboard_is_started_on_request_for_this_machine_only_and_its_address_said(monkeypatch, capsys):
    asked: dict[str, object] = {}

    def init(**options: object) -> SimpleNamespace:
        asked.update(options)
        return SimpleNamespace(dashboard_url="127.0.0.1:8270")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for wanted in (True, False):
        with ray_session(Observers([Progress()]), dashboard=wanted):
            pass
        assert (asked["include_dashboard"], asked["dashboard_host"]) == (wanted, "127.0.0.1")
        assert ("dashboard: http://127.0.0.1:8270" in capsys.readouterr().out) is wanted
