"""The share of any network's MACs that Torch-Pruning's pruner takes out, as its documentation uses it."""

from __future__ import annotations

from typing import Any


def removed_share(model: Any, task: Any, kept: float) -> float:
    """Share of the MACs that go if the share ``kept`` of every group stays. The last layer has 10 outputs."""
    import copy

    import torch
    import torch_pruning as tp
    from torch import nn

    from pfray.measure.cost import total_macs
    from pfray.nn.inputs import tensors
    from pfray.task import example_input

    clone, example = copy.deepcopy(model), example_input(task)
    before = total_macs(clone, example)
    last = [module for module in clone.modules() if isinstance(module, nn.Linear) and module.out_features == 10]
    attentions = [(module, *found) for module in clone.modules() if (found := heads_of(module)) is not None]
    pruner = tp.pruner.MagnitudePruner(
        clone, example, tp.importance.MagnitudeImportance(p=1), pruning_ratio=1 - kept, ignored_layers=last,
        num_heads={layer: heads for _, layers, heads in attentions for layer in layers},
        output_transform=lambda out: sum(x.sum() for x in tensors(out)),
    )  # fmt: skip
    pruner.step()
    for module, layers, _ in attentions:
        # Sizes that the forward pass reads, under the names of timm's and transformers' attentions.
        heads, width = pruner.num_heads[layers[0]], layers[0].out_features * len(layers) // 3
        sizes = {"heads": ("num_heads", "num_attention_heads", "n_heads"), "each": ("head_dim", "attention_head_size"),
                 "all": ("attn_dim", "all_head_size", "dim")}  # fmt: skip
        for kind, names in sizes.items():
            for name in names:
                if hasattr(module, name):
                    setattr(module, name, {"heads": heads, "each": width // heads, "all": width}[kind])
    with torch.no_grad():
        return 1 - total_macs(clone, example) / before


def heads_of(module: Any) -> tuple[list[Any], int] | None:
    """(layers that give queries, keys and values, number of heads) of an attention; None for other modules."""
    for names in (("qkv",), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj")):
        for heads in ("num_heads", "num_attention_heads", "n_heads"):
            if hasattr(module, heads) and all(hasattr(module, name) for name in names):
                return [getattr(module, name) for name in names], getattr(module, heads)
    return None
