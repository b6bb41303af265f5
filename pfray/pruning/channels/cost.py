"""Exact costs of a pruned network, computed without a model. Notation as in ``graph.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from pfray.pruning.channels.dependency import Candidate, Cut
from pfray.pruning.channels.layer_entries import entries, owner_of
from pfray.pruning.channels.proof import Proof


@dataclass(frozen=True, eq=False)
class CostTable:
    """The coefficients for L layers and G groups.

    layers: the L names. each: a and b, ``(2, L, G)``. fixed: o and i, ``(2, L)``. pairs: m w and w, ``(2, L)``.
    linear: ``(2, G)``, MACs and parameters per unit that depend on one side alone (depthwise convolutions, batch norms,
    biases). constant: ``(2,)``, the other MACs and parameters. single: for each layer whose weights depend on one side
    alone, ``(1 + G,)``: weights that always stay, and weights per unit of each group.
    """

    layers: tuple[str, ...]
    single: dict[str, np.ndarray]
    each: np.ndarray
    fixed: np.ndarray
    pairs: np.ndarray
    linear: np.ndarray
    constant: np.ndarray

    def costs(self, kept: np.ndarray) -> dict[str, float]:
        """``macs`` and ``params`` if group g keeps ``kept[g]`` units, ``(G,)``."""
        outputs, inputs = self.each @ kept + self.fixed
        # Weights per pair are fractions in a grouped convolution; their sums are whole.
        macs, params = np.rint(self.pairs @ (outputs * inputs) + self.linear @ kept + self.constant).tolist()
        return {"macs": macs, "params": params}

    def weights(self, kept: np.ndarray) -> dict[str, float]:
        """Number of weights of every layer, by name."""
        outputs, inputs = self.each @ kept + self.fixed
        both = np.rint(self.pairs[1] * outputs * inputs).tolist()
        one = {layer: float(np.rint(counts[0] + counts[1:] @ kept)) for layer, counts in self.single.items()}
        return {**dict(zip(self.layers, both, strict=True)), **one}


def cost_table(proof: Proof, candidates: Sequence[Candidate]) -> CostTable:
    """The coefficients of all layers that the candidates cut."""
    kinds = {cut.layer: cut.kind for candidate in candidates for cut in candidate.cuts}
    rows = {layer: row for row, layer in enumerate(name for name, kind in kinds.items() if kind in ("CONV", "LINEAR"))}
    weights = {layer: proof.model.get_parameter(f"{layer}.weight".lstrip(".")).numel() for layer in rows}
    each, size = np.zeros((2, len(rows), len(candidates))), np.ones((2, len(rows)))
    pairs, linear = np.zeros((2, len(rows))), np.zeros((2, len(candidates)))
    whole = np.array([candidate.units for candidate in candidates], dtype=float)
    single: dict[str, np.ndarray] = {}
    for layer, row in rows.items():
        size[:, row] = [entries(proof.model.get_submodule(layer), side) for side in ("out", "in")]
        pairs[:, row] = np.array([proof.macs_of[layer], weights[layer]]) / size[:, row].prod()
    for column, candidate in enumerate(candidates):
        for cut in candidate.cuts:
            count = cut.index.shape[1]
            if cut.inside:
                linear[:, column] += count * _own_costs(proof, cut) / cut.size
                continue
            owner = owner_of(proof.model, cut)
            if cut.kind == "NUMBER":
                continue
            if cut.kind == "PARAMETER":
                linear[1, column] += count * proof.model.get_parameter(cut.layer).numel() / cut.size
                continue
            if cut.inside:
                linear[:, column] += count * _own_costs(proof, cut) / cut.size
                continue
            params = sum(p.numel() for p in owner.parameters(recurse=False))
            if cut.layer not in rows:
                linear[:, column] += count * np.array([proof.macs_of[cut.layer], params]) / cut.size
                module = proof.model.get_submodule(cut.layer)
                if isinstance(module, nn.modules.conv._ConvNd):
                    counts = single.setdefault(cut.layer, np.array([module.weight.numel(), *np.zeros(len(candidates))]))
                    share = count * module.weight.numel() / cut.size
                    counts[1 + column] += share
                    counts[0] -= share * whole[column]
                continue
            each[int(cut.side == "in"), rows[cut.layer], column] += count
            if cut.side == "out":
                linear[1, column] += count * (params - weights[cut.layer]) / cut.size
    constant = np.array([proof.macs, proof.params]) - pairs @ size.prod(0) - linear @ whole
    return CostTable(tuple(rows), single, each, size - each @ whole, pairs, linear, constant)


def _own_costs(proof: Proof, cut: Cut) -> np.ndarray:
    """MACs and parameters ``(2,)`` of a whole module that are not those of the modules inside it, and shrink."""
    module, inside = proof.model.get_submodule(cut.layer), cut.inside
    if inside is None or cut.kind == "SETTING":
        return np.zeros(2)
    children = [name for name, _ in module.named_children()]
    within = sum(proof.macs_of.get(f"{cut.layer}.{child}".lstrip("."), 0) for child in children)
    return np.array([proof.macs_of[cut.layer] - within, inside.params(module)], dtype=float)
