"""Multiply-adds of a forward pass, counted from the shapes of the matrix products that it does.

They do not depend on the machine: a fused kernel counts as the products that it fuses, and attention counts in full,
also where a mask hides some of it. Elementwise multiplications do not count.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from pfray.nn.inputs import Inputs, call
from pfray.nn.modes import evaluation_mode

aten = torch.ops.aten


def count_macs(model: nn.Module, inputs: Inputs) -> tuple[int, dict[str, int]]:
    """(multiply-adds of one forward pass in evaluation mode, the same by module name, the model's own name being "").

    A module's count includes its children's. A module that is no layer of its own, such as ``nn.MultiheadAttention``,
    has the products that it does with its children's weights.
    """
    running = _Running()
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    counter.mod_tracker = running  # type: ignore[assignment]
    # Not in inference mode: lazy layers would then make weights that cannot learn.
    with counter, evaluation_mode(model), torch.no_grad(), _countable_kernels():
        call(model, inputs)
    macs: dict[Any, int] = defaultdict(int)
    for module, products in counter.flop_counts.items():
        macs[module] = sum(products.values()) // 2
    return counter.get_total_flops() // 2, {name: macs[module] for name, module in model.named_modules()}


class _Running:
    """The modules whose forward pass runs, for ``FlopCounterMode``, whose own tracker knows them by type and name."""

    def __init__(self) -> None:
        self.parents: list[Any] = ["Global"]
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        self.handles = [
            register_module_forward_pre_hook(lambda module, _: self.parents.append(module)),
            # Also after an error, which the model may catch.
            register_module_forward_hook(lambda *_: self._ended(), always_call=True),
        ]

    def _ended(self) -> None:
        self.parents.pop()

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


@contextmanager
def _countable_kernels() -> Iterator[None]:
    """Attention and encoder layers module by module, and no kernel that pads heads, as a GPU's flash attention does."""
    fast = torch.backends.mha.get_fastpath_enabled()
    kernels = [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION]
    if not torch.cuda.is_available():
        kernels.append(SDPBackend.FLASH_ATTENTION)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(kernels):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


# Formulas of operators that torch's counter does not know, from their arguments and their results.


def _counted(formula: Callable[..., int]) -> Callable[..., int]:
    """The formula as torch's counter calls it, in operations: two for each multiply-add."""

    def operations(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return 2 * formula(*args, out=out_val, **kwargs)

    operations._get_raw = True  # type: ignore[attr-defined]  # gets the tensors, not their shapes
    return operations


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape) // 2


def _recurrent(inputs: Tensor, weights: list[Tensor], *_: Any, **__: Any) -> int:
    """All layers, directions and gates: each step of each sequence meets every weight once."""
    return inputs.shape[:-1].numel() * sum(weight.numel() for weight in weights if weight.dim() == 2)


def _recurrent_layer(inputs: Tensor, of_inputs: Tensor, of_hidden: Tensor, *_: Any, **__: Any) -> int:
    return _recurrent(inputs, [of_inputs, of_hidden])


def _dot(first: Tensor, *_: Any, **__: Any) -> int:
    return first.numel()


def _second(_: Tensor, matrices: Tensor, other: Tensor, **__: Any) -> int:
    """beta C + alpha A B for matrices or batches A, and for a vector, a matrix or batches B."""
    return matrices.numel() * (other.shape[-1] if other.dim() > 1 else 1)


def _product(first: Tensor, second: Tensor, **_: Any) -> int:
    return first.numel() * second.shape[-1]


def _grouped(first: Tensor, second: Tensor, *_: Any, out: Tensor, **__: Any) -> int:
    """Products of the groups of two matrices' columns and rows, else of matrices with a matrix for each group."""
    both_matrices = first.dim() == second.dim() == 2
    return first.numel() * second.shape[1] if both_matrices else out.numel() * first.shape[-1]


def _bilinear(first: Tensor, weight: Tensor, second: Tensor, *_: Any, **__: Any) -> int:
    """x W_o for every output o, and its product with y. ``(N, I)``, ``(O, I, J)`` and ``(N, J)``."""
    outputs, left, right = weight.shape
    return len(first) * outputs * right * (left + 1)


def _sequence_convolution(_: Tensor, weight: Tensor, *__: Any, out: Tensor, **___: Any) -> int:
    """weight: ``(K, C, O)``."""
    return out.numel() * weight.shape[:2].numel()


def _quantized(_: Tensor, packed: Any, *__: Any, out: Tensor, **___: Any) -> int:
    """Each output of a linear layer or of a convolution sums over one row of the weight."""
    return out.numel() * math.prod(packed.unpack()[0].shape[1:])


FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _counted(_attention),
    aten._scaled_dot_product_fused_attention_overrideable: _counted(_attention),
    aten.mkldnn_rnn_layer: _counted(_recurrent_layer),
    aten._cudnn_rnn: _counted(_recurrent),
    aten.miopen_rnn: _counted(_recurrent),
    aten.dot: _counted(_dot),
    aten.vdot: _counted(_dot),
    aten.mv: _counted(_dot),
    aten.addmv: _counted(_second),
    aten.addbmm: _counted(_second),
    aten._addmm_activation: _counted(_second),
    aten._int_mm: _counted(_product),
    aten._grouped_mm: _counted(_grouped),
    aten.conv_tbc: _counted(_sequence_convolution),
    aten._trilinear: _counted(_bilinear),
}
for _kind in ("linear", "linear_relu", "linear_dynamic", "linear_relu_dynamic", "conv1d", "conv1d_relu", "conv2d",
              "conv2d_relu", "conv3d", "conv3d_relu"):  # fmt: skip
    # Not in every build of torch.
    if hasattr(torch.ops.quantized, _kind):
        FORMULAS[getattr(torch.ops.quantized, _kind)] = _counted(_quantized)
