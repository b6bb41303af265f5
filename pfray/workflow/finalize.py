"""End of a run: measure on the test split, export, check and time the result."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfray import bench
from pfray.bench import BenchError
from pfray.errors import ExportError, TrainingFailed
from pfray.export import pt2
from pfray.export.packed import file
from pfray.export.shipped import shipped
from pfray.export.tflite import convert, flatbuffer, quantized, short_names, sparse
from pfray.export.tflite.kept import teacher_file
from pfray.export.tflite.quantized import Stored
from pfray.measure.evaluation import Measurement, evaluate, measure
from pfray.nn.modes import place
from pfray.reporting.observers import Observers
from pfray.storage.run_folder import RunFolder
from pfray.task import Task, example_input
from pfray.utils.files import write_atomically

# Largest difference of the file's outputs from the model's, as a share of the largest output.
MAX_RELATIVE_DIFFERENCE = 1e-2
# The same for a file that rounds to 8 bits differently from the model. Steps of 1/256 add up over the layers (0.05 for
# MobileNet-v1 on the digits); a wrong file differs by 1.
MAX_INT8_DIFFERENCE = 0.2
# Added to both, absolute: float32's own rounding, for outputs of nearly 0.
ROUNDING = 1e-5
# Largest difference of the accuracies on the same images.
MAX_ACCURACY_DIFFERENCE = 0.01


def measure_test(model: nn.Module, task: Task, size_bytes: int) -> Measurement:
    """Measurement on the test split, in float32. Raises TrainingFailed if the loss is not finite."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measurement = measure(place(model, device), task, task.test)
    model.to("cpu")
    # A model of NaNs still has an accuracy: it always guesses the first class.
    if not math.isfinite(measurement.loss):
        raise TrainingFailed(
            f"the loss on the test split is {measurement.loss}, so no result holds. Remedy: a model and a loss that "
            "give finite numbers for every input"
        )
    return replace(measurement, size_bytes=size_bytes)


def export_model(
    model: nn.Module,
    teacher: nn.Module,
    task: Task,
    run: RunFolder,
    observers: Observers,
    *,
    tflite: bool,
    images: int | None,
    rounds: int,
) -> dict[str, Any] | None:
    """Write model.pt2 and, with ``tflite``, model.tflite and teacher.tflite into the run folder.

    images: test images that model.tflite is checked on (None: all). rounds: timing rounds of both files, in turns.
    Returns the summary's ``exported`` entry; None without a .tflite. Raises ExportError if the file does not reproduce
    the model.
    """
    example = example_input(task)
    path = run.tflite
    with observers.stage("export", total=4) as stage:
        pt2.save(model, example, run.program)
        stage.update(1, run.program.name)
        if not tflite:
            return None
        checked = write_checked(model, task, path, images)
        stage.update(2, f"{path.name}, checked")
        write_atomically(run.teacher_tflite, teacher_file(teacher, task).read_bytes())
        stage.update(3, run.teacher_tflite.name)
        latency, teacher_latency = bench.latency_ms([path, run.teacher_tflite], rounds=rounds)
        stage.update(4, "timed")
    return {
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "teacher_size_bytes": run.teacher_tflite.stat().st_size,
        **checked,
        "latency_ms": latency,
        "teacher_latency_ms": teacher_latency,
    }


def write_checked(model: nn.Module, task: Task, path: Path, images: int | None) -> dict[str, Any]:
    """Write the .tflite with sparse and quantized weights stored as such, and run it on test images (None: all).

    If a rounding type changes the outputs too much, the next type is tried. Returns part of the summary's ``exported``
    entry; its ``stored`` gives the type of each layer of a quantized model in the file. Raises ExportError.
    """
    content = convert.convert(model, example_input(task))
    large = len(content) >= convert.LARGEST  # as it is, where nothing in it has to change
    for allowed in quantized.CHOICES:
        parsed = flatbuffer.parse(content)
        if not large:
            short_names.shorten(parsed)
        stored = quantized.quantize(parsed, model, allowed)
        changed = sparse.sparsify(parsed) or stored or not large
        write_atomically(path, flatbuffer.pack(parsed) if changed else content)
        try:
            checked = _check(model, task, path, images, stored)
            return {**checked, "stored": _records(model, stored)}
        except (ExportError, BenchError):
            if not any(each.rounds for each in stored.values()):
                raise
    raise AssertionError("the last choice rounds nothing")


def _records(model: nn.Module, stored: dict[str, Stored]) -> dict[str, Any]:
    """Type of each layer in the file, as JSON values; empty for a model in float."""
    operators = {
        name: {"bits": 8 if kind == "int8" else None, "type": kind, "reason": why}
        for name, (kind, why) in shipped(model).operators().items()
    }
    return operators or {name: asdict(each) for name, each in stored.items()}


def _check(model: nn.Module, task: Task, path: Path, images: int | None, stored: dict[str, Stored]) -> dict[str, Any]:
    """Accuracies and largest difference. Raises ExportError if file and model disagree, BenchError if it does not run.
    """
    test = task.test.head(images)
    inputs = task.normalize(test.inputs)
    outputs, difference = convert.compare(path, model, inputs)
    rounds = shipped(model).rounds or any(each.rounds for each in stored.values())
    allowed = MAX_INT8_DIFFERENCE if rounds else MAX_RELATIVE_DIFFERENCE
    if not difference <= allowed * outputs.abs().max().item() + ROUNDING:
        raise ExportError(
            f"{path} differs from the model by up to {difference:g} on {len(inputs)} test images. "
            "Remedy: export.tflite=false to do without it, and report the model"
        )
    accuracy, torch_accuracy = task.score(outputs, test.targets).mean().item(), evaluate(model, task, test).accuracy
    # With few images, a single one between two classes proves nothing.
    if abs(accuracy - torch_accuracy) > max(MAX_ACCURACY_DIFFERENCE, 1.5 / len(test)):
        raise ExportError(
            f"{path} has an accuracy of {accuracy:.4f}, the model of {torch_accuracy:.4f} on the same {len(test)} "
            "test images. Remedy: export.tflite=false to do without it, and report the model"
        )
    return {"accuracy": accuracy, "torch_accuracy": torch_accuracy, "images": len(test), "max_abs_diff": difference}


def pack(model: nn.Module, path: Path) -> int:
    """Write the packed weights. Returns the file's size in bytes."""
    return file.save(path, shipped(model).weights())
