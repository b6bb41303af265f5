from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from pfray.export.tflite import convert, flatbuffer
from pfray.export.tflite.sparse import sparsify
from pfray.measure import interpreter

INPUTS = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)


def net(sparsity: float) -> nn.Sequential:
    """All three kinds of layer, with rows longer than 256, more than 65,536 nonzeros and negative batch-norm scales, so
    that every width of index and both signs of zero occur."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False),
        nn.BatchNorm2d(32),
        nn.Conv2d(32, 320, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(320, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    )
    with torch.no_grad():
        nn.init.uniform_(model.get_parameter("3.weight"), -2, 2)
        for module in model:
            if isinstance(module, nn.Conv2d | nn.Linear):
                weight = module.weight
                small = weight.abs().flatten().argsort()[: int(weight.numel() * sparsity)]
                weight *= torch.ones(weight.numel()).index_fill(0, small, 0).view_as(weight)
    return model.eval()


def exported(sparsity: float, folder: Path) -> Path:
    path = folder / f"dense_{sparsity}.tflite"
    convert.export(net(sparsity), torch.zeros(1, 3, 8, 8), path)
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(0.75, tmp_path_factory.mktemp("sparse"))


def rewritten(dense: Path, sparse: Path, **settings: float) -> int:
    """How many weights of the file are stored sparse in the other."""
    file = flatbuffer.parse(dense.read_bytes())
    count = sparsify(file, **settings)
    sparse.write_bytes(flatbuffer.pack(file))
    return count


def read(path: Path) -> schema.ModelT:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))


def assert_same_outputs(first: Path, second: Path) -> None:
    (a,), (b,) = interpreter.predict(first, INPUTS), interpreter.predict(second, INPUTS)
    assert a.std(0).min() > 1e-4, "outputs that ignore the inputs would compare equal for nothing"
    assert np.array_equal(a.view(np.int32), b.view(np.int32))


def test_the_sparse_file_is_smaller_and_its_outputs_are_bit_identical(dense: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.tflite"
    assert rewritten(dense, sparse) == 5
    assert sparse.stat().st_size < 0.42 * dense.stat().st_size
    assert_same_outputs(dense, sparse)


def test_a_second_time_changes_nothing(dense: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.tflite", tmp_path / "twice.tflite"
    rewritten(dense, once)
    assert rewritten(once, twice) == 0
    assert twice.read_bytes() == once.read_bytes()


def test_only_weights_that_are_sparse_enough_are_converted(dense: Path, tmp_path: Path) -> None:
    assert rewritten(dense, tmp_path / "same.tflite", min_sparsity=0.8) == 0
    assert (tmp_path / "same.tflite").read_bytes() == dense.read_bytes()


def test_a_weight_that_would_grow_is_left_alone_and_int32_tables_work(tmp_path: Path) -> None:
    path = exported(0.3, tmp_path)
    assert rewritten(path, tmp_path / "sparse.tflite", min_sparsity=0.0) == 1
    # Rows of up to 256 cost 5 bytes a nonzero and shrink at 30 %; longer rows cost 6 and would grow.
    kinds = {
        tuple(int(n) for n in t.shape) for t in read(tmp_path / "sparse.tflite").subgraphs[0].tensors if t.sparsity
    }
    assert kinds == {(320, 1, 1, 32)}
    assert (tmp_path / "sparse.tflite").stat().st_size < path.stat().st_size
    assert_same_outputs(path, tmp_path / "sparse.tflite")

    path = exported(0.5, tmp_path)
    assert rewritten(path, tmp_path / "sparse.tflite", min_sparsity=0.4) == 4
    segments = [
        axis.arraySegmentsType
        for tensor in read(tmp_path / "sparse.tflite").subgraphs[0].tensors
        if tensor.sparsity
        for axis in tensor.sparsity.dimMetadata[-1:]
    ]
    assert schema.SparseIndexVector.Int32Vector in segments
    assert_same_outputs(path, tmp_path / "sparse.tflite")


def test_a_layer_of_nothing_but_zeros_survives(tmp_path: Path) -> None:
    model = net(0.75)
    nn.init.zeros_(model.get_parameter("8.weight"))
    nn.init.normal_(model.get_parameter("8.bias"))
    convert.export(model, torch.zeros(1, 3, 8, 8), tmp_path / "dense.tflite")
    rewritten(tmp_path / "dense.tflite", tmp_path / "sparse.tflite")
    (a,), (b,) = (interpreter.predict(tmp_path / name, INPUTS) for name in ("dense.tflite", "sparse.tflite"))
    assert np.abs(a).max() > 0.01
    assert np.array_equal(a, b)


def test_constants_lie_on_16_byte_boundaries(dense: Path, tmp_path: Path) -> None:
    rewritten(dense, tmp_path / "sparse.tflite")
    content = (tmp_path / "sparse.tflite").read_bytes()
    constants = [b.data for b in read(tmp_path / "sparse.tflite").buffers if b.data is not None and b.data.size > 1000]
    assert constants
    assert all(content.index(data.tobytes()) % 16 == 0 for data in constants)
