"""Synchronized batch norm over all workers (``distributed.sync_batch_norm``); PyTorch's own runs on GPUs only."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function


class _Sum(Function):
    """The sum over all workers. Each part enters the losses of all workers, so its gradient is a sum too."""

    @staticmethod
    def forward(ctx: object, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


class _SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Normalizes over the whole batch ``(N, C, ...)``: with means m_r and variances v_r of equal shares,

        mean = avg(m_r),    variance = avg(v_r) + avg((m_r - mean)^2)

    in float32. Gradients pass through the means and variances of all workers.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        over = [axis for axis in range(input.ndim) if axis != 1]
        variance, mean = torch.var_mean(input.float(), over, correction=0)
        # Each worker fills its own slot, so the sum gathers all values and gradients pass through it.
        slot = (torch.arange(dist.get_world_size(), device=input.device) == dist.get_rank()).float()
        means, variances = _Sum.apply(slot[:, None] * torch.stack([mean, variance])[:, None])
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        count = input.numel() // input.shape[1] * dist.get_world_size()
        self._keep(mean.detach(), variance.detach() * count / (count - 1))
        shape = (1, -1, *[1] * (input.ndim - 2))
        scaled = (input.float() - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def share_batch_norms(model: nn.Module) -> None:
    """Make every batch norm of ``model`` use the whole batch's statistics in training, in place.

    The modules stay the same objects, because a learner's hook may hold them; the state dict stays the same.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = _SharedBatchNorm
