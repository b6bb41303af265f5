"""End of a run: measure on the test split, export, check and time the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfray import bench
from pfray.errors import ExportError, TrainingFailed
from pfray.export import pt2
from pfray.export.packed import file
from pfray.export.shipped import shipped
from pfray.export.tflite import convert, flatbuffer, float_islands, profile, quantized, short_names, sparse
from pfray.export.tflite.float_islands import InFloat
from pfray.export.tflite.kept import teacher_file
from pfray.export.tflite.quantized import Stored
from pfray.export.tflite.recurrent import MANY_STEPS, STEP_SECONDS, unrolled_steps
from pfray.measure.evaluation import Measurement, measure
from pfray.measure.interpreter import BenchError
from pfray.nn.modes import place
from pfray.reporting.observers import Observers
from pfray.storage.run_folder import RunFolder
from pfray.task import Task, example_input
from pfray.utils.files import write_atomically
from pfray.workflow import file_check


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
    Returns the summary's ``exported`` entry; None without a .tflite. Its ``slow_operators`` say where the time goes if
    the file is slower than the teacher's. Raises ExportError if the file does not reproduce the model.
    """
    example = example_input(task)
    path = run.tflite
    with observers.stage("export", total=4) as stage:
        if tflite and (steps := unrolled_steps(model, example)) > MANY_STEPS:
            observers.note(
                f"the .tflite holds {steps} steps of recurrent layers one by one, because LiteRT's own operator for "
                f"them carries its state from one input to the next; two files take about {steps * STEP_SECONDS:.0f} "
                "s. export.tflite=false does without them"
            )
        pt2.save(model, example, run.program)
        stage.update(1, run.program.name)
        if not tflite:
            return None
        checked = write_checked(model, task, path, images)
        stage.update(2, f"{path.name}, checked")
        write_atomically(run.teacher_tflite, teacher_file(teacher, task).read_bytes())
        stage.update(3, run.teacher_tflite.name)
        inputs = convert.arrays(example)
        latency, teacher_latency = bench.latency_ms([path, run.teacher_tflite], rounds=rounds, example=inputs)
        slow = profile.slow_operators(path) if latency > teacher_latency else []
        stage.update(4, "timed")
    return {
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "teacher_size_bytes": run.teacher_tflite.stat().st_size,
        **checked,
        "latency_ms": latency,
        "teacher_latency_ms": teacher_latency,
        "slow_operators": slow,
    }


def write_checked(model: nn.Module, task: Task, path: Path, images: int | None) -> dict[str, Any]:
    """Write the .tflite with sparse and quantized weights stored as such, and run it on test images (None: all).

    If a rounding type changes the outputs too much, the next type is tried. Returns part of the summary's ``exported``
    entry; its ``stored`` gives the type of each layer of a quantized model in the file. Raises ExportError.
    """
    content = convert.convert(model, example_input(task))
    large = len(content) >= convert.LARGEST  # as it is, where nothing in it has to change
    floats: list[InFloat] = []
    for allowed in quantized.CHOICES:
        parsed = flatbuffer.parse(content)
        if not large:
            floats = float_islands.compute_in_float(parsed)
            short_names.shorten(parsed)
        stored = quantized.quantize(parsed, model, allowed)
        changed = sparse.sparsify(parsed) or stored or not large
        write_atomically(path, flatbuffer.pack(parsed) if changed else content)
        try:
            rounds = shipped(model).rounds or any(each.rounds for each in stored.values())
            checked = file_check.check(model, task, path, images, rounds)
            return {**asdict(checked), "stored": _records(model, stored, floats)}
        except (ExportError, BenchError):
            if not any(each.rounds for each in stored.values()):
                raise
    raise AssertionError("the last choice rounds nothing")


def _records(model: nn.Module, stored: dict[str, Stored], floats: Sequence[InFloat]) -> dict[str, Any]:
    """Type of each layer in the file, as JSON values; empty for a model in float.

    floats: operators that the file computes in float although the model rounds them.
    """
    records = {
        name: {"bits": 8 if kind == "int8" else None, "type": kind, "reason": why}
        for name, (kind, why) in shipped(model).operators().items()
    }
    if not records:
        return {name: asdict(each) for name, each in stored.items()}
    # A record is named after its module, or after the operator in it, and stands for all such products of the module.
    products = [name for name, each in records.items() if str(each["reason"]).startswith(("matmul in", "bmm in"))]
    for each in floats:
        kind = each.name.lower()
        own = [name for name in products if each.module in (name, name.rpartition(".")[0])]
        if each.name != "BATCH_MATMUL" or not (own or products):
            own = [_unused(each.module or kind, kind, records)]
        left = [name for name in own or products if records.get(name, {}).get("type") != "float"]
        for name in left[:1]:
            records[name] = {"bits": None, "type": "float", "reason": f"{kind} is faster so: its int8 kernel is slow"}
    return records


def _unused(name: str, kind: str, records: dict[str, Any]) -> str:
    """``name``; with the kind of operator, and then a number, if there are records of that name already."""
    names = [name, f"{name}.{kind}", *(f"{name}.{kind}_{number}" for number in range(1, len(records) + 1))]
    return next(each for each in names if each not in records)


def pack(model: nn.Module, path: Path) -> int:
    """Write the packed weights. Returns the file's size in bytes."""
    return file.save(path, shipped(model).weights())
