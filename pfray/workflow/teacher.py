"""Teacher of a run: given weights, or trained once by ``learners/full_precision.py`` and cached by content."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from pfray.config.registry import find_class
from pfray.config.schema import Experiment
from pfray.learner.base import Algorithm
from pfray.learner.context import Context, Recipe
from pfray.nn.fingerprint import model_parts
from pfray.training.settings import Distributed
from pfray.utils.cache import cache_dir, cache_key, load_tensors, save_tensors
from pfray.workflow.expected_metric import check_trained_teacher, expected_of
from pfray.workflow.retrain import Trainer
from pfray.workflow.setup import LoadedRun


def make_teacher(experiment: Experiment, loaded: LoadedRun, trainer: Trainer) -> nn.Module:
    """The loaded model unchanged if it is trained; otherwise trained, or read from the run folder or cache.

    Raises TrainingFailed if it has much less than ``teacher.expect``.
    """
    if loaded.is_trained:
        return loaded.model
    teacher = _trained_teacher(experiment, loaded, trainer)
    expected = expected_of(experiment, loaded.task)
    if expected is not None and experiment.teacher.epochs:
        check_trained_teacher(expected, teacher, loaded.task, trainer.observers.note)
    return teacher


def _trained_teacher(experiment: Experiment, loaded: LoadedRun, trainer: Trainer) -> nn.Module:
    """The loaded model with the weights of its training, which is read from the run folder or cache if it was done.

    The cache key covers the settings of model, data and training, the architecture's printed form, the initial weights,
    the outputs of ``forward``, the data itself and pfray's version. A change of any of them trains a new teacher. A
    change inside the user's own loss or augmentation is not seen: it takes a new seed, or an empty cache.
    """
    model, task = loaded.model, loaded.task
    if _read_into(model, trainer.run.teacher):
        return model  # the run's own, because its trials were made from it, perhaps on another machine
    # An exchange of gradients other than the default changes the teacher.
    plain = experiment.distributed == Distributed()
    key = cache_key(
        experiment.model.model_dump_json(), experiment.data.model_dump_json(), *model_parts(model, task),
        task.fingerprint(), experiment.teacher.model_dump_json(exclude={"expect"}), experiment.seed,
        experiment.resources.precision,
        *([] if plain else [experiment.distributed.model_dump_json()]),
    )  # fmt: skip
    path = cache_dir() / "teachers" / f"{key}.safetensors"
    if (state := load_tensors(path)) is not None:
        trainer.observers.note("[teacher] from the cache")
        model.load_state_dict(state)
        return model
    algorithm: type[Algorithm] = find_class("learner", "full_precision", Algorithm)
    context = Context(task, model, experiment.seed, experiment.resources.precision)
    recipe = Recipe(algorithm, algorithm.settings_type(), experiment.teacher)
    teacher = trainer.train(recipe, context, {"teacher": {}})["teacher"]
    save_tensors(path, teacher.state_dict())
    return teacher


def _read_into(model: nn.Module, path: Path) -> bool:
    """Load the file into ``model``; False, with ``model`` unchanged, if the file is damaged or another model's."""
    if not path.exists():
        return False
    state, own = load_tensors(path), model.state_dict()
    if state is None or {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in own.items()}:
        logging.getLogger("pfray").warning("%s is damaged; it is made again", path)
        return False
    model.load_state_dict(state)
    return True
