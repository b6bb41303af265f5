"""The end of a run: read the test split, export, check and time the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfray import bench
from pfray.config import Export
from pfray.errors import ExportError
from pfray.export import packed, program, sparse_tflite, tflite
from pfray.int8 import Int8Model
from pfray.measure import Measurement, evaluate, example_input, measure, place
from pfray.progress import Progress
from pfray.task import Task

# A .tflite whose outputs differ by more than this share of the largest output does not do what the model does.
MAX_RELATIVE_DIFFERENCE = 1e-2
# Of an int8 file, whose kernels round otherwise than the simulation in float: a step of 1/256 here and there, which
# the layers behind it carry on (0.05 of the largest output for MobileNet-v1 on the digits). A wrong file differs by 1.
MAX_INT8_DIFFERENCE = 0.2
# Nor does one whose accuracy on the same images is further from the model's than this.
MAX_ACCURACY_DIFFERENCE = 0.01


def measure_test(model: nn.Module, task: Task, size_bytes: int) -> Measurement:
    """The measurement on the test split, in float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measurement = measure(place(model, device), task, task.test)
    model.to("cpu")
    return replace(measurement, size_bytes=size_bytes)


def export_model(
    model: nn.Module, teacher: nn.Module, task: Task, export: Export, folder: Path, progress: Progress
) -> dict[str, Any] | None:
    """Write model.pt2, model.tflite and teacher.tflite into the run folder; run, compare and time what is shipped.

    Returns the summary's ``exported`` entry; None where the experiment wants no .tflite. Raises ExportError where the
    file does not reproduce the model.
    """
    example = example_input(task)
    path = folder / "model.tflite"
    with progress.stage("export", total=4) as stage:
        program.save(model, example, folder / "model.pt2")
        stage.update(1, "model.pt2")
        if not export.tflite:
            return None
        tflite.export(model, example, path)
        sparse_tflite.sparsify(path, path)
        stage.update(2, "model.tflite")
        tflite.export(teacher, example, folder / "teacher.tflite")
        stage.update(3, "teacher.tflite")
        test = task.test.head(export.images)
        inputs = task.normalize(test.inputs)
        outputs, difference = tflite.compare(path, model, inputs)
        allowed = MAX_INT8_DIFFERENCE if isinstance(model, Int8Model) else MAX_RELATIVE_DIFFERENCE
        if not difference <= allowed * max(1.0, outputs.abs().max().item()):
            raise ExportError(
                f"{path} differs from the model by up to {difference:g} on {len(inputs)} test images. "
                "Remedy: export.tflite=false to do without it, and report the model"
            )
        accuracy, torch_accuracy = task.score(outputs, test.targets).mean().item(), evaluate(model, task, test).accuracy
        if abs(accuracy - torch_accuracy) > MAX_ACCURACY_DIFFERENCE:
            raise ExportError(
                f"{path} has an accuracy of {accuracy:.4f}, the model of {torch_accuracy:.4f} on the same {len(test)} "
                "test images. Remedy: export.tflite=false to do without it, and report the model"
            )
        latency, teacher_latency = bench.latency_ms([path, folder / "teacher.tflite"], rounds=export.rounds)
        stage.update(4, "checked and timed")
    return {
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "teacher_size_bytes": (folder / "teacher.tflite").stat().st_size,
        "accuracy": accuracy,
        "torch_accuracy": torch_accuracy,
        "images": len(test),
        "latency_ms": latency,
        "teacher_latency_ms": teacher_latency,
        "max_abs_diff": difference,
    }


def pack(model: nn.Module, path: Path) -> int:
    """Write the packed weights and return the file's bytes."""
    shipped = model.converted(folded=True) if isinstance(model, Int8Model) else model
    return packed.save(path, shipped.state_dict())
