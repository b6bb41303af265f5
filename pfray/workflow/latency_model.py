"""Latency as a target: milliseconds of a plan's .tflite on this machine, predicted from its MACs.

A few plans, from the whole network to the most compressed one, are exported and timed in turns. The prediction
interpolates linearly in the MACs and never rises as they fall. Weights do not change the time, so nothing is trained.
Plans with equal MACs differ in time by the channels of each layer. Therefore the plans to be retrained are timed
themselves, and compressed further while they are too slow.

If layers can be switched to 8 bits, both ends are timed, and the prediction is linear in the mean bits between them.

All times are of turns with the original network's file, which is converted once (``kept.py``).
"""

from __future__ import annotations

import json
import logging
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pfray import bench
from pfray.export.tflite import convert
from pfray.export.tflite.kept import teacher_file
from pfray.learner.base import Algorithm
from pfray.learner.context import Context, Recipe
from pfray.nn.fingerprint import model_parts
from pfray.nn.inputs import tensors
from pfray.space import CompressionSpace, Limits, Plan
from pfray.task import example_input
from pfray.units import latency_text
from pfray.utils.cache import cache_dir, cache_key
from pfray.utils.files import read_json, write_json

# Plans on the curve, the whole network included; timing rounds; most files made of a plan that is too slow.
POINTS = 3
ROUNDS = 30
TRIES = 4
# Share of the limit that a plan is compressed to after its file was too slow, because a timing is not exact.
AIM = 0.98

# ``(2, P)``: MACs, rising, and milliseconds.
Curve = list[list[float]]
# Called with units of work done, and a remark.
Done = Callable[[int, str], None]


@dataclass(frozen=True)
class PredictedCosts:
    """Costs of a space and the predicted ``latency_ms``.

    inner: the other costs. curves: by name, ``float`` and perhaps ``int8``. bits: mean bits with all switches on, and
    with all off. teacher_ms: time of the original network's file.
    """

    inner: Callable[[np.ndarray], dict[str, float]]
    curves: Mapping[str, Curve]
    bits: tuple[float, float]
    teacher_ms: float

    def __call__(self, values: np.ndarray) -> dict[str, float]:
        costs = self.inner(values)
        times = {name: float(np.interp(costs["macs"], macs, times)) for name, (macs, times) in self.curves.items()}
        if "int8" not in times:
            return {**costs, "latency_ms": times["float"]}
        share = (costs["bits"] - self.bits[0]) / (self.bits[1] - self.bits[0])
        # If 8 bits are slower, using more of them must not look like a gain.
        return {**costs, "latency_ms": times["int8"] + share * max(0.0, times["float"] - times["int8"])}


@dataclass(frozen=True)
class TimedPlan:
    """A plan to be retrained. share: time of its file over the original's. further: compressed further to be so fast.
    """

    plan: Plan
    share: float
    further: bool


def timed_space(space: CompressionSpace, algorithm: Algorithm, done: Done) -> CompressionSpace:
    """``space`` with the additional cost ``latency_ms`` (milliseconds); unchanged if it has no cost ``macs``.

    done(files made, words) is called after each file. The curves are cached, so that a continued run has the same.
    Raises ExportError if the network cannot be exported.
    """
    if "macs" not in space.costs_at(np.ones(len(space))):
        return space
    plans = {name: _plans(space, positions) for name, positions in _ends(space).items()}
    shapes = [tuple(tensor.shape) for tensor in tensors(example_input(algorithm.task))]
    key = cache_key(
        *model_parts(algorithm.model, algorithm.task), str(algorithm.settings), type(algorithm).__name__, shapes, plans,
        platform.node(),
    )  # fmt: skip
    path = cache_dir() / "latency" / f"{key}.json"
    if (kept := read_json(path)) is None:
        kept = _time_curves(space, algorithm, plans, done)
        write_json(path, kept)
    return replace(space, costs_of=PredictedCosts(space.costs_of, kept["curves"], _bits(space), kept["teacher_ms"]))


def _time_curves(
    space: CompressionSpace, algorithm: Algorithm, plans: Mapping[str, list[Plan]], done: Done
) -> dict[str, Any]:
    """``curves`` by name, and ``teacher_ms``."""
    macs = {name: [space.costs(plan)["macs"] for plan in own] for name, own in plans.items()}
    with tempfile.TemporaryDirectory() as folder:
        teacher = teacher_file(algorithm.model, algorithm.task)
        files: dict[str, list[Path]] = {name: [] for name in plans}
        for name, own in plans.items():
            for plan, count in zip(own, macs[name], strict=True):
                made = sum(map(len, files.values()))
                files[name].append(_file(algorithm, plan, Path(folder) / f"{made}.tflite"))
                done(made + 1, f"{name} file of {count:,.0f} MACs")
        times = _time([teacher, *(path for own in files.values() for path in own)])
    curves = {name: rising_curve(macs[name], [times[path] for path in own]) for name, own in files.items()}
    return {"curves": curves, "teacher_ms": times[teacher]}


def meet_latency(
    plans: dict[str, Plan],
    space: CompressionSpace,
    limits: Limits,
    recipe: Recipe,
    context: Context,
    path: Path,
    done: Done,
) -> dict[str, TimedPlan]:
    """The named plans, each compressed further while its file is slower than ``limits`` allow.

    path: file that the plans are written to, and read from if it exists, because another timing could give others.
    done(plans, words) is called after each timing.
    """
    if (known := read_json(path)) is not None and known.keys() == {"plans", "held"} and known["plans"] == plans:
        return {name: TimedPlan(**held) for name, held in known["held"].items()}
    if path.exists():
        logging.getLogger("pfray").warning("%s is damaged or of other plans; the plans are timed again", path)
    shares: dict[str, float] = {}
    held: dict[str, TimedPlan] = {}
    for count, (name, plan) in enumerate(plans.items()):

        def share_of(wanted: Plan) -> float:
            key = json.dumps(wanted, sort_keys=True)
            if key not in shares:
                shares[key] = _share(wanted, recipe, context)
            return shares[key]

        def tell(words: str, count: int = count, name: str = name) -> None:
            done(count, f"{name}: {words}")

        held[name] = _meet(plan, space, limits, share_of, tell)
    done(len(plans), "done")
    write_json(path, {"plans": plans, "held": {name: asdict(timed) for name, timed in held.items()}})
    return held


def _meet(
    plan: Plan, space: CompressionSpace, limits: Limits, share_of: Callable[[Plan], float], tell: Callable[[str], None]
) -> TimedPlan:
    costs = space.costs_of
    assert isinstance(costs, PredictedCosts), "made by timed_space"
    first, wanted, stricter = plan, limits["latency_ms"], dict(limits)
    for attempt in range(1, TRIES + 1):
        share = share_of(plan)
        measured = share * costs.teacher_ms
        late = measured > wanted and attempt < TRIES
        tell(f"{latency_text(measured)} of {latency_text(wanted)}{', compressed further' if late else ''}")
        if not late:
            break
        stricter["latency_ms"] = max(
            stricter["latency_ms"] * AIM * wanted / measured, space.reachable("latency_ms")[0]
        )
        before, plan = plan, space.fit_to_target(plan, stricter)
        if plan == before:
            break
    return TimedPlan(plan, share, plan != first)


def _share(plan: Plan, recipe: Recipe, context: Context) -> float:
    """Time of the plan's file over the original's, both timed in turns."""
    candidate = recipe.candidate(plan)
    teacher = teacher_file(context.teacher, context.task)
    with tempfile.TemporaryDirectory() as folder:
        own = _file(candidate.bind(context.teacher, context.task), candidate.plan, Path(folder) / "plan.tflite")
        times = _time([own, teacher])
    return times[own] / times[teacher]


def file_count(space: CompressionSpace) -> int:
    """Most plans whose files ``timed_space`` times."""
    return POINTS * len(_ends(space))


def _ends(space: CompressionSpace) -> dict[str, np.ndarray]:
    """Positions ``(L,)`` that the curves start from: all switches to 8 bits off and, if there are any, all on."""
    full = np.ones(len(space))
    switches = space.of_kind("int8_switch")
    # Between the two curves the prediction goes by the mean bits.
    if not switches.any() or "bits" not in space.costs_at(full):
        return {"float": full}
    return {"float": full, "int8": np.where(switches, 0.0, full)}


def _bits(space: CompressionSpace) -> tuple[float, float]:
    """Mean bits with all switches on, and with all off."""
    ends = [space.costs_at(positions).get("bits", 0.0) for positions in _ends(space).values()]
    return min(ends), max(ends)


def _plans(space: CompressionSpace, positions: np.ndarray) -> list[Plan]:
    """Plans from the one at ``positions`` to the most compressed one, their positions lowered together."""
    steps = np.linspace(1.0, 0.0, POINTS)
    plans = [space.decode(np.minimum(positions, step)) for step in steps]
    return [plan for i, plan in enumerate(plans) if plan not in plans[:i]]


def _file(algorithm: Algorithm, plan: Plan, path: Path) -> Path:
    """The plan's file, with arbitrary weights: the original network's if the plan changes no layer, else ``path``."""
    model = algorithm.rebuild(algorithm.structure(plan))
    if _structure(model) == _structure(algorithm.model):
        return teacher_file(algorithm.model, algorithm.task)
    convert.export(model, example_input(algorithm.task), path)
    return path


def _structure(model: nn.Module) -> tuple[object, ...]:
    return type(model), repr(model), {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _time(paths: list[Path]) -> dict[Path, float]:
    """Milliseconds of each file, timed in turns; a file that is given twice is timed once."""
    files = list(dict.fromkeys(paths))
    return dict(zip(files, bench.latency_ms(files, rounds=ROUNDS), strict=True))


def rising_curve(macs: list[float], times: list[float]) -> Curve:
    """The curve of measured points, sorted by MACs, its times made monotone."""
    order = np.argsort(macs)
    return [np.array(macs)[order].tolist(), np.maximum.accumulate(np.array(times)[order]).tolist()]
