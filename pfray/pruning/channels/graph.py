"""The channel groups of any network, the costs of keeping parts of them, and the layers that stay whole and why.

``channel_graph`` finds the groups and proves them; ``prune.py`` takes channels out of a model in milliseconds;
``ChannelGraph.costs`` gives the remaining costs in microseconds, without a model.

Notation: G groups; group g has U_g units, of which a plan keeps k_g. A layer's output has O_l = o_l + sum_g a_lg k_g
entries and its input I_l = i_l + sum_g b_lg k_g, so that it has w_l O_l I_l weights, each used m_l times for an input.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from pfray.errors import first_line
from pfray.measure.macs import count_macs
from pfray.nn.fx import Untraceable
from pfray.nn.inputs import Inputs
from pfray.nn.parts import Shuffle, Split
from pfray.pruning.channels.admission import admitted
from pfray.pruning.channels.attention import find_heads
from pfray.pruning.channels.cost import CostTable, cost_table
from pfray.pruning.channels.dependency import OUTPUT, Candidate, Cut, find_candidates
from pfray.pruning.channels.proof import Proof, Unprovable
from pfray.pruning.channels.reasons import LAYERS, reasons_of_layers
from pfray.pruning.channels.stand_ins import put_stand_ins, translated
from pfray.pruning.channels.trace import Trace
from pfray.pruning.channels.written_out import written_out


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that must go together, across all layers they run through.

    name: the layer that makes them (the first in execution order). units: number that can go independently; a unit is
    one channel, with grouped convolutions one channel of each group, or a head of an attention (or several that share
    keys). macs, params: savings if all units went. noun: what a unit is called, such as ``heads``.
    """

    name: str
    units: int
    cuts: tuple[Cut, ...]
    macs: int
    params: int
    noun: str = "channels"


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """The groups in execution order. skipped: the reason, by layer, why output channels stay whole.

    The reason begins with their number if only some of the layer's channels stay.
    """

    groups: tuple[ChannelGroup, ...]
    skipped: dict[str, str]
    table: CostTable

    @property
    def units(self) -> np.ndarray:
        """Units ``(G,)`` of each group: the plan that keeps everything."""
        return np.array([group.units for group in self.groups], dtype=int)

    def costs(self, kept: np.ndarray | Sequence[int]) -> dict[str, float]:
        """Exact ``macs`` of one example and ``params`` if group g keeps ``kept[g]`` units, ``(G,)``."""
        return self.table.costs(np.asarray(kept, dtype=float))

    def weights(self, kept: np.ndarray | Sequence[int]) -> dict[str, float]:
        """Exact number of weights left in each layer that a group cuts, by name."""
        return self.table.weights(np.asarray(kept, dtype=float))


def channel_graph(model: nn.Module, example: Inputs) -> ChannelGraph:
    """Find and prove the channel groups of ``model``, which stays as it is.

    example: the inputs of one sample; costs are for their shapes. Channels that cannot be traced, removed without side
    effects, or counted stay whole. A model whose forward pass fails has a graph without groups.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            proof, proven, reasons, order = _or_written_out(_found(Proof(model, example)), example)
        except (Unprovable, Untraceable) as error:
            return _without_groups(model, example, str(error))
    table = cost_table(proof, proven)
    groups = [
        ChannelGroup(
            f"{each.name}#{each.number}" if each.number > 1 else each.name, each.units, each.cuts, 0, 0, each.noun
        )
        for each in proven
    ]
    names = [group.name for group in groups]
    assert len(set(names)) == len(names), f"two channel groups of one name: {names}"
    skipped = reasons_of_layers(model, [cut for group in groups for cut in group.cuts], reasons, order)
    return ChannelGraph(with_savings(groups, table), skipped, table)


def with_savings(groups: Sequence[ChannelGroup], table: CostTable) -> tuple[ChannelGroup, ...]:
    """The groups of a table with what each saves if all its units go."""
    units = np.array([group.units for group in groups], dtype=float)
    whole, found = table.costs(units), []
    for index, group in enumerate(groups):
        rest = table.costs(np.where(np.arange(len(groups)) == index, 0.0, units))
        macs, params = (int(whole[unit] - rest[unit]) for unit in ("macs", "params"))
        found.append(replace(group, macs=macs, params=params))
    return tuple(found)


class _Found(NamedTuple):
    """proven: the groups' candidates. reasons: of the other candidates. order: modules by their first run."""

    proof: Proof
    proven: list[Candidate]
    reasons: dict[Candidate, str]
    order: list[str]


def _found(proof: Proof) -> _Found:
    """Raises Untraceable."""
    try:
        candidates, heads, order = _traced(proof)
    except Untraceable:
        raise
    except Exception as error:
        raise Untraceable(f"the model's operations are not understood: {first_line(error)}") from error
    return _Found(proof, *admitted(proof, candidates, heads, order), order)


def _or_written_out(whole: _Found, example: Inputs) -> _Found:
    """What is found in the written out network, if more can go there: plain forward passes are kept where they do. What
    was pruned written out is always taken so, and keeps its groups."""
    if not set(whole.reasons.values()) - {OUTPUT}:
        return whole
    model = written_out(whole.proof.model, whole.proof.inputs)
    if model is None:
        return whole
    try:
        written = _found(Proof(model, example))
        was_written = any(isinstance(module, Split | Shuffle) for module in whole.proof.model.modules())
        return max((written, whole) if was_written else (whole, written), key=_inputs)
    except (Unprovable, Untraceable):
        return whole


def _inputs(found: _Found) -> int:
    """Inputs of all layers that can go."""
    return sum(cut.index.size for each in found.proven for cut in each.cuts if cut.side == "in")


def _traced(proof: Proof) -> tuple[list[Candidate], list[list[Candidate]], list[str]]:
    """(candidates, for each attention what its heads may be, names of the modules by their first run).

    Raises Untraceable.
    """
    for stand_ins in (True, False):
        traced = copy.deepcopy(proof.model)
        if stand_ins:
            put_stand_ins(traced)
        try:
            trace = Trace(traced, proof.inputs)
        except Untraceable:
            if stand_ins:  # which may be called in a way that they do not know
                continue
            raise
        heads, candidates = find_heads(proof.model, traced, trace), find_candidates(traced, trace)
        if stand_ins:
            heads = [translated(proof.model, variants) for variants in heads]
            candidates = translated(proof.model, candidates)
        return candidates, heads, trace.order
    raise AssertionError


def _without_groups(model: nn.Module, example: Inputs, reason: str) -> ChannelGraph:
    try:
        macs = float(count_macs(model, example)[0])
    except Exception:
        macs = float("nan")
    params = float(sum(parameter.numel() for parameter in model.parameters()))
    nothing = np.zeros((2, 0))
    table = CostTable((), {}, np.zeros((2, 0, 0)), nothing, nothing, nothing, np.array([macs, params]), {})
    layers = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    return ChannelGraph((), dict.fromkeys(layers, reason), table)
