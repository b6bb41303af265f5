"""``nn.MultiheadAttention`` with fewer heads than its width has room for.

torch's own forward pass derives the size of a head from the width, so that no head can go, and it multiplies by
``out_proj.weight`` without calling the layer, so that no hook sees what the projection reads. ``HeadAttention``
computes the same from the same parameters, for any number of heads, with ``out_proj`` called as a module.

Notation: B samples, T queries and S keys of width E, H heads of d features each; H d = E in a whole module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HeadAttention(nn.MultiheadAttention):
    """Arguments, outputs and parameters of ``nn.MultiheadAttention``; made from one by ``spell_out``."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(outputs ``(..., T, E)``, weights ``(B, T, S)``, by head with ``average_attn_weights=False``, or None).

        is_causal is a hint only: what counts is ``attn_mask``, as in ``nn.MultiheadAttention``.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is given without attn_mask. Remedy: give the mask too")
        if not self.batch_first:  # (T, B, E) to (B, T, E); nothing moves in (T, E)
            query, key, value = (x.movedim(0, -2) for x in (query, key, value))
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in self._project(query, key, value))
        q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
        mask = self._mask(key_padding_mask, attn_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = F.dropout(F.softmax(scores if mask is None else scores + mask, -1), dropout)
            mixed = weights @ v
            weights = weights.mean(-3) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(mixed.transpose(-3, -2).flatten(-2))
        return output if self.batch_first else output.movedim(-2, 0), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries ``(..., T, H d)``, keys and values ``(..., S, H d)``."""
        width = self.num_heads * self.head_dim
        parts = [slice(start, start + width) for start in range(0, 3 * width, width)]
        if self.in_proj_weight is not None:
            each = [self.in_proj_weight[rows] for rows in parts]
        else:
            each = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        biases = [None if self.in_proj_bias is None else self.in_proj_bias[rows] for rows in parts]
        q, k, v = map(F.linear, (query, key, value), each, biases)
        if self.bias_k is not None and self.bias_v is not None:
            rows = self.bias_k.flatten(), self.bias_v.flatten()
            k, v = (torch.cat([x, row.expand_as(x[..., :1, :])], -2) for x, row in zip((k, v), rows, strict=True))
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        return [q, k, v]

    def _mask(self, padding: Tensor | None, mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Sum of both masks, to be added to the scores ``(..., H, T, S)``: 0 for keys that the module adds itself."""
        if padding is not None:  # (B, S), or (S,)
            padding = _additive(padding, q)[..., None, None, :]
        if mask is not None:  # (T, S), or (B H, T, S), or (H, T, S) for an input without a batch
            mask = _additive(mask, q)
            mask = mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 and q.dim() == 4 else mask
        total = mask if padding is None else padding if mask is None else mask + padding
        added = int(self.bias_k is not None) + int(self.add_zero_attn)
        return F.pad(total, (0, added)) if total is not None and added else total


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask that is added to scores: minus infinity where a mask of truth values hides a key."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def spell_out(model: nn.Module) -> None:
    """Make every ``nn.MultiheadAttention`` in ``model`` a ``HeadAttention``, in place."""
    for module in model.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = HeadAttention
            # The fused kernels of nn.TransformerEncoderLayer compute whole modules only, and are not taken without it.
            module._qkv_same_embed_dim = False


def restore_whole(model: nn.Module) -> None:
    """Make every ``HeadAttention`` that has all its heads an ``nn.MultiheadAttention`` again, in place."""
    for module in model.modules():
        if not isinstance(module, HeadAttention):
            continue
        widths = {module.num_heads * module.head_dim, module.out_proj.out_features, module.out_proj.in_features}
        if widths == {module.embed_dim}:
            module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
            module._qkv_same_embed_dim = module.in_proj_weight is not None


@contextmanager
def module_by_module() -> Iterator[None]:
    """Within, torch's encoder layers run their parts instead of one fused kernel."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def calling_projections(model: nn.Module) -> Iterator[None]:
    """Within, every ``nn.MultiheadAttention`` calls its ``out_proj`` as a module, for hooks and torch.fx to see."""
    spell_out(model)
    try:
        # nn.TransformerEncoder makes nested tensors for the fused kernels, which nothing else takes.
        with module_by_module():
            yield
    finally:
        restore_whole(model)
