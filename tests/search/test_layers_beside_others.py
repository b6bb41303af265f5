"""Searches over layers to remove beside other knobs: a layer changes its state, which small moves never do."""

from __future__ import annotations

import numpy as np

from pfray.search.random import Random
from pfray.space import CompressionSpace, Knob

LAYERS, WIDTHS = 20, 10
KNOBS = (
    *(Knob(f"layer{i}", 0.0, 1.0, choices=(0.0, 1.0), kind="layer") for i in range(LAYERS)),
    *(Knob(f"width{i}", 0.1, 1.0, kind="keep_ratio") for i in range(WIDTHS)),
)
SPACE = CompressionSpace(KNOBS, lambda v: {"macs": float(v[:LAYERS].sum() + v[LAYERS:].sum())})


def removed(plan: dict[str, float]) -> int:
    return sum(plan[f"layer{i}"] == 0 for i in range(LAYERS))


def test_about_one_layer_changes_in_a_random_plan_and_the_widths_by_their_spread():
    searcher = Random(SPACE, {"macs": 30.0}, Random.settings_type())
    plans = [searcher.sample_around(np.full(LAYERS + WIDTHS, 1.0), 0.4) for _ in range(200)]
    assert 0.6 < np.mean([removed(plan) for plan in plans]) < 1.4
    assert searcher.deviations(0.4)[LAYERS:].tolist() == [0.4 / (LAYERS + WIDTHS) ** 0.5] * WIDTHS


def test_layers_alone_keep_the_spread():
    space = CompressionSpace(KNOBS[:LAYERS], lambda v: {"macs": float(v.sum())})
    searcher = Random(space, {"macs": 20.0}, Random.settings_type())
    assert searcher.deviations(0.4).tolist() == [0.4 / LAYERS**0.5] * LAYERS
