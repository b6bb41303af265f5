"""Settings of a training: optimizer, distillation, distributed workers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from pfray.errors import shown
from pfray.units import share_of_percent
from pfray.utils.settings import Section


def _average(value: Any) -> str | float:
    found = share_of_percent(value)
    is_share = isinstance(found, int | float) and not isinstance(found, bool) and 0 < found <= 1
    if not is_share and found not in ("none", "ema"):
        raise ValueError(f"{shown(value)} is not allowed: none, ema, or the last share of the training, such as 25%")
    return float(found) if is_share else found


class Training(Section):
    """SGD with Nesterov momentum, linear warm-up, then a fall of the learning rate to zero.

    weight_decay: of all parameters, batch norms and biases too, as in the recipes that publish results to compare with.
    schedule: shape of the fall. average: weights that the training ends with, in place of the last ones: ``ema``, their
        moving average, or the mean over this last share of the steps (``25%``), with batch norms re-estimated; ``none``
        for the last ones (``averaging.py``). Trials of a search end with their last ones.
    """

    epochs: int = Field(20, ge=0)
    lr: float = Field(0.05, gt=0)
    batch_size: int = Field(64, ge=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    warmup_epochs: float = Field(1.0, ge=0)
    schedule: Literal["cosine", "linear"] = "cosine"
    average: Annotated[str | float, PlainValidator(_average)] = "none"


class Finetune(Training):
    """The training of a compressed network: shorter than one from scratch, at a smaller rate.

    weight_decay: more than from scratch, as in the published trainings after pruning (GReg, DepGraph: 5e-4).
    rungs: milder plans that are trained first, each from the one before, then the plan (``workflow/rungs.py``). They
        share half of the epochs evenly, rounded down; the plan has the rest.
    """

    epochs: int = Field(10, ge=0)
    lr: float = Field(0.02, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    rungs: int = Field(0, ge=0)


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
