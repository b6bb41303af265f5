"""ResNet-20 with 90 % sparsity, retrained on CIFAR-10 by two workers that exchange gradients in several ways.

Reports the accuracy on the test split after the last epoch, and the bytes that a worker sends. The workers are two
processes of one thread on this machine, with the same batches in the same order for all ways.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.parser import make_parser
from benchmarks.result import ROOT, SKIPPED, close, is_missing
from benchmarks.sparse_resnet import needed
from benchmarks.studies.workers import Record, run_all

NAME = "gradient_exchange"
FOLDER = ROOT / "runs" / NAME
MODEL = "resnet20"
WORKERS = 2
WAYS: dict[str, dict[str, Any]] = {
    "none": {"comm_hook": "none"},
    "ecq": {"comm_hook": "ecq"},
    "ecq without error feedback": {"comm_hook": "ecq", "compensation": 0.0, "decay": 0.0},
    "fp16": {"comm_hook": "fp16"},
}


def train(piece: Sequence[Any]) -> Record:
    """piece: (way, epochs, seed)."""
    import json

    import torch

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_worker, (tuple(piece), folder), nprocs=WORKERS)
        return json.loads((Path(folder) / "record.json").read_text())


def _worker(rank: int, piece: Sequence[Any], folder: str) -> None:
    import json
    import time

    import torch
    import torch.distributed as dist

    from benchmarks.sparse_resnet import job, plans_without_search
    from pfray.learner.build import compress_candidate
    from pfray.measure.evaluation import evaluate
    from pfray.training.comm_hooks import distribute
    from pfray.training.loop import Shard, choose_precision, fit
    from pfray.training.settings import Distributed, Training

    way, epochs, seed = piece
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=WORKERS)
    work, device, started = job(MODEL), torch.device("cpu"), time.time()
    training = Training(epochs=epochs, lr=0.05, batch_size=128, warmup_epochs=0)
    steps = epochs * work.task.train.steps(training.batch_size)
    candidate = work.recipe.candidate(plans_without_search(work)["uniform"])
    start = compress_candidate(candidate, work.context, device, steps)
    sparse, hook = start.model, start.hook
    wrapped, exchange = distribute(sparse, Distributed(**WAYS[way]), seed)

    def show(epoch: int, loss: float, optimizer: Any) -> None:
        if rank == 0:
            print(f"  {way}, seed {seed}: epoch {epoch}, loss {loss:.4f}, {time.time() - started:.0f} s", flush=True)

    precision = choose_precision(sparse, device)
    shard = Shard(rank, WORKERS)
    fit(wrapped, work.task, training, seed=seed, precision=precision, hook=hook, on_epoch=show, shard=shard)
    weights = torch.cat([parameter.detach().flatten() for parameter in sparse.parameters()])
    every = [torch.empty_like(weights) for _ in range(WORKERS)]
    dist.all_gather(every, weights)
    if rank == 0:
        record = {
            "test": evaluate(sparse, work.task, work.task.test).accuracy,
            "megabytes": exchange.sent_bytes / 1e6,
            "equal": all(torch.equal(weights, other) for other in every),
            "seconds": time.time() - started,
        }
        (Path(folder) / "record.json").write_text(json.dumps(record))
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    pieces = [[way, options.epochs, seed] for seed in options.seeds for way in options.ways]
    found = run_all(train, pieces, FOLDER / "records.jsonl", 1)
    by_way = {way: [record for record in found if record["piece"][0] == way] for way in options.ways}
    print(f"\n{options.epochs} epochs, {WORKERS} workers, seeds {options.seeds}")
    print("| gradients | test, % | megabytes sent by a worker | weights equal |\n|---|---:|---:|---|")
    for way, own in by_way.items():
        tests = [100 * record["test"] for record in own]
        spread = f"{sum(tests) / len(tests):.2f} ({min(tests):.2f} to {max(tests):.2f})"
        print(f"| {way} | {spread} | {own[0]['megabytes']:.1f} | {all(record['equal'] for record in own)} |")
    _close(by_way)
    return 0


def _close(by_way: Mapping[str, Sequence[Record]]) -> None:
    """Accuracy that the quantizing ways lose, and the factor by which they send fewer bytes."""
    if "none" not in by_way:
        return
    plain = by_way["none"]
    for way, own in by_way.items():
        if way.startswith("ecq"):
            lost = sum(a["test"] - b["test"] for a, b in zip(plain, own, strict=True)) / len(own)
            name = f"{NAME}_{way.replace(' ', '_')}"
            close(f"{name}_lost", 100 * lost, "points behind whole gradients, mean of the seeds", "<= 0.3")
            close(f"{name}_bytes", plain[0]["megabytes"] / own[0]["megabytes"], "times fewer bytes", ">= 10")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        f"studies.{NAME}",
        "What a training by two workers loses with gradients of few bits, and what it saves.",
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS)[:3], choices=WAYS, help="how gradients are exchanged")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
