"""The global random generators that a user's code may draw from: torch's, numpy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def generators() -> tuple[Any, ...]:
    """The generators' states; two are equal where nothing was drawn in between."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()  # type: ignore[union-attr]


@contextmanager
def kept_generators() -> Iterator[None]:
    """Whatever the block draws, all three go on afterwards as if it had not."""
    pythons, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)
