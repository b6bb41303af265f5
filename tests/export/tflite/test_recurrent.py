from __future__ import annotations

import torch
from torch import nn

from pfray.export.tflite.recurrent import unrolled_steps
from tests.forms import Text, tokens


def test_steps_are_those_of_all_layers_and_directions():
    assert unrolled_steps(Text(), tokens()) == 0
    assert unrolled_steps(Text(nn.GRU), tokens()) == 2 * 7
    layers = nn.Sequential(nn.LSTM(5, 4, num_layers=3))  # time first
    assert unrolled_steps(layers, torch.zeros(11, 2, 5)) == 0 + 3 * 1
    assert unrolled_steps(nn.Sequential(nn.RNN(5, 4, batch_first=True)), {"input": torch.zeros(2, 9, 5)}) == 9
