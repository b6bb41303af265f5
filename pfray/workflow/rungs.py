"""The ladder of a training (``finetune.rungs``): milder plans are trained first, each from the one before.

Notation: a plan has the positions p (``space.py``; 1 is the uncompressed end), R rungs below it and E epochs. Rung k of
R has the positions 1 - k / (R + 1) (1 - p), rounded to the allowed values, and floor(E / 2R) epochs; the plan has the
rest. On a linear knob the rungs are evenly spaced; on sparsities the density falls by the same factor from rung to
rung. Positions fall from rung to rung, so each plan compresses the one before further.
"""

from __future__ import annotations

from pfray.config.schema import Experiment
from pfray.errors import ConfigError
from pfray.learner.base import Algorithm, Stage
from pfray.learner.context import with_values
from pfray.learner.pipeline import Pipeline, split_plan
from pfray.space import CompressionSpace, Plan
from pfray.training.settings import Finetune, Training


def climb(algorithm: Algorithm, plan: Plan, training: Training) -> list[Stage]:
    """The milder plans and their epochs, the mildest first; none without ``rungs`` or ``epochs``."""
    rungs = training.rungs if isinstance(training, Finetune) and algorithm.has_rungs else 0
    if not rungs or not training.epochs:
        return []
    epochs = training.epochs // (2 * rungs)
    return [Stage(milder, epochs) for milder in milder_plans(algorithm.space(), plan, rungs)]


def milder_plans(space: CompressionSpace, plan: Plan, rungs: int) -> list[Plan]:
    """``rungs`` plans between the uncompressed model and ``plan``, the mildest first."""
    compressed = 1 - space.encode(plan)
    return [space.decode(1 - rung / (rungs + 1) * compressed) for rung in range(1, rungs + 1)]


def check_rungs(experiment: Experiment, algorithm: Algorithm, plan: Plan) -> None:
    """Raise ConfigError for rungs that the learner or the number of epochs does not allow.

    plan: any plan of the learner. Of a pipeline the learners without rungs are trained as usual, unless all are.
    """
    if not isinstance(algorithm, Pipeline):
        _check("finetune", experiment.learner.title, algorithm, plan, experiment.finetune)
        return
    parts = split_plan(algorithm.settings, plan)
    some = any(step.algorithm.has_rungs for step, _ in parts)
    for step, own in parts:
        if step.algorithm.has_rungs or "rungs" in step.finetune or not some:
            bound = step.bind(algorithm.model, algorithm.task)
            training = with_values(experiment.finetune, step.finetune)
            _check(f"learner.{step.name}.finetune", step.name, bound, own, training)


def _check(path: str, title: str, algorithm: Algorithm, plan: Plan, training: Finetune) -> None:
    rungs, epochs = training.rungs, training.epochs
    if not rungs or not epochs:
        return
    refusal, remedy = "", f"{path}.rungs=0"
    if not algorithm.has_rungs:
        refusal = f"no training of {title} goes on from a milder plan"
    elif epochs < 2 * rungs:
        refusal = f"rungs share half of the epochs, and {epochs} are too few for one epoch each"
        remedy = f"{path}.epochs={2 * rungs}, or {path}.rungs={epochs // 2}"
    elif algorithm.stages(plan):
        refusal = f"{title} trains milder plans of its own by its settings"
        remedy += ", or leave those settings out"
    elif not algorithm.has_finish or algorithm.finish_is_final:
        own, trained = algorithm.model.state_dict(), algorithm.compress(plan).model.state_dict()
        if missing := [name for name in own if name not in trained or own[name].shape != trained[name].shape]:
            refusal = f"by the settings of {title} a trained model has no {missing[0]}, from which the next goes on"
            remedy += ", or settings that leave the layers as they are"
    if refusal:
        raise ConfigError(f"{path}.rungs: {rungs} is not allowed: {refusal}. Remedy: {remedy}")
