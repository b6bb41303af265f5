from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pfray.learner.context import Context, Recipe

ROOT = Path(__file__).resolve().parents[1]

# Worker processes of several tests share two cores: threads that wait for each other must not spin. OpenBLAS's always
# do, which on a busy machine makes the Gaussian process's small matrices five times slower than one thread is.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A raylet whose agents start late, as they do on a busy machine, gives up.
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
# Read by worker processes too, which must find the tests' own learners.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


# Fixtures that start Ray, or train a model for whole runs.
RUNS = {"ray_cluster", "quick", "context", "teacher_file"}
# Tests that take longest without one of them, by the beginning of their names. Each folder of pfray/ has others.
LONG = (
    "benchmarks/", "cluster/test_access.py", "cluster/test_preflight.py", "cluster/test_ray_cluster.py",
    "data/test_cifar10.py", "envs/test_layerwise.py::test_the_toys_optimum",
    "export/packed/test_file.py::test_mobilenet", "export/test_pt2_archive.py::test_an_int8_program",
    "learner/test_pipeline.py::test_what_is_left_of_the_layers_is_trained", "learners/test_channel_pruned.py",
    "learners/test_dis_chn_pruned.py", "learners/test_layer_removal.py", "learners/test_algorithm_contract.py",
    "learners/test_weight_sparse.py", "models/test_imagenet_networks.py::test_all_channels",
    "models/test_models.py::test_public_weights", "models/test_torchvision.py",
    "pruning/channels/test_graph.py::test_a_deep_network", "quantization/pt2e/test_zoo.py", "search/test_critic.py",
    "search/test_damaged_states.py", "search/test_ddpg.py", "search/test_ddpg_agent.py",
    "search/test_gp.py::test_it_finds_the_best", "search/test_learning.py",
    "search/test_policy_gradient.py::test_a_policy_that_was_learned", "search/test_policy_gradient.py::test_it_beats",
    "search/test_resume.py", "search/test_searcher_contract.py", "search/test_unusual_spaces.py",
    "storage/test_remote.py", "test_continued.py", "test_damages.py", "test_guide.py",
    "test_inspect.py", "learners/test_channel_calibration.py", "data/test_damaged_cifar10.py",
    "test_main.py::test_a_folder", "test_main.py::test_all_mistakes", "test_main.py::test_check",
    "test_main.py::test_report", "test_main.py::test_the_installed_script",
    "test_mutated_experiments.py", "test_space.py::test_no_common_step_further", "training/test_comm_hooks.py",
    "utils/test_command.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need Ray come first: they take longest, and the short ones then fill whichever xdist worker is free.

    xdist hands out whole files (``--dist loadfile``), so that what a file's tests share is made once.

    Marked ``slow``: tests that take one of the fixtures RUNS, files that export .tflite files, and LONG.

    Marked ``trains``: tests that lean on what training gave, because they call ``fit`` (or a function or fixture of
    their module does) or take the trained LeNet. Whole runs are not among them.
    """
    from pfray.export.tflite import convert
    from pfray.training.loop import fit

    ray = {item.path for item in items if _fixtures(item) & {"ray_cluster", "quick"}}
    items.sort(key=lambda item: item.path not in ray)
    for item in items:
        imported = list(vars(getattr(item, "module", item)).values())
        calls_fit = any(value is fit for value in imported) and _names(item, "fit")
        if item.path not in ray and (calls_fit or "context" in _fixtures(item)):
            item.add_marker("trains")
        exports = any(value is convert or value is convert.export for value in imported)
        if _fixtures(item) & RUNS or exports or item.nodeid.removeprefix("tests/").startswith(LONG):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """All that was imported is kept out of the garbage collector's sight: exports, which make many objects, then take a
    sixth less."""
    gc.collect()
    gc.freeze()


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


def _names(item: pytest.Item, wanted: str) -> bool:
    """True if the test names ``wanted``, or a function or fixture of its module does that it names."""
    module = vars(getattr(item, "module", item))
    ahead, seen = [getattr(item, "function", None), *(module.get(name) for name in _fixtures(item))], set()
    while ahead:
        code = getattr(inspect.unwrap(ahead.pop()), "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        inner = [code, *(constant for constant in code.co_consts if inspect.iscode(constant))]
        names = {name for each in inner for name in each.co_names}
        if wanted in names:
            return True
        ahead += [module[name] for name in names if inspect.isroutine(module.get(name))]
    return False


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
    """A LeNet that has learned the digits."""
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
    """Sparse weights, trained for four epochs."""
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
