"""A state-dict file is loaded whole or refused; files of bad form are in bad_weights.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from pfray.errors import WeightsError
from pfray.models.lenet import lenet
from pfray.models.resnet import resnet20
from pfray.nn.weights import load_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(lenet().state_dict(), tmp_path / "lenet.pt")
    return tmp_path / "lenet.pt"


def failure(model: nn.Module, path: Path) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len(str(caught.value).splitlines()) == 1
    assert "Remedy" in str(caught.value)
    return str(caught.value)


def test_a_missing_weights_file_is_named(tmp_path):
    assert f"model.weights: no file {tmp_path / 'none.pt'}" in failure(lenet(), tmp_path / "none.pt")


def test_a_file_that_is_truncated_or_no_checkpoint_is_named(weights, tmp_path):
    whole = weights.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint at all"):
        weights.write_bytes(content)
        assert f"{weights} is not a readable state-dict file (" in failure(lenet(), weights)


def test_a_pickled_object_is_refused_without_being_run(tmp_path):
    marker = tmp_path / "run"

    class Evil:
        def __reduce__(self) -> tuple:
            return marker.write_text, ("x",)

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pt")
    text = failure(lenet(), tmp_path / "evil.pt")
    assert "holds objects besides tensors (" in text
    assert "Remedy: save it again with torch.save(model.state_dict(), path)" in text
    assert not marker.exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"model": {"a": 1.0}, "epoch": 3}, torch.zeros(2)])
def test_a_file_that_holds_something_else_than_a_state_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    text = failure(lenet(), tmp_path / "other.pt")
    assert "holds no state dict. Remedy: torch.save(model.state_dict(), path)" in text


def test_weights_of_another_architecture_are_refused_with_the_keys_that_do_not_fit(weights, tmp_path):
    torch.save({}, tmp_path / "empty.pt")
    text = failure(lenet(), tmp_path / "empty.pt")
    assert "missing: conv1.bias, conv1.weight, conv2.bias, conv2.weight and 6 more" in text
    assert "unknown" not in text

    extended = {**torch.load(weights), "head.weight": torch.zeros(2)}
    torch.save(extended, tmp_path / "more.pt")
    assert "(unknown: head.weight)" in failure(lenet(), tmp_path / "more.pt")

    text = failure(lenet(num_outputs=7), weights)
    assert "(of another shape: fc3.weight (10, 84) instead of (7, 84), fc3.bias (10,) instead of (7,))" in text

    text = failure(resnet20(), weights)
    assert "missing: bn1.bias" in text
    assert "unknown: conv1.bias, conv2.bias" in text
    assert "of another shape: conv1.weight (6, 3, 5, 5) instead of (16, 3, 3, 3)" in text


@pytest.mark.parametrize(("dtype", "difference"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2), (torch.float64, 0.0)])
def test_weights_of_another_precision_are_converted_and_it_is_said(tmp_path, dtype, difference):
    trained, model = lenet(), lenet()
    torch.save({name: tensor.to(dtype) for name, tensor in trained.state_dict().items()}, tmp_path / "w.pt")
    (remark,) = load_weights(model, tmp_path / "w.pt")
    kind = str(dtype).removeprefix("torch.")
    assert remark == f"model.weights: {tmp_path / 'w.pt'} is {kind}; the model is float32 and has it converted"
    assert model.conv1.weight.dtype == torch.float32
    assert torch.allclose(model.conv1.weight, trained.conv1.weight, rtol=0, atol=difference)


def test_a_count_stays_the_integer_that_it_is(tmp_path):
    norm = nn.Sequential(nn.BatchNorm2d(3))
    norm(torch.rand(2, 3, 4, 4))
    torch.save(norm.state_dict(), tmp_path / "w.pt")
    model = nn.Sequential(nn.BatchNorm2d(3))
    assert load_weights(model, tmp_path / "w.pt") == []
    assert int(model[0].num_batches_tracked) == 1
    torch.save({**norm.state_dict(), "0.num_batches_tracked": torch.tensor(1.0)}, tmp_path / "w.pt")
    assert "0.num_batches_tracked float32 instead of int64" in failure(model, tmp_path / "w.pt")


def test_safetensors_are_read_too_and_a_damaged_file_is_named(tmp_path):
    trained, model, path = lenet(), lenet(), tmp_path / "w.safetensors"
    safetensors.torch.save_file(trained.state_dict(), path)
    assert load_weights(model, path) == []
    assert all(torch.equal(own, model.state_dict()[name]) for name, own in trained.state_dict().items())
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is not a readable state-dict file (" in failure(lenet(), path)


def test_a_module_that_refuses_its_own_entry_is_one_line(tmp_path):
    class Picky(nn.Linear):
        def _load_from_state_dict(self, *_: object) -> None:
            raise KeyError("version")

    torch.save(nn.Sequential(nn.Linear(2, 2)).state_dict(), tmp_path / "w.pt")
    assert "cannot be loaded ('version'). Remedy" in failure(nn.Sequential(Picky(2, 2)), tmp_path / "w.pt")


def test_entries_that_a_model_has_no_use_for_are_left_out_and_named(tmp_path):
    class Headed(nn.Sequential):
        unused_weights = ("aux.", "other.")

    model = Headed(nn.Linear(2, 2))
    published = {
        "aux.fc.weight": torch.zeros(3),
        "aux.fc.bias": torch.zeros(3),
        **nn.Sequential(nn.Linear(2, 2)).state_dict(),
    }
    torch.save({f"module.{name}": value for name, value in published.items()}, tmp_path / "w.pt")
    notes = load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model[0].weight, published["0.weight"])
    assert notes[-1].endswith("w.pt: 'aux.' left out, which the model has no use for")
    torch.save({**published, "auxiliary": torch.zeros(3)}, tmp_path / "w.pt")
    assert "unknown: auxiliary)" in failure(model, tmp_path / "w.pt")
