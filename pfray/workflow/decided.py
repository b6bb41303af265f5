"""Settings that an experiment leaves open, decided by its data and by the training of the chosen plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pfray.config.schema import Experiment
from pfray.learner.base import Algorithm
from pfray.learner.pipeline import Pipeline, settings_for
from pfray.search.base import PlanSearcher
from pfray.task import Split, Task

# Optimizer steps of a trial where the budget allows them. For weight_sparse, the one learner for which it was measured,
# scores after so many, down to a learning rate of 0, have a rank correlation of 0.84 with the accuracy after the
# training, those without any 0.73 (docs/results.md, *What a trial's score can see*).
STEPS = 30
# The budget: all trials together train for at most this share of the chosen plan's training.
SHARE = 0.5


@dataclass(frozen=True)
class Decided:
    """learner_settings: with nothing left open. finetune_steps: of each round of a trial. notes: for the user."""

    learner_settings: Any
    finetune_steps: int
    notes: tuple[str, ...]


def decide(
    experiment: Experiment, learner: type[Algorithm], learner_settings: Any, searcher: type[PlanSearcher], task: Task
) -> Decided:
    """What the experiment leaves open, once for the whole run, so that its trials and its result agree."""
    settings, notes = settings_for(learner, learner_settings, experiment.finetune, task)
    steps = experiment.search.finetune_steps
    trained = searcher.open_ended and not issubclass(learner, Pipeline)
    if steps is None and trained and (steps := affordable_steps(experiment, task)):
        notes.append(
            f"each trial is trained for {steps} steps before it is scored (search.finetune_steps; 0 scores at once)"
        )
    return Decided(settings, steps or 0, tuple(notes))


def affordable_steps(experiment: Experiment, task: Task) -> int:
    """``STEPS``, if the trials then train for at most ``SHARE`` of the steps of the training that follows; else 0.

    0 too for data read batch by batch, of which every trial would have to get as many samples. No steps are taken where
    nothing is searched, and in pipelines, whose learners have trainings of their own.
    """
    training, trials = experiment.finetune, experiment.search.trials
    steps = training.epochs * task.train.steps(training.batch_size)
    return STEPS if isinstance(task.train, Split) and trials * STEPS <= SHARE * steps else 0
