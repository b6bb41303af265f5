"""Sections of an experiment file: target, search, export and resources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    model_validator,
)

from pfray.config.component import Component
from pfray.config.search_space import check_range
from pfray.errors import shown
from pfray.objective import Thresholds
from pfray.training.settings import Training
from pfray.units import UNITS, Amount, share_of_percent
from pfray.utils.settings import Section
from pfray.utils.url import check_address


def _cost(value: Any, info: ValidationInfo) -> Amount:
    """The amount, in the unit that the field is named after."""
    return UNITS[str(info.field_name)].amount(value)


def _tuple(value: Any) -> Any:
    """A tuple for a list, because YAML has lists only."""
    return tuple(value) if isinstance(value, list) else value


def _with_unit(value: Any) -> str:
    """A target of the text ``value``, in the first unit that it can be of; else an example."""
    for unit in ("macs", "sparsity", "size_bytes", "bits", "latency_ms") if isinstance(value, str) else ():
        with suppress(ValueError):
            UNITS[unit].amount(value)
            return json.dumps({unit: value.strip()})
    return json.dumps({"macs": "0.5x"})


Cost = Annotated[Amount, PlainValidator(_cost), PlainSerializer(Amount.plain)]


class Target(Section):
    """Goals in named units (``units.py``). A cost (all but ``max_drop``) is a hard limit that every plan keeps.

    sparsity: share of zeros among the weights of all convolutions and linear layers (``0.75`` or ``75%``).
    params: parameters that are not zero, as a count (``800k``) or relative to the teacher's (``0.4x``).
    macs: multiply-adds of one input (1 MAC = one multiply and one add), as a count (``50M``) or relative (``0.4x``).
    bits: mean over the teacher's weights in the layers that are quantized, from 1 to 32.
    size_bytes: all parameters at their bits, in bytes (``60k``) or relative to the teacher's in float32 (``0.1x``).
        Ranges and codebooks count; the batch-norm statistics and names of a file do not.
    latency_ms: one input through the .tflite, on one thread of this machine, or relative to the teacher's. Plans meet
        it by a prediction (``latency_model.py``); a result more than 5 % slower ends with exit code 1.
    max_drop: how much worse the metric may be on the test split, for shares below 1; a result that loses more ends with
        exit code 1.
    """

    sparsity: Cost | None = None
    params: Cost | None = None
    macs: Cost | None = None
    bits: Cost | None = None
    size_bytes: Cost | None = None
    latency_ms: Cost | None = None
    max_drop: Annotated[float, BeforeValidator(share_of_percent), Field(ge=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _names_its_units(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{shown(value)} names no unit. Allowed: a mapping of {', '.join(UNITS)} and max_drop. "
                f"Remedy: target: {_with_unit(value)}"
            )
        return value

    @model_validator(mode="after")
    def _has_a_cost(self) -> Target:
        if not self.costs():
            raise ValueError(
                f"no cost is named. Remedy: give one of {', '.join(UNITS)}, for example target: {_with_unit(None)}"
            )
        return self

    def costs(self) -> dict[str, Amount]:
        """Limits that are set, by unit."""
        return {unit: amount for unit in UNITS if (amount := getattr(self, unit)) is not None}


class Teacher(Training):
    """Training of the teacher where no weights are given.

    expect: the metric that the teacher has, a share (``0.71`` or ``71%``) or a number. A teacher with less than half of
        it on the validation split, or more than twice where lower is better, ends the run.
    """

    expect: Annotated[float, BeforeValidator(share_of_percent), Field(gt=0)] | None = None


class Search(Component):
    """The search. name: the searcher; keys not listed here are its settings.

    trials: number of plans tried. finetune_steps: optimizer steps in each of a trial's ``rounds`` before measurement
        (null: 30, if all trials then train for at most half as long as the chosen plan, else 0).
    bn_images: training images for the batch-norm statistics, re-estimated before a measurement (0: not re-estimated).
    validation_images: number of validation images that a trial is measured on (null: all).
    rescore: number of the best plans that are measured again on all validation images before one is chosen.
    scheduler: ``asha`` stops the worse trials after each of their rounds.
    patience: share of its own trials, at least 8, after which a search ends that has not beaten the plan without a
        search by more than the standard error of its score; that plan is retrained. 1 tries all.
    objective: the score of a trial (null: ``agreement`` if the task has soft labels, else ``accuracy``).
    thresholds: of the objective ``ddc``. latency: ``ddc`` times the model in PyTorch, or its .tflite, which takes
        seconds to make for every architecture.
    space: settings searched together with the model, such as ``finetune.lr: loguniform(1e-4, 1e-1)``.
    baselines: plans that are retrained besides the best one.
    warm_start: run folder of an earlier run; the searcher learns from its trials first.
    """

    name: str = "tpe"
    trials: int = Field(30, ge=1)
    rounds: int = Field(1, ge=1)
    finetune_steps: int | None = Field(None, ge=0)
    bn_images: int = Field(250, ge=0)
    validation_images: int | None = Field(500, ge=1)
    rescore: int = Field(5, ge=0)
    patience: float = Field(0.5, gt=0, le=1)
    scheduler: Literal["none", "asha"] = "none"
    objective: Literal["accuracy", "agreement", "accuracy_and_cost", "amc", "ddc", "n2n"] | None = None
    thresholds: Thresholds = Thresholds()
    latency: Literal["torch", "litert"] = "torch"
    space: dict[str, Annotated[str, AfterValidator(check_range)]] = Field(default_factory=dict)
    baselines: Annotated[tuple[Literal["uniform", "allocate"], ...], BeforeValidator(_tuple)] = ("uniform", "allocate")
    warm_start: str | None = None

    @model_validator(mode="after")
    def _rounds_need_steps(self) -> Search:
        if self.rounds > 1 and not self.finetune_steps:
            raise ValueError(f"rounds is {self.rounds} but finetune_steps is not set, so nothing changes between "
                             "rounds. Remedy: set search.finetune_steps, or search.rounds=1")
        if self.scheduler == "asha" and self.rounds < 2:
            raise ValueError("scheduler asha needs rounds to choose between. Remedy: set search.rounds to 2 or more")
        return self


class Export(Section):
    """tflite: write model.tflite. images: test images that it is checked on (null: all). rounds: of its timing."""

    tflite: bool = True
    images: int | None = Field(1000, ge=1)
    rounds: int = Field(50, ge=1)


class Share(Section):
    """Resources of one trial. cpu: processors. gpu: graphics processors, fractions allowed."""

    cpu: int = Field(1, ge=1)
    gpu: float = Field(0.0, ge=0)


class Resources(Section):
    """trial: the share of each trial. parallel: trials at once (null: as many as fit). workers: of a retraining.
    loaders: processes of each worker that read ahead data which do not fit in memory; 0 reads in the worker itself,
        null takes as many as a DataLoader given says, or else as the worker's processors suggest.
    shrink_on_oom: a trial that runs out of memory is tried once more with half the batch.
    dashboard: if the run starts its own Ray, start Ray's dashboard on 127.0.0.1 and print the address.
    """

    trial: Share = Share()
    parallel: int | None = Field(None, ge=1)
    workers: int = Field(1, ge=1)
    loaders: int | None = Field(None, ge=0)
    precision: Literal["auto", "bf16", "float32"] = "auto"
    shrink_on_oom: bool = False
    address: Annotated[str, AfterValidator(check_address)] | None = None
    dashboard: bool = False
