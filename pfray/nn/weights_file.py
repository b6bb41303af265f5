"""Weights files as plain data: torch's or ``.safetensors``, read without running code."""

from __future__ import annotations

import argparse
import pathlib
import re
import stat
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from pfray.errors import WeightsError, first_line, short

SAVE = "Remedy: save it again with torch.save(model.state_dict(), path)"
# Functions that pickle's numpy arrays and numbers are made by, under their present and former names.
_MAKERS: list[Any] = [np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]]
_NUMPY = [
    (function, f"{module}.{function.__name__}")
    for function in _MAKERS
    for module in ("numpy._core.multiarray", "numpy.core.multiarray")
]
# What training scripts keep beside weights. Making these objects runs no code of the file.
HARMLESS: list[Any] = [
    argparse.Namespace, types.SimpleNamespace, pathlib.PosixPath, *_NUMPY, np.ndarray, np.dtype,
    *(type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]),
]  # fmt: skip


def read(title: str, path: Path) -> Any:
    """The file's content, its tensors on the CPU. title: names the file in messages. Raises WeightsError."""
    _check_kind(title, path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Everything torch warns of is refused later.
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        if path.suffix != ".safetensors" and (objects := _objects(path, error)):
            raise WeightsError(
                f"{title} holds objects besides tensors ({objects}), which only running code of the file could make, "
                f"as torch.save(model, path) has it. {SAVE}"
            ) from error
        reason = "TorchScript" if "torchscript" in str(error).lower() else first_line(error)
        raise WeightsError(f"{title} is not a readable state-dict file ({reason}). {SAVE}") from error


def _check_kind(title: str, path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise WeightsError(f"model.weights: no file {short(str(path), 200)}. Remedy: check the path") from None
    # A device may never end, and a pipe without a writer never begins.
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise WeightsError(f"{title} is {kind}, not a file. Remedy: the path of a state-dict file")


def _objects(path: Path, error: Exception, most: int = 3) -> str:
    """Classes and functions for which torch refuses the file; empty if it refuses it for another reason."""
    try:
        allowed = {name for _, name in _NUMPY}
        with torch.serialization.safe_globals(HARMLESS):
            names = sorted({*torch.serialization.get_unsafe_globals_in_checkpoint(path)} - allowed)
    except Exception:  # damaged, or of torch's format before version 1.6
        names = re.findall(r"(?:GLOBAL|function|class)\s+([A-Za-z_]\w*(?:\.\w+)+)", str(error))[:1]
    # A user's own class says the most.
    names.sort(key=lambda name: name.startswith(("torch.", "collections.", "builtins.")))
    return ", ".join(short(name) for name in names[:most]) + (f" and {len(names) - most} more" * (len(names) > most))
