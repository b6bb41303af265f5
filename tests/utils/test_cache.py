from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from pfray.utils import cache


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
    other = torch.nn.Linear(2, 2).to(torch.bfloat16)
    assert cache.state_bytes(layer) != cache.state_bytes(other)
    other.load_state_dict(layer.state_dict())
    assert cache.state_bytes(layer) == cache.state_bytes(other)


def test_a_state_of_other_shapes_types_or_names_is_another() -> None:
    bytes_of = {
        cache.state_bytes(_holder(**tensors))
        for tensors in (
            {"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"b": torch.zeros(2, 3)},
            {"a": torch.zeros(2, 3, dtype=torch.int32)}, {"a": torch.zeros(2), "b": torch.zeros(4)},
        )
    }  # fmt: skip
    assert len(bytes_of) == 5


def _holder(**tensors: torch.Tensor) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    return module


def test_another_version_of_pfray_has_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.cache_key(1)
    assert before == cache.cache_key(1)
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "99.0")
    assert cache.cache_key(1) != before


def test_tensors_made_from_something_else_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "t"
    cache.save_tensors(path, {"a": torch.arange(100)}, "one plan")
    assert cache.load_tensors(path, "another") is None
    assert cache.load_tensors(path) is None
    assert cache.load_tensors(path, "one plan") is not None


def test_every_byte_of_a_file_of_tensors_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "t"
    tensors = {"a": torch.arange(4, dtype=torch.float32), "b": torch.ones(1, 4)}
    cache.save_tensors(path, tensors, "a plan")
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :])
        found = cache.load_tensors(path, "a plan")
        # A byte that changes nothing that is read, such as one of padding, may change.
        if found is not None:
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def _make(path: Path, made: Path, started: Event | None = None, go_on: Event | None = None) -> torch.Tensor:
    def make() -> dict[str, torch.Tensor]:
        with open(made, "a") as file:
            file.write("made\n")
        if started is not None and go_on is not None:
            started.set()
            go_on.wait(60)
        return {"a": torch.arange(3)}

    return cache.made_once(path, make)["a"]


def test_processes_that_want_the_same_file_wait_for_the_first_to_make_it(tmp_path: Path) -> None:
    context, path, made = multiprocessing.get_context("fork"), tmp_path / "new" / "t.safetensors", tmp_path / "made"
    started, go_on = context.Event(), context.Event()
    first = context.Process(target=_make, args=(path, made, started, go_on))
    first.start()
    assert started.wait(60)
    others = [context.Process(target=_make, args=(path, made)) for _ in range(2)]
    for other in others:
        other.start()
    # Another file of the folder need not wait.
    assert torch.equal(_make(path.with_name("other"), tmp_path / "other"), torch.arange(3))
    assert made.read_text() == "made\n"
    go_on.set()
    for process in (first, *others):
        process.join(60)
        assert process.exitcode == 0
    assert made.read_text() == "made\n"
    assert torch.equal(_make(path, made), torch.arange(3))


def test_a_file_is_made_again_after_a_failure_or_nothing_made(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with pytest.raises(ValueError, match="stop"):
        cache.made_once(path, _fail)
    assert cache.made_once(path, dict) == {}
    assert not path.exists()
    assert cache.made_once(path, lambda: {"a": torch.ones(1)}) == {"a": torch.ones(1)}


def _fail() -> dict[str, torch.Tensor]:
    raise ValueError("stop")
