"""Latency as a target: milliseconds of a plan's .tflite on this machine, predicted from its MACs.

A few plans, from the whole network to the most compressed one, are exported and timed in turns. The prediction
interpolates linearly in the MACs and never rises as they fall. Weights do not change the time, so nothing is trained.
Plans with equal MACs differ in time by the channels of each layer. Therefore the plans to be retrained are timed
themselves, and compressed further while they are too slow.

If layers can be switched to 8 bits, both ends are timed, and the prediction is linear in the mean bits between them.
"""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pfray import bench
from pfray.export.tflite import convert
from pfray.learner.base import Algorithm
from pfray.learner.context import Context, Recipe
from pfray.nn.fingerprint import model_parts
from pfray.space import CompressionSpace, Limits, Plan
from pfray.task import example_input
from pfray.utils.cache import cache_dir, cache_key
from pfray.utils.files import read_json, write_json

# Plans on the curve, the whole network included; timing rounds; most corrections of a plan that is too slow.
POINTS = 5
ROUNDS = 30
TRIES = 4

# ``(2, P)``: MACs, rising, and milliseconds.
Curve = list[list[float]]


def timed_space(space: CompressionSpace, algorithm: Algorithm, done: Callable[[int, str], None]) -> CompressionSpace:
    """``space`` with the additional cost ``latency_ms`` (milliseconds); unchanged if it has no cost ``macs``.

    done(files made, words) is called after each file. The curves are cached, so that a continued run has the same.
    Raises ExportError if the network cannot be exported.
    """
    if "macs" not in space.costs_at(np.ones(len(space))):
        return space
    curves = {}
    for name, positions in _ends(space).items():
        plans = _plans(space, positions)
        key = cache_key(
            *model_parts(algorithm.model, algorithm.task), str(algorithm.settings), type(algorithm).__name__,
            algorithm.task.input_shape, plans, platform.node(),
        )  # fmt: skip
        path = cache_dir() / "latency" / f"{key}.json"
        if (kept := read_json(path)) is None:
            times = _time([(algorithm, plan) for plan in plans], partial(_show, done, name))
            macs = [space.costs(plan)["macs"] for plan in plans]
            kept = {"curve": rising_curve(macs, times)}
            write_json(path, kept)
        curves[name] = kept["curve"]
    return replace(space, costs_of=partial(costs_with_latency, inner=space.costs_of, curves=curves, bits=_bits(space)))


def meet_latency(
    plans: dict[str, Plan],
    space: CompressionSpace,
    limits: Limits,
    recipe: Recipe,
    context: Context,
    path: Path,
    done: Callable[[int, str], None],
) -> dict[str, Plan]:
    """The named plans, each compressed further while its file is slower than ``limits`` allow, at most TRIES times.

    A plan is timed in turns with the whole network, whose time is taken from the curve. path: file that the plans are
    written to, and read from if it exists, because another timing could give others. done(plans, name).
    """
    if (known := read_json(path)) is not None and known.keys() == {"plans", "held"} and known["plans"] == plans:
        return known["held"]
    if path.exists():
        logging.getLogger("pfray").warning("%s is damaged or of other plans; the plans are timed again", path)
    faster: dict[str, Plan] = {}
    for count, (name, plan) in enumerate(plans.items()):
        done(count, name)
        same = [earlier for earlier in faster if plans[earlier] == plan]
        faster[name] = faster[same[0]] if same else _meet_latency(plan, space, limits, recipe, context)
    done(len(plans), "done")
    write_json(path, {"plans": plans, "held": faster})
    return faster


def _meet_latency(plan: Plan, space: CompressionSpace, limits: Limits, recipe: Recipe, context: Context) -> Plan:
    whole = space.decode(np.ones(len(space)))
    wanted, stricter = limits["latency_ms"], dict(limits)
    for _ in range(TRIES):
        candidate = recipe.candidate(plan)
        algorithm = candidate.bind(context.teacher, context.task)
        pair = [(algorithm, each) for each in (candidate.plan, recipe.candidate(whole).plan)]
        found, full = _time(pair, lambda count: None)
        measured = found / full * space.costs(whole)["latency_ms"]
        if measured <= wanted:
            break
        stricter["latency_ms"] = max(stricter["latency_ms"] * wanted / measured, space.reachable("latency_ms")[0])
        plan = space.fit_to_target(plan, stricter)
    return plan


def file_count(space: CompressionSpace) -> int:
    """Most files that ``timed_space`` makes."""
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
    """Plans from the most compressed one to the one at ``positions``, their positions raised together."""
    steps = np.linspace(0.0, 1.0, POINTS)
    plans = [space.decode(np.minimum(positions, step)) for step in steps]
    return [plan for i, plan in enumerate(plans) if plan not in plans[:i]]


def _time(plans: list[tuple[Algorithm, Plan]], done: Callable[[int], None]) -> list[float]:
    """Milliseconds of each plan's file. done(count) is called after each file is made."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.tflite" for i in range(len(plans))]
        for i, ((algorithm, plan), path) in enumerate(zip(plans, paths, strict=True)):
            model = algorithm.rebuild(algorithm.structure(plan))
            convert.export(model, example_input(algorithm.task), path)
            done(i + 1)
        return bench.latency_ms(paths, rounds=ROUNDS)


def rising_curve(macs: list[float], times: list[float]) -> Curve:
    """The curve of measured points, sorted by MACs, its times made monotone."""
    order = np.argsort(macs)
    return [np.array(macs)[order].tolist(), np.maximum.accumulate(np.array(times)[order]).tolist()]


def costs_with_latency(
    values: np.ndarray,
    inner: Callable[[np.ndarray], dict[str, float]],
    curves: Mapping[str, Curve],
    bits: tuple[float, float],
) -> dict[str, float]:
    """The costs of ``inner`` and the predicted ``latency_ms``.

    curves: by name, ``float`` and perhaps ``int8``. bits: mean bits with all switches on, and with all off.
    """
    costs = inner(values)
    times = {name: float(np.interp(costs["macs"], macs, times)) for name, (macs, times) in curves.items()}
    if "int8" not in times:
        return {**costs, "latency_ms": times["float"]}
    share = (costs["bits"] - bits[0]) / (bits[1] - bits[0])
    # If 8 bits are slower, using more of them must not look like a gain.
    return {**costs, "latency_ms": times["int8"] + share * max(0.0, times["float"] - times["int8"])}


def _show(done: Callable[[int, str], None], name: str, count: int) -> None:
    done(count + (POINTS if name == "int8" else 0), f"{name} files")
