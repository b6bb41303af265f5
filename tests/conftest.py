from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pfray.learner.context import Context, Recipe

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"

# Worker processes of several tests share two cores: threads that wait for each other must not spin. OpenBLAS's always
# do, which on a busy machine makes the Gaussian process's small matrices five times slower than one thread is.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A raylet whose agents start late, as they do on a busy machine, gives up.
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
# Read by worker processes too, which must find the tests' own learners.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need Ray come first: they take longest, and the short ones then fill whichever xdist worker is free.

    xdist hands out whole files (``--dist loadfile``), so that what a file's tests share is made once.

    Tests that lean on what training gave are marked ``trains``: those of modules that call ``fit``, and those that take
    the trained context. Whole runs are not among them.
    """
    from pfray.training.loop import fit

    ray = {item.path for item in items if _fixtures(item) & {"ray_cluster", "quick"}}
    items.sort(key=lambda item: item.path not in ray)
    for item in items:
        calls_fit = any(value is fit for value in vars(getattr(item, "module", item)).values())
        if item.path not in ray and (calls_fit or "context" in _fixtures(item)):
            item.add_marker("trains")


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray with two processors, once for all tests of an xdist worker that need it; the GPU is only said to be there."""
    import logging

    import ray

    from pfray.cluster.access import private_ray

    with private_ray():
        # A Ray of the machine's own, where one is up, has other processors and other work.
        ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False,
                 logging_level=logging.ERROR)  # fmt: skip
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


@pytest.fixture(scope="session")
def context() -> Context:
    """A LeNet that has learned the digits, uncompressed."""
    import torch

    from pfray.data import digits
    from pfray.learner.context import Context
    from pfray.models.lenet import lenet
    from pfray.training.loop import fit
    from pfray.training.settings import Training

    task = digits.build()
    torch.manual_seed(0)
    teacher = lenet(in_channels=1)
    fit(teacher, task, Training(epochs=6, lr=0.05, batch_size=64), seed=0)
    return Context(task, teacher.eval())


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Weights are pruned, and trained for four epochs."""
    from learners.weight_sparse import Settings, WeightSparse
    from pfray.learner.context import Recipe
    from pfray.training.settings import Training

    return Recipe(WeightSparse, Settings(), Training(epochs=4, lr=0.02, batch_size=64))


@pytest.fixture(scope="session")
def teacher_file(context: Context, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of that LeNet: most runs are not about the training of their own teacher."""
    import torch

    path = tmp_path_factory.mktemp("teacher") / "lenet.pt"
    torch.save(context.teacher.state_dict(), path)
    return path


@pytest.fixture
def quick(tmp_path: Path, teacher_file: Path) -> dict:
    """The raw experiment of a run that takes seconds: LeNet on the digits, one process for all trials."""
    return {
        "model": {"name": "lenet", "weights": str(teacher_file)},
        "data": "digits",
        "learner": "weight_sparse",
        "target": {"sparsity": 0.8},
        "teacher": {"epochs": 8, "lr": 0.05, "batch_size": 64},
        "finetune": {"epochs": 3, "lr": 0.02, "batch_size": 64},
        "search": {"name": "random", "trials": 6, "baselines": []},
        "export": {"images": 50, "rounds": 3},
        "resources": {"parallel": 1},
        "storage": str(tmp_path / "runs"),
    }
