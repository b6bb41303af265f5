"""Trainings on the cluster: one worker, or two through Ray Train, and faults on the way."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import pytest
import ray
import torch

from learners import weight_sparse
from pfray.errors import TrainingFailed, UserCodeFailed
from pfray.learner.base import Compressed
from pfray.learner.build import compress_candidate
from pfray.learner.context import Candidate, Context, Recipe
from pfray.measure.evaluation import evaluate
from pfray.space import Plan
from pfray.training.loop import fit
from pfray.training.settings import Distributed
from pfray.workflow.launch import retrain
from tests import userland
from tests.faults import Faulty, Settings

CPU = torch.device("cpu")
TWO_BITS = Distributed(comm_hook="ecq")


@pytest.fixture(scope="module")
def plan(context: Context) -> Plan:
    space = weight_sparse.WeightSparse(context.teacher, context.task).space()
    return space.uniform({"sparsity": 0.8})


@pytest.fixture(scope="module")
def candidate(recipe: Recipe, plan: Plan) -> Candidate:
    return recipe.candidate(plan)


@pytest.fixture(scope="module")
def trained(ray_cluster, context, candidate, tmp_path_factory):
    """By the number of workers: (state dict, folder, the epochs reported). Two of them send two bits a gradient."""
    found = {}
    for workers, exchange in ((1, Distributed()), (2, TWO_BITS)):
        folder, seen = tmp_path_factory.mktemp("trained") / f"w{workers}", []
        state = retrain(
            candidate, ray.put(context), folder, workers=workers, distributed=exchange,
            on_progress=lambda done, loss, pace, seen=seen: seen.append(done) if loss is not None else None,
        )  # fmt: skip
        found[workers] = state, folder, seen
    return found


def test_two_workers_reach_the_accuracy_and_the_exact_plan_of_one(trained, context, candidate):
    plan, accuracies, counts = candidate.plan, {}, {}
    for workers, (state, _, seen) in trained.items():
        model = compress_candidate(candidate, context, CPU, steps=0).model
        model.load_state_dict(state)
        accuracies[workers] = evaluate(model, context.task, context.task.test).accuracy
        counts[workers] = {name: int((state[f"{name}.weight"] == 0).sum()) for name in plan}
        assert seen[-1] == 4
    assert min(accuracies.values()) > 0.9
    # 359 test images: two points are about two standard errors of the difference.
    assert abs(accuracies[1] - accuracies[2]) <= 0.02
    sizes = {name: context.teacher.get_submodule(name).weight.numel() for name in plan}
    assert counts[1] == counts[2] == {name: weight_sparse.zero_count(plan[name], sizes[name]) for name in plan}


def test_one_worker_does_exactly_what_the_plain_loop_does(trained, context, candidate):
    state, folder, _ = trained[1]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = 4 * (len(context.task.train) // 64)
        begun = compress_candidate(candidate, context, CPU, steps)
        fit(begun.model, context.task, candidate.training, seed=context.seed, hook=begun.hook)
    finally:
        torch.set_num_threads(threads)
    for name, value in begun.model.state_dict().items():
        assert torch.allclose(value, state[name], atol=1e-4), name

    # Killed after the last epoch and before its result was kept, it is not trained again.
    curve = (folder / "curve.jsonl").read_text()
    again = retrain(candidate, ray.put(context), folder)
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    assert (folder / "curve.jsonl").read_text() == curve
    # Killed between the last epoch's state and its line, the line is made up for, without the pace that is not known.
    *lines, last = curve.splitlines(keepends=True)
    (folder / "curve.jsonl").write_text("".join(lines))
    retrain(candidate, ray.put(context), folder)
    *again, made_up = (folder / "curve.jsonl").read_text().splitlines(keepends=True)
    assert again == lines
    assert {**json.loads(made_up), "images_per_second": json.loads(last)["images_per_second"]} == json.loads(last)


def test_a_worker_that_dies_is_replaced_and_goes_on_from_its_checkpoint(ray_cluster, context, recipe, plan, tmp_path):
    settings = Settings(fault="worker", stage="training", at=40, counter=str(tmp_path / "counter"))
    faulty = Recipe(Faulty, settings, recipe.training).candidate(plan)
    state = retrain(faulty, ray.put(context), tmp_path / "dies")
    assert (tmp_path / "counter").exists()
    assert state["fc1.weight"].eq(0).float().mean() == pytest.approx(plan["fc1"], abs=1e-4)
    lines = (tmp_path / "dies" / "curve.jsonl").read_text().splitlines()
    epochs = [json.loads(line)["epoch"] for line in lines]
    assert sorted(set(epochs)) == [1, 2, 3, 4]
    # Step 40 lies in the third epoch.
    assert epochs.count(1) == 1


def test_two_workers_that_send_two_bits_go_on_from_a_checkpoint_as_if_nothing_had_happened(
    trained, context, recipe, plan, tmp_path
):
    whole, folder, _ = trained[2]
    settings = Settings(fault="worker", stage="training", at=40, counter=str(tmp_path / "counter"))
    faulty = Recipe(Faulty, settings, recipe.training).candidate(plan)
    # Killed before while Ray was writing its list of checkpoints, it begins anew.
    (tmp_path / "dies").mkdir()
    (tmp_path / "dies" / "checkpoint_manager_snapshot.json").write_text("")
    again = retrain(faulty, ray.put(context), tmp_path / "dies", workers=2, distributed=TWO_BITS)
    assert (tmp_path / "counter").exists()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    epochs = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    steps = len(context.task.train) // 64
    elements = sum(parameter.numel() for parameter in context.teacher.parameters())
    assert [entry["epoch"] for entry in epochs] == [1, 2, 3, 4]
    assert len({entry["sent_bytes"] for entry in epochs}) == 1
    assert epochs[0]["sent_bytes"] * 10 <= 4 * elements * steps


class Crooked(weight_sparse.WeightSparse):
    """A user's learner whose hook fails in the training."""

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        compressed = super().compress(plan, steps)
        return Compressed(compressed.model, fail_at_once) if steps else compressed


def fail_at_once(step: int) -> None:
    raise KeyError("no such step")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_traceback_of_a_training_that_failed_is_where_the_error_says(
    ray_cluster, context, recipe, plan, tmp_path, workers
):
    crooked = Recipe(Crooked, weight_sparse.Settings(), recipe.training).candidate(plan)
    line = fail_at_once.__code__.co_firstlineno + 1
    with pytest.raises(UserCodeFailed) as caught:
        retrain(crooked, ray.put(context), tmp_path / "crooked", workers=workers)
    kept = tmp_path / "crooked" / "traceback.txt"
    text = str(caught.value)
    assert text.startswith("KeyError: 'no such step' (")
    assert f"test_launch.py, line {line}). Remedy: mend the code there, then begin anew with --force" in text
    assert text.endswith(f"; the traceback is in {kept}")
    assert "in fail_at_once" in kept.read_text()
    assert "\x1b" not in kept.read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_that_diverges_is_not_tried_again(ray_cluster, context, recipe, plan, tmp_path, workers):
    training = recipe.training.model_copy(update={"epochs": 2, "lr": 1e9})
    steep = replace(recipe, training=training).candidate(plan)
    with pytest.raises(TrainingFailed, match=r"in epoch 1\. Remedy: an lr below 1e"):
        retrain(steep, ray.put(context), tmp_path / "steep", workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_the_users_loss_comes_with_file_and_line(ray_cluster, context, candidate, tmp_path, workers):
    task = copy.copy(context.task)
    object.__setattr__(task, "loss", userland.broken_loss)  # as if it had passed the checks
    with pytest.raises(UserCodeFailed) as caught:
        retrain(candidate, ray.put(replace(context, task=task)), tmp_path / "broken", workers=workers)
    assert re.fullmatch(
        r"KeyError: 'label' \(.*/tests/userland.py, line \d+\)\. Remedy: mend the code there, .*", str(caught.value)
    )
