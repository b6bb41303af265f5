from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pfray import cache


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.delenv("PFRAY_CACHE", raising=False)
    assert cache.cache_dir() == tmp_path / "home/.cache/pfray"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg/pfray"
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "own/deep"))
    assert cache.cache_dir() == tmp_path / "own/deep"
    assert (tmp_path / "own/deep").is_dir()


def test_a_key_depends_on_every_part_and_their_order() -> None:
    keys = {cache.content_key(*parts) for parts in ((1, "a"), ("a", 1), (1, "b"), ("1", "a"), (1,), ("1a",))}
    assert len(keys) == 6
    assert cache.content_key(1, "a") == cache.content_key(1, "a")


def test_tensors_of_every_kind_come_back_equal(tmp_path: Path) -> None:
    shared = torch.arange(6, dtype=torch.uint8).view(2, 3)
    tensors = {
        "shared": shared,
        "row": shared[1],
        "scalar": torch.tensor(7),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "empty": torch.empty(0, 3),
    }
    path = tmp_path / "new" / "t.safetensors"
    cache.save_tensors(path, tensors)
    loaded = cache.load_tensors(path)
    assert loaded is not None
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


def test_missing_and_damaged_tensors_are_none(tmp_path: Path) -> None:
    assert cache.load_tensors(tmp_path / "nowhere") is None
    path = tmp_path / "t"
    cache.save_tensors(path, {"a": torch.arange(100)})
    data = path.read_bytes()
    for damaged in (b"", data[:50], data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b"\xff" * 200):
        path.write_bytes(damaged)
        assert cache.load_tensors(path) is None


def test_weights_of_half_precision_have_a_key_too() -> None:
    layer = torch.nn.Linear(2, 2).to(torch.bfloat16)
    assert len(cache.state_bytes(layer)) == 2 * 6
