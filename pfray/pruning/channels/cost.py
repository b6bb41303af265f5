"""Exact costs of a pruned network, computed without a model. Notation as in ``graph.py``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from pfray.nn.layers import is_conv1d
from pfray.pruning.channels.dependency import Candidate
from pfray.pruning.channels.layer_entries import entries, owner_of
from pfray.pruning.channels.proof import Proof


@dataclass(frozen=True, eq=False)
class CostTable:
    """The coefficients for L weight matrices and G groups.

    layers: names of the first, which are layers; the others are inside modules such as recurrent layers. each: a and b,
    ``(2, L, G)``. fixed: o and i, ``(2, L)``. pairs: m w and w, ``(2, L)``. linear: ``(2, G)``, MACs and parameters per
    unit that depend on one side alone (depthwise convolutions, batch norms, biases). constant: ``(2,)``, the other MACs
    and parameters. single: for each layer whose weights depend on one side alone, ``(1 + G,)``: weights that always
    stay, and weights per unit of each group. modules: shares ``(2, 1 + G)`` of single modules in ``constant`` and
    ``linear``, for costs without them.
    """

    layers: tuple[str, ...]
    single: dict[str, np.ndarray]
    each: np.ndarray
    fixed: np.ndarray
    pairs: np.ndarray
    linear: np.ndarray
    constant: np.ndarray
    modules: dict[str, np.ndarray]

    def costs(self, kept: np.ndarray) -> dict[str, float]:
        """``macs`` and ``params`` if group g keeps ``kept[g]`` units, ``(G,)``."""
        outputs, inputs = self.each @ kept + self.fixed
        # Weights per pair are fractions in a grouped convolution; their sums are whole.
        macs, params = np.rint(self.pairs @ (outputs * inputs) + self.linear @ kept + self.constant).tolist()
        return {"macs": macs, "params": params}

    def weights(self, kept: np.ndarray) -> dict[str, float]:
        """Number of weights of every layer, by name."""
        outputs, inputs = self.each @ kept + self.fixed
        both = np.rint(self.pairs[1] * outputs * inputs)[: len(self.layers)].tolist()
        one = {layer: float(np.rint(counts[0] + counts[1:] @ kept)) for layer, counts in self.single.items()}
        return {**dict(zip(self.layers, both, strict=True)), **one}


def cost_table(proof: Proof, candidates: Sequence[Candidate]) -> CostTable:
    """The coefficients of all layers that the candidates cut."""
    cuts = [cut for candidate in candidates for cut in candidate.cuts]
    layers = list(dict.fromkeys(cut.layer for cut in cuts if cut.kind in ("CONV", "LINEAR")))
    weights = {layer: proof.model.get_parameter(f"{layer}.weight".lstrip(".")) for layer in layers}
    macs = {layer: float(proof.macs_of[layer]) for layer in layers}
    shapes = {layer: tuple(entries(proof.model.get_submodule(layer), side) for side in ("out", "in"))
              for layer in layers}  # fmt: skip
    within = {cut.layer: _products_within(proof, cut.layer) for cut in cuts if cut.inside and cut.kind != "SETTING"}
    for layer, products in within.items():
        for tensor, count in products.items():
            name = f"{layer}.{tensor}"
            weights[name], macs[name] = getattr(proof.model.get_submodule(layer), tensor), count
            shapes[name] = tuple(weights[name].shape)
    rows = {name: row for row, name in enumerate(weights)}
    each, size = np.zeros((2, len(rows), len(candidates))), np.array([*shapes.values()], float).reshape(-1, 2).T
    pairs = np.zeros((2, len(rows)))
    # MACs and parameters that do not depend on two sides, by module.
    own_of: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((2, 1 + len(candidates))))
    whole = np.array([candidate.units for candidate in candidates], dtype=float)
    single: dict[str, np.ndarray] = {}
    for name, row in rows.items():
        pairs[:, row] = np.array([macs[name], weights[name].numel()]) / size[:, row].prod()
    for column, candidate in enumerate(candidates):
        for cut in candidate.cuts:
            count = cut.index.shape[1]
            if cut.inside:
                products = within.get(cut.layer, {})
                for own in cut.inside.axes:
                    tensor = getattr(proof.model.get_submodule(cut.layer), own.tensor)
                    if own.tensor in products:
                        row = rows[f"{cut.layer}.{own.tensor}"]
                        each[own.axis, row, column] += count * tensor.shape[own.axis] / cut.size
                    elif isinstance(tensor, nn.Parameter):
                        own_of[cut.layer][1, 1 + column] += count * tensor.numel() / cut.size
                if cut.kind == "HEADS":  # products of each head's own queries, keys and values
                    others = _own_macs(proof, cut.layer) - sum(products.values())
                    own_of[cut.layer][0, 1 + column] += count * others / cut.size
                continue
            if cut.kind in ("NUMBER", "PARTS"):
                continue
            owner = owner_of(proof.model, cut)
            if cut.kind == "PARAMETER":
                own_of[cut.layer][1, 1 + column] += count * proof.model.get_parameter(cut.layer).numel() / cut.size
                continue
            params = sum(p.numel() for p in owner.parameters(recurse=False))
            if cut.layer not in rows:
                own_of[cut.layer][:, 1 + column] += count * np.array([proof.macs_of[cut.layer], params]) / cut.size
                module = proof.model.get_submodule(cut.layer)
                if isinstance(module, nn.modules.conv._ConvNd):
                    counts = single.setdefault(cut.layer, np.array([module.weight.numel(), *np.zeros(len(candidates))]))
                    share = count * module.weight.numel() / cut.size
                    counts[1 + column] += share
                    counts[0] -= share * whole[column]
                continue
            each[int(cut.side == "in"), rows[cut.layer], column] += count
            if cut.side == "out":
                own_of[cut.layer][1, 1 + column] += count * (params - weights[cut.layer].numel()) / cut.size
    linear = sum((own[:, 1:] for own in own_of.values()), np.zeros((2, len(candidates))))
    for name, module in proof.model.named_modules():
        if next(module.children(), None) is None and (params := sum(p.numel() for p in module.parameters())):
            entire = [0.0, params - weights[name].numel()] if name in rows else [proof.macs_of[name], params]
            own_of[name][:, 0] = entire - own_of[name][:, 1:] @ whole
    constant = np.array([proof.macs, proof.params]) - pairs @ size.prod(0) - linear @ whole
    return CostTable(tuple(layers), single, each, size - each @ whole, pairs, linear, constant, dict(own_of))


def _own_macs(proof: Proof, layer: str) -> float:
    """Multiply-adds of a module that are not those of modules with weights inside it.

    Where its forward pass never runs, because another method is called, those of the module around it that does.
    """
    while layer and not proof.macs_of[layer]:
        layer = layer.rpartition(".")[0]
    return proof.macs_of[layer] - _macs_with_weights(proof, layer)


def _macs_with_weights(proof: Proof, layer: str) -> float:
    """Multiply-adds of the outermost modules inside ``layer`` that run and have weights of their own."""
    total = 0.0
    for name, child in proof.model.get_submodule(layer).named_children():
        inner = f"{layer}.{name}".lstrip(".")
        macs = proof.macs_of.get(inner, 0)  # a shared module is known by its first name
        weights = next(child.parameters(recurse=False), None) is not None
        total += macs if macs and weights else _macs_with_weights(proof, inner)
    return total


def _products_within(proof: Proof, layer: str) -> dict[str, float]:
    """Multiply-adds of each matrix ``(outputs, inputs)`` among a module's own parameters, by its name."""
    module = proof.model.get_submodule(layer)
    if isinstance(module, nn.RNNBase):  # each step meets every weight once
        matrices = {name: parameter.numel() for name, parameter in module.named_parameters() if parameter.dim() == 2}
        return {name: _own_macs(proof, layer) * count / sum(matrices.values()) for name, count in matrices.items()}
    if is_conv1d(module):
        return {"weight": proof.macs_of[layer]}
    if not isinstance(module, nn.MultiheadAttention):
        return {}
    queries = proof.macs_of[f"{layer}.out_proj".lstrip(".")] / module.out_proj.weight.numel()
    tokens = {"q": queries, "k": proof.keys[layer], "v": proof.keys[layer]}
    if module.in_proj_weight is not None:
        return {"in_proj_weight": module.in_proj_weight.numel() / 3 * sum(tokens.values())}
    return {f"{part}_proj_weight": count * getattr(module, f"{part}_proj_weight").numel()
            for part, count in tokens.items()}  # fmt: skip
