from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"

# Worker processes of several tests share two cores: threads that wait for each other must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Read by worker processes too, which must find the tests' own learners.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray with two processors, once for all tests that need it (which share one xdist group, ``ray``)."""
    import logging

    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests share one cache folder, the same for all xdist workers, and never the user's."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    os.environ["PFRAY_CACHE"] = str(shared / "pfray-cache")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The tests' models are so small that threads wait for one another longer than they work."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def quick(tmp_path: Path) -> dict:
    """The raw experiment of a run that takes seconds: LeNet on the digits."""
    return {
        "model": "lenet",
        "data": "digits",
        "learner": "weight_sparse",
        "target": {"sparsity": 0.8},
        "teacher": {"epochs": 8, "lr": 0.05, "batch_size": 64},
        "finetune": {"epochs": 3, "lr": 0.02, "batch_size": 64},
        "search": {"name": "random", "trials": 6, "baselines": ["uniform"]},
        "export": {"images": 50, "rounds": 3},
        "storage": str(tmp_path / "runs"),
    }
