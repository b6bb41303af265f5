"""Checks of a task's functions before any of them is called: a function, and neither a name nor a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn import functional as F

from pfray.errors import DataError, nearest, shown

# Names that losses go by, and what torch.nn.functional has for them.
LOSSES = {
    "bce": "binary_cross_entropy_with_logits", "bce_with_logits": "binary_cross_entropy_with_logits",
    "ce": "cross_entropy", "crossentropy": "cross_entropy", "huber": "huber_loss", "kl": "kl_div", "l1": "l1_loss",
    "l2": "mse_loss", "mae": "l1_loss", "mean_squared_error": "mse_loss", "mse": "mse_loss", "nll": "nll_loss",
    "smooth_l1": "smooth_l1_loss",
}  # fmt: skip


def check_functions(title: str, functions: Mapping[str, Any], optional: tuple[str, ...]) -> None:
    """Raise DataError for the first that cannot be called. functions: by field. title: begins the message."""
    for name, function in functions.items():
        if isinstance(function, type):
            raise DataError(
                f"{title}: {name} is the class {function.__name__}. Remedy: an instance, {function.__name__}()"
            )
        if not callable(function) and (function is not None or name not in optional):
            remedy = _loss_of(function) if name in ("loss", "soft_loss") else "a function"
            raise DataError(f"{title}: {name} is {shown(function)}, which cannot be called. Remedy: {remedy}")


def check_output_choice(title: str, output: Any) -> None:
    """Raise DataError unless ``output`` says which part of a model's outputs is meant."""
    if output is None or (isinstance(output, str | int) and not isinstance(output, bool)) or callable(output):
        return
    raise DataError(
        f"{title}: output is {shown(output)}. Remedy: a key (str), a position (int) or a function of the model's "
        "outputs"
    )


def _loss_of(name: Any) -> str:
    """The function of torch that a name means, as far as it means one."""
    if not isinstance(name, str):
        return "a function of (outputs, targets), such as torch.nn.functional.cross_entropy"
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    known = {**LOSSES, **{each: each for each in (*LOSSES.values(), "gaussian_nll_loss", "poisson_nll_loss")}}
    if plain in known and callable(getattr(F, known[plain], None)):
        return f"the function, torch.nn.functional.{known[plain]}"
    return f"a function, such as torch.nn.functional.cross_entropy or mse_loss.{nearest(plain, known)}"
