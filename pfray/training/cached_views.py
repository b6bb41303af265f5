"""Soft labels of a fixed number of augmented views of the training data, computed once and read again.

Epoch e of a training repeats the batches of epoch e mod K, its order and its augmentation, for K views: the teacher
answers the first K epochs, and files answer the others, also those of other trainings of the same run. So a view is
whatever the data give for an epoch's seed, in memory or by processes that read ahead, and any augmentation will do.
What is lost: the batches of an epoch return in the epoch K later, in the same order and of the same images, where
without cached views each epoch draws others. Logits are rounded to float16, also when they are computed.

Each batch is kept with a fingerprint of its inputs. Labels of other inputs are never used: they are computed again
where an earlier session read other ones, and data that change within a session are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfray.errors import DataError, TrainingFailed
from pfray.nn.inputs import Inputs, floats, map_tensors, tensors
from pfray.nn.modes import evaluating, forward
from pfray.task import Task, example_input
from pfray.utils.cache import content_key, load_tensors, save_tensors

# Bytes of labels in a file, and in memory at a time.
PART = 2**25
OFF = "Remedy: distill.cached_views=0"


class CachedViews:
    """Soft labels of one training's batches, or of one worker's part of them, in the order of each epoch.

    folder: of the files. batch_size: of this worker. precision: of the teacher's forward pass. rank, world: of the
    worker.
    """

    def __init__(
        self, folder: Path, teacher: nn.Module, task: Task, *, batch_size: int, precision: str, rank: int, world: int
    ) -> None:
        self.name, self.rank = task.name, rank
        self.template = _example_outputs(teacher, task)
        self.per_part = max(1, PART // (batch_size * _half_bytes(self.template)))
        made_from = (precision, batch_size, world, fingerprint(teacher.state_dict()).tolist())
        self.folder = folder / content_key(*made_from)
        self.view, self.step, self.at = 0, 0, -1
        self.part: dict[str, Tensor] = {}
        self.changed = False
        self.computed: set[tuple[int, int]] = set()

    def begin(self, view: int) -> None:
        """Begin an epoch with the batches of ``view``."""
        self.view, self.step, self.at, self.part = view, 0, -1, {}

    def end(self) -> None:
        """End an epoch: write what is new, whole. Raises StorageError."""
        if self.changed:
            save_tensors(self._path(self.at), self.part)
            self.changed = False

    def labels(self, inputs: Inputs, compute: Callable[[], Any]) -> Any:
        """The teacher's outputs for the epoch's next batch: kept ones, or what ``compute`` gives, in float16's values.

        Raises DataError if the view has other inputs than before, TrainingFailed for outputs that cannot be kept.
        """
        step, self.step = self.step, self.step + 1
        if (part := step // self.per_part) != self.at:
            self.end()
            self.at, self.part = part, load_tensors(self._path(part)) or {}
        key, kept = fingerprint(inputs), self.part.get(f"{step}.inputs")
        if kept is None or not torch.equal(kept, key):
            if kept is not None and (self.view, step) in self.computed:
                raise DataError(
                    f"task {self.name}: the training data gave other inputs when a view of them was read again. "
                    f"{OFF}, or random changes drawn from torch's, numpy's or Python's global generator"
                )
            self._keep(step, key, compute())
        found = iter([self.part[f"{step}.{place}"] for place in range(len(tensors(self.template)))])
        device = tensors(inputs)[0].device
        return floats(map_tensors(lambda _: next(found).to(device), self.template))

    def _keep(self, step: int, key: Tensor, outputs: Any) -> None:
        given = tensors(outputs)
        if len(given) != len(tensors(self.template)):
            known = len(tensors(self.template))
            raise TrainingFailed(f"the teacher gives {len(given)} tensors for a batch and {known} for one sample, so "
                                 f"that they cannot be kept. {OFF}")  # fmt: skip
        self.part[f"{step}.inputs"] = key
        for place, tensor in enumerate(given):
            half = tensor.half() if tensor.is_floating_point() else tensor
            if not torch.equal(half.isfinite(), tensor.isfinite()):
                raise TrainingFailed(f"the teacher's outputs reach {float(tensor.abs().max()):.3g}, and cached views "
                                     f"keep numbers up to {torch.finfo(torch.half).max:.0f}. {OFF}")  # fmt: skip
            self.part[f"{step}.{place}"] = half.cpu()
        self.changed = True
        self.computed.add((self.view, step))

    def _path(self, part: int) -> Path:
        return self.folder / f"{self.view}-{self.rank}-{part}.safetensors"


def bytes_of_views(teacher: nn.Module, task: Task, views: int) -> int:
    """Bytes of the soft labels of ``views`` views of all training samples."""
    return _half_bytes(_example_outputs(teacher, task)) * len(task.train) * views


def fingerprint(tree: Any) -> Tensor:
    """A number for each tensor, int64 ``(T,)`` on the CPU, which depends on its bits and on their order."""
    return torch.stack([_number(tensor) for tensor in tensors(tree)]).cpu()


def _number(tensor: Tensor) -> Tensor:
    bits = tensor.detach().contiguous().flatten()
    if bits.is_floating_point():
        bits = bits.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()])
    places = torch.arange(1, len(bits) + 1, device=bits.device)
    return (bits.long() * places).sum()  # of the batch's size, and wraps around


def _example_outputs(teacher: nn.Module, task: Task) -> Any:
    example = example_input(task, next(teacher.parameters()).device)
    with evaluating(teacher):
        return floats(task.select(forward(teacher, example)))


def _half_bytes(outputs: Any) -> int:
    return sum(2 * t.numel() if t.is_floating_point() else t.nbytes for t in tensors(outputs))
