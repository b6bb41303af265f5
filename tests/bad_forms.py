"""Data sets and models of bad form, as users bring them along; each with the words that its message must have.

A form is made by ``data`` or ``model``, which an experiment names by import path and gives the form's name.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from random import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.errors import ConfigError, DataError, PfrayError, UnsupportedModel
from pfray.task import Split, Task, top1

NAN, INF = float("nan"), float("inf")
NAMES = ("train", "validation", "test")
Form = tuple[Callable[[], Any], type[PfrayError], str]


def task(**changes: Any) -> Task:
    """Four classes of ``(2, 6, 6)`` float images, 20 in each split."""
    inputs = torch.rand(20, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    split = Split(inputs, torch.arange(20) % 4)
    return Task(**{"name": "mine", "train": split, "validation": split, "test": split, "num_outputs": 4, **changes})


def splits(change: Callable[[Split], Split], *names: str, **changes: Any) -> Task:
    """The task with some splits changed; all for no names."""
    whole = task()
    return task(**{name: change(getattr(whole, name)) for name in names or NAMES}, **changes)


def inputs(change: Callable[[Tensor], Any], *names: str) -> Callable[[], Task]:
    return lambda: splits(lambda split: Split(change(split.inputs), split.targets), *names)


def targets(change: Callable[[Tensor], Any], *names: str, **changes: Any) -> Callable[[], Task]:
    return lambda: splits(lambda split: Split(split.inputs, change(split.targets)), *names, **changes)


def filled(value: float, place: int = 7) -> Callable[[Tensor], Tensor]:
    """One number replaced by ``value``, in sample ``place``."""

    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[place].flatten()[0 if changed.dim() > 1 else slice(None)] = value
        return changed

    return change


def settings(**changes: Any) -> Callable[[], Task]:
    return lambda: task(**changes)


def ends() -> None:
    raise SystemExit(7)


def in_train_only(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, ignore_index=9)


class Locked:
    """A function that no other process can have."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, inputs: Tensor, *_: Any) -> Tensor:
        return inputs


LAYOUT = "tensor of the layout"
DATA: dict[str, Form] = {
    "label too large, train": (targets(filled(12), "train"), DataError, "the train split's targets hold the label 12"),
    "label too large, validation": (targets(filled(4), "validation"), DataError, "the label 4 (sample 7, 1 in all)"),
    "label too large, test": (targets(filled(12), "test"), DataError, "allowed are 0 to 3. Remedy"),
    "label below 0": (targets(filled(-1), "train"), DataError, "hold the label -1"),
    "ignored label, test": (targets(filled(-100), "test"), DataError, "-100 (sample 7, 1 in all) and run from -100"),
    "ignored label, validation": (targets(filled(-100), "validation"), DataError, "are for training alone"),
    "label too large for a loss that is derived": (
        targets(filled(9), "train", loss=functools.partial(F.cross_entropy, label_smoothing=0.1)), DataError, "label 9",
    ),
    "label too large for a loss with another ignored label": (
        targets(filled(8), "train", loss=nn.CrossEntropyLoss(ignore_index=9)), DataError, "label 8",
    ),
    "label too large for the user's loss": (
        targets(filled(8), "train", loss=in_train_only), UnsupportedModel, "Target 8 is out of bounds",
    ),
    "label too large for the user's loss, test": (targets(filled(9), "test", loss=in_train_only), DataError, "label 9"),
    "labels from 1": (targets(lambda y: y + 1), DataError, "hold the label 4"),
    "dense labels too large": (
        targets(lambda y: filled(5)(y[:, None].repeat(1, 3)), score=in_train_only), DataError, "the label 5 (sample 7",
    ),
    "every label ignored": (targets(lambda y: y * 0 - 100, "train"), DataError, "the train split has no class of 4"),
    "one class": (targets(lambda y: y * 0 + 2, "train"), DataError, "has only class 2 of 4"),
    "int32 labels": (targets(lambda y: y.int()), DataError, "are int32, and class numbers are int64, from 0 to 3"),
    "uint8 labels": (targets(lambda y: y.byte()), DataError, "Remedy: targets.long()"),
    "bool labels": (targets(lambda y: y > 0), DataError, "are bool, and class numbers are int64"),
    "float labels": (targets(lambda y: y.float()), DataError, "are float32, and class numbers are int64"),
    "float labels in one split": (targets(lambda y: y.float(), "train"), DataError, "those of the train split float32"),
    "one-hot labels": (targets(lambda y: F.one_hot(y, 4)), DataError, "Remedy: targets.argmax(1) where they are one-"),
    "float labels for a score of the user's": (
        targets(lambda y: y.float(), score=lambda outputs, _: outputs[:, 0]), DataError, "a probability for each of",
    ),
    "a column of labels": (targets(lambda y: y[:, None]), DataError, "have the shape (20, 1), and the score top1"),
    "NaN in targets": (
        targets(lambda y: filled(NAN)(y.float()), "test", loss=F.mse_loss, score=in_train_only), DataError, "float32",
    ),
    "NaN in all targets": (
        targets(lambda y: filled(NAN)(y.float()), loss=F.mse_loss, score=in_train_only), DataError,
        "the train split's targets hold nan in 1 of 20 samples, the first of them sample 7",
    ),
    "infinite targets": (
        targets(lambda y: filled(INF)(y.float()), loss=F.mse_loss, score=in_train_only), DataError, "hold inf in 1 of",
    ),
    "NaN in inputs, train": (inputs(filled(NAN), "train"), DataError, "the train split's inputs hold nan"),
    "NaN in inputs, validation": (inputs(filled(NAN, 0), "validation"), DataError, "the first of them sample 0"),
    "NaN in inputs, test": (inputs(filled(NAN), "test"), DataError, "the test split's inputs hold nan in 1 of 20"),
    "infinite inputs": (inputs(filled(INF), "train"), DataError, "hold inf in 1 of 20 samples"),
    "minus infinity": (inputs(filled(-INF, 19), "test"), DataError, "hold -inf in 1 of 20 samples, the first of them"),
    "too large for float32": (inputs(lambda x: filled(1e39)(x.double())), DataError, "hold 1e+39 in 1 of 20"),
    "another shape, test": (
        inputs(lambda x: x[:, :, :3, :3], "test"), DataError,
        "the test split's inputs are float32 (2, 3, 3) a sample, and those of the train split float32 (2, 6, 6)",
    ),
    "other channels, validation": (inputs(lambda x: x[:, :1], "validation"), DataError, "float32 (1, 6, 6) a sample"),
    "another type, test": (inputs(lambda x: x.byte(), "test"), DataError, "the test split's inputs are uint8"),
    "numpy inputs": (inputs(lambda x: x.numpy()), DataError, "numpy array (float32, (20, 2, 6, 6)), not a tensor"),
    "numpy targets": (targets(lambda y: y.numpy(), "test"), DataError, "Remedy: torch.from_numpy(targets)"),
    "a list of targets": (targets(lambda y: y.tolist()), DataError, "the train split's targets are a list, not a ten"),
    "inputs that are None": (inputs(lambda x: None), DataError, "inputs are a NoneType, not a tensor"),
    "sparse inputs": (inputs(lambda x: x.to_sparse()), DataError, f"{LAYOUT} sparse_coo, not a dense one. Remedy: inp"),
    "sparse rows": (inputs(lambda x: x.flatten(1).to_sparse_csr()), DataError, f"{LAYOUT} sparse_csr"),
    "nested inputs": (
        inputs(lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged)), DataError, f"{LAYOUT} nested",
    ),
    "meta inputs": (inputs(lambda x: x.to("meta")), DataError, "inputs are on the device meta"),
    "complex inputs": (inputs(lambda x: x.to(torch.complex64)), DataError, "are of the type complex64; allowed are"),
    "quantized inputs": (
        inputs(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)), DataError, "Remedy: inputs.dequantize()",
    ),
    "bfloat16 inputs": (inputs(lambda x: x.bfloat16()), DataError, "type bfloat16; allowed are uint8, int8"),
    "uint16 inputs": (inputs(lambda x: x.to(torch.uint16)), DataError, "Remedy: inputs.float()"),
    "complex targets": (targets(lambda y: y.to(torch.complex64)), DataError, "the train split's targets are of the"),
    "one number as inputs": (inputs(lambda x: x.sum()), DataError, "the train split's inputs are a single number"),
    "one number as targets": (targets(lambda y: y.sum()), DataError, "the train split's targets are a single number"),
    "inputs without features": (inputs(lambda x: x[:, 0, 0, 0]), DataError, "inputs have the shape (20,). Remedy"),
    "inputs of no pixels": (inputs(lambda x: x[:, :, :0]), DataError, "inputs have the shape (20, 2, 0, 6)"),
    "targets of no numbers": (
        targets(lambda y: y[:, None][:, :0], score=in_train_only), DataError, "targets have the shape (20, 0)",
    ),
    "other lengths": (targets(lambda y: y[:19], "validation"), DataError, "20 inputs but 19 targets. Remedy: one tar"),
    "empty split": (lambda: splits(lambda split: split.head(0), "test"), DataError, "the test split is empty"),
    "a split that is a pair": (settings(test=(torch.zeros(2, 2), torch.zeros(2))), DataError, "test is a tuple"),
    "std of 0": (settings(std=(0.0,)), DataError, "std is (0.0,), and inputs are divided by it"),
    "std below 0": (settings(std=(1.0, -1.0)), DataError, "Remedy: numbers above 0"),
    "std of NaN": (settings(std=(NAN,)), DataError, "std is (nan,). Remedy: a tuple of finite numbers"),
    "infinite mean": (settings(mean=(INF, 0.0)), DataError, "mean is (inf, 0.0)"),
    "mean that is a number": (settings(mean=0.5), DataError, "mean is 0.5. Remedy: a tuple"),
    "mean that is a tensor": (settings(mean=torch.zeros(2)), DataError, "mean is tensor([0., 0.])"),
    "mean of texts": (settings(mean=("a", "b")), DataError, "mean is ('a', 'b')"),
    "mean of other channels": (settings(mean=(0.0,) * 3), DataError, "mean has 3 numbers for inputs of 2 channels"),
    "no outputs": (settings(num_outputs=0), DataError, "num_outputs is 0. Remedy"),
    "outputs in words": (settings(num_outputs="four"), DataError, "num_outputs is 'four'. Remedy"),
    "loss in words": (settings(loss="mse"), DataError, "loss is 'mse', which cannot be called"),
    "a name of two lines": (settings(name="a\nb" * 99, num_outputs=0), DataError, r"task a\nba\nb"),
    "augmentation that fails": (settings(augment=lambda x: x), DataError, "augment fails on two training inputs (Type"),
    "augmentation that ends the program": (settings(augment=lambda *_: ends()), DataError, "augment fails on two tr"),
    "augmentation of another shape": (settings(augment=lambda x, _: x[:, :1]), DataError, "augment makes torch.flo"),
    "augmentation to NaN": (settings(augment=lambda x, _: x * NAN), DataError, "augment gives NaN"),
    "augmentation to an array": (settings(augment=lambda x, _: x.numpy()), DataError, "augment gives a ndarray"),
    "augmentation with a lock": (settings(augment=Locked()), DataError, "cannot be sent to workers (cannot pickle"),
    "loss of NaN": (settings(loss=lambda o, _: o.sum() * NAN), UnsupportedModel, ") is nan for two samples of the"),
    "loss of each sample": (
        settings(loss=functools.partial(F.cross_entropy, reduction="none")), UnsupportedModel,
        "loss=cross_entropy gives float32 (2,), not one number for the batch, of outputs float32 (2, 4)",
    ),
    "loss without a gradient": (
        settings(loss=lambda o, y: F.cross_entropy(o.detach(), y)), UnsupportedModel, ") has no gradient",
    ),
    "loss that is a number": (settings(loss=lambda o, _: o.sum().item()), UnsupportedModel, ") gives a float, not one"),
    "score of the batch": (settings(score=lambda o, y: top1(o, y).mean()), UnsupportedModel, ") gives float32 (), not"),
    "no task": (lambda: (torch.zeros(2), torch.zeros(2)), ConfigError, "returned a tuple. Remedy: return a pfray.task"),
    "the class": (lambda: Task, ConfigError, "returned a type. Remedy: return a pfray.task.Task"),
    "an error of two lines": (lambda: np.zeros(2).reshape(3, 5), ConfigError, "data: cannot reshape array of size 2"),
}  # fmt: skip


class Net(nn.Module):
    """``(N, 2, H, W)`` images to four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 8, 3, padding=1), nn.Linear(8, 4)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


def with_forward(forward: Callable[[Net, Tensor], Any], base: type[Net] = Net) -> Callable[[], nn.Module]:
    return lambda: type("Own", (base,), {"forward": forward})()


def changed(change: Callable[[Net], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Net()
        change(model)
        return model

    return make


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Net()


def fill(name: str, value: float) -> Callable[[], nn.Module]:
    return changed(lambda model: model.get_parameter(name).data.view(-1)[0].fill_(value))


def mixed(model: Net, x: Tensor) -> Tensor:
    """Half of the time another network; rare enough to differ in one of two passes only now and then."""
    return model.head(model.features(x) * (2 if random() < 0.5 else 1))


def noisy(model: Net, x: Tensor) -> Tensor:
    return model.head(F.dropout(model.features(x), 0.5))


MODELS: dict[str, Form] = {
    "NaN outputs": (with_forward(lambda m, x: m.head(m.features(x)) * NAN), UnsupportedModel, "gives NaN or infinite"),
    "infinite outputs": (with_forward(lambda m, x: m.head(m.features(x)) / 0), UnsupportedModel, "NaN or infinite"),
    "random branch": (with_forward(mixed), UnsupportedModel, "gives other outputs for the same inputs in evaluation"),
    "dropout in evaluation": (with_forward(noisy), UnsupportedModel, "Remedy: random branches and noise only where"),
    "noise of numpy": (
        with_forward(lambda m, x: m.head(m.features(x)) + float(np.random.rand())), UnsupportedModel, "(apart by",
    ),
    "tuple": (with_forward(lambda m, x: (m.head(m.features(x)), x)), UnsupportedModel, "outputs a tuple of [0] float"),
    "dict": (with_forward(lambda m, x: {"out": m.head(m.features(x))}), UnsupportedModel, "a dict of out float32 (2"),
    "features": (with_forward(lambda m, x: m.features(x)[:, :3]), UnsupportedModel, "(2, 3), do not fit the task"),
    "forward that ends the program": (with_forward(lambda m, x: ends()), UnsupportedModel, "it ends the program"),
    "forward that fails": (with_forward(lambda m, x: m.none(x)), UnsupportedModel, "has no attribute 'none'"),
    "float64": (lambda: Net().double(), UnsupportedModel, "parameter conv.weight is float64, not float32. Remedy: mod"),
    "half": (lambda: Net().half(), UnsupportedModel, "conv.weight is float16, not float32"),
    "bfloat16 head": (changed(lambda m: m.head.bfloat16()), UnsupportedModel, "head.weight is bfloat16, not float32"),
    "complex": (lambda: Net().to(torch.complex64), UnsupportedModel, "conv.weight is complex64, not float32"),
    "meta": (on_meta, UnsupportedModel, "conv.weight is on the device meta and has no values"),
    "sparse parameter": (
        changed(lambda m: setattr(m.head, "weight", nn.Parameter(torch.eye(4, 8).to_sparse()))), UnsupportedModel,
        "head.weight is of the layout sparse_coo",
    ),
    "no parameters": (nn.Identity, UnsupportedModel, "the model Identity has no parameters"),
    "NaN weights": (fill("conv.weight", NAN), UnsupportedModel, "1 of 144 numbers of conv.weight are NaN or infinite"),
    "infinite bias": (fill("head.bias", INF), UnsupportedModel, "1 of 4 numbers of head.bias are NaN or infinite"),
    "lock": (changed(lambda m: setattr(m, "lock", threading.Lock())), UnsupportedModel, "cannot be copied (cannot"),
    "generator": (changed(lambda m: setattr(m, "all", m.modules())), UnsupportedModel, "cannot be copied (cannot"),
    "a result that is kept": (
        changed(lambda m: setattr(m, "kept", m.head.weight * 2)), UnsupportedModel, "the model Net cannot be copied",
    ),
    "TorchScript": (lambda: torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(72, 4))), UnsupportedModel, "is T"),
    "a class": (lambda: Net, ConfigError, "returned the class Net, not a torch.nn.Module. Remedy: Net(...)"),
    "one layer": (lambda: nn.Linear(6, 4), UnsupportedModel, "a single Linear, which has no name"),
}  # fmt: skip


def data(form: str) -> Any:
    return DATA[form][0]()


def model(form: str = "") -> Any:
    return MODELS[form][0]() if form else Net()
