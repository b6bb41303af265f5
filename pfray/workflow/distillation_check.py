"""Checks of the section ``distill`` before a run: stages to compare, and room on disk for soft labels."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from torch import nn

from pfray.config.schema import Experiment
from pfray.errors import ConfigError, UnsupportedModel
from pfray.storage.run_folder import RunFolder
from pfray.task import Task, example_input
from pfray.training.cached_views import bytes_of_views
from pfray.training.features import find_stages
from pfray.training.settings import Training
from pfray.units import size_text


def check_distillation(
    experiment: Experiment, trainings: Sequence[Training], model: nn.Module, task: Task
) -> list[str]:
    """Remarks on what the distillation from ``model`` will take. trainings: of the chosen plan.

    Raises ConfigError and UnsupportedModel for what it cannot do.
    """
    distill, searched = experiment.distill, experiment.search.space
    if (distill.features or "distill.features" in searched) and not find_stages(model, model, example_input(task)):
        raise UnsupportedModel(
            f"distill.features: {type(model).__name__} has no stage, which is a block or the last module of a "
            "resolution with outputs (N, C, H, W) or (N, T, C). Remedy: distill.features=0"
        )
    views = min(distill.cached_views, max(training.epochs for training in trainings))
    if not views:
        return []
    if not distill.weight and "distill.weight" not in searched:
        raise ConfigError(
            f"distill.cached_views: {distill.cached_views} views have soft labels that nothing reads, since "
            "distill.weight is 0. Remedy: distill.weight=0.9, or distill.cached_views=0"
        )
    # Batches of another size are other batches.
    sizes = {training.batch_size for training in trainings if training.epochs}
    needed = len(sizes) * bytes_of_views(model, task, views)
    place = RunFolder.at(experiment.storage, experiment.name).path
    free = shutil.disk_usage(next(folder for folder in place.parents if folder.exists())).free
    if needed > free:
        raise ConfigError(
            f"distill.cached_views: the soft labels of {views} views of {len(task.train)} samples take "
            f"{size_text(needed)}, and {size_text(free)} are free for {place}. Remedy: fewer views, or "
            "distill.cached_views=0"
        )
    return [f"distill.cached_views keeps {size_text(needed)} of soft labels in the run folder until the training ends"]
