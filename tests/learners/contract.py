"""What the promises of all algorithms are held against: teachers, plans, and costs that are measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from learners.litert_quant import LitertQuant
from pfray.config.component import PIPELINE
from pfray.config.registry import component_modules
from pfray.learner.base import Algorithm, Compressed
from pfray.measure.cost import count_params, stored_bits, total_macs
from pfray.models.lenet import lenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.space import CompressionSpace, Plan
from pfray.task import example_input
from tests.small import described_bytes

# A pipeline has no defaults and does what its algorithms do; tests/learner/test_pipeline.py.
NAMES = sorted(set(component_modules("learner")) - {PIPELINE})
TEACHERS = {
    "lenet": lambda: lenet(in_channels=1),
    "mobilenet": lambda: mobilenet_v1(in_channels=1, width=0.25),
}
# Less work for ``finish`` than with the defaults, and a plan that is reached by stages where the algorithm has any.
CAREFUL: dict[str, dict[str, Any]] = {
    "channel_pruned": {"images": 100, "positions": 10, "group_size": 3},
    "dis_chn_pruned": {"losses": 1, "steps": 2, "images": 40, "per_step": 64, "inner_steps": 0, "group_size": 3},
    "filter_ranked": {"images": 100, "iterations": 2},
    "layer_removal": {"images": 100, "filters": 0.5},
    "litert_quant": {"images": 100},
    "uniform_quant": {"images": 50, "positions": 4, "iterations": 20},
}


def halfway(algorithm: Algorithm, space: CompressionSpace) -> dict[str, float]:
    """A limit half way between what can be reached, on the first of the space's costs.

    Networks of their own may be far larger than the teacher; those are not even trained for a step here.
    """
    unit = next(iter(space.costs(space.decode(np.ones(len(space))))))
    low, high = space.reachable(unit)
    return {unit: low + (0.02 if algorithm.from_scratch else 0.5) * (high - low)}


def space_and_plan(algorithm: Algorithm) -> tuple[CompressionSpace, Plan]:
    space = algorithm.space()
    if not len(space):
        pytest.skip("it decides nothing")
    return space, space.uniform(halfway(algorithm, space))


def some_plan(algorithm: Algorithm) -> Plan:
    space = algorithm.space()
    return space.uniform(halfway(algorithm, space)) if len(space) else {}


def compressed(algorithm: Algorithm, plan: Plan, steps: int = 0) -> Compressed:
    torch.manual_seed(0)  # as before every trial, for those that draw weights
    return algorithm.compress(plan, steps)


def finished(algorithm: Algorithm, plan: Plan, start: nn.Module | None = None) -> Compressed:
    torch.manual_seed(0)
    return algorithm.finish(plan, start)


def wiped(model: nn.Module) -> None:
    """Set all tensors of the model to zero, in place: no other model may hold the same ones."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()


def measured_costs(algorithm: Algorithm, model: nn.Module, names: list[str]) -> dict[str, float]:
    """Costs of the finished model, in all units that a space may predict. names: of the space's knobs."""
    teacher, params = algorithm.model, count_params(model)[0]
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    zero = sum(int((w == 0).sum()) for w in weights)
    # Biases that start at zero were not removed by the algorithm.
    zero_before = count_params(teacher)[0] - count_params(teacher)[1]
    layers = dict(model.named_modules())
    decided = [layers[name] for name in names if hasattr(layers.get(name), "weight")]
    quantized = any(hasattr(m, "weight_bits") for m in decided)
    return {
        "bits": sum(m.weight.numel() * int(getattr(m, "weight_bits", 32)) for m in decided)
        / max(1, sum(m.weight.numel() for m in decided)),
        "sparsity": zero / sum(w.numel() for w in weights),
        # Of a model of another structure every parameter counts, of one with zeros those that are not zero.
        "params": params if params != count_params(teacher)[0] else count_params(model)[1] + zero_before,
        "macs": total_macs(model, example_input(algorithm.task)),
        # The batch norms that were folded into quantized layers count too. The scales of an int8 file do not.
        "size_bytes": stored_bits(model) / 8
        + (4 * (count_params(teacher)[0] - params) if quantized else 0)
        + (described_bytes(model) if not isinstance(algorithm, LitertQuant) else 0),
    }
