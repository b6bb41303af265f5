"""Small tasks and models of which one can say which channels matter, for the tests of what prunes them."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from pfray.export.tflite import convert
from pfray.measure.cost import count_params, total_macs
from pfray.task import Split, Task
from tests.zoo import conv, head, randomize


def make_task(shape: tuple[int, ...] = (2, 8, 8), classes: int = 3, samples: int = 60) -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, *shape, generator=generator)
    split = Split(inputs, torch.randint(classes, (samples,), generator=generator))
    return Task("random", split, split.head(20), split.head(20), classes)


def informative(samples: int = 240) -> Task:
    """Four classes; the class is the sign of two of eight inputs' means, the other six inputs are noise as large."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(samples) % 4
    inputs = torch.randn(samples, 8, 4, 4, generator=generator)
    signs = torch.stack([targets % 2 * 2.0 - 1, targets // 2 * 2.0 - 1], 1)
    inputs[:, [2, 5]] = signs[:, :, None, None] + 0.3 * inputs[:, [2, 5]]
    split = Split(inputs, targets)
    return Task("informative", split, split.head(40), split.head(40), 4)


def passing_on() -> nn.Module:
    """Layer 0 gives each of the eight inputs as a channel of its own, layer 2 mixes them all alike."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), head(8, 4)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8)[:, :, None, None])
        model[0].bias.fill_(1.0)
        # Orthogonal columns of length 1: what is read of each channel adds the same to the output.
        model[2].weight.copy_(torch.linalg.qr(torch.randn(8, 8)).Q[:, :, None, None])
    return model


def chain(widths: tuple[int, ...] = (4, 5, 6, 7)) -> nn.Module:
    torch.manual_seed(0)
    layers = [conv(*pair) for pair in zip((2, *widths), widths, strict=False)]
    return randomize(nn.Sequential(*layers, head(widths[-1], 3))).eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def channel_costs(model: nn.Module, example: Tensor) -> dict[str, float]:
    """What a channel learner's space says of a model, measured on the model itself."""
    params = count_params(model)[0]
    return {"macs": total_macs(model, example), "params": params, "size_bytes": 4 * params}


def described_bytes(model: nn.Module) -> int:
    """Of what describes the buckets of its quantized weights."""
    parts = ("weight_low", "weight_step", "weight_codebook")
    return sum(buffer.nbytes for name, buffer in model.named_buffers() if name.rpartition(".")[2] in parts)


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    """The largest between their outputs, as a share of the largest one of ``other``."""
    expected = other(inputs)
    return float((one(inputs) - expected).abs().max() / expected.abs().max())


def file_difference(model: nn.Module, inputs: Tensor, path: Path) -> float:
    """The largest between the outputs of the .tflite, which is written to ``path``, and the model's, as a share."""
    convert.export(model, inputs, path)
    compared = convert.compare(path, model, inputs)
    return compared.largest_difference / float(compared.file.abs().max())
