"""A worker that cannot be set up. Trials are in whole runs, which need Ray."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ObjectLostError, RaySystemError

from pfray.learner.trainable import Learner, why_setup_failed


@pytest.fixture
def learner(monkeypatch) -> Learner:
    monkeypatch.setattr(Learner, "_resources", lambda _: {"CPU": 1})
    return object.__new__(Learner)


def failing(monkeypatch, error: Exception) -> None:
    def get(_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "get", get)


def test_a_setup_that_fails_is_the_result_of_every_trial_of_the_worker(learner, monkeypatch):
    failing(monkeypatch, RaySystemError(ModuleNotFoundError("No module named 'mine.layers'"), "Traceback ..."))
    learner.setup({"plan": {}}, [SimpleNamespace()])
    for _ in range(2):
        result = learner.step()
        assert math.isnan(result["score"])
        assert result["done"]
        assert result["setup_error"] == (
            "a worker of Ray cannot import the module 'mine.layers'. Remedy: install it where the workers run, or name "
            "its folder in PYTHONPATH before Ray starts"
        )
        assert learner.reset_config({"plan": {}})


def test_data_that_ray_lost_and_a_memory_that_is_full_are_left_to_another_worker(learner, monkeypatch):
    for error in (ObjectLostError("id", None, "stack"), MemoryError()):
        failing(monkeypatch, error)
        with pytest.raises(type(error)):
            learner.setup({"plan": {}}, [SimpleNamespace()])


def test_another_reason_is_told_with_its_kind():
    error = RaySystemError(AttributeError("Can't get attribute 'Net' on <module 'mine'>"), "Traceback ...")
    assert why_setup_failed(error) == (
        "a worker of Ray cannot load what a trial needs (RaySystemError: Can't get attribute 'Net' on <module 'mine'>)."
        " Remedy: mend the cause; on a cluster, the same code on all machines"
    )
