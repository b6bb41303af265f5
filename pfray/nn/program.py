"""A model as a program of torch.export, for any batch size."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from pfray.nn.flat import has_list, is_plain, plain, two_samples, with_plain_outputs
from pfray.nn.inputs import Inputs, arguments, map_tensors, tensors


def export_program(model: nn.Module, example: Inputs) -> ExportedProgram:
    """The program of ``model``, which is on the CPU and in evaluation mode; it may be changed to give plain outputs.

    Axis 0 of every tensor is open. A model that takes a list with a value for each sample is exported for one sample.

    example: inputs of at least one sample. Raises whatever torch.export does.
    """
    args, kwargs = arguments(plain(map_tensors(lambda tensor: tensor.cpu().contiguous(), two_samples(example))))
    with torch.no_grad():
        if not is_plain(model(*args, **kwargs)):
            with_plain_outputs(model)
    shapes = free_batch_axes(model, args, kwargs)
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:
        try:
            # Reads the forward pass as code, and so knows that len(x) is the batch size.
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=True)
        except Exception:
            raise error from None


def free_batch_axes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The ``dynamic_shapes`` of torch.export that leave axis 0 of every tensor open."""
    shapes, inputs = torch.export.ShapesCollection(), (args, kwargs)
    for tensor in [] if has_list(inputs) else tensors(inputs):
        if tensor.dim():
            shapes[tensor] = {0: torch.export.Dim.DYNAMIC}
    return shapes.dynamic_shapes(model, args, kwargs)
