"""Gradient exchange between the workers of a training (``distributed.comm_hook``), and the bytes that it sends.

Bytes are counted as one worker hands them to a collective: four for each element of an all-reduced float32 gradient.
The traffic of a ring or tree of workers follows from that, in the same way for all hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from pfray.training.error_compensated import Ecq
from pfray.training.settings import Distributed
from pfray.training.sync_batch_norm import share_batch_norms


class Exchange(Protocol):
    """The gradient exchange of one worker, whose state its checkpoint keeps. sent_bytes: total so far."""

    sent_bytes: int

    def send(self, bucket: dist.GradBucket) -> Future[Tensor]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def distribute(model: nn.Module, settings: Distributed, seed: int) -> tuple[nn.Module, Exchange]:
    """(the model in DistributedDataParallel, its exchange). The process group has to be initialized.

    With ``sync_batch_norm`` the batch norms of ``model`` itself change.
    """
    if settings.sync_batch_norm:
        share_batch_norms(model)
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    wrapped = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    exchange = _exchange(wrapped.module, settings, seed)
    wrapped.register_comm_hook(exchange, lambda state, bucket: state.send(bucket))
    return wrapped, exchange


def _exchange(model: nn.Module, settings: Distributed, seed: int) -> Exchange:
    if settings.comm_hook == "ecq":
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        return Ecq(
            trained,
            bits=settings.bits,
            group_size=settings.group_size,
            compensation=settings.compensation,
            decay=settings.decay,
            seed=seed,
        )
    if settings.comm_hook == "fp16":
        return AllReduce(default_hooks.fp16_compress_hook, 2)
    return AllReduce(default_hooks.allreduce_hook, 4)


class AllReduce:
    """A stateless hook of PyTorch that sends ``size`` bytes for each element."""

    def __init__(self, hook: Callable[[Any, dist.GradBucket], Future[Tensor]], size: int) -> None:
        self.hook, self.size = hook, size
        self.sent_bytes = 0

    def send(self, bucket: dist.GradBucket) -> Future[Tensor]:
        self.sent_bytes += self.size * bucket.buffer().numel()
        return self.hook(None, bucket)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
