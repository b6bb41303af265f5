"""Models whose inputs and outputs have other forms than one tensor, each with a batch of six samples."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Pair = collections.namedtuple("Pair", "boxes classes")


@dataclasses.dataclass
class Found:
    boxes: Tensor
    classes: Tensor
    loss: Tensor | None = None


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda boxes, classes: torch.cat([boxes, classes], 1),
    "tuple": lambda boxes, classes: (boxes, classes),
    "named tuple": Pair,
    "dict": lambda boxes, classes: {"boxes": boxes, "classes": classes},
    "dataclass": Found,
    "nested": lambda boxes, classes: {"all": [boxes, (classes,)], "count": 2},
}


class Detector(nn.Module):
    """Two heads on the mean features of one or two images."""

    def __init__(self, outputs: str = "tuple") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.outputs = nn.Conv2d(3, 8, 3, padding=1), outputs
        self.boxes, self.classes = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, image: Tensor, other: Tensor | None = None, double: bool = False) -> Any:
        features = torch.relu(self.body(image)).mean((2, 3))
        if other is not None:
            features = features + (2 if double else 1) * self.body(other).mean((2, 3))
        return OUTPUTS[self.outputs](self.boxes(features), self.classes(features))


class Text(nn.Module):
    """A classifier of sentences of token numbers below 50."""

    def __init__(self, recurrent: type[nn.RNNBase] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)
        self.rnn: Any = recurrent and recurrent(16, 24, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(48 if recurrent else 16, 32), nn.Linear(32, 3)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        values = self.embedding(tokens)
        if mask is not None:
            values = values * mask[..., None]
        values = self.rnn(values)[0][:, -1] if self.rnn else values.mean(1)
        return self.head(torch.relu(self.hidden(values)))


def images(seed: int = 0) -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def tokens() -> Tensor:
    return torch.randint(0, 50, (6, 7), generator=torch.Generator().manual_seed(0))


# Name: (model, inputs, names of the file's inputs, of its outputs).
FORMS: dict[str, Callable[[], tuple[nn.Module, Any, list[str], list[str]]]] = {
    "two inputs": lambda: (Detector("tensor"), (images(), images(1)), ["args_0", "args_1"], ["output_0"]),
    "named inputs": lambda: (
        Detector("dict"), {"other": images(1), "image": images(), "double": True}, ["other", "image"],
        ["boxes", "classes"],
    ),
    "an input of none": lambda: (Detector("tuple"), (images(), None), ["args_0"], ["output_0", "output_1"]),
    "a tuple": lambda: (Detector("tuple"), images(), ["args_0"], ["output_0", "output_1"]),
    "a named tuple": lambda: (Detector("named tuple"), images(), ["args_0"], ["output_0", "output_1"]),
    "a dataclass": lambda: (Detector("dataclass"), images(), ["args_0"], ["boxes", "classes"]),
    "nested": lambda: (Detector("nested"), images(), ["args_0"], ["all_0", "all_1_0"]),
    "tokens": lambda: (
        Text(), {"tokens": tokens(), "mask": tokens() > 10}, ["tokens", "mask"], ["output_0"],
    ),
}  # fmt: skip


def form(name: str) -> tuple[nn.Module, Any, list[str], list[str]]:
    model, inputs, given, made = FORMS[name]()
    return model.eval(), inputs, given, made
