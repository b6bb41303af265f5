"""The channel groups of any network, the costs of keeping parts of them, and the layers that stay whole and why.

``channel_graph`` finds the groups and proves them; ``prune.py`` takes channels out of a model in milliseconds;
``ChannelGraph.costs`` gives the remaining costs in microseconds, without a model.

Notation: G groups; group g has U_g units, of which a plan keeps k_g. A layer's output has O_l = o_l + sum_g a_lg k_g
entries and its input I_l = i_l + sum_g b_lg k_g, so that it has w_l O_l I_l weights, each used m_l times for an input.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pfray.errors import first_line
from pfray.measure.macs import count_macs
from pfray.nn.fx import Untraceable
from pfray.nn.inputs import Inputs
from pfray.pruning.channels.attention import find_heads
from pfray.pruning.channels.cost import CostTable, cost_table
from pfray.pruning.channels.dependency import OUTPUT, Candidate, Cut, find_candidates
from pfray.pruning.channels.equal_parts import in_equal_parts
from pfray.pruning.channels.layer_entries import entries, removals_of
from pfray.pruning.channels.numbers import with_numbers
from pfray.pruning.channels.proof import Failure, Proof, Unprovable
from pfray.pruning.channels.trace import Trace

# Layers that are each in a group or listed as skipped.
LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
# Operations that move channels, with the words for the reason why a group stays whole.
MIXING = {
    "ConstantPadNd": "zero-padded", "Slice": "sliced", "Split": "split", "SplitWithSizes": "split", "Unbind": "split",
    "PixelShuffle": "shuffled", "PixelUnshuffle": "shuffled", "Transpose": "transposed", "Permute": "transposed",
    "Softmax": "compared by a softmax", "Index": "indexed", "IndexSelect": "indexed", "Roll": "shifted",
}  # fmt: skip


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
            proof = Proof(model, example)
        except Unprovable as error:
            return _without_groups(model, example, str(error))
        try:
            traced = copy.deepcopy(proof.model)
            trace = Trace(traced, proof.inputs)
            heads = find_heads(traced, trace)
            candidates, order = find_candidates(traced, trace), trace.order
        except Exception as error:
            unknown = "" if isinstance(error, Untraceable) else "the model's operations are not understood: "
            return _without_groups(model, example, unknown + first_line(error))
        proven, reasons = _prove(proof, candidates, heads, order)
    table = cost_table(proof, proven)
    whole = np.array([candidate.units for candidate in proven], dtype=float)
    total = table.costs(whole)
    groups: list[ChannelGroup] = []
    for index, candidate in enumerate(proven):
        rest = table.costs(np.where(np.arange(len(proven)) == index, 0.0, whole))
        macs, params = (int(total[unit] - rest[unit]) for unit in ("macs", "params"))
        name = f"{candidate.name}#{candidate.number}" if candidate.number > 1 else candidate.name
        groups.append(ChannelGroup(name, candidate.units, candidate.cuts, macs, params, candidate.noun))
    return ChannelGraph(tuple(groups), _skipped(model, groups, reasons, order), table)


def _prove(
    proof: Proof, candidates: Sequence[Candidate], heads: Sequence[Sequence[Candidate]], order: Sequence[str]
) -> tuple[list[Candidate], dict[Candidate, str]]:
    """(candidates that can be removed alone and together, in execution order; reasons by each other candidate).

    heads: for each attention what its heads may be.
    """
    reasons: dict[Candidate, str] = {}
    proven: list[Candidate] = []

    for candidate in candidates:
        if candidate.units == 1 and candidate.cuts[0].index.shape[1] == 1:
            reasons[candidate] = "a single channel"
        elif candidate.obstacle or candidate.units == 1:
            reasons[candidate] = candidate.obstacle or "its channels can only go all together"
    possible = [candidate for candidate in candidates if candidate not in reasons]
    for variants in heads:
        possible = _with_heads(proof, variants, possible, reasons)
    rank = {name: index for index, name in enumerate(order)}
    possible.sort(key=lambda each: _rank(each, rank))
    # All at once first, because most networks need no look at single ones.
    first = _joint_failure(proof, possible)
    if first is None:
        return possible, reasons
    training = first.kind == "training"
    likely: list[Candidate] = []
    for candidate in possible:
        if (failure := _failure_alone(proof, candidate, training)) is None:
            likely.append(candidate)
            continue
        tries = with_numbers(proof.model, candidate) if failure.kind in ("fails", "values") else ()
        if found := next((variant for variant in tries if _failure_alone(proof, variant, training) is None), None):
            likely.append(found)
        else:
            reasons[candidate] = _explain(candidate, failure)
    for candidate, parts in in_equal_parts([each for each in possible if each in reasons]):
        if _failure_alone(proof, candidate, training) is None:
            likely.append(candidate)
            reasons = {part: reason for part, reason in reasons.items() if part not in parts}
    likely.sort(key=lambda each: _rank(each, rank))

    def admit(batch: list[Candidate]) -> None:
        failure = _joint_failure(proof, [*proven, *batch])
        if failure is None:
            proven.extend(batch)
        elif len(batch) == 1:
            reasons[batch[0]] = _explain(batch[0], failure)
        else:
            admit(batch[: len(batch) // 2])
            admit(batch[len(batch) // 2 :])

    admit(likely)
    return proven, reasons


def _rank(candidate: Candidate, rank: Mapping[str, int]) -> tuple[int, int]:
    """Place in the execution order: of the first layer that makes the channels, and among that layer's candidates."""
    places = [rank.get(cut.layer, len(rank)) for cut in candidate.cuts if cut.side == "out"]
    return min(places), candidate.number


def _with_heads(
    proof: Proof, variants: Sequence[Candidate], possible: list[Candidate], reasons: dict[Candidate, str]
) -> list[Candidate]:
    """``possible`` with the heads of one attention in place of channels of the same layers that cannot go.

    variants: what the heads may be. reasons: of candidates that stay; changed in place.
    """
    rivals = [other for other in possible if any(other.sides & variant.sides for variant in variants)]
    failures = {other: _failure_alone(proof, other) for other in rivals}
    if None in failures.values():
        return possible
    found = next((variant for variant in variants if _failure_alone(proof, variant) is None), None)
    first = found or variants[0]
    failure = None if found else _failure_alone(proof, first)
    # That of guesses says something only if the forward pass fails.
    if failure and len(variants) > 1 and failure.kind != "fails":
        return possible
    for other in [other for other in reasons if other.sides & first.sides]:
        del reasons[other]
    if failure:
        reasons[first] = f"no head of {first.name} can go alone: {_explain(first, failure)}"
    left = [other for other in possible if not other.sides & first.sides]
    return [*left, found] if found else left


def _failure_alone(proof: Proof, candidate: Candidate, training: bool = False) -> Failure | None:
    removals = removals_of([(candidate.cuts, _draw_units(candidate, 0, 1))])
    return proof.failure(removals, drawn=True, training=training)


def _joint_failure(proof: Proof, candidates: Sequence[Candidate]) -> Failure | None:
    """The first failure of several plans that prune all candidates together; None without any."""
    table = cost_table(proof, candidates)
    for style in range(3):
        gone = [_draw_units(candidate, number, style) for number, candidate in enumerate(candidates)]
        kept = np.array([c.units - len(units) for c, units in zip(candidates, gone, strict=True)], dtype=float)
        removals = removals_of((c.cuts, units) for c, units in zip(candidates, gone, strict=True))
        if failure := proof.failure(removals, drawn=style > 0, costs=table.costs(kept), training=True):
            return failure
    return None


def _draw_units(candidate: Candidate, number: int, style: int) -> np.ndarray:
    """Random units to remove. style: 0 some, but none of every second candidate; 1 some; 2 all but one."""
    generator = np.random.default_rng((number, style))
    most = candidate.units - 1
    count = most if style == 2 else 0 if style == 0 and number % 2 else int(generator.integers(1, most + 1))
    return generator.permutation(candidate.units)[:count]


def _explain(candidate: Candidate, failure: Failure) -> str:
    if failure.kind == "shape":
        return OUTPUT
    if failure.kind == "costs":
        return "what they cost cannot be predicted"
    if failure.kind == "training":
        return "used by layers that run in training only"
    if "split_with_sizes" in failure.detail:
        return "split into parts of fixed sizes by the forward pass"
    if "more than 1 value per channel" in failure.detail:
        return "a norm cannot work on a single one of them at this input's size"
    fixed = f"the forward pass relies on their number ({failure.detail})"
    if "invalid for input of size" in failure.detail:
        return fixed
    words = sorted({MIXING[name] for name in candidate.passes if name in MIXING})
    if words:
        return f"{' and '.join(words)} on the way to the next layers"
    if failure.kind == "fails":
        if "size of tensor" in failure.detail:
            return "combined with channels that have to stay"
        return fixed
    return "an operation between the layers mixes its channels"


def _skipped(
    model: nn.Module, groups: Sequence[ChannelGroup], reasons: Mapping[Candidate, str], order: Sequence[str]
) -> dict[str, str]:
    """The reason for every layer of whose output channels some are in no group."""
    free: dict[str, int] = defaultdict(int)
    for group in groups:
        for cut in group.cuts:
            free[cut.layer] += cut.index.size * (cut.side == "out")
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for candidate, reason in reasons.items():
        for cut in candidate.cuts:
            if cut.side == "out":
                found[cut.layer][reason] = None
    attentions = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    with_heads = {cut.layer for group in groups for cut in group.cuts if cut.inside}
    skipped = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            skipped[name] = "a recurrent layer"
        elif isinstance(module, nn.MultiheadAttention):
            if name not in with_heads:
                skipped[name] = "; ".join(found[name]) or _why_whole(module, name in order)
        elif isinstance(module, LAYERS) and free[name] < entries(module, "out"):
            inside = next((outer for outer in attentions if name.startswith(f"{outer}.")), None)
            reason = "; ".join(found[name]) or (
                f"its outputs are the width of the attention layer {inside}" if inside
                else "not used in the forward pass" if name not in order
                else "cannot be traced from a layer that makes its channels to the outputs"
            )  # fmt: skip
            part = f"{entries(module, 'out') - free[name]} of {entries(module, 'out')} channels: " if free[name] else ""
            skipped[name] = part + reason
    return skipped


def _why_whole(attention: nn.MultiheadAttention, runs: bool) -> str:
    if not runs:
        return "not used in the forward pass"
    return "a single head" if attention.num_heads == 1 else "an attention layer with a forward pass of its own"


def _without_groups(model: nn.Module, example: Inputs, reason: str) -> ChannelGraph:
    try:
        macs = float(count_macs(model, example)[0])
    except Exception:
        macs = float("nan")
    params = float(sum(parameter.numel() for parameter in model.parameters()))
    nothing = np.zeros((2, 0))
    table = CostTable((), {}, np.zeros((2, 0, 0)), nothing, nothing, nothing, np.array([macs, params]))
    layers = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    return ChannelGraph((), dict.fromkeys(layers, reason), table)
