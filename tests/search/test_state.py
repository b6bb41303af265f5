"""The state of a search as JSON and safetensors: written whole, read only where it is what was written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pfray.search._state import (
    UnusableState,
    _checksum,
    generator_state,
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    read,
    saved_trial_count,
    set_generator,
    write,
)

OF, VALUES = {"searcher": "Mine", "told": 3}, {"asked": 4, "numbers": [0.1, 2**100], "none": None}
TENSORS = {"weights": torch.arange(6.0).reshape(2, 3), "actions": torch.tensor([1, 2]), "steps": torch.tensor(7.0)}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read(tmp_path):
    assert read(tmp_path) is None
    assert saved_trial_count(tmp_path) == 0
    write(tmp_path, OF, VALUES, TENSORS)
    of, values, tensors = read(tmp_path)
    assert (of, values) == (OF, VALUES)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[key], TENSORS[key]) and tensors[key].dtype == TENSORS[key].dtype for key in TENSORS)
    assert saved_trial_count(tmp_path) == 3
    write(tmp_path, OF, {}, {})
    assert read(tmp_path) == (OF, {}, {})
    assert files(tmp_path) == ["state.json"]


def test_a_kill_between_the_two_files_leaves_the_state_before(tmp_path, monkeypatch):
    write(tmp_path, OF, VALUES, TENSORS)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pfray.search._state.write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, OF, {"asked": 5}, {"weights": torch.zeros(2, 3)})
    _, values, tensors = read(tmp_path)
    assert values == VALUES
    assert torch.equal(tensors["weights"], TENSORS["weights"])
    write(tmp_path, OF, VALUES, TENSORS)
    assert len(files(tmp_path)) == 2


def test_the_tensors_of_another_state_are_not_taken(tmp_path):
    write(tmp_path, OF, VALUES, TENSORS)
    first = (tmp_path / "state.json").read_bytes()
    write(tmp_path, OF, VALUES, TENSORS)
    (tmp_path / "state.json").write_bytes(first)
    with pytest.raises(UnusableState, match=r"state-\w{8}.safetensors is missing or damaged"):
        read(tmp_path)
    assert saved_trial_count(tmp_path) == 0


@pytest.mark.parametrize("name", ["state.json", "state-*.safetensors"])
def test_every_flipped_byte_and_every_cut_is_seen(tmp_path, name):
    write(tmp_path, OF, VALUES, TENSORS)
    (path,) = tmp_path.glob(name)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            of, values, tensors = read(tmp_path)
        except UnusableState:
            continue
        # What is no part of any tensor or number, such as a space, may be another.
        assert (of, values) == (OF, VALUES)
        assert all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)
    for length in range(0, len(content) - 1, 7):
        path.write_bytes(content[:length])
        with pytest.raises(UnusableState):
            read(tmp_path)


@pytest.mark.parametrize(("content", "reason"), [
    ([], "it is no state of a search"),
    ({}, "it is no state of a search"),
    ({"format": "pfray search", "version": 2}, "it is of another version of pfray"),
    ({"format": "pfray search", "version": 1}, "it is damaged"),
    ({"format": "pfray search", "version": 1, "checksum": 0, "tensors": "../../etc/passwd"}, "it is damaged"),
])  # fmt: skip
def test_json_of_another_kind_is_refused(tmp_path, content, reason):
    (tmp_path / "state.json").write_text(json.dumps(content))
    with pytest.raises(UnusableState, match=reason):
        read(tmp_path)


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "search").mkdir()
    write(tmp_path / "search", OF, VALUES, TENSORS)
    (path,) = (tmp_path / "search").glob("*.safetensors")
    (tmp_path / "x.safetensors").write_bytes(path.read_bytes())
    content = json.loads((tmp_path / "search" / "state.json").read_text())
    content["tensors"] = "../x.safetensors"
    content["checksum"] = _checksum({key: content[key] for key in ("of", "tensors", "values")})
    (tmp_path / "search" / "state.json").write_text(json.dumps(content))
    with pytest.raises(UnusableState, match="it is damaged"):
        read(tmp_path / "search")


def test_a_folder_in_its_place_and_brackets_without_end_are_refused(tmp_path):
    (tmp_path / "state.json").write_text("[" * 100_000)
    with pytest.raises(UnusableState):
        read(tmp_path)
    (tmp_path / "state.json").unlink()
    (tmp_path / "state.json").mkdir()
    with pytest.raises(UnusableState):
        read(tmp_path)


def test_a_generator_goes_on_from_its_state_in_json():
    first, second = np.random.default_rng(3), np.random.default_rng(4)
    first.random(5)
    set_generator(second, json.loads(json.dumps(generator_state(first))))
    assert first.random(3).tolist() == second.random(3).tolist()


def trained(seed: int, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    descend(module, optimizer, steps)
    return module, optimizer


def descend(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(("before", "of_other"), [(4, 0), (4, 7), (0, 7)])
def test_networks_and_adams_moments_go_on_as_if_nothing_had_been(before, of_other):
    module, optimizer = trained(0, before)
    tensors = module_tensors("policy", module) | optimizer_tensors("adam", optimizer)
    descend(module, optimizer, 3)
    other, again = trained(1, of_other)
    load_module("policy", other, tensors)
    load_optimizer("adam", again, tensors)
    descend(other, again, 3)
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), other.parameters(), strict=True))


def test_networks_of_another_shape_are_refused():
    module, optimizer = trained(0, 2)
    other = nn.Linear(4, 2)
    with pytest.raises(RuntimeError):
        load_module("policy", other, module_tensors("policy", module))
    with pytest.raises(ValueError, match="of other parameters"):
        load_optimizer("adam", torch.optim.Adam(other.parameters()), optimizer_tensors("adam", optimizer))
