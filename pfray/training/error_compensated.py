"""Error-compensated quantized SGD (Wu, Huang, Huang and Zhang, ICML 2018): gradients of a few bits.

Notation: in a step a worker has the gradient g and the error h, which quantization has made in its earlier steps.

    sent          q = Q(g + alpha h)
    error after   h' = beta h + (g - q)

Q rounds stochastically to evenly spaced levels, without bias (``quantize``). alpha, ``compensation``, is the share of
the error that a step corrects; beta, ``decay``, the share that is remembered. alpha = beta = 0 is plain quantized SGD.
With both 1 nothing is ever lost, but with two bits, which are coarse, the error then grows without bound. Every worker
adds up all workers' q in one order, so all get the same mean.

Shapes: R rows of n values each, a scale for each row; a parameter fills whole rows, padded by zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn import functional

from pfray.training.loop import mixed_seed


def quantize(values: Tensor, bits: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(codes ``(R, n)`` of uint8, scale ``(R,)``) of values ``(R, n)``; noise ``(R, n)`` is uniform in [0, 1).

    The 2^bits - 1 levels lie from -scale to scale, the largest magnitude of the row, and zero is one of them.
    """
    top = _top(bits)
    scale = values.abs().amax(1)
    # A row of zeros has the scale 0.
    position = values / scale.clamp(min=torch.finfo(values.dtype).tiny)[:, None] * top
    # Rounding may pass the last level if the noise is nearly one.
    return ((position + noise).floor() + top).clamp(0, 2 * top).to(torch.uint8), scale


def dequantize(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The values ``(R, n)`` of codes ``(R, n)`` and scale ``(R,)``."""
    top = _top(bits)
    return (codes.to(scale.dtype) - top) * (scale / top)[:, None]


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes ``(R, n)`` as bytes ``(R n bits / 8,)``, the first code in a byte's lowest bits. bits: 2, 4 or 8."""
    return (codes.view(-1, 8 // bits) << _shifts(bits, codes.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """The codes ``(R, width)`` of bytes that ``pack`` made."""
    return ((packed[:, None] >> _shifts(bits, packed.device)) & (2**bits - 1)).view(-1, width)


class Ecq:
    """The communication hook of one worker. sent_bytes: total handed to the network so far.

    parameters: the trained ones, by name. Errors are kept by name and not by bucket, because DDP rebuilds its buckets
    after the first step.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        bits: int,
        group_size: int,
        compensation: float,
        decay: float,
        seed: int,
    ) -> None:
        self.bits, self.group_size, self.compensation, self.decay, self.seed = (
            bits, group_size, compensation, decay, seed
        )  # fmt: skip
        self.index = {parameter: (i, name) for i, (name, parameter) in enumerate(parameters.items())}
        self.errors = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self.step, self.sent_bytes = 0, 0

    @torch.no_grad()
    def send(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """The bucket's gradients, replaced by the mean of what all workers sent."""
        gradients = bucket.gradients()
        owners = [self.index[parameter] for parameter in bucket.parameters()]
        wished = [g + self.compensation * self.errors[name] for g, (_, name) in zip(gradients, owners, strict=True)]
        rows = torch.cat([self._rows(values) for values in wished])
        noise = [self.noise(i, values) for values, (i, _) in zip(wished, owners, strict=True)]
        codes, scale = quantize(rows, self.bits, torch.cat(noise))
        own = self._split(dequantize(codes, scale, self.bits), gradients)
        for gradient, sent, (_, name) in zip(gradients, own, owners, strict=True):
            self.errors[name].mul_(self.decay).add_(gradient).sub_(sent)
        if bucket.is_last():
            self.step += 1

        message = torch.cat([pack(codes, self.bits), scale.view(torch.uint8)])
        self.sent_bytes += message.numel()
        received = [torch.empty_like(message) for _ in range(dist.get_world_size())]
        work = dist.all_gather(received, message, async_op=True)
        assert work is not None

        @torch.no_grad()
        def average(_: Future) -> Tensor:
            total = torch.zeros_like(rows)
            for each in received:
                packed, scales = each.split([len(message) - scale.numel() * 4, scale.numel() * 4])
                # The scales are not aligned to their size; the copy is.
                total += dequantize(unpack(packed, self.bits, self.group_size), scales.clone().view(scale.dtype),
                                    self.bits)  # fmt: skip
            for gradient, mean in zip(gradients, self._split(total / len(received), gradients), strict=True):
                gradient.copy_(mean)
            return bucket.buffer()

        return work.get_future().then(average)

    def state_dict(self) -> dict[str, Tensor]:
        return {"step": torch.tensor(self.step), **{f"error.{name}": h for name, h in self.errors.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.step = int(state["step"])
        for name, error in self.errors.items():
            error.copy_(state[f"error.{name}"])

    def _rows(self, values: Tensor) -> Tensor:
        flat = values.flatten()
        return functional.pad(flat, (0, -len(flat) % self.group_size)).view(-1, self.group_size)

    def _split(self, rows: Tensor, like: list[Tensor]) -> list[Tensor]:
        """Rows of a bucket as tensors in the shapes of ``like``, without the padding."""
        counts = [-(-tensor.numel() // self.group_size) for tensor in like]
        parts = rows.split(counts)
        return [part.flatten()[: tensor.numel()].view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]

    def noise(self, index: int, values: Tensor) -> Tensor:
        """Noise that depends on step, worker and parameter alone, so that a resumed training draws the same."""
        generator = torch.Generator(values.device)
        generator.manual_seed(mixed_seed(self.seed, self.step, dist.get_rank(), index))
        shape = -(-values.numel() // self.group_size), self.group_size
        return torch.rand(shape, generator=generator, device=values.device, dtype=values.dtype)


def _top(bits: int) -> int:
    """Number of levels on either side of zero."""
    return 2 ** (bits - 1) - 1


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)
