"""The ladder of milder plans: its plans and epochs by hand, what is refused, and trainings that go on from one another.
Without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from learners import filter_ranked, non_uniform_quant, uniform_quant, weight_sparse
from learners.filter_ranked import FilterRanked
from learners.layer_removal import LayerRemoval
from learners.litert_quant import LitertQuant
from learners.non_uniform_quant import NonUniformQuant
from learners.uniform_quant import UniformQuant
from learners.weight_sparse import WeightSparse
from pfray.config.schema import Experiment
from pfray.config.sections import Resources
from pfray.errors import ConfigError
from pfray.learner.build import Weights, finish_candidate
from pfray.learner.context import Context, Recipe
from pfray.learner.pipeline import Pipeline
from pfray.learner.pipeline import Settings as Steps
from pfray.nn.modes import place
from pfray.reporting.observers import Observers
from pfray.space import CompressionSpace, Knob, Plan
from pfray.storage.run_folder import RunFolder
from pfray.training.settings import Finetune, Training
from pfray.workflow.retrain import Trainer, staged_trainings
from pfray.workflow.rungs import check_rungs, climb, milder_plans
from tests.small import chain, make_task
from tests.without_ray import without_ray

ONE = filter_ranked.Settings(round_to=1)


def algorithm(kind: Any = WeightSparse, settings: Any = None, model: nn.Module | None = None) -> Any:
    return kind(place(model or chain(), "cpu"), make_task(), settings)


def test_the_plans_of_the_rungs_by_hand():
    knobs = (
        Knob("ratio", compressed=0.25, full=1.0, choices=(0.25, 0.5, 0.75, 1.0)),
        Knob("share", compressed=0.1, full=1.0),
    )
    ratios = CompressionSpace(knobs, lambda values: {})
    # 1 - 0.75 / 3 = 0.75 and 1 - 0.75 2 / 3 = 0.5 are allowed; 1 - 0.6 / 3 and 1 - 0.6 2 / 3.
    first, second = milder_plans(ratios, {"ratio": 0.25, "share": 0.4}, 2)
    assert first == pytest.approx({"ratio": 0.75, "share": 0.8})
    assert second == pytest.approx({"ratio": 0.5, "share": 0.6})
    # 0.8333 and 0.6667 are rounded to the nearest.
    assert [plan["ratio"] for plan in milder_plans(ratios, {"ratio": 0.5, "share": 1.0}, 2)] == [0.75, 0.75]

    sparsity = CompressionSpace((Knob("s", compressed=0.98, full=0.0, scale="log_density"),), lambda values: {})
    # The density 0.064 by way of 0.4 and 0.16.
    assert [plan["s"] for plan in milder_plans(sparsity, {"s": 0.936}, 2)] == pytest.approx([0.6, 0.84])

    bits = CompressionSpace((Knob("b", compressed=1, full=8, integer=True),), lambda values: {})
    # 8 - 5 / 3 = 6.33 and 8 - 10 / 3 = 4.67.
    assert [plan["b"] for plan in milder_plans(bits, {"b": 3.0}, 2)] == [6, 5]


@pytest.mark.parametrize(("epochs", "rungs", "expected"), [
    (8, 2, [2, 2, 4]), (10, 2, [2, 2, 6]), (30, 3, [5, 5, 5, 15]), (3, 1, [1, 2]), (8, 0, [8]), (0, 2, [0]),
])  # fmt: skip
def test_the_rungs_share_half_of_the_epochs_and_the_plan_has_the_rest(epochs, rungs, expected):
    task = make_task()
    recipe = Recipe(WeightSparse, weight_sparse.Settings(), Finetune(epochs=epochs, rungs=rungs))
    plan = algorithm().space().uniform({"sparsity": 0.5})
    (staged,) = staged_trainings("compressed", recipe, plan, Context(task, chain()))
    assert [stage.epochs for stage in staged.stages] == expected
    assert staged.last.candidate.plan == plan
    assert [stage.name for stage in staged.stages] == [*(f"compressed-{n + 1}" for n in range(len(expected) - 1)),
                                                       "compressed"]  # fmt: skip
    assert len({stage.key for stage in staged.stages}) == len(expected)


def test_only_a_training_after_compression_has_rungs():
    plan = algorithm().space().uniform({"sparsity": 0.5})
    assert climb(algorithm(), plan, Training(epochs=8)) == []
    assert climb(algorithm(LitertQuant), {}, Finetune(epochs=8, rungs=2)) == []


LAST = {
    "sparse": (WeightSparse, weight_sparse.Settings(interval=1), {"sparsity": 0.8}),
    "even levels": (UniformQuant, uniform_quant.Settings(activation_bits=4, images=60), {"bits": 3}),
    "codebooks": (NonUniformQuant, non_uniform_quant.Settings(max_bits=5), {"bits": 3}),
}


def trained(case: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str], Plan]:
    """(weights of the rung, weights of the plan, names of the trainings, the plan)."""
    kind, settings, limits = LAST[case]
    torch.manual_seed(0)
    teacher, task = place(chain(), "cpu"), make_task()
    plan = kind(teacher, task, settings).space().uniform(limits)
    # Steps so small that what is kept can be recognized.
    recipe = Recipe(kind, settings, Finetune(epochs=2, rungs=1, lr=1e-6, batch_size=15, weight_decay=0))
    trainer = Trainer(Resources(), RunFolder(folder), Observers())
    with without_ray() as names:
        model = trainer.train(recipe, Context(task, teacher), {"compressed": plan})["compressed"]
    (staged,) = staged_trainings("compressed", recipe, plan, Context(task, teacher))
    first = trainer._kept(staged.stages[0])
    assert first is not None
    return first.state, model.state_dict(), names, plan


def test_zeros_of_a_rung_stay_zero(tmp_path):
    rung, last, names, plan = trained("sparse", tmp_path)
    assert names == ["compressed-1", "compressed"]
    for name, sparsity in plan.items():
        zeros = rung[f"{name}.weight"] == 0
        # Half way to 0.8 in density: 1 - sqrt(0.2).
        assert int(zeros.sum()) == pytest.approx((1 - (1 - sparsity) ** 0.5) * zeros.numel(), abs=0.51)
        assert (last[f"{name}.weight"][zeros] == 0).all()
        assert int((last[f"{name}.weight"] == 0).sum()) == pytest.approx(sparsity * zeros.numel(), abs=0.51)


def test_channels_of_the_plan_are_among_those_of_the_rung():
    context, cpu = Context(make_task(), place(chain(), "cpu")), torch.device("cpu")
    space = algorithm(FilterRanked, ONE).space()
    plan = space.uniform({"macs": 0.4 * space.reachable("macs")[1]})
    recipe = Recipe(FilterRanked, ONE, Finetune(epochs=2, rungs=1))
    (staged,) = staged_trainings("compressed", recipe, plan, context)
    first, last = [stage.candidate for stage in staged.stages]
    rung = finish_candidate(first, context, None, cpu)
    done = finish_candidate(last, context, (first, Weights(rung.structure, rung.model.state_dict())), cpu)
    # The first layer's filters lose no inputs, so each can be told.
    wide, narrow = (each.model.get_submodule("0.0").weight.detach().flatten(1) for each in (rung, done))
    assert len(narrow) < len(wide) < 4
    assert all(any(torch.equal(own, other) for other in wide) for own in narrow)
    assert done.structure == algorithm(FilterRanked, ONE).structure(plan)


@pytest.mark.parametrize("case", ["even levels", "codebooks"])
def test_levels_are_fitted_to_the_weights_of_the_rung(tmp_path, case):
    rung, last, names, plan = trained(case, tmp_path)
    assert names == ["compressed-1", "compressed"]
    for name, bits in plan.items():
        assert int(rung[f"{name}.weight_bits"]) > int(last[f"{name}.weight_bits"]) == bits
    kind, settings, _ = LAST[case]
    base = chain()
    base.load_state_dict({name: rung[name] for name in base.state_dict()})
    from_rung = algorithm(kind, settings, base).compress(plan).model.state_dict()
    from_teacher = algorithm(kind, settings).compress(plan).model.state_dict()
    key = f"{next(iter(plan))}.weight"
    assert torch.allclose(last[key], from_rung[key], atol=1e-3)
    assert not torch.allclose(last[key], from_teacher[key], atol=1e-3)


def refused(kind: Any, settings: Any, finetune: dict[str, Any], learner: Any = "the_learner", plan: Any = None) -> str:
    experiment = Experiment.model_validate({
        "name": "x", "model": "lenet", "data": "digits", "learner": learner, "target": {"macs": "0.5x"},
        "finetune": finetune,
    })  # fmt: skip
    own = algorithm(kind, settings)
    try:
        check_rungs(experiment, own, own.space().decode([0.5] * len(own.space())) if plan is None else plan)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "settings", "finetune", "line"), [
    (LitertQuant, None, {"rungs": 2},
     "finetune.rungs: 2 is not allowed: no training of the_learner goes on from a milder plan. "
     "Remedy: finetune.rungs=0"),
    (LayerRemoval, None, {"rungs": 1}, "no training of the_learner goes on"),
    (WeightSparse, None, {"rungs": 2, "epochs": 3},
     "finetune.rungs: 2 is not allowed: rungs share half of the epochs, and 3 are too few for one epoch each. "
     "Remedy: finetune.epochs=4, or finetune.rungs=1"),
    (FilterRanked, replace(ONE, iterations=3), {"rungs": 2}, "the_learner trains milder plans of its own"),
    (UniformQuant, uniform_quant.Settings(fold=True), {"rungs": 2}, "a trained model has no 0.1.weight"),
])  # fmt: skip
def test_rungs_that_a_learner_or_the_epochs_do_not_allow_are_one_line(kind, settings, finetune, line):
    assert line in (found := refused(kind, settings, finetune))
    assert len(found.splitlines()) == 1
    assert not refused(kind, settings, {**finetune, "rungs": 0})
    assert not refused(kind, settings, {**finetune, "epochs": 0})  # nothing is trained


def test_a_pipelines_learners_without_rungs_are_trained_as_usual_unless_all_are_or_rungs_are_asked_of_them():
    def found(*names: Any) -> str:
        own = TypeAdapter(Steps).validate_python({"steps": list(names)})
        pipeline = algorithm(Pipeline, own)
        plan = pipeline.space().decode([0.5] * len(pipeline.space()))
        return refused(Pipeline, own, {"rungs": 1, "epochs": 2}, list(names), plan)

    ranked: dict[str, Any] = {"name": "filter_ranked", "round_to": 1}
    assert found(ranked, "litert_quant") == ""
    assert found(ranked, {"name": "litert_quant", "finetune": {"epochs": 1}}) == ""
    asked = {"name": "litert_quant", "finetune": {"rungs": 1}}
    assert "learner.litert_quant.finetune.rungs: 1 is not allowed: no training" in found(ranked, asked)
    few = {**ranked, "finetune": {"epochs": 1}}
    assert "learner.filter_ranked.finetune.epochs=2, or learner.filter_ranked.finetune.rungs=0" in found(
        few, "litert_quant"
    )
