"""The shipped files: ``.pt2`` programs, ``.packed`` weights and ``.tflite`` models. Imports nothing heavy by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pfray.errors import ConfigError


def load(path: str | Path) -> Any:
    """The ``nn.Module`` of a ``.pt2`` file, or the state dict of a ``.packed`` file.

    A program (``.pt2``) is code, and calling it runs what its author wrote: load only programs that you trust. Weights
    (``.packed``) are data without code, and may come from anywhere.

    Raises ConfigError for any other suffix, ExportError or WeightsError for a missing or damaged file.
    """
    suffix = Path(path).suffix
    if suffix == ".pt2":
        from pfray.export import pt2

        return pt2.load(path)
    if suffix == ".packed":
        from pfray.export.packed import file

        return file.load(path)
    raise ConfigError(
        f"{path}: the suffix {suffix!r} cannot be loaded; allowed are '.pt2' (a model) and '.packed' (a state dict). "
        "Remedy: a .tflite file is run by `python -m pfray.bench` or an interpreter"
    )
