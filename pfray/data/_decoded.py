"""Image files decoded once, with both parts of a data set as tensors in the cache folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from pfray.task import Split
from pfray.utils import cache

# Images ``(M, C, H, W)`` uint8 and labels ``(M,)``.
Labelled = tuple[np.ndarray, np.ndarray]


def decoded_once(name: str, key: Sequence[object], read: Callable[[str], list[Labelled]]) -> tuple[Split, Split]:
    """(training samples, test samples) of a data set, from the cache if it holds them.

    key: everything that the decoded tensors depend on, such as the files' stamps. read(part): the contents of the files
    of ``train`` or ``test``, in order.
    """
    cached = cache.cache_dir() / f"{name}-{cache.cache_key(*key)}.safetensors"
    tensors = cache.load_tensors(cached)
    if tensors is None:
        tensors = {}
        for part in ("train", "test"):
            images, labels = zip(*read(part), strict=True)
            tensors[f"{part}.inputs"] = torch.from_numpy(np.concatenate(images))
            tensors[f"{part}.targets"] = torch.from_numpy(np.concatenate(labels))
        cache.save_tensors(cached, tensors)
    return (
        Split(tensors["train.inputs"], tensors["train.targets"]),
        Split(tensors["test.inputs"], tensors["test.targets"]),
    )
