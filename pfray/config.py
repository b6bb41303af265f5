"""The experiment file: YAML, fragments and ``key=value`` overrides to one frozen, validated ``Experiment``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator

from pfray import overlay, strict_yaml
from pfray.access import check_address
from pfray.bucket import check_storage
from pfray.components import describe_errors
from pfray.errors import ConfigError, short, shown
from pfray.ranges import check_range
from pfray.section import PIPELINE, Component, LearnerChoice, Model, Section, as_written

ComponentCheck = Callable[[Mapping[str, Component]], list[str]]


def _fraction(value: Any) -> Any:
    """``0.75`` or ``75%``."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value)):
        # Rounded, because 0.7 / 100 is 0.006999999999999999.
        return round(float(match[1]) / 100, 12)
    return value


def _amount(value: Any) -> Any:
    """``0.4x`` stays a text; ``800k`` and ``5M`` become numbers."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{shown(value)} is not an amount: write 0.4x (of the teacher's) or a count such as 800k")
    if isinstance(value, str):
        if match := re.fullmatch(r"\s*([0-9.]+)\s*([kMG])\s*", value):
            return float(match[1]) * {"k": 1e3, "M": 1e6, "G": 1e9}[match[2]]
        if not re.fullmatch(r"\s*[0-9.]+\s*x\s*", value):
            raise ValueError(f"{shown(value)} is not an amount: write 0.4x (of the teacher's) or a count such as 800k")
        return value.strip()
    return value


def _tuple(value: Any) -> Any:
    """YAML knows lists only."""
    return tuple(value) if isinstance(value, list) else value


def _check_amount(value: float | str) -> float | str:
    number = float(value[:-1]) if isinstance(value, str) else value
    if not 0 < number < math.inf:
        raise ValueError(f"{shown(value)} is not allowed: an amount is above 0")
    return value


Fraction = Annotated[float, BeforeValidator(_fraction), Field(gt=0, lt=1)]
Amount = Annotated[float | str, BeforeValidator(_amount), AfterValidator(_check_amount)]

# The units of a target that are costs.
COSTS = ("sparsity", "params", "macs", "bits", "size_bytes", "latency_ms")


class Target(Section):
    """The goal in named units. A cost (all but ``max_drop``) is a hard limit that every plan keeps.

    sparsity: share of the weights of all convolutions and linear layers that is zero.
    params: parameters that are not zero, as a count (``800k``) or relative to the teacher's (``0.4x``).
    macs: multiply-adds of one input (1 MAC = one multiply and one add), as a count (``50M``) or relative (``0.4x``).
    bits: of a quantized weight, the mean over all weights of the layers that are quantized, as the teacher has them.
    size_bytes: of all parameters at their bits, in bytes (``60k``) or relative to the teacher's in float32 (``0.1x``).
        With ranges and codebooks of quantized weights; a file has batch norms' statistics and names beside them.
    latency_ms: of one input through the .tflite, on one thread of this machine, or relative to the teacher's; plans
        keep it by a prediction (``latency.py``), and a result that is more than 5 % slower ends with exit code 1.
    max_drop: the accuracy that may be lost on the test split; a result that loses more ends with exit code 1.
    """

    sparsity: Fraction | None = None
    params: Amount | None = None
    macs: Amount | None = None
    bits: Annotated[float, Field(ge=1, le=32)] | None = None
    size_bytes: Amount | None = None
    latency_ms: Amount | None = None
    max_drop: Annotated[float, BeforeValidator(_fraction), Field(ge=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _has_a_cost(self) -> Target:
        if not self.costs():
            raise ValueError(
                f"no cost is named. Remedy: give one of {', '.join(COSTS)}, for example {{sparsity: 0.75}}"
            )
        return self

    def costs(self) -> dict[str, float | str]:
        """The named costs that are set, by unit."""
        return {unit: value for unit in COSTS if (value := getattr(self, unit)) is not None}


class Training(Section):
    """SGD with Nesterov momentum, linear warm-up, then a cosine to zero."""

    epochs: int = Field(20, ge=0)
    lr: float = Field(0.05, gt=0)
    batch_size: int = Field(64, ge=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    warmup_epochs: float = Field(1.0, ge=0)


class Thresholds(Section):
    """Of the objective ``ddc``, as shares of the teacher's (A_th, T_th, C_th of Pahwa et al. 2019, section 3.3): where
    each factor of the reward is 1/2.

    accuracy: of its accuracy. latency: of its inference time. compression: of its parameters, those that are left.
    """

    accuracy: float = Field(0.9, gt=0, le=1)
    latency: float = Field(0.3, gt=0, le=1)
    compression: float = Field(0.6, gt=0, le=1)


class Search(Component):
    """``name`` chooses the searcher; keys not listed here are its own settings.

    trials: plans tried. finetune_steps: optimizer steps in each of a trial's ``rounds`` before it is measured.
    bn_images: training images on which batch-norm statistics are re-estimated before a measurement (0: left alone).
    validation_images: how many validation images a trial is measured on (null: all of them).
    rescore: the best plans, so many, are measured again on all validation images before one is chosen.
    scheduler: ``asha`` stops the worse trials after each of their rounds.
    objective: what a trial's score is (null: ``agreement`` where the task has soft labels, else ``accuracy``).
    thresholds: of the objective ``ddc``. latency: what its inference times are those of, the model in PyTorch or its
        .tflite, which takes seconds to make for every architecture.
    space: settings that are searched beside the model, such as ``finetune.lr: loguniform(1e-4, 1e-1)``.
    baselines: plans that are retrained beside the best one.
    warm_start: the folder of an earlier run, whose trials the searcher learns from first.
    """

    name: str = "tpe"
    trials: int = Field(30, ge=1)
    rounds: int = Field(1, ge=1)
    finetune_steps: int = Field(0, ge=0)
    bn_images: int = Field(250, ge=0)
    validation_images: int | None = Field(500, ge=1)
    rescore: int = Field(5, ge=0)
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
            raise ValueError(f"rounds is {self.rounds} but finetune_steps is 0, so nothing changes between rounds. "
                             "Remedy: set search.finetune_steps, or search.rounds=1")
        if self.scheduler == "asha" and self.rounds < 2:
            raise ValueError("scheduler asha needs rounds to choose between. Remedy: set search.rounds to 2 or more")
        return self


class Distill(Section):
    """Hinton et al. 2015: loss = (1 - weight) * task loss + weight * T^2 KL(teacher || student), softened by T."""

    weight: float = Field(0.0, ge=0, le=1)
    temperature: float = Field(4.0, gt=0)


class Export(Section):
    """Which files are made, and how many test images and timing rounds the .tflite is checked with (null: all)."""

    tflite: bool = True
    images: int | None = Field(1000, ge=1)
    rounds: int = Field(50, ge=1)


class Share(Section):
    """Processors and (fractions of) graphics processors of one trial."""

    cpu: int = Field(1, ge=1)
    gpu: float = Field(0.0, ge=0)


class Resources(Section):
    """trial: the share of each trial. parallel: trials at once (null: as many as fit). workers: of a retraining.
    shrink_on_oom: a trial whose training has no memory left is tried once more with half the batch.
    dashboard: whether a Ray of the run's own has one, on 127.0.0.1, whose address is then printed.
    """

    trial: Share = Share()
    parallel: int | None = Field(None, ge=1)
    workers: int = Field(1, ge=1)
    precision: Literal["auto", "bf16", "float32"] = "auto"
    shrink_on_oom: bool = False
    address: Annotated[str, AfterValidator(check_address)] | None = None
    dashboard: bool = False


class Distributed(Section):
    """How the workers of a retraining work together, where ``resources.workers`` is more than one.

    comm_hook: how gradients are exchanged: as they are (``none``), in half precision (``fp16``), or quantized with the
        error fed back (``ecq``, Wu et al. 2018; ``ecq.py``).
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


class Experiment(Section):
    """One whole experiment. Raises ConfigError through ``load`` with every mistake at once."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: Model
    data: Component
    learner: LearnerChoice
    target: Target
    search: Search = Search()
    teacher: Training = Training()
    finetune: Training = Training(epochs=10, lr=0.02)
    distill: Distill = Distill()
    export: Export = Export()
    resources: Resources = Resources()
    distributed: Distributed = Distributed()
    seed: int = Field(0, ge=0, lt=2**31)
    storage: Annotated[str, AfterValidator(check_storage)] = "runs"

    @model_validator(mode="after")
    def _latency_needs_a_file(self) -> Experiment:
        if self.target.latency_ms is not None and not self.export.tflite:
            raise ValueError("target.latency_ms is the .tflite's, and export.tflite is false. "
                             "Remedy: target.macs=0.5x, or export.tflite=true")
        return self

    @model_validator(mode="after")
    def _batches_can_be_shared(self) -> Experiment:
        workers = self.resources.workers
        for section, size in (("teacher", self.teacher.batch_size), ("finetune", self.finetune.batch_size)):
            if workers > 1 and (size % workers or size < 2 * workers):
                raise ValueError(f"{section}.batch_size is {size}, which {workers} workers cannot share. Remedy: a "
                                 f"multiple of resources.workers, {2 * workers} or more")
        if workers == 1 and self.distributed.comm_hook != "none":
            raise ValueError(f"distributed.comm_hook is {self.distributed.comm_hook}, but one worker has nobody to "
                             "send gradients to. Remedy: resources.workers=2 or more, or distributed.comm_hook=none")
        return self


def load(path: Path, overrides: Sequence[str] = (), check: ComponentCheck | None = None) -> Experiment:
    """Read, merge and validate. ``overrides`` are texts such as ``search.trials=60``, later ones winning.

    check(components by section): further mistakes, asked for of every section that is well formed.

    Raises ConfigError whose message has one line for every mistake.
    """
    raw = overlay.read_with_includes(path)
    mistakes: list[str] = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            mistakes.append(f"override '{short(override)}': not of the form key=value. Example: search.trials=60")
            continue
        try:
            overlay.set_key(raw, key.split("."), strict_yaml.parse(text))
        except ValueError as error:
            mistakes.append(f"override '{short(override)}': {error}. Example: search.trials=60")
    raw.setdefault("name", path.stem)
    try:
        experiment = as_written(Experiment, raw)
    except ValidationError as error:
        mistakes += describe_errors(error, "", _allowed_at)
    if check is not None:
        mistakes += check(_well_formed(raw))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return experiment


def _well_formed(raw: Mapping[str, Any]) -> dict[str, Component]:
    components: dict[str, Component] = {}
    for key, section in (("model", Model), ("data", Component), ("learner", LearnerChoice), ("search", Search)):
        with suppress(ValidationError):
            if key in raw or key == "search":
                components[key] = as_written(section, raw.get(key, {}))
    return components


def dump(experiment: Experiment) -> str:
    """The resolved experiment as YAML; ``load`` of it gives the same experiment."""
    plain = experiment.model_dump(mode="json")
    for key, value in plain.items():
        if isinstance(getattr(experiment, key), Component):
            settings = value.pop("settings")
            plain[key] = settings["steps"] if value["name"] == PIPELINE else {**value, **settings}
    return strict_yaml.dump(plain)


def _allowed_at(location: tuple[Any, ...]) -> list[str]:
    """The keys of the section that holds ``location``."""
    section: type[BaseModel] = Experiment
    for part in location[:-1]:
        annotation = section.model_fields[part].annotation
        section = next(t for t in (annotation, *get_args(annotation)) if isinstance(t, type))
    names = [name for name in section.model_fields if name != "settings"]
    return [*names, "include"] if section is Experiment else names
