"""The range of tensors that share one scale, such as the input and output of a pooling.

LiteRT's integer kernels need one scale for the input and the output of a pooling or a reshape, and for all inputs of a
concatenation. PT2E has one fake quantization for all of them, called several times in a step. torchao's moving average
counts every call as a step: the ranges of a feature map and of its mean over all positions are averaged, and larger
values are clipped. Here the range of a step covers all its calls.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule


class SharedRange:
    """Replaces a fake quantization's own observer.

    quantizer: torchao's FusedMovingAvgObsFakeQuantize of a whole tensor. watching: True while its range follows calls.
    """

    def __init__(self, quantizer: Any) -> None:
        self.quantizer, self.watching = quantizer, False
        self.seen: list[Tensor] = []
        quantizer.observer_enabled[0] = 0
        quantizer.register_forward_pre_hook(self._see)

    def _see(self, _: Any, inputs: tuple[Tensor]) -> None:
        if self.watching:
            self.seen.append(torch.stack(inputs[0].detach().aminmax()))

    @torch.no_grad()
    def follow(self) -> None:
        """Move the range towards the values seen since the last call, by the observer's averaging constant.

        The next forward pass takes scale and zero point from it.
        """
        if not self.seen:
            return
        lows, highs = torch.stack(self.seen, 1)
        self.seen.clear()
        observer = self.quantizer.activation_post_process
        for end, seen in ((observer.min_val, lows.min()), (observer.max_val, highs.max())):
            # Before the first step both ends are infinite.
            end.copy_(torch.where(end.isinf(), seen, end + observer.averaging_constant * (seen - end)))


def shared_ranges(graph: GraphModule) -> list[SharedRange]:
    """Shared ranges of the fake quantizations that the graph calls more than once, without fixed ranges."""
    called = [graph.get_submodule(str(node.target)) for node in graph.graph.nodes if node.op == "call_module"]
    times = Counter(map(id, called))
    several = {id(module): module for module in called if times[id(module)] > 1}
    return [
        SharedRange(module)
        for module in several.values()
        if hasattr(getattr(module, "activation_post_process", None), "averaging_constant")
    ]
