"""Runs every benchmark except the finished studies, each in its own process, and prints their closing lines."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.result import ROOT, SKIPPED

# They measure nothing: `make device-check` runs the first two, the last follows the guide's way to a cluster.
CHECKS = ("device_check", "device_files", "cluster_walk")
# It trains for hours.
LONG = ("against_torch_pruning",)
# Module and options.
RUNS = (
    ("search_overhead",),
    ("ddpg_pendulum",),
    ("gp_suggest",),
    ("lasso_path",),
    ("quantize_candidate",),
    ("quant_file",),
    ("int8_speed",),
    ("critic_search",),
    ("suggestions",),
    ("weak_scaling",),
    ("kills",),
    ("model_zoo",),
    ("input_pipeline",),
    ("train_throughput",),
    ("train_throughput", "--model", "mobilenet_v1"),
)


def run_one(command: Sequence[str]) -> tuple[int, list[str]]:
    """(exit code, closing lines) of ``command``, whose output is shown as it comes."""
    closing = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment()) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if is_closing(line):
                closing.append(line.rstrip())
    return process.returncode, closing


def is_closing(line: str) -> bool:
    """True for the JSON line that ends a benchmark."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and {"name", "value", "unit", "goal", "ok"} == set(entry)


def main(arguments: Sequence[str] | None = None, runs: Sequence[Sequence[str]] = RUNS) -> int:
    """Returns the exit code: 1 when a benchmark failed to run; a goal that is missed or missing data is no failure."""
    _parser().parse_args(arguments)
    lines, failed, skipped = [], [], []
    for module, *options in runs:
        name = " ".join([module, *options])
        print(f"== {name}", flush=True)
        code, closing = run_one([sys.executable, "-u", "-m", f"benchmarks.{module}", *options])
        lines += closing
        if code == SKIPPED:
            skipped.append(name)
        elif code or not closing:
            failed.append(f"{name} (exit code {code})")
    print("== results")
    print("\n".join(lines))
    for word, names in (("skipped", skipped), ("failed", failed)):
        if names:
            print(f"{word}: {', '.join(names)}")
    return 1 if failed else 0


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run every benchmark but the finished studies in turn and print their closing lines together. "
        "Each runs by itself as well, with options of its own: python -m benchmarks.search_overhead --help. "
        "benchmarks/studies has the finished ones, an hour and more each, as benchmarks.against_torch_pruning takes.",
    )


if __name__ == "__main__":
    sys.exit(main())
