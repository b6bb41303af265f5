"""Algorithm: one way to compress a model, in plain PyTorch without Ray. Authors of compression methods subclass it.

An algorithm is bound once to a model, a task and its settings. ``space`` gives its knobs, ``compress`` a copy of the
model compressed by a plan, and ``finish``, where it has one, a more careful version for the chosen plan.

    class Halves(Algorithm):
        settings_type = Settings                    # a frozen dataclass

        def space(self): ...                        # self.model, self.task and self.settings are bound
        def compress(self, plan, steps=0): ...      # returns Compressed(model, hook)

Quantities independent of the plan (sorted magnitudes, covariances) are cached properties: one object compresses by many
plans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pfray.errors import ConfigError
from pfray.learner.pipeline_space import PipelineSpace
from pfray.nn.modes import keep_memory_format
from pfray.pruning.layers.graph import LayerGraph
from pfray.space import CompressionSpace, Plan
from pfray.task import Task
from pfray.training.hooks import Hook
from pfray.utils.settings import NoSettings


@dataclass(frozen=True)
class Compressed:
    """A compressed model, on the device of the algorithm's model.

    hook: called by the training that follows. It may approach the plan gradually and must meet it at the last step. If
        it has ``state_dict`` and ``load_state_dict``, checkpoints keep its state.
    structure: from ``finish`` only: JSON from which ``Algorithm.rebuild`` makes a model that the trained state dict
        fits; None for ``Algorithm.structure`` of the plan.
    """

    model: nn.Module
    hook: Hook | None = None
    structure: Any = None


@dataclass(frozen=True)
class Stage:
    """A milder plan, finished and trained for ``epochs`` before the chosen one."""

    plan: Plan
    epochs: int


class Algorithm:
    """Base of all compression algorithms.

    model: the uncompressed model, in a pipeline the output of the previous algorithm; never changed.
    settings: an instance of ``settings_type``, a frozen dataclass; None for its defaults.
    """

    settings_type: ClassVar[type] = NoSettings
    # True if later algorithms cannot undo it (structural removal), so another may follow in a pipeline. The follower's
    # plan may have knobs of removed layers.
    permanent: ClassVar[bool] = False
    # True if its models start from random weights, so that an untrained one is meaningless.
    from_scratch: ClassVar[bool] = False
    # True if ``finish`` does more than ``compress``: training then starts from its result, without a hook.
    has_finish: ClassVar[bool] = False
    # True if a training may go on from the trained model of a milder plan (``finetune.rungs``): by ``finish`` where it
    # has one, else by ``compress`` of the model with those weights.
    has_rungs: ClassVar[bool] = False
    # True if ``finish`` gives weights as they are shipped, which a training would undo: it is for plans without a
    # training, and a training starts from ``compress`` and its hook.
    finish_is_final: ClassVar[bool] = False
    # True if ``error_curves`` is implemented.
    has_error_curves: ClassVar[bool] = False
    # Name of the setting whose multiples the counts of its knobs are, for a remark on a target that is not used up.
    rounding_setting: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, value in vars(cls).items():
            if isinstance(value, staticmethod) and hasattr(Algorithm, name):
                raise ConfigError(
                    f"learner: {cls.__name__}.{name} is a static function. Remedy: def {name}(self, ...), which finds "
                    "self.model, self.task and self.settings"
                )
        if "stages" in vars(cls) and not cls.has_finish:
            # A stage goes on from the one before through ``finish`` only.
            raise ConfigError(
                f"learner: {cls.__name__} has stages and no finish. Remedy: a finish that goes on from start, and "
                "has_finish = True in the class"
            )
        for method in ("finish", "error_curves"):
            if method in vars(cls) and not getattr(cls, f"has_{method}"):
                raise ConfigError(
                    f"learner: {cls.__name__} has a {method} of its own. Remedy: has_{method} = True in the class"
                )

    def __init__(self, model: nn.Module, task: Task, settings: Any = None) -> None:
        self.model, self.task = model, task
        self.settings = self.settings_type() if settings is None else settings
        # Called by a ``finish`` that takes long, with a few words on where it is.
        self.tell: Callable[[str], None] = lambda words: None

    @classmethod
    def for_training(cls, settings: Any, steps: int, per_epoch: int) -> tuple[Any, str]:
        """Settings whose defaults depend on the training that follows, decided; and why, a sentence for the user.

        steps: optimizer steps of all trainings after ``finish``, 0 for none. per_epoch: in an epoch of the first of
        them. Called once, before the search, so that trials and result are compressed in the same way.
        """
        return settings, ""

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def space(self) -> CompressionSpace:
        """Knobs of the model and their costs. Raises UnsupportedModel if there is nothing to compress."""
        raise self._missing("space(self)")

    def removable(self) -> LayerGraph | None:
        """Layers and blocks that the knobs of kind ``layer`` keep (1) or remove (0); None if there are no such knobs.

        A learner behind in a pipeline that changes the same costs needs it. Raises ConfigError where none can follow.
        """
        return None

    def space_behind(self, earlier: Algorithm) -> PipelineSpace | None:
        """Joint space of ``earlier`` and this algorithm, bound to the same model, in a pipeline of both; None if they
        have none. Only learners that change the same costs need one."""
        return None

    def behind(self, earlier: Algorithm, plan: Plan, model: nn.Module) -> Algorithm:
        """This algorithm on ``model``, which ``earlier`` made of ``self.model`` by its ``plan``, for a trial.

        By default it is bound anew. Quantities of ``self.model`` that still serve need not be computed again.
        """
        return type(self)(model, self.task, self.settings)

    def notes(self) -> list[str]:
        """Sentences that the start of a run tells the user about this model, such as a default that depends on it."""
        return []

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """A copy of the model compressed by ``plan``, fast: a search calls this in every trial.

        steps: optimizer steps of the training that follows. With 0 the plan is met immediately.
        """
        raise self._missing("compress(self, plan, steps=0)")

    def error_curves(self) -> dict[str, np.ndarray]:
        """Relative errors of knobs, ``(G,)`` each, at evenly spaced positions from 0 (most compressed) to 1.

        0 means no loss, 1 that nothing of the layer is left. ``search: allocate`` adds them up.
        """
        return {}

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        """The model of the chosen plan before its training, by a method too slow for a search.

        start: the trained model of an earlier stage, not to be changed; None for ``self.model``.
        """
        return Compressed(self.compress(plan).model, structure=self.structure(plan))

    def structure(self, plan: Plan) -> Any:
        """Structure that ``finish`` gives a plan, as JSON for ``rebuild``. By default the plan itself."""
        return plan

    def rebuild(self, structure: Any) -> nn.Module:
        """A model of this structure with arbitrary weights, for a trained state dict to be loaded into.

        The default belongs to the default ``structure``: it compresses by the plan.
        """
        return self.compress(structure).model

    def stages(self, plan: Plan) -> list[Stage]:
        """Milder plans that are finished and trained first, each from the previous one, for algorithms with ``finish``.

        They may depend only on the plan and the settings.
        """
        return []

    def _missing(self, method: str) -> ConfigError:
        name = type(self).__name__
        return ConfigError(f"learner: {name} has no {method.partition('(')[0]}. Remedy: def {method}: ... in the class")


def check_result(algorithm: Algorithm, method: str, result: Any) -> Compressed:
    """``result``, if it is of the type that ``compress`` and ``finish`` return. Raises ConfigError otherwise."""
    if isinstance(result, Compressed) and isinstance(result.model, nn.Module):
        keep_memory_format(algorithm.model, result.model)
        return result
    found = f"Compressed({type(result.model).__name__})" if isinstance(result, Compressed) else type(result).__name__
    raise ConfigError(
        f"learner: {type(algorithm).__name__}.{method} returned a {found}. Remedy: return Compressed(model, hook)"
    )
