"""The zoo's models pruned: their graphs, random plans, and the check of what a plan leaves."""

from __future__ import annotations

import copy
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from pfray.measure.cost import count_params, total_macs
from pfray.nn.attention import calling_projections
from pfray.nn.inputs import tensors
from pfray.nn.layers import weight_layers
from pfray.pruning.channels.graph import ChannelGraph, channel_graph
from pfray.pruning.channels.prune import prune
from tests.zoo import ZOO, Example


@cache
def built(name: str) -> tuple[nn.Module, Example, ChannelGraph]:
    model, inputs = ZOO[name]()
    return model, inputs, channel_graph(model, inputs)


def outputs(model: nn.Module, inputs: Example) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(*inputs))


def draw(graph: ChannelGraph, seed: int) -> dict[str, list[int]]:
    """Random units to keep, of about three quarters of the groups."""
    generator = np.random.default_rng(seed)
    kept = {}
    for group in graph.groups:
        if generator.random() < 0.75:
            count = int(generator.integers(1, group.units + 1))
            kept[group.name] = sorted(generator.choice(group.units, count, replace=False).tolist())
    return kept


def masked_outputs(model: nn.Module, inputs: Example, graph: ChannelGraph, kept: dict[str, list[int]]) -> list[Tensor]:
    """Of the whole model, in which the layers that read a removed entry are given 0 in its place, and norms across
    channels work on those that stay."""
    norms: dict[str, list[int]] = {}
    gone: dict[str, list[int]] = {}
    for group in graph.groups:
        for cut in group.cuts:
            if group.name in kept and cut.side == "in":
                gone.setdefault(cut.layer, []).extend(np.delete(cut.index, kept[group.name], 0).ravel().tolist())
            if group.name in kept and cut.kind in ("LN", "GN"):
                norms.setdefault(cut.layer, []).extend(np.delete(cut.index, kept[group.name], 0).ravel().tolist())
    hooks = []
    for layer, positions in norms.items():
        module = model.get_submodule(layer)
        hooks.append(module.register_forward_hook(partial(normalize_rest, torch.tensor(positions))))
    for layer, positions in gone.items():
        module, index = model.get_submodule(layer), torch.tensor(positions, dtype=torch.long)
        axis = -1 if isinstance(module, nn.Linear) else 1

        def hide(_: nn.Module, given: tuple[Tensor], axis: int = axis, index: Tensor = index) -> Tensor:
            return given[0].index_fill(axis, index, 0.0)

        hooks.append(module.register_forward_pre_hook(hide))
    try:
        with calling_projections(model):
            return outputs(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()


def normalize_rest(gone: Tensor, module: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
    """The norm by its formula, over the channels that stay and, in a group norm, all positions; 0 for the others."""
    axis = 1 if isinstance(module, nn.GroupNorm) or type(module).__name__.endswith("2d") else -1
    x = given[0].movedim(axis, -1)
    stays = [i for i in range(x.shape[-1]) if i not in gone.tolist()]
    if isinstance(module, nn.GroupNorm):
        rest = x[..., stays].unflatten(-1, (module.num_groups, -1))
        over = (*range(1, rest.dim() - 2), rest.dim() - 1)
    else:
        rest, over = x[..., stays], (-1,)
    centred = rest - rest.mean(over, keepdim=True)
    made = (centred / (centred.square().mean(over, keepdim=True) + module.eps).sqrt()).reshape(x[..., stays].shape)
    made = made * module.weight[stays] + module.bias[stays]
    made = module.act(made) if hasattr(module, "act") else made
    return torch.zeros_like(x).index_copy(-1, torch.tensor(stays), made).movedim(-1, axis)


def check_plan(model: nn.Module, inputs: Example, graph: ChannelGraph, kept: dict[str, list[int]]) -> nn.Module:
    """The pruned model, whose costs are those of the graph and whose outputs are those of the masked one."""
    pruned = copy.deepcopy(model)
    prune(pruned, graph, kept)
    count = [len(kept.get(group.name, range(group.units))) for group in graph.groups]
    costs = {"macs": total_macs(pruned, inputs), "params": count_params(pruned)[0]}
    assert graph.costs(count) == costs
    layers = {name: layer.weight.numel() for name, layer in weight_layers(pruned).items()}
    weights = graph.weights(count)
    assert weights == {name: layers[name] for name in weights}
    before = {name: layer.weight.numel() for name, layer in weight_layers(model).items()}
    assert {name for name in layers if layers[name] < before[name]} <= weights.keys()
    expected, found = masked_outputs(model, inputs, graph, kept), outputs(pruned, inputs)
    assert [output.shape for output in found] == [output.shape for output in expected]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))
    return pruned
