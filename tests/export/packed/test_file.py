from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pfray import export
from pfray.errors import ConfigError, ExportError, StorageError, WeightsError
from pfray.export.packed import file
from pfray.models.lenet import lenet
from pfray.models.mobilenet import mobilenet_v1
from pfray.quantization import affine
from pfray.quantization.qparams import QParams, attach


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same(loaded: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    assert list(loaded) == list(saved)
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert loaded[name].shape == tensor.shape, name
        assert torch.equal(bits(loaded[name]), bits(tensor)), name


def pruned(model: torch.nn.Module, sparsity: float, signed_zeros: bool) -> dict[str, Tensor]:
    state_dict = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for weight in state_dict.values():
        if weight.dim() > 1:
            small = weight.abs().flatten().argsort()[: int(weight.numel() * sparsity)]
            mask = torch.ones(weight.numel()).index_fill(0, small, 0).view_as(weight)
            weight.copy_(weight * mask if signed_zeros else torch.where(mask > 0, weight, 0.0))
    return state_dict


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("zeros", ["none", "plus", "minus", "all"])
def test_every_float_comes_back_bit_for_bit(dtype: torch.dtype, zeros: str, tmp_path: Path) -> None:
    values = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0**-14])
    if zeros in ("plus", "minus"):
        values[1:, ::2] = 0.0 if zeros == "plus" else -0.0
        values[2, 0] = 0.0
    if zeros == "all":
        values.zero_()
    state_dict = {"w": values}
    file.save(tmp_path / "w.packed", state_dict)
    assert_same(file.load(tmp_path / "w.packed"), state_dict)


@pytest.mark.filterwarnings("error")  # torch warns of tensors over read-only memory
def test_every_kind_of_entry_comes_back(tmp_path: Path) -> None:
    state_dict = {
        "z_first": torch.tensor(7),
        "bool": torch.tensor([True, False, True]),
        "int8": torch.tensor([[-128, 0], [127, 0]], dtype=torch.int8),
        "uint8": torch.tensor([0x80, 0, 1], dtype=torch.uint8),
        "int64": torch.tensor([0, -(2**63), 5]),
        "empty": torch.zeros(0, 3),
        "zero": torch.tensor(0.0),
        "minus_zero": torch.tensor(-0.0),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "complex": torch.tensor([1 + 2j, 0]),
    }
    file.save(tmp_path / "all.packed", state_dict)
    loaded = file.load(tmp_path / "all.packed")
    assert_same(loaded, state_dict)
    loaded["uint8"][0] = 3  # what was loaded can be written to


def test_an_empty_state_dict_comes_back(tmp_path: Path) -> None:
    file.save(tmp_path / "none.packed", {})
    assert file.load(tmp_path / "none.packed") == {}


@pytest.mark.parametrize("signed_zeros", [False, True])
def test_mobilenet_with_three_quarters_zeros_is_below_030_of_dense(signed_zeros: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state_dict = pruned(mobilenet_v1(10, 1), 0.75, signed_zeros)
    save_file(state_dict, tmp_path / "dense.safetensors")
    size = file.save(tmp_path / "sparse.packed", state_dict)
    assert size == (tmp_path / "sparse.packed").stat().st_size
    assert size <= 0.30 * (tmp_path / "dense.safetensors").stat().st_size
    assert_same(file.load(tmp_path / "sparse.packed"), state_dict)


def test_dense_weights_are_no_larger_than_their_safetensors_file(tmp_path: Path) -> None:
    state_dict = lenet().state_dict()
    save_file(state_dict, tmp_path / "dense.safetensors")
    assert file.save(tmp_path / "w.packed", state_dict) <= (tmp_path / "dense.safetensors").stat().st_size


def test_a_higher_level_is_no_larger(tmp_path: Path) -> None:
    state_dict = pruned(lenet(), 0.75, False)
    fast, small = (file.save(tmp_path / "w.packed", state_dict, level) for level in (1, 19))
    assert small <= fast


@pytest.mark.parametrize(
    "entry", [{"step": 3}, torch.eye(3).to_sparse(), torch.empty(2, device="meta")], ids=["dict", "sparse", "meta"]
)
def test_an_entry_that_is_no_plain_tensor_is_named(entry: object, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"extra: only plain dense tensors.*Remedy"):
        file.save(tmp_path / "w.packed", {"extra": entry})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.packed"
    file.save(path, {"w": torch.ones(3)})

    def half_written(tensors: object, target: Path, metadata: object) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file, "save_file", half_written)
    with pytest.raises(StorageError, match=r"w\.packed cannot be written \(No space left on device\).*Remedy"):
        file.save(path, {"w": torch.zeros(3)})
    assert list(tmp_path.iterdir()) == [path]
    assert file.load(path)["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "text", "empty", "missing"])
def test_a_damaged_file_is_named_with_a_remedy(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "w.packed"
    file.save(path, {"w": torch.randn(1000)})
    content = path.read_bytes()
    if damage == "foreign":
        save_file({"w": torch.ones(3)}, path)
    elif damage == "missing":
        path.unlink()
    else:
        flipped = content[:-500] + bytes([content[-500] ^ 1]) + content[-499:]
        path.write_bytes({"truncated": content[:-100], "flipped": flipped, "text": b"hello", "empty": b""}[damage])
    with pytest.raises(WeightsError, match=r"w\.packed.*Remedy"):
        file.load(path)


def test_load_chooses_by_suffix(tmp_path: Path) -> None:
    state_dict = {"w": torch.tensor([0.0, 2.0])}
    file.save(tmp_path / "w.packed", state_dict)
    assert_same(export.load(tmp_path / "w.packed"), state_dict)
    with pytest.raises(ConfigError, match=r"'\.onnx'.*'\.pt2'.*'\.packed'.*Remedy"):
        export.load(tmp_path / "w.onnx")


@pytest.mark.parametrize("quantized", ["none", "first", "second"])
def test_a_weight_that_two_layers_share_is_stored_once(quantized: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(3)))
    one = file.save(tmp_path / "one.packed", model[:1].state_dict())
    model[2].weight = model[0].weight
    if quantized != "none":
        attach(model[0 if quantized == "first" else 2], QParams(2, *affine.fit(model[0].weight.detach(), 2, 1)))
    state = model.state_dict()
    whole = file.save(tmp_path / "tied.packed", state)
    found = file.load(tmp_path / "tied.packed")
    assert list(found) == list(state)
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert whole < one + 500 + (one if quantized == "none" else 64 * 64 / 4)


def test_a_quantized_layer_under_two_names_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8)
    attach(layer, QParams(3, *affine.fit(layer.weight.detach(), 3, 8)))
    state = torch.nn.Sequential(layer, torch.nn.ReLU(), layer).state_dict()
    file.save(tmp_path / "w.packed", state)
    found = file.load(tmp_path / "w.packed")
    assert list(found) == list(state)
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize("edit", [("[8,8]", "[4,4]"), ('"float32"', '"float16"')])
def test_a_shared_entry_that_is_not_as_the_other_is_damage(edit: tuple[str, str], tmp_path: Path) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(2)))
    model[1].weight = model[0].weight
    file.save(tmp_path / "w.packed", model.state_dict())
    content = (tmp_path / "w.packed").read_bytes()
    head, _, rest = content.rpartition(b'1.weight')
    changed = rest.replace(*(part.replace('"', '\\"').encode() for part in edit), 1)
    assert changed != rest
    (tmp_path / "w.packed").write_bytes(head + b"1.weight" + changed)
    with pytest.raises(WeightsError, match=r"w\.packed is damaged \(1\.weight is not as 0\.weight"):
        file.load(tmp_path / "w.packed")
