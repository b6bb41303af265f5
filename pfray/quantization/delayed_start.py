"""Delays of a quantization-aware training: rounded activations and frozen batch norms start after some steps.

* Activations are rounded only after ``delay`` steps, so that ranges that still change cut nothing off (Jacob et al.
  2018, section 3.1; PocketFlow's ``uqtf_quant_delay`` delays the weights too).
* After ``freeze_norms`` steps the statistics of batch norms stay fixed and normalize in training as well, as in the
  shipped model (Krishnamoorthi 2018, arXiv 1806.08342, section 3.2.1; ``uqtf_freeze_bn_delay``).

In evaluation mode everything is rounded, from the first step on.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pfray.quantization.activations import InputQuantizer
from pfray.training.batch_norm import batch_norms
from pfray.training.hooks import Hook, StatefulHook


class Delays:
    """A training hook for both delays, around the learner's own ``hook``, whose state it passes on."""

    def __init__(self, model: nn.Module, hook: Hook | None, delay: int, freeze_norms: int | None) -> None:
        self.model, self.hook, self.delay, self.freeze_norms = model, hook, delay, freeze_norms

    def __call__(self, step: int) -> None:
        # Searched each time, because training on several workers may replace batch norms.
        for module in self.model.modules():
            if isinstance(module, InputQuantizer):
                module.waiting = step < self.delay
        if self.freeze_norms is not None and step >= self.freeze_norms:
            for norm in batch_norms(self.model):
                norm.eval()
        if self.hook is not None:
            self.hook(step)

    def state_dict(self) -> dict[str, Tensor]:
        return self.hook.state_dict() if isinstance(self.hook, StatefulHook) else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if isinstance(self.hook, StatefulHook):
            self.hook.load_state_dict(state)


def with_delays(model: nn.Module, hook: Hook | None, delay: int = 0, freeze_norms: int | None = None) -> Hook | None:
    """The ``hook`` of the model's training with the delays; ``hook`` itself if there are none."""
    return Delays(model, hook, delay, freeze_norms) if delay or freeze_norms is not None else hook
