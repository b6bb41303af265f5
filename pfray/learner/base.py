"""Algorithm: one way to compress a model, in plain PyTorch. What an author subclasses; knows nothing of Ray.

An algorithm is bound once to a model, a task and its settings. It says what can be decided (``space``), compresses a
copy by a plan (``compress``), and may do the chosen plan more carefully (``finish``).

    class Halves(Algorithm):
        settings_type = Settings                    # a frozen dataclass

        def space(self): ...                        # self.model, self.task and self.settings are bound
        def compress(self, plan, steps=0): ...      # returns Compressed(model, hook)

What does not depend on the plan (sorted magnitudes, covariances) is a ``cached_property``: one object compresses by
many plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pfray.errors import ConfigError
from pfray.space import CompressionSpace, Plan
from pfray.task import Task
from pfray.training.loop import Hook


@dataclass(frozen=True)
class NoSettings:
    """None are needed."""


@dataclass(frozen=True)
class Compressed:
    """A compressed model, on the device of the algorithm's model.

    hook: for the training that follows. It may approach the plan step by step, and must have reached it at the end. One
        with ``state_dict`` and ``load_state_dict`` has its state kept in checkpoints.
    structure: of ``finish`` only: JSON from which ``Algorithm.rebuild`` makes a model that the trained weights fit
        into; None for the one that ``Algorithm.structure`` gives the plan.
    """

    model: nn.Module
    hook: Hook | None = None
    structure: Any = None


@dataclass(frozen=True)
class Stage:
    """A milder plan, finished and trained for some epochs on the way to the chosen one."""

    plan: Plan
    epochs: int


class Algorithm:
    """Base of all compression algorithms.

    model: the uncompressed model, or in a pipeline what the algorithms before this one made of it; never changed.
    settings: of ``settings_type``, a frozen dataclass; None stands for its defaults.
    """

    settings_type: ClassVar[type] = NoSettings
    # True if later algorithms cannot undo it (structural removal), so that another may follow in a pipeline. Its plan
    # may then have knobs of layers that are gone.
    permanent: ClassVar[bool] = False
    # True if its models start with random weights and are nothing before they were trained.
    from_scratch: ClassVar[bool] = False
    # True if ``finish`` does more than ``compress``: training then starts from its result, and without a hook.
    has_finish: ClassVar[bool] = False
    # True if ``error_curves`` gives any.
    has_error_curves: ClassVar[bool] = False

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

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def space(self) -> CompressionSpace:
        """The knobs of the model and what they cost. Raises UnsupportedModel where there is nothing to compress."""
        raise NotImplementedError

    def compress(self, plan: Plan, steps: int = 0) -> Compressed:
        """A copy of the model compressed by ``plan``, quickly: a search does this for every trial.

        steps: optimizer steps of the training that follows. With 0 the plan is met at once.
        """
        raise NotImplementedError

    def error_curves(self) -> dict[str, np.ndarray]:
        """Relative errors of knobs, ``(G,)`` each, at evenly spaced positions from 0 (most compressed) to 1.

        0 where nothing is lost, 1 where nothing is left of the layer. ``search: allocate`` adds them up.
        """
        return {}

    def finish(self, plan: Plan, start: nn.Module | None = None) -> Compressed:
        """The model of the chosen plan before its training, made with all the care that a search has no time for.

        start: the trained model of an earlier stage, not to be changed; None for ``model`` itself.
        """
        return Compressed(self.compress(plan).model, structure=self.structure(plan))

    def structure(self, plan: Plan) -> Any:
        """The structure that ``finish`` gives a plan, as JSON for ``rebuild``. By default the plan itself."""
        return plan

    def rebuild(self, structure: Any) -> nn.Module:
        """A model of this structure, its weights without meaning: a trained state dict is loaded into it.

        The default goes with the default ``structure``: it compresses by the plan.
        """
        return self.compress(structure).model

    def stages(self, plan: Plan) -> list[Stage]:
        """Milder plans that are finished and trained first, each from the one before; for algorithms with a ``finish``.

        They may depend on the plan and the settings, and on nothing else.
        """
        return []
