"""What is kept of a row of trainings, and what of it is taken for whose. Without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from learners.weight_sparse import WeightSparse
from pfray.config.sections import Resources
from pfray.learner.context import Context, Recipe
from pfray.reporting.observers import Observers
from pfray.storage.run_folder import RunFolder
from pfray.workflow.retrain import Trainer, staged_trainings
from tests.without_ray import without_ray


def lasting(recipe: Recipe, epochs: int) -> Recipe:
    return replace(recipe, training=recipe.training.model_copy(update={"epochs": epochs}))


def train(
    folder: Path, context: Context, recipe: Recipe, share: float, epochs: int = 1
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The state of LeNet with that share of every layer pruned, and the trainings it took."""
    plan = dict.fromkeys(WeightSparse(context.teacher, context.task).space().names, share)
    trainer = Trainer(Resources(), RunFolder(folder), Observers())
    with without_ray() as trained:
        models = trainer.train(lasting(recipe, epochs), context, {"compressed": plan})
        return models["compressed"].state_dict(), trained


def zeros(state: dict[str, torch.Tensor]) -> float:
    return state["fc1.weight"].eq(0).float().mean().item()


def test_a_finished_training_is_read_and_one_of_another_plan_is_not_taken_for_it(tmp_path, context, recipe, caplog):
    first, trained = train(tmp_path, context, recipe, 0.5)
    assert trained == ["compressed"]
    again, trained = train(tmp_path, context, recipe, 0.5)
    assert trained == []
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not caplog.text
    other, trained = train(tmp_path, context, recipe, 0.75)
    assert trained == ["compressed"]
    assert zeros(other) == pytest.approx(0.75, abs=1e-3)
    assert "compressed.safetensors is damaged or of another plan; it is made again" in caplog.text
    assert "state.pt cannot be used (it was made from another plan or other settings)" in caplog.text


def test_a_damaged_result_is_made_from_the_last_epochs_state(tmp_path, context, recipe, caplog):
    first, _ = train(tmp_path, context, recipe, 0.5)
    (tmp_path / "training" / "compressed.safetensors").write_bytes(b"")
    again, _ = train(tmp_path, context, recipe, 0.5)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert "compressed.safetensors is damaged" in caplog.text
    assert "state.pt" not in caplog.text


@pytest.mark.parametrize("change", [{"epochs": 3}, {"share": 0.6}])
def test_another_plan_or_length_has_another_key(context, recipe, change):
    def key(share: float = 0.5, epochs: int = 2) -> Any:
        (staged,) = staged_trainings("compressed", lasting(recipe, epochs), {"fc1": share}, context)
        return [stage.key for stage in staged.stages]

    assert key() == key()
    assert key() != key(**change)
