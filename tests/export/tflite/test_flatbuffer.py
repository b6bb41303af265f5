"""Files as objects: what is packed parses to the same bytes again, and damaged content is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pfray.errors import ExportError
from pfray.export.tflite import convert, flatbuffer


@pytest.fixture(scope="module")
def content() -> bytes:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(128, 5))
    return convert.convert(model.eval(), torch.zeros(1, 3, 8, 8))


def test_a_packed_file_keeps_its_bytes_when_it_is_parsed_and_packed(content):
    packed = flatbuffer.pack(flatbuffer.parse(content))
    assert flatbuffer.pack(flatbuffer.parse(packed)) == packed


def test_weights_are_found_with_their_shapes(content):
    file = flatbuffer.parse(content)
    found = flatbuffer.weights(file, file.subgraphs[0])
    assert sorted(weight.values.shape for weight in found) == [(1, 3, 3, 8), (5, 128), (8, 3, 3, 3)]
    assert all(len(weight.readers) == len(weight.kinds) == 1 for weight in found)


@pytest.mark.parametrize("damaged", [b"", b"hello world", 2000, -5000])
def test_damaged_content_is_refused_with_a_remedy(damaged, content):
    with pytest.raises(ExportError, match=r"the \.tflite is damaged.*Remedy"):
        flatbuffer.parse(damaged if isinstance(damaged, bytes) else content[:damaged])
