"""Runs independent pieces of a benchmark in worker processes of one thread each; finished ones are kept in a file."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pfray.utils.files import read_records

Record = dict[str, Any]


def run_all(work: Callable[[Any], Record], pieces: Sequence[Any], path: Path, processes: int) -> list[Record]:
    """``work(piece)`` of every piece, a JSON-able list, in order; a call that is repeated goes on where it was stopped.

    work: a function of a module, because it runs in processes of its own; its records go into ``path``, a line each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    if path.exists():
        lines, _ = read_records(path)
        done = {json.dumps(line["piece"]): line for line in lines}
        # Without the half line that a killed call may have left.
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    missing = [piece for piece in pieces if json.dumps(piece) not in done]
    started = time.time()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool:
        futures = {pool.submit(work, piece): piece for piece in missing}
        for count, future in enumerate(as_completed(futures), 1):
            record = {"piece": futures[future], **future.result()}
            done[json.dumps(record["piece"])] = record
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            left = (time.time() - started) / count * (len(missing) - count)
            print(f"  {len(pieces) - len(missing) + count}/{len(pieces)}, about {left / 60:.0f} min left", flush=True)
    return [done[json.dumps(piece)] for piece in pieces]


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
