"""A run folder whose storage is a URL: what is there at every moment, wherever the sending stops."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pfray.errors import RunExists, StorageError
from pfray.storage.remote import Bucket, open_bucket
from pfray.storage.run_folder import RunFolder
from pfray.storage.sync import FolderSync
from tests.storage.folders import Held, Watched, content, write


def test_what_refers_to_others_is_sent_after_them_and_the_summary_last(bucket, tmp_path):
    here = tmp_path / "here" / "exp"
    write(here, summary_json="{}", a="", search__trials="", z="", experiment_yaml="", tune__search__state="",
          views__key__0="")  # fmt: skip
    write(here / "search", **{"state.json": ""})
    write(here / "training" / "x", checkpoint_manager_snapshot_json="", one__state="")
    write(here, **{".half.12.part": ""})
    sync = FolderSync(bucket, RunFolder(here), Held())
    sync.push()
    order = [line.removeprefix("put exp/") for line in bucket.log]
    assert order[0] == "experiment.yaml"
    assert set(order[-3:-1]) == {"search/state.json", "training/x/checkpoint_manager_snapshot.json"}
    assert order[-1] == "summary.json"
    assert set(order[1:-3]) == {"a", "z", "search/trials", "training/x/one/state"}
    assert sorted(path.name for path in here.parent.iterdir()) == ["exp"]
    sync.push()
    assert len(bucket.log) == 8
    write(here, a="more")
    (here / "z").unlink()
    sync.push()
    assert bucket.log[8:] == ["put exp/a", "remove exp/z"]


@pytest.mark.parametrize("last", range(7))
def test_wherever_the_sending_stops_a_checkpoint_that_is_listed_is_there_whole(bucket, tmp_path, last):
    here, snapshot = tmp_path / "here" / "exp", "training__checkpoint_manager_snapshot_json"
    write(here, experiment_yaml="", training__one__state="1", training__one__more="1", **{snapshot: "one"})
    FolderSync(bucket, RunFolder(here), Held()).push()
    sync = FolderSync(bucket, RunFolder(here), Held())
    sync.sent = dict.fromkeys(bucket.names("exp"))
    object.__setattr__(bucket, "last", len(bucket.log) + last)
    shutil.rmtree(here / "training" / "one")
    write(here, training__two__state="2", training__two__more="2", **{snapshot: "two"})
    try:
        sync.push()
    except StorageError:
        assert last < 6
    there = content(Path(bucket.root) / "exp")
    listed = there["training/checkpoint_manager_snapshot.json"]
    assert there[f"training/{listed}/state"] == there[f"training/{listed}/more"] == {"one": "1", "two": "2"}[listed]
    assert (listed == "two") == (last >= 4)


def test_a_list_of_checkpoints_that_changes_meanwhile_is_read_again(bucket, tmp_path, monkeypatch):
    here, snapshot = tmp_path / "here" / "exp", "training__checkpoint_manager_snapshot_json"
    write(here, experiment_yaml="", training__one__state="1", **{snapshot: "one"})
    link = os.link

    def training_goes_on(source: Path, target: Path) -> None:
        if (here / "training" / "one").exists():
            shutil.rmtree(here / "training" / "one")
            write(here, training__two__state="2", **{snapshot: "two, now"})
        link(source, target)

    monkeypatch.setattr(os, "link", training_goes_on)
    FolderSync(bucket, RunFolder(here), Held()).push()
    there = content(Path(bucket.root) / "exp")
    assert there == {
        "experiment.yaml": "", "training/two/state": "2", "training/checkpoint_manager_snapshot.json": "two, now",
    }  # fmt: skip


def test_a_list_of_checkpoints_that_was_half_written_when_it_was_read_is_read_again(bucket, tmp_path, monkeypatch):
    here, snapshot = tmp_path / "here" / "exp", "training__checkpoint_manager_snapshot_json"
    write(here, experiment_yaml="", **{snapshot: "one"})
    copyfile, half = shutil.copyfile, ["on"]

    def read_while_it_is_written(source: Path, target: Path) -> None:
        if half:
            target.write_text(half.pop())
            write(here, **{snapshot: "one and two"})
        else:
            copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", read_while_it_is_written)
    FolderSync(bucket, RunFolder(here), Held()).push()
    assert bucket.read("exp/training/checkpoint_manager_snapshot.json") == b"one and two"


def test_fetching_makes_the_folder_what_is_there_and_nothing_else(bucket, tmp_path):
    here, other = tmp_path / "here" / "exp", tmp_path / "other" / "exp"
    write(here, experiment_yaml="e", summary_json="{}", search__trials="t")
    FolderSync(bucket, RunFolder(here), Held()).push()
    write(other, stale="s")
    sync = FolderSync(bucket, RunFolder(other), Held())
    sync.fetch(whole=False)
    assert content(other) == {"experiment.yaml": "e", "summary.json": "{}"}
    sync.fetch(whole=True)
    assert content(other) == content(here)
    steps = len(bucket.log)
    sync.push()
    assert len(bucket.log) == steps
    sync.clear()
    assert bucket.log[steps] == "remove exp/summary.json"
    assert bucket.log[-1] == "remove exp/experiment.yaml"
    assert bucket.names("exp") == []
    sync.fetch(whole=True)
    assert not other.exists()


def test_files_that_are_no_run_are_left_alone(bucket, tmp_path):
    write(Path(bucket.root) / "exp", thesis="years of work")
    for whole in (False, True):
        with pytest.raises(RunExists, match="store/exp holds files but no run"):
            FolderSync(bucket, RunFolder(tmp_path / "here" / "exp"), Held()).fetch(whole=whole)
    assert content(Path(bucket.root) / "exp") == {"thesis": "years of work"}


def test_one_whose_run_was_taken_over_sends_nothing_more(bucket, tmp_path):
    here, lease = tmp_path / "here" / "exp", Held()
    write(here, experiment_yaml="e")
    lease.lost = True
    sync = FolderSync(bucket, RunFolder(here), lease)
    for act in (sync.push, sync.clear):
        write(Path(bucket.root) / "exp", experiment_yaml="theirs")
        with pytest.raises(StorageError, match="was taken over by another process"):
            act()
    assert bucket.log == []


def test_the_lease_is_asked_for_before_every_file(bucket, tmp_path):
    here, lease = tmp_path / "here" / "exp", Held()
    write(here, experiment_yaml="e", a="1", b="2")
    sync = FolderSync(bucket, RunFolder(here), lease)
    put = Watched.put

    def put_and_lose(self: Watched, local: Path, path: str) -> None:
        put(self, local, path)
        lease.holds = False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watched, "put", put_and_lose)
        with pytest.raises(StorageError, match=r"not answered for so long .* exp over, so nothing is sent\. Remedy"):
            sync.push()
    assert bucket.log == ["put exp/experiment.yaml"]
    lease.holds = True
    sync.push()
    assert sorted(bucket.log[1:]) == ["put exp/a", "put exp/b"]


def test_after_a_gap_all_is_sent_again_and_what_another_one_left_is_removed(bucket, tmp_path):
    here, lease = tmp_path / "here" / "exp", Held()
    write(here, experiment_yaml="e", a="1")
    sync = FolderSync(bucket, RunFolder(here), lease)
    sync.push()
    write(Path(bucket.root) / "exp", a="theirs", c="theirs")
    lease.gaps = 1
    sync.push()
    sync.push()
    assert content(Path(bucket.root) / "exp") == {"experiment.yaml": "e", "a": "1"}
    assert bucket.log[2:] == ["put exp/experiment.yaml", "put exp/a", "remove exp/c"]


def test_a_store_cannot_make_a_run_write_outside_of_its_folder(tmp_path, monkeypatch):
    """Every name of a store's that leads elsewhere, past the look at the names."""
    here = tmp_path / "here" / "exp"
    (tmp_path / "outside").mkdir()
    bucket = open_bucket(f"file://{tmp_path}/store")
    write(tmp_path / "store" / "exp", experiment_yaml="e", a="1")
    for name in (f"{tmp_path}/outside/x", "../../outside/x", "../exp/a", "b/../../x", "./a"):
        monkeypatch.setattr(Bucket, "names", lambda self, folder, name=name: ["experiment.yaml", name])
        with pytest.raises(StorageError, match="Remedy: rename it") as error:
            FolderSync(bucket, RunFolder(here), Held()).fetch(whole=True)
        assert len(str(error.value).splitlines()) == 1
    assert list((tmp_path / "outside").iterdir()) == []
    assert not here.exists()


def test_links_in_the_working_folder_lead_nowhere_else(bucket, tmp_path):
    here, outside = tmp_path / "here" / "exp", tmp_path / "outside"
    write(outside, secret="s")
    write(here, experiment_yaml="e", a="1")
    (here / "same").symlink_to(here / "a")
    for target in (outside, outside / "secret"):
        (here / "search").symlink_to(target)
        with pytest.raises(StorageError, match=r"exp/search is a link that leads out of .*exp\. Remedy: remove it"):
            FolderSync(bucket, RunFolder(here), Held()).push()
        (here / "search").unlink()
    assert bucket.log == []
    # What a fetch replaces may be a link itself: it is removed, and what it leads to is left.
    (here.with_name(".exp.arriving")).symlink_to(outside)
    FolderSync(bucket, RunFolder(here), Held()).push()
    FolderSync(bucket, RunFolder(here), Held()).fetch(whole=True)
    assert content(outside) == {"secret": "s"}
    assert content(here) == {"experiment.yaml": "e", "a": "1", "same": "1"}
