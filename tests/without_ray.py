"""Whole runs in this process, without Ray: trials are scored by their number, trainings are plain calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray
import torch
from ray.tune.search import Searcher

from pfray.cluster import preflight, ray_cluster
from pfray.reporting import prometheus
from pfray.search.base import PlanSearcher
from pfray.workflow import finalize, launch, trials


@contextlib.contextmanager
def without_ray() -> Iterator[list[str]]:
    """Yields the names of the trainings that are done during the block, those that only read a last state included."""
    trained: list[str] = []

    def train_alone(config: dict[str, Any], cpus: int, gpus: float) -> dict[str, torch.Tensor]:
        trained.append(config["folder"].name)
        return launch.work_alone(config, cpus)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_cluster, "ray_session", lambda *_, **__: contextlib.nullcontext())
        patch.setattr(ray_cluster, "check_room", lambda *_: None)
        patch.setattr(preflight, "check_nodes", lambda *_: None)
        patch.setattr(prometheus, "Prometheus", MagicMock())
        patch.setattr(trials, "run_trials", _run_trials)
        patch.setattr(ray_cluster, "total", lambda kind: 1)
        patch.setattr(ray_cluster, "processors_per_worker", lambda workers: 1)
        patch.setattr(ray, "put", lambda value: value)
        patch.setattr(launch, "train_alone", train_alone)
        patch.setattr(launch, "task_device", lambda: torch.device("cpu"))
        patch.setattr(finalize, "export_model", lambda *_, **__: None)
        yield trained


def _run_trials(spec: Any, searcher: PlanSearcher, *_: Any, **__: Any) -> None:
    while (entry := searcher.suggest("one")) != Searcher.FINISHED:
        assert isinstance(entry, dict)
        searcher.on_trial_complete("one", {"score": 0.1 * entry["trial"], "standard_error": 0.01})
