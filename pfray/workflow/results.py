"""Results of a run: every retrained model packed and measured on the test split, the compressed one exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pfray.config.sections import Export
from pfray.measure.evaluation import Measurement
from pfray.reporting.observers import Observers
from pfray.storage.run_folder import MODEL, RunFolder
from pfray.task import Task
from pfray.workflow import finalize


@dataclass(frozen=True)
class Results:
    """measured: by name of the model, the teacher first. exported: facts of the .tflite; None without one."""

    measured: dict[str, Measurement]
    exported: dict[str, Any] | None


def measure_and_export(
    teacher: nn.Module,
    models: Mapping[str, nn.Module],
    task: Task,
    export: Export,
    run: RunFolder,
    observers: Observers,
) -> Results:
    """Write and measure the run's models. Raises TrainingFailed, ExportError."""
    with observers.stage("measure"):
        sizes = {"teacher": run.teacher.stat().st_size}
        for name, model in models.items():
            sizes[name] = finalize.pack(model, run.packed(name))
        measured = {n: finalize.measure_test(m, task, sizes[n]) for n, m in {"teacher": teacher, **models}.items()}
        for name, measurement in measured.items():
            observers.measured(name, measurement)
    exported = finalize.export_model(
        models[MODEL], teacher, task, run, observers, tflite=export.tflite, images=export.images, rounds=export.rounds
    )
    if exported is not None:
        for name, key in ((MODEL, "latency_ms"), ("teacher", "teacher_latency_ms")):
            measured[name] = replace(measured[name], latency_ms=exported[key])
    return Results(measured, exported)
