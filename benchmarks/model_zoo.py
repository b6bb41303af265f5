"""Networks of timm, torchvision and transformers, as nobody here wrote them: what can be pruned, and does it ship?

Each network has random weights and inputs. It is pruned to half of its MACs by ``channel_pruned``, both its float and
its 8-bit form become .tflite files, and the files are checked as a run checks its own (``workflow/file_check.py``) and
timed. A network that cannot be pruned is not exported. The share of the MACs that can go is that of keeping 5 % of
every group, beside Torch-Pruning's own pruner at the same ratio.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import zoo_networks
from benchmarks.result import ROOT, SKIPPED, close
from benchmarks.studies.workers import Record, run_all
from benchmarks.torch_pruning_share import removed_share
from benchmarks.zoo_networks import AS_BY_DEFAULT, ENOUGH, NETWORKS, SAMPLES

NAME = "model_zoo"
# Networks that ship as .tflite, and in 8 bits; seconds of the slowest step; networks whose predicted MACs are not those
# counted; networks of which Torch-Pruning takes out more.
SHIPPED, SHIPPED_INT8, SLOWEST, INEXACT, BEHIND = ">= 23", ">= 20", "<= 60", "<= 0", "<= 0"
# Samples that the files are checked on.
COMPARED = 32
# Share of every group that stays for the share of the MACs that can go, and what rounding may change that share by.
KEPT, ROUNDED = 0.05, 0.005

def examine(piece: list[Any]) -> Record:
    """piece: (library, name, pixels). Counts, shares, seconds of each step, and the error of a step that fails."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    record: Record = {"seconds": {}, "errors": {}}

    def step(name: str, action: Callable[[], Any]) -> Any:
        started = time.process_time()
        try:
            return action()
        except Exception as error:
            record["errors"][name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return None
        finally:
            record["seconds"][name] = round(time.process_time() - started, 1)

    model, task = step("build", lambda: zoo_networks.network(*piece)) or (None, None)
    if model is None:
        return record
    step("graph", lambda: _groups(model, task, record))
    step("torch-pruning", lambda: record.update({"peer share": removed_share(model, task, KEPT)}))
    pruned = step("prune", lambda: _prune(model, task, record))
    if pruned is not None:
        if piece[1] in AS_BY_DEFAULT:
            step("prune in order", lambda: _prune_in_order(model, task))
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / "float.tflite", Path(folder) / "int8.tflite"]
            step("tflite", lambda: _float_file(pruned, task, record, files[0]))
            step("int8", lambda: _int8_file(pruned, task, record, files[1]))
            if not record["errors"]:
                step("time", lambda: _time(files, task, record))
    return record


def _groups(model: Any, task: Any, record: Record) -> None:
    import numpy as np

    from pfray.pruning.channels.keep_ratios import graph_of

    graph = graph_of(model, task)
    whole = graph.costs(graph.units)["macs"]
    kept = np.maximum(1, np.round(KEPT * graph.units))
    record.update(macs=whole, groups=len(graph.groups), share=1 - graph.costs(kept)["macs"] / whole)


def _half(model: Any, task: Any) -> tuple[Any, Any]:
    """(the pruner, its uniform plan for half of the MACs)."""
    from learners.channel_pruned import ChannelPruned, Settings
    from pfray.measure.cost import total_macs
    from pfray.task import example_input

    algorithm = ChannelPruned(model, task, Settings(images=None if len(task.train) == ENOUGH else SAMPLES))
    return algorithm, algorithm.space().uniform({"macs": 0.5 * total_macs(model, example_input(task))})


def _prune_in_order(model: Any, task: Any) -> None:
    algorithm, plan = _half(model, task)
    algorithm.finish(plan)


def _prune(model: Any, task: Any, record: Record) -> Any:
    """The network at half of its MACs."""
    from pfray.measure.cost import total_macs
    from pfray.task import example_input

    algorithm, plan = _half(model, task)
    space, whole = algorithm.space(), total_macs(model, example_input(task))
    pruned = algorithm.compress(plan).model
    predicted, counted = space.costs(plan)["macs"], total_macs(pruned, example_input(task))
    record.update(pruned=counted / whole, exact=bool(predicted == counted))
    return pruned.cpu().eval()


def _float_file(model: Any, task: Any, record: Record, path: Path) -> None:
    from pfray.workflow.finalize import write_checked

    record["float distance"] = write_checked(model, task, path, COMPARED)["distance"]


def _time(files: Sequence[Path], task: Any, record: Record) -> None:
    """How many times faster the int8 file is, on one thread."""
    from pfray import bench
    from pfray.export.tflite import convert
    from pfray.task import example_input

    full, int8 = bench.latency_ms(files, rounds=15, example=convert.arrays(example_input(task)))
    record.update({"float ms": full, "int8 faster": full / int8})


def _int8_file(model: Any, task: Any, record: Record, path: Path) -> None:
    from learners.litert_quant import LitertQuant, Settings
    from pfray.workflow.finalize import write_checked

    algorithm = LitertQuant(model, task, Settings(images=None if len(task.train) == ENOUGH else SAMPLES))
    plan = dict.fromkeys(algorithm.space().names, 8.0)
    checked = write_checked(algorithm.finish(plan).model, task, path, COMPARED)
    record.update({"int8 distance": checked["distance"], "int8 rounding": checked["rounding"]})


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if missing := [name for name in ("timm", "torchvision", "transformers") if importlib.util.find_spec(name) is None]:
        print(f"{NAME}: skipped, {missing[0]} is missing. Remedy: make test-models, and PYTHONPATH=.models")
        return SKIPPED
    chosen = [list(network) for network in NETWORKS if not options.only or network[1] in options.only]
    records = run_all(examine, chosen, options.records, options.processes)
    print(table(records, options.markdown))
    for record in records:
        for step, error in record["errors"].items():
            print(f"{record['piece'][1]}, {step}: {error}")
    for value, unit, goal in judged(records):
        close(NAME, value, unit, goal)
    return 0


def judged(records: Sequence[Record]) -> list[tuple[float, str, str]]:
    """(value, unit, goal) of every goal. A network without a share, such as one without a group, is behind its peer."""
    ships = sum("float distance" in record for record in records)  # files that fail their check have none
    ships_int8 = sum("int8 distance" in record for record in records)
    slowest = max((seconds for record in records for seconds in record["seconds"].values()), default=0.0)
    # Counts are rounded, of few channels to other shares.
    behind = sum(record.get("share", 0.0) < record.get("peer share", 0.0) - ROUNDED for record in records)
    return [
        (ships, "networks as .tflite", SHIPPED),
        (ships_int8, "networks as int8", SHIPPED_INT8),
        (slowest, "processor seconds, slowest step", SLOWEST),
        (sum(record.get("exact") is False for record in records), "networks of other MACs than predicted", INEXACT),
        (behind, "networks of which Torch-Pruning takes out more", BEHIND),
    ]


COLUMNS = {
    "MMACs": ("macs", "7.1f", 1e-6), "groups": ("groups", "6.0f", 1.0), "can go": ("share", "7.1%", 1.0),
    "peer": ("peer share", "6.1%", 1.0), "to": ("pruned", "5.2f", 1.0), "float": ("float distance", "8.1e", 1.0),
    "int8": ("int8 distance", "7.3f", 1.0), "its own": ("int8 rounding", "7.3f", 1.0),
    "faster": ("int8 faster", "6.2f", 1.0),
}  # fmt: skip


def table(records: Sequence[Record], markdown: bool) -> str:
    """A row a network. Its own: the int8 model's distance from its own outputs without rounding."""
    rows = [["network, pixels", *COLUMNS, "graph, pruning, .tflite, int8 (s)"]]
    for record in records:
        _, name, pixels = record["piece"]
        values = [(record.get(key), form, scale) for key, form, scale in COLUMNS.values()]
        cells = ["-" if value is None else format(value * scale, form).strip() for value, form, scale in values]
        seconds = [f"{record['seconds'].get(step, 0):.1f}" for step in ("graph", "prune", "tflite", "int8")]
        rows.append([f"{name}, {pixels}" if pixels else name, *cells, ", ".join(seconds)])
    if markdown:
        rows.insert(1, ["---"] * len(rows[0]))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_zoo", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="names of networks")
    parser.add_argument("--processes", type=int, default=1, help="networks at a time, each on one thread (default 1)")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument(
        "--records", type=Path, default=ROOT / "runs" / "model_zoo.jsonl", help="finished networks, continued from"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
