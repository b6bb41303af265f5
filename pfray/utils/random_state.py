"""The global random generators that a user's code may draw from: torch's, numpy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def generators() -> tuple[Any, ...]:
    """States of the generators; two results are equal if nothing was drawn in between."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()  # type: ignore[union-attr]


@contextmanager
def kept_generators() -> Iterator[None]:
    """Restore all three generators after the block."""
    pythons, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)


def seed_generators(seed: int) -> None:
    """Seed all three, of torch the one of the CPU alone: ``torch.manual_seed`` would seed a training's GPU too."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)


class OwnGenerators:
    """Generators that a reader has for itself: in its blocks the global ones go on from where its last block ended."""

    def __init__(self, seed: int) -> None:
        with kept_generators():
            seed_generators(seed)
            self.states = self._read()

    @contextmanager
    def used(self) -> Iterator[None]:
        with kept_generators():
            pythons, numpys, torchs = self.states
            random.setstate(pythons)
            np.random.set_state(numpys)
            torch.set_rng_state(torchs)
            yield
            self.states = self._read()

    def _read(self) -> tuple[Any, Any, torch.Tensor]:
        return random.getstate(), np.random.get_state(), torch.get_rng_state()
