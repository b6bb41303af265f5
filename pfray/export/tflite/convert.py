"""A model as a ``.tflite`` file, through litert-torch, and the check that the file does what the model does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pfray import bench
from pfray.errors import ExportError, first_line
from pfray.export.shipped import shipped
from pfray.export.tflite import flatbuffer, short_names
from pfray.nn.modes import evaluating
from pfray.utils.files import write_atomically
from pfray.utils.quiet import quiet

# Above this a file keeps its names, because the format then keeps constants where rewriting would lose them.
LARGEST = 2_000_000_000


def export(model: nn.Module, example: Tensor, path: str | Path) -> int:
    """Write ``model`` in evaluation mode for a batch of one and return the file's bytes. The model stays as it is.

    example: ``(N, C, H, W)``, only its shape past N matters. Raises ExportError where the model cannot be converted,
    StorageError where the file cannot be written.
    """
    content = convert(model, example)
    if len(content) < LARGEST:
        file = flatbuffer.parse(content)
        short_names.shorten(file)
        content = flatbuffer.pack(file)
    write_atomically(path, content)
    return len(content)


def convert(model: nn.Module, example: Tensor) -> bytes:
    """litert-torch's ``.tflite`` of ``model``, with long names and dense weights. Arguments as for ``export``.

    Raises ExportError where the model cannot be converted.
    """
    sample = example[:1].cpu().contiguous()
    form = shipped(model)
    try:
        with quiet():
            import litert_torch
            from litert_torch.quantize.quant_config import QuantConfig

            quantization = QuantConfig(pt2e_quantizer=form.quantizer) if form.quantizer is not None else None
            module = form.converted()
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            return litert_torch.convert(module, (sample,), quant_config=quantization).model_content()
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} cannot be converted to a .tflite: {first_line(error)}. Remedy: keep branches on "
            "tensor values and operators that TensorFlow Lite lacks out of forward()"
        ) from error


def compare(path: str | Path, model: nn.Module, inputs: Tensor, batch_size: int = 250) -> tuple[Tensor, float]:
    """Run the file and the model on inputs ``(N, C, H, W)``: the file's outputs ``(N, K)``, and the largest absolute
    difference between the two (NaN if either gives a NaN).

    Raises BenchError where the file is missing, damaged or of another input shape, ExportError where it gives outputs
    of another shape.
    """
    outputs = torch.from_numpy(bench.predict(path, inputs.float().cpu().numpy()))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        expected = torch.cat([model(part.to(device)).float().cpu() for part in inputs.split(batch_size)])
    if expected.shape != outputs.shape:
        raise ExportError(
            f"{path} gives outputs of shape {tuple(outputs.shape)}, the model {tuple(expected.shape)}. "
            "Remedy: repeat the export"
        )
    return outputs, float((outputs - expected).abs().max())
