"""Averaged weights of a training (``average``): an exponential moving average, or the mean of its last part.

Notation: w_t are the weights after t of T optimizer steps, as the learner's hook leaves them, and a_t is their average.

    ema        a_0 = w_0,  a_t = d_t a_(t-1) + (1 - d_t) w_t,  d_t = min(0.999, (1 + t) / (10 + t))
    share s    a_T = mean of the last k weights w_(T-k+1) .. w_T,  k = max(1, round(s T))

The warm-up of the decay d_t is TensorFlow's (``ExponentialMovingAverage``, ``num_updates``): until step 9,000 the
average looks back over a ninth of the steps done, so that a short training does not remember its begin. The mean is
stochastic weight averaging (Izmailov et al. 2018) over steps instead of epochs.

The average of sparse weights, of quantized levels or of codewords is none of them. So the tensors of the hook, such as
the float weights of a quantized network, are averaged as well, and the hook puts the result on its constraint.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pfray.task import Task
from pfray.training.batch_norm import BN_IMAGES, batch_norms, reestimate_batch_norm
from pfray.training.hooks import Hook, StatefulHook

EMA_DECAY = 0.999


class Average:
    """Average of a model's parameters and of its hook's floating-point tensors.

    kind: ``ema`` or a share of the training. steps: T, all optimizer steps of the training.
    """

    def __init__(self, model: nn.Module, hook: Hook | None, kind: str | float, steps: int) -> None:
        self.model, self.hook, self.kind, self.steps = model, hook, kind, steps
        self.averages = {name: tensor.detach().clone() for name, tensor in self._followed().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` optimizer steps."""
        if share := newest_share(self.kind, step, self.steps):
            for name, tensor in self._followed().items():
                self.averages[name].lerp_(tensor, share)

    @torch.no_grad()
    def finish(self, task: Task, precision: str) -> None:
        """Give the model the averaged weights on the hook's constraint, and re-estimate its batch norms.

        Norms that the hook has frozen keep the statistics that the weights were trained with.
        """
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.averages[f"model.{name}"])
        if isinstance(self.hook, StatefulHook):
            own = {name: self.averages.get(f"hook.{name}", value) for name, value in self.hook.state_dict().items()}
            self.hook.load_state_dict(own)
        if self.hook is not None:
            self.hook(self.steps)
        norms = [norm for norm in batch_norms(self.model) if norm.training]
        reestimate_batch_norm(self.model, task, BN_IMAGES, precision, norms=norms, augmented=True)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, average in self.averages.items():
            average.copy_(state[name])

    def _followed(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {f"model.{name}": each for name, each in self.model.named_parameters()}
        if isinstance(self.hook, StatefulHook):
            state = self.hook.state_dict()
            found |= {f"hook.{name}": each for name, each in state.items() if each.is_floating_point()}
        return found


def average_of(model: nn.Module, hook: Hook | None, kind: str | float, steps: int) -> Average | None:
    """The average of a training's setting ``average``; None for ``none``."""
    return None if kind == "none" else Average(model, hook, kind, steps)


def newest_share(kind: str | float, step: int, steps: int) -> float:
    """Share of w_t in a_t at t = ``step`` of ``steps``; 0 before the part of which a mean is taken."""
    if isinstance(kind, str):
        return 1 - min(EMA_DECAY, (1 + step) / (10 + step))
    averaged = step - steps + max(1, round(kind * steps))
    return 1 / averaged if averaged > 0 else 0.0
