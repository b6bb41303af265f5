"""The reasons, in plain words, why channels and whole layers stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence

from torch import nn

from pfray.pruning.channels.dependency import OUTPUT, Candidate, Cut
from pfray.pruning.channels.layer_entries import entries
from pfray.pruning.channels.proof import Failure

# Layers that are each in a group or listed as skipped.
LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
# Operations that move channels, with the words for the reason why a group stays whole.
MIXING = {
    "ConstantPadNd": "zero-padded", "Slice": "sliced", "Split": "split", "SplitWithSizes": "split", "Unbind": "split",
    "PixelShuffle": "shuffled", "PixelUnshuffle": "shuffled", "Transpose": "transposed", "Permute": "transposed",
    "Softmax": "compared by a softmax", "Index": "indexed", "IndexSelect": "indexed", "Roll": "shifted",
}  # fmt: skip
# Cuts of what recurrent and attention modules make inside.
MADE_INSIDE = {("HEADS", "out"), ("RECURRENT", "out")}


def explain(candidate: Candidate, failure: Failure) -> str:
    """The reason why a candidate stays whose removal fails."""
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


def reasons_of_layers(
    model: nn.Module, cuts: Sequence[Cut], reasons: Mapping[Candidate, str], order: Container[str]
) -> dict[str, str]:
    """The reason for every layer of whose output channels some are in no group.

    cuts: those of all groups. reasons: of the candidates that are no groups. order: names of the modules that run.
    """
    free: dict[str, int] = defaultdict(int)
    for cut in cuts:
        free[cut.layer] += cut.index.size * (cut.side == "out")
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for candidate, reason in reasons.items():
        for cut in candidate.cuts:
            if cut.side == "out":
                found[cut.layer][reason] = None
    attentions = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    cut_inside = {cut.layer for cut in cuts if (cut.kind, cut.side) in MADE_INSIDE}
    skipped = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            if name not in cut_inside:
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


def _why_whole(module: nn.RNNBase | nn.MultiheadAttention, runs: bool) -> str:
    if not runs:
        return "not used in the forward pass"
    if isinstance(module, nn.RNNBase):
        return "a recurrent layer with projections" if module.proj_size else "a recurrent layer"
    return "a single head" if module.num_heads == 1 else "an attention layer with a forward pass of its own"


