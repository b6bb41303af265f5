"""A model as a ``.tflite`` file, through litert-torch, and what the file computes beside the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfray.errors import ExportError, first_line
from pfray.export.shipped import shipped
from pfray.export.tflite import flatbuffer, float_islands, short_names
from pfray.measure import interpreter
from pfray.nn.flat import Structured, has_list, with_named_tensors
from pfray.nn.inputs import Inputs, call, count, join, map_tensors, moved, shapes, take, tensors
from pfray.nn.modes import evaluating, forward
from pfray.utils.files import write_atomically
from pfray.utils.quiet import quiet

# Above this a file keeps its names, because the format then keeps constants where rewriting would lose them.
LARGEST = 2_000_000_000


def export(model: nn.Module, example: Inputs, path: str | Path) -> int:
    """Write ``model`` in evaluation mode for a batch of one and return the file's bytes. The model stays as it is.

    The file's inputs and outputs are the tensors of the model's, in the order of ``pfray.nn.inputs.tensors``; those of
    mappings keep their keys as names in the signature. int64 becomes int32.

    example: inputs of at least one sample. Raises ExportError where the model cannot be converted, StorageError where
    the file cannot be written.
    """
    content = convert(model, example)
    if len(content) < LARGEST:
        file = flatbuffer.parse(content)
        float_islands.compute_in_float(file)
        short_names.shorten(file)
        content = flatbuffer.pack(file)
    write_atomically(path, content)
    return len(content)


def convert(model: nn.Module, example: Inputs) -> bytes:
    """litert-torch's ``.tflite`` of ``model``, with long names and dense weights. Arguments as for ``export``.

    Raises ExportError where the model cannot be converted.
    """
    sample = map_tensors(lambda tensor: tensor.cpu().contiguous(), take(example, slice(0, 1)))
    form = shipped(model)
    try:
        with quiet():
            import litert_torch
            from litert_torch.quantize.quant_config import QuantConfig

            quantization = QuantConfig(pt2e_quantizer=form.quantizer) if form.quantizer is not None else None
            module = form.converted()
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            with torch.no_grad():
                outputs = call(module, sample)
            named = None
            if not isinstance(sample, Tensor) or not isinstance(outputs, Tensor):
                module, named = with_named_tensors(module, sample, outputs)
            args = (sample,) if named is None else ()
            return litert_torch.convert(module, args, named, quant_config=quantization).model_content()
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} cannot be converted to a .tflite: {first_line(error)}. Remedy: keep branches on "
            "tensor values and operators that TensorFlow Lite lacks out of forward()"
        ) from error


def arrays(inputs: Inputs) -> list[np.ndarray]:
    """The tensors of inputs as ``pfray.measure.interpreter`` takes them, in the order of the file's inputs."""
    return [tensor.detach().cpu().numpy() for tensor in tensors(inputs)]


@dataclass(frozen=True)
class Compared:
    """The outputs of a file and of its model on the same inputs, each in the model's structure, on the CPU."""

    file: Any
    model: Any

    @property
    def largest_difference(self) -> float:
        """The largest absolute difference; NaN if either has a NaN."""
        pairs = zip(tensors(self.file), tensors(self.model), strict=True)
        return float(torch.stack([(own.double() - other.double()).abs().max() for own, other in pairs]).max())


def compare(path: str | Path, model: nn.Module, inputs: Inputs, batch_size: int = 250) -> Compared:
    """Run the file and the model on a batch of inputs.

    Raises BenchError where the file is missing, damaged or of another input shape, ExportError where it gives outputs
    of another shape.
    """
    expected = outputs_of(model, inputs, batch_size)
    if not has_list(inputs):
        found = interpreter.predict(path, arrays(inputs), count(inputs))
        return Compared(_structured(path, found, expected), expected)
    # One by one, because a list's tensors have no axis of samples.
    samples = [slice(index, index + 1) for index in range(count(inputs))]
    outputs = interpreter.predict_each(path, (arrays(take(inputs, sample)) for sample in samples))
    made = [_structured(path, own, take(expected, which)) for which, own in zip(samples, outputs, strict=True)]
    return Compared(join(made), expected)


def _structured(path: str | Path, found: list[np.ndarray], expected: Any) -> Any:
    """A file's outputs in the structure of the model's. Raises ExportError if they have other shapes."""
    outputs = [torch.from_numpy(output) for output in found]
    if [output.shape for output in outputs] != [tensor.shape for tensor in tensors(expected)]:
        raise ExportError(
            f"{path} gives {shapes(tuple(outputs), 'output')}, the model {shapes(expected, 'output')}. "
            "Remedy: repeat the export"
        )
    return Structured(expected)(outputs)


def outputs_of(model: nn.Module, inputs: Inputs, batch_size: int = 250) -> Any:
    """The model's outputs for a batch of inputs of any size, in parts, on the CPU, floats in float32."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    parts = []
    with evaluating(model):
        for start in range(0, count(inputs), batch_size):
            part = moved(take(inputs, slice(start, start + batch_size)), device)
            parts.append(map_tensors(_on_cpu, forward(model, part)))
    return join(parts)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.float().cpu() if tensor.is_floating_point() else tensor.cpu()
