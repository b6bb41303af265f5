"""Settings of a training: the optimizer, distillation, and how workers work together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pfray.utils.settings import Section


class Training(Section):
    """SGD with Nesterov momentum, linear warm-up, then a cosine to zero."""

    epochs: int = Field(20, ge=0)
    lr: float = Field(0.05, gt=0)
    batch_size: int = Field(64, ge=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    warmup_epochs: float = Field(1.0, ge=0)


class Distill(Section):
    """Hinton et al. 2015: loss = (1 - weight) * task loss + weight * T^2 KL(teacher || student), softened by T."""

    weight: float = Field(0.0, ge=0, le=1)
    temperature: float = Field(4.0, gt=0)


class Distributed(Section):
    """How the workers of a retraining work together, where ``resources.workers`` is more than one.

    comm_hook: how gradients are exchanged: as they are (``none``), in half precision (``fp16``), or quantized with the
        error fed back (``ecq``, Wu et al. 2018; ``error_compensated.py``).
    bits: of a gradient's element with ecq. group_size: elements that share a scale. compensation, decay: the alpha and
        beta of ecq, how much of the error is made up for in a step, and how much of it is remembered.
    scale_lr: multiplies lr by the number of workers (Goyal et al. 2017). ``batch_size`` is that of all workers
        together, so this is for those who raise it with their number.
    sync_batch_norm: batch norms see the whole batch and not each worker's share.
    """

    comm_hook: Literal["none", "fp16", "ecq"] = "none"
    bits: Literal[2, 4, 8] = 2
    group_size: int = Field(64, ge=8, multiple_of=4)
    compensation: float = Field(0.2, ge=0, le=1)
    decay: float = Field(0.9, ge=0, le=1)
    scale_lr: bool = False
    sync_batch_norm: bool = False
