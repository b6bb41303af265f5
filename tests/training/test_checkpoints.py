from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from pfray.errors import StorageError
from pfray.training import checkpoints
from pfray.training.checkpoints import Damaged, epochs_done, load, load_training, save


def state(made_from: str = "a plan", **changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model": {"weight": torch.randn(40, 5, generator=generator)}, "epoch": 3, "loss": 0.25, "optimizer": {},
        "hook": {}, "average": {}, "made_from": made_from, **changes,
    }  # fmt: skip


def test_a_state_comes_back_equal(tmp_path):
    save(tmp_path / "state.pt", state())
    found = load_training(tmp_path / "state.pt", "a plan")
    assert torch.equal(found.pop("model")["weight"], state()["model"]["weight"])
    assert found == {key: value for key, value in state().items() if key != "model"}


def test_a_flipped_bit_anywhere_in_the_weights_is_noticed(tmp_path):
    path = tmp_path / "state.pt"
    save(path, state())
    data, weights = path.read_bytes(), state()["model"]["weight"].numpy().tobytes()
    start = data.index(weights)
    for place in range(start, start + len(weights), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(Damaged, match=r"checksum of .* is wrong"):
            load(path)


def test_no_flipped_byte_gives_another_state(tmp_path):
    path = tmp_path / "state.pt"
    save(path, state())
    data = path.read_bytes()
    for place in range(0, len(data), 23):
        path.write_bytes(data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :])
        try:
            found = load_training(path, "a plan")
        except Damaged:
            continue
        assert torch.equal(found["model"]["weight"], state()["model"]["weight"])
        assert found["epoch"] == 3


@pytest.mark.parametrize("content", [b"", b"PK", b"[]", b"\x80\x02]q\x00."])
def test_what_is_no_checkpoint_is_one_line(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(Damaged, match=r"state.pt cannot be used \(.*\)\. Remedy: --resume") as caught:
        load(tmp_path / "state.pt")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("wrong", [["x"], {}, state(epoch="3"), state(made_from="another plan")])
def test_a_state_of_something_else_is_not_gone_on_from(tmp_path, wrong, caplog):
    save(tmp_path / "state.pt", wrong)
    (tmp_path / "curve.jsonl").write_text("x")
    assert epochs_done(tmp_path, "a plan", alone=True) == 0
    assert "state.pt cannot be used" in caplog.text
    assert "begins anew" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_whole_state_stays(tmp_path, caplog):
    save(tmp_path / "state.pt", state())
    assert epochs_done(tmp_path, "a plan", alone=True) == 3
    assert (tmp_path / "state.pt").exists()
    assert epochs_done(tmp_path / "nowhere", "a plan", alone=True) == 0
    assert not caplog.text


@pytest.mark.parametrize(("owner", "name"), [(Path, "write_bytes"), (os, "fsync"), (os, "replace")])
def test_a_full_disk_says_which_file_and_why(tmp_path, monkeypatch, owner, name):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(StorageError, match=r"state.pt cannot be written \(No space left on device\). Remedy: free"):
        save(tmp_path / "state.pt", state())
    assert list(tmp_path.iterdir()) == []


def snapshot(folder: Path, **changes: Any) -> Path:
    """Ray Train's list of one checkpoint, and the checkpoint."""
    result = {"checkpoint_dir_name": "checkpoint_1", "metrics": {"epoch": 3, "loss": 0.25}}
    known = {
        "ray_version": ray.__version__, "checkpoint_results": [result], "checkpoint_report_indices": [1],
        "latest_checkpoint_result": result, "pending_training_results": [], "pending_validation_specs": [],
        "current_report_index": 1, "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [], "failed_validation_checkpoint_dir_names": [], **changes,
    }  # fmt: skip
    (folder / "checkpoint_1").mkdir(parents=True)
    save(folder / "checkpoint_1" / "state.pt", state())
    save(folder / "checkpoint_1" / "exchange-1.pt", {"error": torch.ones(5)})
    path = folder / checkpoints.SNAPSHOT
    path.write_text(json.dumps(known))
    return path


def test_a_whole_list_of_several_workers_is_gone_on_from(tmp_path):
    snapshot(tmp_path)
    assert epochs_done(tmp_path, "a plan", alone=False) == 3
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("changes", [
    {"ray_version": "1.0"}, {"checkpoint_results": "x"}, {"checkpoint_results": []}, {"current_report_index": "x"},
    {"latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint_2", "metrics": {}}},
    {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_2", "metrics": {}}]},
])  # fmt: skip
def test_a_list_that_ray_would_refuse_each_time_is_not_gone_on_from(tmp_path, changes):
    snapshot(tmp_path, **changes)
    assert epochs_done(tmp_path, "a plan", alone=False) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", [checkpoints.SNAPSHOT, "checkpoint_1/state.pt", "checkpoint_1/exchange-1.pt"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_nor_one_whose_files_are_damaged(tmp_path, file, content, caplog):
    snapshot(tmp_path)
    (tmp_path / file).write_bytes(content)
    assert epochs_done(tmp_path, "a plan", alone=False) == 0
    assert Path(file).name in caplog.text
    assert list(tmp_path.iterdir()) == []
