from __future__ import annotations

import pytest
import torch

from pfray.task import Split, Task


@pytest.fixture(scope="module")
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
    # The number of its sample is written into each target, so that a test can tell which ones were used.
    split = Split(inputs, torch.arange(40))
    return Task("toy", split, split, split, 40, mean=(0.5,), std=(0.3,))
