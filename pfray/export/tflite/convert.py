"""A model as a ``.tflite`` file, through litert-torch, and the check that the file does what the model does."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from pfray import bench
from pfray.errors import ExportError, StorageError, first_line
from pfray.export.tflite import short_names
from pfray.nn.modes import evaluating
from pfray.quantization import qparams
from pfray.quantization.pt2e.int8_model import Int8Model
from pfray.utils.files import replacing
from pfray.utils.quiet import quiet


def export(model: nn.Module, example: Tensor, path: str | Path) -> int:
    """Write ``model`` in evaluation mode for a batch of one and return the file's bytes. The model stays as it is.

    example: ``(N, C, H, W)``, only its shape past N matters. Raises ExportError where the model cannot be converted,
    StorageError where the file cannot be written.
    """
    sample = example[:1].cpu().contiguous()
    try:
        with quiet(), replacing(path) as temporary:
            import litert_torch
            from litert_torch.quantize.quant_config import QuantConfig

            clone: nn.Module
            if isinstance(model, Int8Model):
                clone, quantization = model.converted(), QuantConfig(pt2e_quantizer=model.quantizer)
            else:
                clone, quantization = copy.deepcopy(model).cpu().eval(), None
                qparams.forget(clone)  # the converter refuses buffers that no operator reads
            clone.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            litert_torch.convert(clone, (sample,), quant_config=quantization).export(str(temporary))
            short_names.shorten(temporary)
    except StorageError:
        raise
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} cannot be converted to {path}: {first_line(error)}. Remedy: keep branches on "
            "tensor values and operators that TensorFlow Lite lacks out of forward()"
        ) from error
    return Path(path).stat().st_size


def compare(path: str | Path, model: nn.Module, inputs: Tensor, batch_size: int = 250) -> tuple[Tensor, float]:
    """Run the file and the model on ``(N, C, H, W)`` inputs: the file's ``(N, K)`` outputs, and the largest absolute
    difference between the two (nan where either gives a nan).

    Raises BenchError where the file is missing, damaged or of another input shape.
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
