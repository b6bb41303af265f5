"""A model as a ``.pt2`` program: graph and weights in one file, loaded without the model's source code."""

from __future__ import annotations

import io
from pathlib import Path
from types import MethodType

import torch
from torch import nn

from pfray.errors import ExportError, StorageError, first_line, short
from pfray.export import pt2_archive
from pfray.export.shipped import shipped
from pfray.nn.inputs import Inputs
from pfray.nn.program import export_program
from pfray.utils.files import write_atomically
from pfray.utils.quiet import quiet


def save(model: nn.Module, example: Inputs, path: str | Path) -> int:
    """Write ``model`` in evaluation mode, on the CPU, for any batch size, and return the file's bytes.

    The program is called like the model. Its outputs are tensors, tuples, lists and dicts, also where the model's are
    dataclasses or named tuples, so that loading it needs none of their classes. A model that takes a list with a value
    for each sample is written for one sample.

    example: inputs of at least one sample. Raises ExportError where torch.export cannot trace the model or the model
    fixes its batch size, StorageError where the file cannot be written.
    """
    try:
        module = shipped(model).converted(folded=True)
        with quiet():
            program = export_program(module, example)
            # To memory first, because torch's own writer does not name a full disk as the cause.
            torch.export.save(program, content := io.BytesIO())
        write_atomically(path, content.getvalue())
    except StorageError:
        raise
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} cannot be exported to {path}: {first_line(error)}. Remedy: keep branches on "
            "tensor values and fixed batch sizes out of forward()"
        ) from error
    return Path(path).stat().st_size


def load(path: str | Path) -> nn.Module:
    """The program as a module that is called like the model, permanently in evaluation mode.

    A program is code, and calling it runs what its author wrote. Loading alone runs nothing: archives with pickles or
    with more than pfray's programs need are refused (``pt2_archive.py``). ``.packed`` files are data.

    Raises ExportError if the file is missing, damaged, refused or of another torch version.
    """
    if not Path(path).is_file():
        raise ExportError(f"{path}: no such file. Remedy: give the path of a .pt2 file")
    try:
        # Read once, so that the checked content is the loaded one.
        content = Path(path).read_bytes()
        pt2_archive.check(content)
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}). Remedy: check its permissions") from error
    except ValueError as error:
        raise ExportError(
            f"{path} is refused: {short(first_line(error), 200)}. Remedy: repeat the export, and load only programs "
            "whose author you trust; model.packed holds no code"
        ) from error
    except Exception as error:
        raise _damaged(path, error) from error
    try:
        # Registers the operators of int8 models.
        import torch.ao.quantization.fx._decomposed

        with quiet():  # torch prints tracebacks too
            module = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:
        raise _damaged(path, error) from error
    # torch makes these raise, but measuring a model calls eval() first, which is harmless here.
    for name in ("train", "eval"):
        setattr(module, name, MethodType(_keep_mode, module))
    for child in module.modules():
        child.training = False
    return module


def _damaged(path: str | Path, error: Exception) -> ExportError:
    return ExportError(
        f"{path} is damaged or was written by another version of torch ({short(first_line(error), 200)}). "
        "Remedy: copy it again or repeat the export"
    )


def _keep_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
