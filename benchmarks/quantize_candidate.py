"""Time of a candidate of the bits search on ResNet-56: copy the teacher and quantize every layer, without evaluation.

Random plans of 1 to 8 bits a layer, for both learners with their defaults. Reports the median, on one thread, in
process time, so that other load on the machine does not count.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.result import SKIPPED, close, is_missing
from benchmarks.sparse_resnet import needed
from benchmarks.studies.searching import job_with

NAME = "quantize_candidate"
MODEL = "resnet56"
LEARNERS = ("uniform_quant", "non_uniform_quant")
GOAL = "<= 0.1"


def measure(algorithm: Any, candidates: int, seed: int) -> tuple[float, float]:
    """(seconds to prepare, median seconds of a candidate)."""
    import numpy as np

    generator = np.random.default_rng(seed)
    started = time.process_time()
    _ = algorithm.prepared
    prepared = time.process_time() - started
    space, seconds = algorithm.space(), []
    for _ in range(candidates):
        plan = space.decode(generator.random(len(space)))
        started = time.process_time()
        algorithm.compress(plan)
        seconds.append(time.process_time() - started)
    return prepared, median(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    import torch

    torch.set_num_threads(1)
    for name in LEARNERS:
        prepared, candidate = measure(job_with(MODEL, name).bind(), options.candidates, options.seed)
        print(f"{name}: prepared in {prepared:.1f} s, a candidate in {candidate:.3f} s")
        close(f"{NAME}_{name}", candidate, "s", GOAL)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(NAME, "Seconds to quantize a candidate of the bits search.")
    parser.add_argument("--candidates", type=int, default=30, help="random plans")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
