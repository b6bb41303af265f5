"""Settings of a training: optimizer, distillation, distributed workers."""

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


class Finetune(Training):
    """The training of a compressed network: shorter than one from scratch, at a smaller rate."""

    epochs: int = Field(10, ge=0)
    lr: float = Field(0.02, gt=0)


class Distill(Section):
    """Hinton et al. 2015: loss = (1 - weight) * task loss + weight * T^2 KL(teacher || student), softened by T.

    features: weight of the relative squared error of the stages' outputs beside the teacher's, which falls in a line to
        0 at half of the steps; 0 without it (``features.py``).
    cached_views: epoch e repeats the batches of epoch e mod this number, whose soft labels are computed once and read
        again; 0 to compute them in every step (``cached_views.py``).
    """

    weight: float = Field(0.0, ge=0, le=1)
    temperature: float = Field(4.0, gt=0)
    features: float = Field(0.0, ge=0)
    cached_views: int = Field(0, ge=0)


class Distributed(Section):
    """Cooperation of the workers of a retraining, for ``resources.workers`` above one.

    comm_hook: gradients are exchanged unchanged (``none``), in half precision (``fp16``), or quantized with error
        feedback (``ecq``, Wu et al. 2018; ``error_compensated.py``).
    bits: bits of a gradient's element with ecq. group_size: elements that share a scale. compensation, decay: alpha and
        beta of ecq, the share of the error that a step corrects, and the share that is remembered.
    scale_lr: multiply lr by the number of workers (Goyal et al. 2017). ``batch_size`` counts all workers together, so
        this is for a batch size raised with their number.
    sync_batch_norm: batch norms normalize over the whole batch instead of each worker's share.
    """

    comm_hook: Literal["none", "fp16", "ecq"] = "none"
    bits: Literal[2, 4, 8] = 2
    group_size: int = Field(64, ge=8, multiple_of=4)
    compensation: float = Field(0.2, ge=0, le=1)
    decay: float = Field(0.9, ge=0, le=1)
    scale_lr: bool = False
    sync_batch_norm: bool = False
