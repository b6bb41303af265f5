"""Milliseconds of a forward pass in PyTorch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from torch import nn

from pfray.nn.inputs import Inputs, tensors
from pfray.nn.modes import evaluating, forward


def latencies_ms(models: Sequence[nn.Module], example: Inputs, rounds: int = 30) -> list[float]:
    """Median milliseconds of one forward pass of ``example`` for each model.

    The models are timed in turns, so that disturbances hit all alike. Interrupted passes do not count, because on a
    busy machine the slower model is interrupted more often; if less than a third are left, all count.
    """
    times: list[list[tuple[float, bool]]] = [[] for _ in models]
    for turn in range(rounds + 3):
        for model, own in zip(models, times, strict=True):
            with evaluating(model):
                before, start = _interruptions(), time.perf_counter()
                tensors(forward(model, example))[0].sum().item()  # waits for the device
                if turn >= 3:
                    own.append((1e3 * (time.perf_counter() - start), _interruptions() > before))
    alone = [[took for took, interrupted in own if not interrupted] for own in times]
    return [
        median(few if 3 * len(few) >= rounds else [took for took, _ in own])
        for few, own in zip(alone, times, strict=True)
    ]


def _interruptions() -> int:
    """Involuntary context switches of this thread; 0 if the system does not count them."""
    try:
        import resource

        return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    except (ImportError, AttributeError, OSError):
        return 0
