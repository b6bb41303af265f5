"""Latency as a target: milliseconds of a plan's .tflite on this machine, predicted from its MACs.

The whole network and the most compressed one are exported and timed, then uniform plans that should just meet the
limit, until one does: around the sizes of a processor's caches the curve is far from a line. The prediction
interpolates linearly in the MACs and never rises as they fall. Weights do not change the time, so nothing is trained.
Every file is timed in turns with the original network's, which is converted once in a run (``kept.py``).

If layers can be switched to 8 bits, both ends have a curve, and the prediction is linear in the mean bits between them.
If layers can be removed and others narrowed, so have the networks with all and with none of the removable layers, and
the prediction is linear in the share of the layers that stay: at equal MACs, fewer layers are faster.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pfray import bench
from pfray.errors import InfeasibleTarget
from pfray.export.tflite import convert
from pfray.export.tflite.kept import teacher_file
from pfray.learner.base import Algorithm
from pfray.nn.fingerprint import model_parts
from pfray.nn.inputs import tensors
from pfray.space import CompressionSpace, Plan
from pfray.task import Task, example_input
from pfray.units import Amount, latency_text
from pfray.utils.cache import cache_dir, cache_key
from pfray.utils.files import read_json, write_json

# Most uniform plans that are timed near the limit, and how near one has to be, as a share of it.
PROBES = 2
NEAR = 0.05
# Timing rounds.
ROUNDS = 30
# Ending of the names of curves of the network without its removable layers.
SHALLOW = ", fewer layers"

# ``(2, P)``: MACs, rising, and milliseconds.
Curve = list[list[float]]
# Called with units of work done, and a remark.
Done = Callable[[int, str], None]


@dataclass(frozen=True)
class PredictedCosts:
    """Costs of a space and the predicted ``latency_ms``.

    inner: the other costs. curves: by name, ``float`` and perhaps ``int8``, and with ``SHALLOW`` behind it that of the
    network without the removable layers. bits: mean bits with all switches on, and with all off. teacher_ms: time of
    the original network's file. layers_left(values): share of the removable layers that stay.
    """

    inner: Callable[[np.ndarray], dict[str, float]]
    curves: Mapping[str, Curve]
    bits: tuple[float, float]
    teacher_ms: float
    layers_left: Callable[[np.ndarray], float] | None = None

    def __call__(self, values: np.ndarray) -> dict[str, float]:
        costs = self.inner(values)
        kept = self.layers_left(values) if self.layers_left else 1.0
        times = {name: self._time(name, costs["macs"], kept) for name in self.curves if not name.endswith(SHALLOW)}
        if "int8" not in times:
            return {**costs, "latency_ms": times["float"]}
        share = (costs["bits"] - self.bits[0]) / (self.bits[1] - self.bits[0])
        # If 8 bits are slower, using more of them must not look like a gain.
        return {**costs, "latency_ms": times["int8"] + share * max(0.0, times["float"] - times["int8"])}

    def _time(self, name: str, macs: float, kept: float) -> float:
        """Milliseconds on the curves with all layers and with none, and between them by the share ``kept``."""
        counts, times = self.curves[name]
        deep = float(np.interp(macs, counts, times))
        if name + SHALLOW not in self.curves:
            return deep
        few_counts, few_times = self.curves[name + SHALLOW]
        # A network without the layers and with more MACs is none of the plans'; the gap stays as it was last.
        shallow = float(np.interp(macs, few_counts, few_times))
        if macs > few_counts[-1]:
            shallow += deep - float(np.interp(few_counts[-1], counts, times))
        return shallow + kept * max(0.0, deep - shallow)


def timed_space(space: CompressionSpace, algorithm: Algorithm, limit: Amount, done: Done) -> CompressionSpace:
    """``space`` with the additional cost ``latency_ms`` (milliseconds); unchanged if it has no cost ``macs``.

    limit: on the latency; the prediction is best near it. done(files made, words) is called after each file. The curves
    are cached, so that a continued run has the same. Raises ExportError if the network cannot be exported.
    """
    if "macs" not in space.costs_at(np.ones(len(space))):
        return space
    ends = {name: [space.decode(positions) for positions in both] for name, both in _ends(space).items()}
    shapes = [tuple(tensor.shape) for tensor in tensors(example_input(algorithm.task))]
    key = cache_key(
        *model_parts(algorithm.model, algorithm.task), str(algorithm.settings), type(algorithm).__name__, shapes, ends,
        str(limit), platform.node(),
    )  # fmt: skip
    path = cache_dir() / "latency" / f"{key}.json"
    if (kept := read_json(path)) is None:
        kept = _time_curves(space, algorithm, ends, limit, done)
        write_json(path, kept)
    return _predicting(space, kept["curves"], kept["teacher_ms"])


def _predicting(space: CompressionSpace, curves: Mapping[str, Curve], teacher_ms: float) -> CompressionSpace:
    costs = PredictedCosts(space.costs_of, curves, _bits(space), teacher_ms, _layers_left(space))
    return replace(space, costs_of=costs)


def _time_curves(
    space: CompressionSpace, algorithm: Algorithm, ends: Mapping[str, list[Plan]], limit: Amount, done: Done
) -> dict[str, Any]:
    """``curves`` by name, and ``teacher_ms``. ends: plans at both ends of each curve, the whole network first."""
    (teacher_ms,) = _time([teacher_file(algorithm.model, algorithm.task)], algorithm.task)
    wanted = limit.absolute(teacher_ms)
    points: dict[str, dict[float, float]] = {name: {} for name in ends}

    def add(name: str, plan: Plan) -> float:
        macs, found = space.costs(plan)["macs"], time_share(algorithm, plan) * teacher_ms
        points[name][macs] = found
        done(sum(map(len, points.values())), f"{name} file of {macs:,.0f} MACs: {latency_text(found)}")
        return found

    for name, plans in ends.items():
        for plan in plans:
            add(name, plan)
    for _ in range(PROBES):
        curves = {name: rising_curve(list(own), list(own.values())) for name, own in points.items()}
        probe = _probe(_predicting(space, curves, teacher_ms), wanted)
        curve = None if probe is None else _curve_of(space, probe, list(ends))
        if probe is None or curve is None or space.costs(probe)["macs"] in points[curve]:
            break
        if abs(add(curve, probe) - wanted) <= NEAR * wanted:
            break
    curves = {name: rising_curve(list(own), list(own.values())) for name, own in points.items()}
    return {"curves": curves, "teacher_ms": teacher_ms}


def _probe(space: CompressionSpace, wanted: float) -> Plan | None:
    """The uniform plan that should just meet a latency; None if none does, which the resolved target reports."""
    try:
        return space.uniform({"latency_ms": wanted})
    except InfeasibleTarget:
        return None


def _curve_of(space: CompressionSpace, plan: Plan, names: list[str]) -> str | None:
    """Curve that a plan is on; None if only some of its layers have 8 bits, or only some of them are left."""
    low, high = _bits(space)
    kind = {high: "float", low: "int8"}.get(space.costs(plan)["bits"]) if "int8" in names else "float"
    layers_left = _layers_left(space)
    if kind is None or layers_left is None:
        return kind
    return {1.0: kind, 0.0: kind + SHALLOW}.get(layers_left(np.array([plan[knob.name] for knob in space.knobs])))


def file_count(space: CompressionSpace) -> int:
    """Most plans whose files ``timed_space`` times."""
    return 2 * len(_ends(space)) + PROBES


def _ends(space: CompressionSpace) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Positions ``(L,)`` of the two ends of each curve: all switches to 8 bits off and, if there are any, all on; all
    removable layers in and, if other knobs are narrowed besides, all out."""
    full = np.ones(len(space))
    switches, layers = space.of_kind("int8_switch"), space.layers_beside_others
    # Between the two curves the prediction goes by the mean bits.
    if "bits" not in space.costs_at(full):
        switches = np.zeros_like(switches)
    ends = {}
    for kind in ("float", "int8") if switches.any() else ("float",):
        for depth in ("", SHALLOW) if layers.any() else ("",):
            start = np.where(switches & (kind == "int8") | layers & (depth == SHALLOW), 0.0, full)
            ends[kind + depth] = start, np.where(switches | layers, start, 0.0)
    return ends


def _bits(space: CompressionSpace) -> tuple[float, float]:
    """Mean bits with all switches on, and with all off."""
    ends = [space.costs_at(start).get("bits", 0.0) for start, _ in _ends(space).values()]
    return min(ends), max(ends)


def _layers_left(space: CompressionSpace) -> Callable[[np.ndarray], float] | None:
    layers = np.flatnonzero(space.layers_beside_others).tolist()
    inside = {index: others.intersection(layers) for index, others in space.taken_along.items()}
    return partial(layers_left, layers=layers, inside=inside) if layers else None


def layers_left(values: np.ndarray, layers: Sequence[int], inside: Mapping[int, set[int]]) -> float:
    """Share of ``layers``, indices of knobs, that stay. inside: those that go with another layer, by its index."""
    gone = {index for index in layers if values[index] < 0.5}
    gone = gone.union(*(inside.get(index, ()) for index in gone))
    return 1 - len(gone) / len(layers)


def time_share(algorithm: Algorithm, plan: Plan) -> float:
    """Time of a plan's file over the original network's, timed in turns; 1 for a plan that changes no layer.

    The weights of the file are arbitrary.
    """
    model = algorithm.rebuild(algorithm.structure(plan))
    if _structure(model) == _structure(algorithm.model):
        return 1.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.tflite"
        convert.export(model, example_input(algorithm.task), path)
        own, whole = _time([path, teacher_file(algorithm.model, algorithm.task)], algorithm.task)
    return own / whole


def _time(paths: list[Path], task: Task) -> list[float]:
    """Milliseconds of each file, timed in turns: the first quartile, as other processes only add to a round's time."""
    example = convert.arrays(example_input(task))
    return np.quantile(bench.round_times_ms(paths, ROUNDS, example=example), 0.25, axis=1).tolist()


def _structure(model: nn.Module) -> tuple[object, ...]:
    return type(model), repr(model), {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def rising_curve(macs: list[float], times: list[float]) -> Curve:
    """The curve of measured points, sorted by MACs, its times made monotone."""
    order = np.argsort(macs)
    return [np.array(macs)[order].tolist(), np.maximum.accumulate(np.array(times)[order]).tolist()]
