from __future__ import annotations

import pytest
import torch

from pfray.task import Split, Task
from tests.pruning.reconstruction.refitting import IMAGES


@pytest.fixture(scope="module")
def task() -> Task:
    inputs = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    split = Split(inputs, torch.zeros(IMAGES, dtype=torch.int64))
    return Task("noise", split, split, split, num_outputs=4)
