"""The guide's pages: their files run as they stand."""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pfray
import pfray.run
from benchmarks import torchvision_ops
from pfray.data import _shards
from pfray.learner.scoring import Scorer
from pfray.measure.evaluation import evaluate
from pfray.reporting.observers import Observers
from pfray.training.loop import fit
from pfray.training.settings import Training
from pfray.workflow import setup
from pfray.workflow.experiment_file import load_experiment
from pfray.workflow.learner_check import try_plan
from tests.pictures import CLASSES, make_folder, records, write_tar

ROOT = Path(__file__).resolve().parents[1]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in (
    "from_python", "your_model", "your_data", "your_learner", "your_searcher",
)}  # fmt: skip
# Settings that make the pages' runs take seconds.
QUICK = (
    "search.trials=4", "search.baselines=[]", "search.rescore=0", "finetune.epochs=1", "export.rounds=3",
    "export.images=20",
)  # fmt: skip


def files() -> dict[str, str]:
    """The files of all pages by name: blocks that begin with ``# name``."""
    found: dict[str, str] = {}
    for page in PAGES.values():
        for name, text in re.findall(r"```(?:python|yaml)\n# (\w+\.\w+)\n(.*?)```", page, re.DOTALL):
            assert name not in found, f"{name} is on two pages"
            found[name] = text
    return found


FILES = files()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files and the weights that ``train_mine.py`` writes."""
    folder = tmp_path_factory.mktemp("guide")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        runpy.run_path("train_mine.py", run_name="__main__")
        forget_modules()
    return folder


@pytest.fixture
def folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That folder as the working directory, from which modules are imported."""
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(trained)
    yield trained
    forget_modules()


def forget_modules() -> None:
    for name in FILES:
        sys.modules.pop(name.partition(".")[0], None)


def test_the_pages_script_names_all_damaged_images(tmp_path, monkeypatch, capsys):
    whole = make_folder(tmp_path / "data" / "birds", {"train": 3, "val": 2})
    damaged = [whole / "train" / CLASSES[0] / "00001.jpg", whole / "val" / CLASSES[2] / "00000.jpg"]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-60])
    (whole / "val" / CLASSES[1] / "._00000.jpg").write_bytes(b"of macOS")
    (tmp_path / "find_damaged.py").write_text(FILES["find_damaged.py"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path("find_damaged.py")
    found = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in found] == [str(path.relative_to(tmp_path)) for path in damaged]


def test_the_pages_script_writes_the_sizes_of_tars_in_a_bucket(tmp_path, monkeypatch):
    for name, count in (("train-0", 5), ("train-1", 4), ("validation-0", 3)):
        write_tar(tmp_path / f"{name}.tar", records(count))
    (tmp_path / "write_sizes.py").write_text(FILES["write_sizes.py"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path("write_sizes.py")
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/sizes/", recursive=True)
    found = _shards.find("memory://sizes", None)
    memory.rm("/sizes", recursive=True)
    assert {split: part.lengths for split, part in found.items()} == {"train": (5, 4), "validation": (3,)}


def test_the_pages_experiment_on_images_in_folders(tmp_path, monkeypatch):
    make_folder(tmp_path / "data" / "birds", {"train": 10, "val": 2}, ("robin", "wren"))
    (tmp_path / "birds.yaml").write_text(FILES["birds.yaml"])
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    loaded = setup.load(load_experiment(Path("birds.yaml")), Observers([]))
    assert [len(split) for split in (loaded.task.train, loaded.task.validation, loaded.task.test)] == [18, 2, 4]
    assert loaded.task.train.head(1).inputs.shape == (1, 3, 160, 160)
    assert loaded.model.fc.out_features == 2
    assert loaded.limits.keys() == {"macs"}


class Checked(BaseException):
    """Ends a script where its run would begin; no Exception, which would be one of the user's code. result: of a trial.
    """

    def __init__(self, loaded: setup.LoadedRun, result: dict[str, Any]) -> None:
        super().__init__("checked")
        self.loaded, self.result = loaded, result


def check_and_score(experiment: Any, given: Any, **_: Any) -> None:
    """In place of a run from Python: everything that is checked before it, and one trial with two training steps."""
    loaded = setup.load(experiment, Observers([]), given)
    try_plan(experiment, loaded)
    spec = setup.trial_spec(experiment, loaded, loaded.model)
    scoring = replace(spec.scoring, finetune_steps=2)
    scorer = Scorer(spec.context, spec.recipe, scoring, torch.device("cpu"))
    raise Checked(loaded, scorer.score(loaded.space.uniform(loaded.limits)))


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Checked:
    monkeypatch.setattr(pfray.run, "execute", check_and_score)
    with pytest.raises(Checked) as caught:
        runpy.run_path(name, run_name="__main__")
    assert "error" not in caught.value.result
    return caught.value


def test_the_trained_network_tells_the_stripes(folder):
    task = importlib.import_module("mine_data").build()
    model = importlib.import_module("mine_model").build(num_outputs=3, in_channels=1)
    model.load_state_dict(torch.load("mine.pt"))
    assert evaluate(model, task, task.test).accuracy > 0.8
    inputs = task.train.head(8).inputs
    moved = task.augment(inputs, torch.Generator().manual_seed(0))
    assert (moved.dtype, moved.shape) == (torch.uint8, (8, 1, 16, 16))
    assert not torch.equal(moved, inputs)


@pytest.mark.parametrize("name", ["mine.yaml", "low_rank.yaml", "sparse.yaml", "climb.yaml"])
def test_every_experiment_file_passes_check(folder, name):
    pfray.run.check(load_experiment(Path(name)))


def test_the_sparse_learner_meets_the_plan_at_the_end_of_a_training(folder):
    loaded = setup.load(load_experiment(Path("sparse.yaml")), Observers([]))
    learner = loaded.components.learner(loaded.model, loaded.task, loaded.components.learner_settings)
    plan = loaded.space.uniform(loaded.limits)

    def zeros(model: nn.Module) -> float:
        weights = [model.get_submodule(name).weight for name in plan]
        return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)

    assert zeros(learner.compress(plan).model) == pytest.approx(loaded.space.costs(plan)["sparsity"], abs=1e-9)
    growing = learner.compress(plan, steps=18)
    assert zeros(growing.model) < 0.01
    fit(growing.model, loaded.task, Training(epochs=2, batch_size=32), seed=0, hook=growing.hook)
    assert zeros(growing.model) == pytest.approx(0.75, abs=1e-4)


def test_the_scripts_that_try_a_learner_and_a_searcher(folder, capsys):
    runpy.run_path("try_learner.py", run_name="__main__")
    smallest = capsys.readouterr().out.splitlines()[-1]
    quick, careful = map(float, smallest.rpartition("}")[2].split())
    assert careful < 0.8 * quick

    runpy.run_path("try_searcher.py", run_name="__main__")
    before, after = map(float, capsys.readouterr().out.split(" -> "))
    assert before < 0.9
    assert after > 0.95


def test_the_low_rank_learner_counts_and_rebuilds_exactly(folder):
    module = importlib.import_module("mine_learner")
    task = importlib.import_module("mine_data").build()
    model = importlib.import_module("mine_model").build(num_outputs=3, in_channels=1)
    learner = module.LowRank(model, task, module.Settings())
    space, plan = learner.space(), {"hidden.0": 0.3, "hidden.2": 1.0}

    (stage,) = learner.stages(plan)
    half = learner.finish(stage.plan).model
    made = learner.finish(plan, half).model
    rebuilt = learner.rebuild(learner.structure(plan))
    rebuilt.load_state_dict(made.state_dict())
    inputs = task.normalize(task.train.head(4).inputs)
    assert torch.equal(rebuilt.eval()(inputs), made.eval()(inputs))
    assert sum(p.numel() for p in made.parameters()) == space.costs(plan)["params"]
    assert learner.structure(plan) == {"hidden.0": 17}
    whole = learner.finish({"hidden.0": 0.999, "hidden.2": 1.0}).model
    assert learner.error_curves()["hidden.0"][-1] == 0.0
    assert (whole.eval()(inputs) - model.eval()(inputs)).abs().max() < 0.1 * model(inputs).abs().max()


def python(*arguments: str) -> str:
    """Output of a Python program in the working directory, as a user starts it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_with_a_users_own_model_data_learner_and_searcher(folder):
    python("-m", "pfray", "run", "low_rank.yaml", *QUICK, "search.name=mine_searcher:Climb", "name=own")
    run = folder / "runs/own"
    summary = json.loads((run / "summary.json").read_text())

    assert summary["compressed"]["params"] <= 0.5 * summary["teacher"]["params"]
    assert summary["compressed"]["accuracy"] > 0.8
    assert summary["trials"]["finished"] == 4
    assert (run / "model.tflite").is_file()
    assert pfray.load(run / "model.pt2")(torch.zeros(2, 1, 16, 16)).shape == (2, 3)


def test_the_script_of_the_page_from_python(folder):
    printed = python("compress_mine.py")
    assert printed.startswith("waves: at most 0.5x MACs")
    assert printed.count("waves: at most") == 1
    assert "torch.Size([5, 3])" in printed
    resolved = (folder / "runs/waves/experiment.yaml").read_text()
    assert "batch_size: 32" in resolved  # the loader's
    program = pfray.load(folder / "runs/waves/model.pt2")
    assert program(torch.zeros(2, 1, 64)).shape == (2, 3)


def test_a_detector_has_a_loss_of_both_outputs(folder, monkeypatch):
    found = script("detector.py", monkeypatch)
    task = found.loaded.task
    assert (task.metric_name, task.num_outputs, found.loaded.objective.name) == ("overlap", None, "agreement")
    assert found.loaded.space.names == ["features.0", "features.2", "features.4"]
    assert 0 <= found.result["measurement"]["accuracy"] < 1


def test_a_function_that_evaluates_replaces_the_metric(folder, monkeypatch):
    found = script("own_evaluation.py", monkeypatch)
    assert found.loaded.task.metric_name == "worst_class"
    assert found.result["measurement"]["accuracy_error"] is None
    assert len(found.loaded.task.train) == 540


def test_a_text_classifier_is_called_by_keywords(folder, monkeypatch):
    torchvision_ops.load()
    pytest.importorskip("transformers")
    found = script("text_classifier.py", monkeypatch)
    assert set(found.loaded.task.train.head(1).inputs) == {"input_ids", "attention_mask"}
    assert found.loaded.task.output == "logits"


def test_a_folder_of_images_is_read_batch_by_batch(folder, tmp_path):
    for split in ("train", "validation", "test"):
        for label, name in enumerate(("cats", "dogs")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.full((20, 30, 3), 100 * label + number, np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    task = importlib.import_module("mine_loader").build(str(tmp_path), size=16, loaders=0)

    assert task.num_outputs == 2
    epochs = task.train.epochs(6, [0])
    inputs, targets = next(task.training_batches(next(epochs), torch.Generator(), torch.device("cpu")))
    assert inputs.shape == (6, 3, 16, 16)
    shade = (inputs.mean((1, 2, 3)) * 0.25 + 0.5) * 255
    assert torch.allclose(shade, 100.0 * targets + 1, atol=1.01)


def test_the_regression_of_two_inputs(folder):
    class Prices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, image: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            return image.mean((1, 2, 3))[:, None] + self.layer(numbers)

    task = importlib.import_module("mine_regression").build()
    model = Prices()
    nn.init.zeros_(model.layer.bias)
    with torch.no_grad():
        model.layer.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert evaluate(model, task, task.test).accuracy == pytest.approx(0.0, abs=1e-6)
