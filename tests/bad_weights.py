"""Files of weights of bad form, as users bring them along; each with the words that its message must have."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.bad_forms import INF, NAN, filled

State = dict[Any, Any]


def entry(change: Callable[[Tensor], Any], name: str = "head.weight") -> Callable[[State], State]:
    return lambda state: {**state, name: change(state[name])}


# Of a state dict, what is saved instead; and the words.
WEIGHTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "integers as keys": (lambda s: dict(enumerate(s.values())), "has the int 0 as a key, where a state dict has names"),
    "one integer as a key": (lambda s: {**s, 7: torch.zeros(1)}, "has the int 7 as a key"),
    "sparse": (entry(lambda w: w.to_sparse()), "head.weight is a tensor of the layout sparse_coo, not a dense one"),
    "sparse rows": (entry(lambda w: w.to_sparse_csr()), "head.weight is a tensor of the layout sparse_csr"),
    "nested": (entry(lambda w: torch.nested.nested_tensor([w, w])), "not a"),
    "meta": (entry(lambda w: w.to("meta")), "head.weight is a tensor without values (device meta)"),
    "quantized": (entry(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)), "is a quantized tensor (qint8)"),
    "int64": (lambda s: {k: v.long() for k, v in s.items()}, "conv.weight int64 instead of float32, conv.bias int64"),
    "complex": (entry(lambda w: w.to(torch.complex64)), "head.weight complex64 instead of float32"),
    "bool": (entry(lambda w: w > 0), "head.weight bool instead of float32). Remedy"),
    "NaN": (entry(filled(NAN, 0)), "1 of 32 numbers of head.weight are NaN or infinite"),
    "minus infinity": (entry(filled(-INF, 3), "head.bias"), "1 of 4 numbers of head.bias are NaN or infinite"),
    "too large for float32": (entry(lambda w: w.double() + 1e39), "32 of 32 numbers of head.weight are NaN or"),
    "another shape": (entry(lambda w: w[:2]), "of another shape: head.weight (2, 8) instead of (4, 8)"),
    "missing": (lambda s: {k: v for k, v in s.items() if k != "head.bias"}, "(missing: head.bias)"),
    "unknown, of two lines": (lambda s: {**s, "a\nb" * 99: torch.zeros(1)}, r"(unknown: a\nba\nb"),
    "numbers": (lambda s: {k: v.tolist() for k, v in s.items()}, "holds no state dict. Remedy"),
    "arrays": (lambda s: {k: np.zeros(2) for k in s}, "model.weights"),
    "a list": (lambda s: list(s.values()), "holds no state dict"),
    "a tensor": (lambda s: torch.zeros(3), "holds no state dict"),
    "a module": (lambda s: nn.Linear(2, 2), "holds objects besides tensors (torch.nn.modules.linear.Linear)"),
    "a path for a tensor": (lambda s: {**s, "head.bias": Path("x")}, "(missing: head.bias)"),
    "code": (lambda s: {**s, "date": date(2026, 1, 1)}, "holds objects besides tensors (datetime.date)"),
}  # fmt: skip
