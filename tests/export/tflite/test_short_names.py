"""Short names of tensors: what they become, and that nothing else of a file changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pfray.export.tflite import convert, flatbuffer
from pfray.export.tflite.short_names import short, shorten
from pfray.measure import interpreter


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pfray.models.resnet.CifarResNet/torch.nn.modules.conv.Conv2d_conv1;", "conv1"),
        (
            "a.Net/torch.nn.modules.container.Sequential_layer2/a.Block_0/a.Conv_conv1;b.Net/c.Relu_other",
            "layer2.0.conv1",
        ),
        ("serving_default_args_0", "serving_default_args_0"),
        ("arith.constant3", "arith.constant3"),
        ("StatefulPartitionedCall/mul", "mul"),
        ("a.b.Net/x.Layer_a_b", "a_b"),
        ("my_own.my_nets.Net/torch.nn.modules.conv.Conv2d_stem.conv_dw;2", "stem.conv_dw"),
        ("my_own.my_nets.Net;4", "my_own.my_nets.Net"),
        ("", ""),
    ],
)
def test_a_name_is_what_the_modules_are_called(name, expected):
    assert short(name) == expected


def test_only_the_names_change(tmp_path: Path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    inputs, path = torch.randn(5, 2, 8, 8), tmp_path / "model.tflite"
    long = flatbuffer.parse(convert.convert(model, inputs[:1]))
    path.write_bytes(flatbuffer.pack(long))
    (before,), size = interpreter.predict(path, inputs.numpy()), path.stat().st_size
    file = flatbuffer.parse(path.read_bytes())
    shorten(file)
    path.write_bytes(flatbuffer.pack(file))
    assert np.array_equal(interpreter.predict(path, inputs.numpy())[0], before)
    assert path.stat().st_size < size
    model = flatbuffer.parse(path.read_bytes())
    names = [tensor.name.decode() for tensor in model.subgraphs[0].tensors]
    assert len(set(names)) == len(names) == len(long.subgraphs[0].tensors)
    ends = [int(i) for i in (*model.subgraphs[0].inputs, *model.subgraphs[0].outputs)]
    assert [names[i] for i in ends] == [long.subgraphs[0].tensors[i].name.decode() for i in ends]
    assert max(len(name) for i, name in enumerate(names) if i not in ends) < 30
    shorten(model)  # which changes nothing more
    assert [tensor.name.decode() for tensor in model.subgraphs[0].tensors] == names
