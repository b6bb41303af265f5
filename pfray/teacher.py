"""The teacher: given weights, or trained once by ``learners/full_precision.py`` and cached by content."""

from __future__ import annotations

from torch import nn

from pfray.cache import cache_dir, content_key, load_tensors, save_tensors, state_bytes
from pfray.components import find_class
from pfray.config import Distill, Distributed, Experiment
from pfray.job import Job
from pfray.learner import Learner
from pfray.retraining import Trainer
from pfray.task import Task


def make_teacher(experiment: Experiment, model: nn.Module, task: Task, trainer: Trainer) -> nn.Module:
    """``model`` as it is where the experiment gave it weights; otherwise trained, or read from the cache.

    The cache's key is the settings of model, data and training, the architecture's printed form, the initial weights
    and the data itself, so a change of any of them trains a new teacher. A change inside the user's own loss or
    augmentation cannot be seen; it takes a new seed, or an empty cache.
    """
    if experiment.model.weights is not None:
        return model
    # How gradients are exchanged is part of what a teacher is, where it is not the plain way.
    plain = experiment.distributed == Distributed()
    key = content_key(
        experiment.model.model_dump_json(), experiment.data.model_dump_json(), repr(model), state_bytes(model),
        task.fingerprint(), experiment.teacher.model_dump_json(), experiment.seed, experiment.resources.precision,
        *([] if plain else [experiment.distributed.model_dump_json()]),
    )  # fmt: skip
    path = cache_dir() / "teachers" / f"{key}.safetensors"
    if (state := load_tensors(path)) is not None:
        trainer.progress.say("[teacher] from the cache")
        model.load_state_dict(state)
        return model
    learner: type[Learner] = find_class("learner", "full_precision", Learner)
    job = Job(
        task, model, learner.settings_type(), experiment.teacher, Distill(), experiment.search, experiment.seed,
        experiment.resources.precision,
    )  # fmt: skip
    teacher = trainer.train(learner, job, {"teacher": {}})["teacher"]
    save_tensors(path, teacher.state_dict())
    return teacher
