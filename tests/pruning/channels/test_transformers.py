"""Transformers that others wrote, of timm and transformers, lose heads and MLP features."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import torchvision_ops
from pfray.measure.macs import count_macs
from pfray.pruning.channels.graph import channel_graph
from pfray.pruning.channels.prune import prune
from tests.zoo.attentions import heads_of
from tests.zoo.pruning import check_plan, draw


def timm_model(name: str, **options: Any) -> tuple[nn.Module, tuple[Tensor]]:
    torchvision_ops.load()
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=10, img_size=32, **options).eval(), (torch.randn(1, 3, 32, 32),)


def text_model(kind: str, **options: Any) -> tuple[nn.Module, tuple[Tensor]]:
    torchvision_ops.load()  # which some of its models import
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, max_position_embeddings=20, num_labels=3, **options)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval(), (torch.randint(2, 50, (1, 12)),)


def gpt2() -> tuple[nn.Module, tuple[Tensor]]:
    """Layers of one weight ``(inputs, outputs)``, and one for queries, keys and values."""
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    return text_model("GPT2", n_embd=32, n_layer=2, n_head=4, use_cache=False, **tokens)


BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
# (model and inputs, heads of each attention), small.
OTHERS = {
    "vit": (lambda: timm_model("vit_tiny_patch16_224", depth=2), {"blocks.0.attn": 3, "blocks.1.attn": 3}),
    "deit": (lambda: timm_model("deit_tiny_patch16_224", depth=1), {"blocks.0.attn": 3}),
    "swin": (
        lambda: timm_model("swin_tiny_patch4_window7_224", window_size=4, embed_dim=32, depths=(2,), num_heads=(4,)),
        {"layers.0.blocks.0.attn": 4, "layers.0.blocks.1.attn": 4},
    ),
    "bert": (lambda: text_model("Bert", **BERT), {f"bert.encoder.layer.{i}.attention.self": 4 for i in range(2)}),
    "eager_bert": (
        lambda: text_model("Bert", attn_implementation="eager", **BERT),
        {f"bert.encoder.layer.{i}.attention.self": 4 for i in range(2)},
    ),
    "roberta": (
        lambda: text_model("Roberta", **BERT), {f"roberta.encoder.layer.{i}.attention.self": 4 for i in range(2)}
    ),
    "distilbert": (
        lambda: text_model("DistilBert", dim=32, n_layers=2, n_heads=4, hidden_dim=64),
        {f"distilbert.transformer.layer.{i}.attention": 4 for i in range(2)},
    ),
    "gpt2": (lambda: gpt2(), {f"transformer.h.{i}.attn": 4 for i in range(2)}),
    "llama": (
        lambda: text_model("Llama", num_key_value_heads=2, pad_token_id=0, use_cache=False, **BERT),
        {f"model.layers.{i}.self_attn": 2 for i in range(2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_people_s_transformers_lose_heads_and_mlp_features(name):
    torch.manual_seed(0)
    model, inputs = OTHERS[name][0]()
    graph = channel_graph(model, inputs)
    assert heads_of(graph) == OTHERS[name][1]
    # An MLP, gated or not, for each attention.
    assert len([g for g in graph.groups if g.noun == "channels"]) >= len(heads_of(graph))
    half = {group.name: np.arange(group.units)[-(group.units // 2) :] for group in graph.groups}
    pruned = copy.deepcopy(model)
    prune(pruned, graph, half)
    costs = graph.costs([len(units) for units in half.values()])
    assert costs == {"macs": count_macs(pruned, inputs)[0], "params": sum(p.numel() for p in pruned.parameters())}
    with torch.no_grad():
        for one, other in zip(*(list_of(each(*inputs)) for each in (pruned, model)), strict=True):
            assert one.shape == other.shape
            assert one.isfinite().all()


def test_gpt2_loses_features_heads_and_its_stream_at_costs_worked_out_by_hand():
    torch.manual_seed(0)
    model, inputs = gpt2()
    graph = channel_graph(model, inputs)
    blocks = [f"transformer.h.{i}.{part}" for i in range(2) for part in ("attn", "mlp.c_fc")]
    assert [group.name for group in graph.groups] == ["transformer.wte", *blocks]
    assert graph.units.tolist() == [32, 4, 128, 4, 128]
    assert list(graph.skipped) == ["score"]

    def by_hand(e: int, *blocks: int) -> int:
        """12 tokens; heads of 8 features, each with products of 12 by 12 by 8 for the scores and the values."""
        heads, features = sum(blocks[::2]), sum(blocks[1::2])
        return 12 * (4 * 8 * heads * e + 2 * features * e + 3 * e) + 2 * 12 * 12 * 8 * heads

    for counts in ((32, 4, 128, 4, 128), (20, 3, 50, 1, 7), (1, 1, 1, 1, 1)):
        assert graph.costs(counts)["macs"] == by_hand(*counts)
    pruned = check_plan(model, inputs, graph, draw(graph, 0))
    pruned = check_plan(model, inputs, graph, {"transformer.h.0.mlp.c_fc": [3, 100], "transformer.h.0.attn": [0, 2]})
    block = pruned.transformer.h[0]
    assert (block.mlp.c_fc.nf, block.mlp.c_fc.weight.shape, block.mlp.c_proj.nx) == (2, (32, 2), 2)
    assert (block.attn.num_heads, block.attn.split_size, block.attn.c_attn.weight.shape) == (2, 16, (32, 48))
    assert torch.equal(block.mlp.c_fc.weight, model.transformer.h[0].mlp.c_fc.weight[:, [3, 100]])


def list_of(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [x for x in outputs.to_tuple() if isinstance(x, Tensor)]
