"""What Torch-Pruning's pruner takes out of a network, and the heads that it has to be told of."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.torch_pruning_share import heads_of, removed_share
from pfray.measure.cost import total_macs
from tests.small import make_task
from tests.zoo import conv, head, randomize


def test_the_share_is_that_of_the_channels_left() -> None:
    torch.manual_seed(0)
    model = randomize(nn.Sequential(conv(2, 8), conv(8, 8), head(8, 10))).eval()
    task = make_task(classes=10)
    whole = total_macs(model, torch.zeros(1, 2, 8, 8))
    # Half of the channels of both, and all ten outputs; 3x3 convolutions at 8x8 positions.
    left = 64 * 9 * (2 * 4 + 4 * 4) + 4 * 10
    assert removed_share(model, task, 0.5) == 1 - left / whole
    assert total_macs(model, torch.zeros(1, 2, 8, 8)) == whole


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads = 4
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))


def test_the_heads_of_an_attention_are_found_by_their_names() -> None:
    module = Attention()
    assert heads_of(module) == ([module.query, module.key, module.value], 4)
    assert heads_of(nn.Linear(8, 8)) is None
