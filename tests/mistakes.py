"""Mistakes of a model, its data, loss or metric in a request from Python, each with the line that it must give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

X, Y = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
NUMBERS = X.mean((1, 2, 3))
LOGITS = "on outputs float32 (2, 4) and targets int64 (2,)"
SCORE = "Remedy: a function of (outputs, targets) that gives a number for each sample, a tensor of the shape (N,)"
NUMBER = "Remedy: a function of the model that returns one finite number"
ADAPT = "Remedy: samples (input, target), or adapt=fn(batch) -> (inputs, targets)"
MODULE = "not a torch.nn.Module. Remedy:"


class Net(nn.Module):
    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


class Flat(Net):
    """Numbers ``(N,)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


class Images(Dataset):
    """Images without labels."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Tensor:
        return X[index]


def apart(outputs, targets):
    return (outputs - targets).abs()


def broken(outputs, targets):
    raise RuntimeError("my own mistake.")


def nothing(outputs, targets):
    return None


def right(outputs, targets):
    return outputs.argmax(1) == targets


def share(outputs, targets):
    return right(outputs, targets).float().mean()


def array(outputs, targets):
    return right(outputs, targets).numpy()


def outputs_alone(outputs, targets):
    return outputs


def undefined(outputs, targets):
    return outputs[:, 0] * float("nan")


def squared(outputs, targets):
    return ((outputs - targets) ** 2).mean()


def cut_off(outputs, targets):
    return F.cross_entropy(outputs.detach(), targets)


def distances(outputs, teacher_outputs, temperature):
    return (outputs - teacher_outputs).square().mean(1)


def several(model):
    return torch.ones(3)


def text(model):
    return "0.9"


def at(function: Callable[..., Any]) -> str:
    """As a message names a function of this file."""
    return f"{function.__name__} ({here()}, line {function.__code__.co_firstlineno})"


def here() -> str:
    return Path(__file__).as_posix()


def raised(function: Callable[..., Any]) -> str:
    """Place of the statement that follows the function's first line."""
    return f"({here()}, line {function.__code__.co_firstlineno + 1})"


def meta() -> nn.Module:
    with torch.device("meta"):
        return Net()


def labels(values: Tensor, **changes: Any) -> dict[str, Any]:
    return {"train": (X, values), **changes}


def regression(model: nn.Module, values: Tensor, **changes: Any) -> dict[str, Any]:
    return {"model": model, "train": (X, values), "loss": F.mse_loss, **changes}


def mistakes() -> Iterator[tuple[str, dict[str, Any], str]]:
    """(name, arguments, line)."""
    yield (
        "metric of wrong shapes", {"metric": apart},
        f"metric=apart fails {LOGITS}: RuntimeError: The size of tensor a (4) must match the size of tensor b (2) at "
        f"non-singleton dimension 1 {raised(apart)}. {SCORE}",
    )
    yield "metric that raises", {"metric": broken}, (
        f"metric=broken fails {LOGITS}: RuntimeError: my own mistake {raised(broken)}. {SCORE}"
    )
    yield "metric that returns nothing", {"metric": nothing}, (
        f"metric={at(nothing)} gives None, not a tensor of one number a sample, (2,). {SCORE}"
    )
    yield "metric of the batch", {"metric": share}, (
        f"metric={at(share)} gives float32 (), not a tensor of one number a sample, (2,). Remedy: no mean over the "
        "samples; or evaluate=fn(model) for a number of all samples"
    )
    yield "metric of an array", {"metric": array}, (
        f"metric={at(array)} gives a ndarray, not a tensor of one number a sample, (2,). Remedy: torch.as_tensor of it"
    )
    yield "metric that is not a number", {"metric": undefined}, (
        f"metric={at(undefined)} has a mean of nan, not a finite number. Remedy: a finite number for every sample"
    )
    yield "metric of several numbers a sample", {"metric": outputs_alone}, (
        f"metric={at(outputs_alone)} gives float32 (2, 4), not a tensor of one number a sample, (2,). Remedy: its mean "
        "over all axes but the first, .flatten(1).mean(1)"
    )
    yield "metric and evaluation", {"metric": right, "evaluate": several}, (
        "metric and evaluate are both given, and evaluate replaces a metric. Remedy: one of them"
    )
    yield "evaluation of several numbers", {"evaluate": several}, (
        f"evaluate={at(several)} gives float32 (3,), not one number. {NUMBER}"
    )
    yield "evaluation of a text", {"evaluate": text}, f"evaluate={at(text)} gives a str, not one number. {NUMBER}"
    yield "direction of the loss", regression(Net(1), NUMBERS[:, None], higher_is_better=True), (
        "higher_is_better is True, and lower is better for the metric loss. Remedy: leave it out"
    )
    yield "loss of each sample", {"loss": nn.CrossEntropyLoss(reduction="none")}, (
        "loss=CrossEntropyLoss gives float32 (2,), not one number for the batch, of outputs float32 (2, 4) and targets "
        "int64 (2,). Remedy: reduction='mean', or .mean() of what it gives"
    )
    yield "loss without a gradient", {"loss": cut_off}, (
        f"loss={at(cut_off)} has no gradient with respect to the outputs. Remedy: no detach(), argmax() or "
        "torch.no_grad() in it"
    )
    for loss, name in ((F.mse_loss, "mse_loss"), (nn.L1Loss(), "L1Loss"), (squared, at(squared))):
        yield f"column of outputs, {name.partition(' ')[0]}", regression(Net(1), NUMBERS, loss=loss), (
            f"loss={name} broadcasts outputs float32 (2, 1) against targets float32 (2,), each sample against every "
            "other. Remedy: targets.unsqueeze(1) in the data, or outputs.squeeze(1) in the model or loss"
        )
    yield "column of targets", regression(Flat(1), NUMBERS[:, None]), (
        "loss=mse_loss broadcasts outputs float32 (2,) against targets float32 (2, 1), each sample against every "
        "other. Remedy: targets.squeeze(1) in the data, or outputs.unsqueeze(1) in the model or loss"
    )
    soft = (
        "Remedy: a function of (outputs, teacher_outputs, temperature) that gives a batch's mean, a tensor of one "
        "number"
    )
    yield "soft loss without a temperature", {"soft_loss": squared}, (
        f"soft_loss={at(squared)} fails on outputs float32 (2, 4) twice and a temperature of 1.0: TypeError: squared() "
        f"takes 2 positional arguments but 3 were given. {soft}"
    )
    yield "soft loss of each sample", {"soft_loss": distances}, (
        f"soft_loss={at(distances)} gives float32 (2,), not one number for the batch. {soft}"
    )
    yield "float labels of a cross entropy", labels(Y.float(), loss=F.cross_entropy), (
        "loss=cross_entropy fails on outputs float32 (2, 4) and targets float32 (2,): RuntimeError: expected target "
        "dtype to be Long or Byte, but got Float. Remedy: targets.long() and a cross entropy for class numbers; "
        "otherwise a model with one output"
    )
    one = (
        "torch.nn.functional.mse_loss for numbers, binary_cross_entropy_with_logits for two classes by one logit, or a "
        "model with an output for each class"
    )
    for model, values, shape in ((Flat(1), NUMBERS, "(2,)"), (Net(1), NUMBERS[:, None], "(2, 1)")):
        yield f"cross entropy of numbers {shape}", regression(model, values, loss=F.cross_entropy), (
            f"loss=cross_entropy needs logits (N, K) of 2 or more classes, and the outputs are float32 {shape}. "
            f"Remedy: {one}"
        )
    yield "whole numbers for one logit", labels(Y % 2, model=Flat(1), loss=F.binary_cross_entropy_with_logits), (
        "loss=binary_cross_entropy_with_logits fails on outputs float32 (2,) and targets int64 (2,): RuntimeError: "
        f"result type Float can't be cast to the desired output type Long. Remedy: targets.float(), and {one}"
    )
    yield "one-hot labels without a loss", labels(F.one_hot(Y, 4).float()), (
        "loss: none is given, and the targets are float32 (40, 4), not class numbers (int64). Remedy: "
        "targets.argmax(1) where they are one-hot; loss=torch.nn.functional.cross_entropy for probabilities"
    )
    yield "loss by name", {"loss": "mse"}, (
        "task Net: loss is 'mse', which cannot be called. Remedy: the function, torch.nn.functional.mse_loss"
    )
    yield "loss by a name of two words", {"loss": "Cross-Entropy"}, (
        "task Net: loss is 'Cross-Entropy', which cannot be called. Remedy: the function, "
        "torch.nn.functional.cross_entropy"
    )
    yield "loss that is a class", {"loss": nn.CrossEntropyLoss}, (
        "task Net: loss is the class CrossEntropyLoss. Remedy: an instance, CrossEntropyLoss()"
    )
    numbers = "Remedy: metric='mse' or 'mae' for numbers; for a single logit a function of (outputs, targets) that"
    for model, values, shape in ((Flat(1), NUMBERS, "(2,)"), (Net(1), NUMBERS[:, None], "(2, 1)")):
        yield f"accuracy of numbers {shape}", regression(model, values, metric="accuracy"), (
            "metric: accuracy needs logits (N, K) of 2 or more classes and class numbers (N,), and the outputs are "
            f"float32 {shape}, the targets float32 {shape}. {numbers} gives each sample's score"
        )
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        name = str(kind).removeprefix("torch.")
        yield name, {"model": Net().to(kind)}, (
            f"the model Net: parameter conv.weight is {name}, not float32. Remedy: model.float()"
        )
    yield "meta device", {"model": meta()}, (
        "the model Net: conv.weight is on the device meta and has no values. Remedy: build the model on the CPU, or "
        "model.to_empty(device='cpu') and then model.load_state_dict(...)"
    )
    load = "Remedy: build the model, model.load_state_dict(...), and give the model"
    yield "state dict", {"model": Net().state_dict()}, (
        f"model: a state dict of 4 tensors (OrderedDict), not a torch.nn.Module. {load}"
    )
    yield "checkpoint", {"model": {"epoch": 3, "state_dict": dict(Net().state_dict())}}, (
        f"model: a state dict of 4 tensors (dict in its entry 'state_dict'), not a torch.nn.Module. {load}"
    )
    yield "class", {"model": Net}, f"model: the class Net, {MODULE} Net(...), an instance"
    yield "function", {"model": meta}, f"model: the function meta, {MODULE} meta(...), if it makes the model"
    yield "loader", {"model": DataLoader(Images())}, (
        f"model: a DataLoader, {MODULE} the model first, then the data: compress(model, train, ...)"
    )
    yield "path", {"model": Path("net.pt")}, (
        f"model: 'net.pt', {MODULE} build the model, load the file with model.load_state_dict(torch.load(...)), and "
        "give the model"
    )
    yield "name", {"model": "timm:resnet18"}, (
        f"model: 'timm:resnet18', {MODULE} timm.create_model('resnet18'); a name is enough in an experiment file only"
    )
    yield "layers", {"model": [nn.Linear(2, 2)]}, (
        f"model: a list of 1 modules, {MODULE} nn.Sequential(*layers), or one of them"
    )
    held = "task Net: the train split's targets hold the label"
    yield "labels from 1", labels(Y + 1), (
        f"{held} 4 (sample 4, 10 in all) and run from 1 to 4; allowed are 0 to 3. Remedy: labels start at 0: "
        "targets - 1"
    )
    yield "validation labels beyond those of train", {"validation": (X, torch.full_like(Y, 4))}, (
        "task Net: the validation split's targets hold the label 4 (sample 0, 40 in all) and run from 4 to 4; allowed "
        "are 0 to 3. Remedy: correct the labels or leave these samples out, as the train split lacks this class, or a "
        "model with 5 outputs"
    )
    yield "validation labels from 1, those of train from 0", {"validation": (X, Y + 1)}, (
        "task Net: the validation split's targets hold the label 4 (sample 4, 10 in all) and run from 1 to 4; allowed "
        "are 0 to 3. Remedy: correct the labels or leave these samples out, as the train split lacks this class, or a "
        "model with 5 outputs"
    )
    yield "labels from 5", labels(Y + 5), (
        f"{held} 5 (sample 0, 40 in all) and run from 5 to 8; allowed are 0 to 3. Remedy: number the classes from 0, "
        "as torch.unique(targets, return_inverse=True)[1] does"
    )
    yield "labels of more classes", labels(torch.arange(40) % 10), (
        f"{held} 4 (sample 0, 24 in all) and run from 0 to 9; allowed are 0 to 3. Remedy: correct the labels or leave "
        "these samples out, or a model with 10 outputs"
    )
    yield "labels with gaps", labels(Y * 10), (
        f"{held} 10 (sample 2, 30 in all) and run from 0 to 30; allowed are 0 to 3. Remedy: number the classes from 0, "
        "as torch.unique(targets, return_inverse=True)[1] does"
    )
    yield "a label of none", labels(torch.where(Y == 3, 255, Y)), (
        f"{held} 255 (sample 4, 10 in all) and run from 0 to 255; allowed are 0 to 3. Remedy: "
        "loss=torch.nn.CrossEntropyLoss(ignore_index=255) where it means no class; otherwise correct the labels or "
        "leave these samples out"
    )
    yield "labels of a single logit", labels(Y % 2, model=Net(1)), (
        f"{held} 1 (sample 2, 20 in all) and run from 0 to 1; allowed are 0 to 0. Remedy: a model with an output for "
        "each class; or targets.float()[:, None] and a loss for one logit, "
        "torch.nn.functional.binary_cross_entropy_with_logits"
    )
    yield "images alone", {"train": Images()}, (
        f"train: a batch is float32 (40, 3, 8, 8), inputs alone, without targets. {ADAPT}"
    )
    yield "images alone for validation", {"validation": DataLoader(Images(), 8)}, (
        f"validation: a batch is float32 (40, 3, 8, 8), inputs alone, without targets. {ADAPT}"
    )
    yield "a tensor alone", {"train": X}, (
        "train: a Tensor of float32 (40, 3, 8, 8) alone, without targets. Remedy: train=(inputs, targets)"
    )
    yield "a mapping without labels", {"test": [{"image": x} for x in X]}, (
        "test: a batch has 'image', of which none is named labels, label, targets, target, y. Remedy: "
        "adapt=fn(batch) -> (inputs, targets)"
    )
    yield "an adaptation of a pair", {"adapt": lambda batch: batch}, (
        "train: a pair of tensors, (inputs, targets), needs no adapt. Remedy: leave adapt out, or "
        "torch.utils.data.TensorDataset(inputs, targets), whose batches it gets"
    )
    yield "an adaptation by name", {"adapt": "flip"}, (
        "adapt: 'flip' cannot be called. Remedy: a function, or leave it out"
    )
    yield "an output that is none", {"output": 1.5}, (
        "task Net: output is 1.5. Remedy: a key (str), a position (int) or a function of the model's outputs"
    )
    yield "images with their channels last", {"train": (X.permute(0, 2, 3, 1), Y)}, (
        "the model Net fails on a batch of the training data, float32 (2, 8, 8, 3): RuntimeError: Given groups=1, "
        "weight of size [8, 3, 3, 3], expected input[2, 8, 8, 3] to have 3 channels, but got 8 channels instead "
        f"({here()}, line {Net.forward.__code__.co_firstlineno + 1}). Remedy: images as (N, C, H, W), which "
        "inputs.permute(0, 3, 1, 2) gives"
    )
    yield "NaN outputs", {"model": type("Net", (Net,), {"forward": lambda self, x: Net.forward(self, x) * np.nan})()}, (
        "the model Net gives NaN or infinite outputs for the first training inputs. Remedy: look at its forward pass, "
        "its weights and the range of its inputs"
    )


MISTAKES = {name: (arguments, line) for name, arguments, line in mistakes()}
