"""How the workers of a training exchange their gradients: ``distributed.comm_hook``, and the bytes that it sends.

Bytes are those that one worker hands to a collective: an all-reduced gradient of float32 counts four for each element.
What a ring or a tree of so many workers makes of them is the network's business, and the same for all hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from pfray.config import Distributed
from pfray.ecq import Ecq
from pfray.shared_norm import share_batch_norms

# PyTorch's PowerSGD begins with so many steps that are not compressed; it needs two at least.
POWERSGD_START = 10


class Exchange(Protocol):
    """What one worker does with its gradients; a checkpoint of the worker keeps its state. sent_bytes: so far."""

    sent_bytes: int

    def send(self, bucket: dist.GradBucket) -> Future[Tensor]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def distribute(model: nn.Module, settings: Distributed, seed: int) -> tuple[nn.Module, Exchange]:
    """(the model in DistributedDataParallel, its exchange). The process group has to be there.

    With ``sync_batch_norm`` the batch norms of ``model`` itself change.
    """
    if settings.sync_batch_norm:
        share_batch_norms(model)
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    wrapped = DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        # PowerSGD keeps its state by bucket. DDP makes its buckets anew after the first step of every process, unless
        # it looks for unused parameters: a training that is continued would meet other buckets.
        find_unused_parameters=settings.comm_hook == "powersgd",
    )
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
    if settings.comm_hook == "powersgd":
        return PowerSgd(settings.rank, seed)
    if settings.comm_hook == "fp16":
        return AllReduce(default_hooks.fp16_compress_hook, 2)
    return AllReduce(default_hooks.allreduce_hook, 4)


class AllReduce:
    """A hook of PyTorch's that keeps nothing from step to step, and sends ``size`` bytes an element."""

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


class PowerSgd:
    """PyTorch's PowerSGD (Vogels et al. 2019): matrices of ``rank`` instead of the gradients, with error feedback."""

    def __init__(self, rank: int, seed: int) -> None:
        self.state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=rank, start_powerSGD_iter=POWERSGD_START, random_seed=seed
        )
        self.sent_bytes = 0

    def send(self, bucket: dist.GradBucket) -> Future[Tensor]:
        elements, before = bucket.buffer().numel(), self.state.total_numel_after_compression
        compresses = self.state.iter >= self.state.start_powerSGD_iter
        future = powerSGD_hook.powerSGD_hook(self.state, bucket)
        # Its later collectives start when the earlier ones end. With another bucket's between them, in another order on
        # every worker, gloo would take one for the other.
        future.wait()
        sent = self.state.total_numel_after_compression - before if compresses else elements
        self.sent_bytes += 4 * sent
        return future

    def state_dict(self) -> dict[str, Any]:
        return {
            "iter": self.state.iter,
            "error": self.state.error_dict,
            "p": self.state.p_memory_dict,
            "q": self.state.q_memory_dict,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state.iter = state["iter"]
        self.state.error_dict, self.state.p_memory_dict, self.state.q_memory_dict = (
            dict(state["error"]), dict(state["p"]), dict(state["q"])
        )  # fmt: skip
