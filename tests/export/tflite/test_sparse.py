from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from pfray import bench
from pfray.errors import ExportError
from pfray.export.tflite import convert
from pfray.export.tflite.sparse import sparsify

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


def read(path: Path) -> schema.ModelT:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))


def assert_same_outputs(first: Path, second: Path) -> None:
    a, b = bench.predict(first, INPUTS), bench.predict(second, INPUTS)
    assert a.std(0).min() > 1e-4, "outputs that ignore the inputs would compare equal for nothing"
    assert np.array_equal(a.view(np.int32), b.view(np.int32))


def test_the_sparse_file_is_smaller_and_its_outputs_are_bit_identical(dense: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.tflite"
    done = sparsify(dense, sparse)
    assert done["bytes_before"] == dense.stat().st_size
    assert done["bytes_after"] == sparse.stat().st_size
    assert done["bytes_after"] < 0.42 * done["bytes_before"]
    assert (done["weights"], done["converted"]) == (5, 5)
    assert_same_outputs(dense, sparse)


def test_the_file_may_be_rewritten_in_place_and_a_second_time_changes_nothing(dense: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(dense.read_bytes())
    size = sparsify(path, path)["bytes_after"]
    assert_same_outputs(dense, path)
    content = path.read_bytes()
    assert sparsify(path, path) == {"weights": 0, "converted": 0, "bytes_before": size, "bytes_after": size}
    assert path.read_bytes() == content


def test_only_weights_that_are_sparse_enough_are_converted(dense: Path, tmp_path: Path) -> None:
    done = sparsify(dense, tmp_path / "same.tflite", min_sparsity=0.8)
    assert done["converted"] == 0
    assert (tmp_path / "same.tflite").read_bytes() == dense.read_bytes()


def test_a_weight_that_would_grow_is_left_alone_and_int32_tables_work(tmp_path: Path) -> None:
    path = exported(0.3, tmp_path)
    done = sparsify(path, tmp_path / "sparse.tflite", min_sparsity=0.0)
    # Rows of up to 256 cost 5 bytes a nonzero and shrink at 30 %; longer rows cost 6 and would grow.
    kinds = {
        tuple(int(n) for n in t.shape) for t in read(tmp_path / "sparse.tflite").subgraphs[0].tensors if t.sparsity
    }
    assert kinds == {(320, 1, 1, 32)}
    assert done["bytes_after"] < done["bytes_before"]
    assert_same_outputs(path, tmp_path / "sparse.tflite")

    path = exported(0.5, tmp_path)
    assert sparsify(path, tmp_path / "sparse.tflite", min_sparsity=0.4)["converted"] == 4
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
    sparsify(tmp_path / "dense.tflite", tmp_path / "sparse.tflite")
    a, b = (bench.predict(tmp_path / name, INPUTS) for name in ("dense.tflite", "sparse.tflite"))
    assert np.abs(a).max() > 0.01
    assert np.array_equal(a, b)


def test_constants_lie_on_16_byte_boundaries(dense: Path, tmp_path: Path) -> None:
    sparsify(dense, tmp_path / "sparse.tflite")
    content = (tmp_path / "sparse.tflite").read_bytes()
    constants = [b.data for b in read(tmp_path / "sparse.tflite").buffers if b.data is not None and b.data.size > 1000]
    assert constants
    assert all(content.index(data.tobytes()) % 16 == 0 for data in constants)


@pytest.mark.parametrize("content", [None, b"", b"hello world", 2000, -5000])
def test_a_damaged_file_is_named_with_a_remedy(content: bytes | int | None, dense: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else dense.read_bytes()[:content])
    with pytest.raises(ExportError, match=r"model\.tflite.*Remedy"):
        sparsify(path, tmp_path / "sparse.tflite")
    assert not (tmp_path / "sparse.tflite").exists()
