"""Attentions of many kinds, in a block of a transformer. Notation: T tokens of width E, H heads of D features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.pruning.channels.graph import ChannelGraph, channel_graph

T, E, H, D = 6, 10, 4, 3


class Packed(nn.Module):
    """Queries, keys and values from one layer, kind by kind or head by head."""

    def __init__(self, by_kind: bool = True) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.by_kind = H, D, by_kind
        self.qkv, self.proj = nn.Linear(E, 3 * H * D), nn.Linear(H * D, E)
        self.q_norm = nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        if self.by_kind:
            qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        else:
            qkv = self.qkv(x).unflatten(-1, (self.num_heads, 3, self.head_dim)).permute(3, 0, 2, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(self.q_norm(q), k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Separate(nn.Module):
    """Own layers, a number for all heads together, and a bias of each head for every pair of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.all_head_size = H, H * D
        self.query, self.key, self.value = (nn.Linear(E, H * D) for _ in range(3))
        self.table, self.dense = nn.Parameter(torch.randn(T * T, H)), nn.Linear(H * D, E)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.n_heads, self.all_head_size // self.n_heads)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        scores = q @ k.transpose(2, 3) / D**0.5 + self.table.T.reshape(-1, T, T)
        return self.dense((scores.softmax(-1) @ v).transpose(1, 2).reshape(*x.shape[:2], self.all_head_size))


class Grouped(nn.Module):
    """Two heads share their keys and values; only the size of a head is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.each = D, 2
        self.q, self.k, self.v = nn.Linear(E, H * D), nn.Linear(E, H * D // 2), nn.Linear(E, H * D // 2)
        self.o = nn.Linear(H * D, E, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(self.each, 1) for part in (k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class OfTorch(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, H, **options)
        self.before, self.after = nn.Linear(E, 12), nn.Linear(12, E)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        x = x if self.attention.batch_first else x.transpose(0, 1)
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.after(x if self.attention.batch_first else x.transpose(0, 1))


class Block(nn.Module):
    """Tokens through an attention and an MLP, as in a transformer."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(E), attention, nn.LayerNorm(E)
        self.fc1, self.fc2, self.head = nn.Linear(E, 16), nn.Linear(16, E), nn.Linear(E, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean(1))


def heads_of(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.units for group in graph.groups if group.noun != "channels"}


def block(attention: nn.Module, tokens: int = T) -> tuple[nn.Module, tuple[Tensor], ChannelGraph]:
    torch.manual_seed(0)
    model, inputs = Block(attention).eval(), (torch.randn(1, tokens, E),)
    return model, inputs, channel_graph(model, inputs)
