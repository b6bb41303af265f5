"""A run whose storage is a URL: what is there at every moment, and going on with it from another machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import yaml

from pfray.config.schema import Experiment
from pfray.errors import RunExists, StorageError
from pfray.run import main
from pfray.search._trial_log import read_trials
from pfray.storage import remote_lock
from pfray.storage.remote import Bucket, open_bucket
from pfray.storage.sync import Mirror, mirrored
from tests.stores import ENVIRONMENT, MISSING, s3_server

# Killed after the third trial, once one is known to the store.
DRIVER = """
import os, signal, sys, time
from pfray.storage import sync
from pfray.storage.remote import open_bucket
from pfray.run import main
from pfray.search.base import PlanSearcher

sync.INTERVAL = 0.01
write = PlanSearcher._write

def write_and_die(self, record):
    write(self, record)
    if len(self.records) == 3:
        store, deadline = open_bucket(sys.argv[1]), time.monotonic() + 100
        while not store.read("far/search/trials.jsonl") and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

PlanSearcher._write = write_and_die
sys.exit(main(sys.argv[2:]))
"""


class Held:
    """A lease that is held unless a test says otherwise."""

    lost, left_by_us, gaps, holds = False, False, 0, True

    def held(self) -> bool:
        return self.holds and not self.lost

    def wait(self) -> None:
        pass


class Watched(Bucket):
    """log: what was done. last: after so many steps it fails."""

    log: list[str]
    last: int

    def put(self, local: Path, path: str) -> None:
        self._step(f"put {path}")
        super().put(local, path)

    def remove(self, path: str) -> None:
        self._step(f"remove {path}")
        super().remove(path)

    def _step(self, what: str) -> None:
        if len(self.log) >= self.last:
            raise StorageError("the line went dead")
        self.log.append(what)


@pytest.fixture
def bucket(tmp_path) -> Watched:
    inner = open_bucket(f"file://{tmp_path}/store")
    watched = Watched(inner.url, inner.fs, inner.root)
    object.__setattr__(watched, "log", [])
    object.__setattr__(watched, "last", 10**9)
    return watched


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json").replace("_yaml", ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_what_refers_to_others_is_sent_after_them_and_the_summary_last(bucket, tmp_path):
    here = tmp_path / "here" / "exp"
    write(here, summary_json="{}", a="", search__trials="", z="", experiment_yaml="", tune__search__state="")
    write(here / "search", **{"state.json": ""})
    write(here / "training" / "x", checkpoint_manager_snapshot_json="", one__state="")
    write(here, **{".half.12.part": ""})
    mirror = Mirror(bucket, "exp", here, Held())
    mirror.push()
    order = [line.removeprefix("put exp/") for line in bucket.log]
    assert order[0] == "experiment.yaml"
    assert set(order[-3:-1]) == {"search/state.json", "training/x/checkpoint_manager_snapshot.json"}
    assert order[-1] == "summary.json"
    assert set(order[1:-3]) == {"a", "z", "search/trials", "training/x/one/state"}
    assert sorted(path.name for path in here.parent.iterdir()) == ["exp"]
    mirror.push()
    assert len(bucket.log) == 8
    write(here, a="more")
    (here / "z").unlink()
    mirror.push()
    assert bucket.log[8:] == ["put exp/a", "remove exp/z"]


@pytest.mark.parametrize("last", range(7))
def test_wherever_the_sending_stops_a_checkpoint_that_is_listed_is_there_whole(bucket, tmp_path, last):
    here, snapshot = tmp_path / "here" / "exp", "training__checkpoint_manager_snapshot_json"
    write(here, experiment_yaml="", training__one__state="1", training__one__more="1", **{snapshot: "one"})
    Mirror(bucket, "exp", here, Held()).push()
    mirror = Mirror(bucket, "exp", here, Held())
    mirror.sent = dict.fromkeys(bucket.names("exp"))
    object.__setattr__(bucket, "last", len(bucket.log) + last)
    shutil.rmtree(here / "training" / "one")
    write(here, training__two__state="2", training__two__more="2", **{snapshot: "two"})
    try:
        mirror.push()
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
    Mirror(bucket, "exp", here, Held()).push()
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
    Mirror(bucket, "exp", here, Held()).push()
    assert bucket.read("exp/training/checkpoint_manager_snapshot.json") == b"one and two"


def test_fetching_makes_the_folder_what_is_there_and_nothing_else(bucket, tmp_path):
    here, other = tmp_path / "here" / "exp", tmp_path / "other" / "exp"
    write(here, experiment_yaml="e", summary_json="{}", search__trials="t")
    Mirror(bucket, "exp", here, Held()).push()
    write(other, stale="s")
    mirror = Mirror(bucket, "exp", other, Held())
    mirror.fetch(whole=False)
    assert content(other) == {"experiment.yaml": "e", "summary.json": "{}"}
    mirror.fetch(whole=True)
    assert content(other) == content(here)
    steps = len(bucket.log)
    mirror.push()
    assert len(bucket.log) == steps
    mirror.clear()
    assert bucket.log[steps] == "remove exp/summary.json"
    assert bucket.log[-1] == "remove exp/experiment.yaml"
    assert bucket.names("exp") == []
    mirror.fetch(whole=True)
    assert not other.exists()


def test_files_that_are_no_run_are_left_alone(bucket, tmp_path):
    write(Path(bucket.root) / "exp", thesis="years of work")
    for whole in (False, True):
        with pytest.raises(RunExists, match="store/exp holds files but no run"):
            Mirror(bucket, "exp", tmp_path / "here" / "exp", Held()).fetch(whole=whole)
    assert content(Path(bucket.root) / "exp") == {"thesis": "years of work"}


def test_one_whose_run_was_taken_over_sends_nothing_more(bucket, tmp_path):
    here, lease = tmp_path / "here" / "exp", Held()
    write(here, experiment_yaml="e")
    lease.lost = True
    mirror = Mirror(bucket, "exp", here, lease)
    for act in (mirror.push, mirror.clear):
        write(Path(bucket.root) / "exp", experiment_yaml="theirs")
        with pytest.raises(StorageError, match="was taken over by another process"):
            act()
    assert bucket.log == []


def test_the_lease_is_asked_for_before_every_file(bucket, tmp_path):
    here, lease = tmp_path / "here" / "exp", Held()
    write(here, experiment_yaml="e", a="1", b="2")
    mirror = Mirror(bucket, "exp", here, lease)
    put = Watched.put

    def put_and_lose(self: Watched, local: Path, path: str) -> None:
        put(self, local, path)
        lease.holds = False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watched, "put", put_and_lose)
        with pytest.raises(StorageError, match=r"not answered for so long .* exp over, so nothing is sent\. Remedy"):
            mirror.push()
    assert bucket.log == ["put exp/experiment.yaml"]
    lease.holds = True
    mirror.push()
    assert sorted(bucket.log[1:]) == ["put exp/a", "put exp/b"]


def test_after_a_gap_all_is_sent_again_and_what_another_one_left_is_removed(bucket, tmp_path):
    here, lease = tmp_path / "here" / "exp", Held()
    write(here, experiment_yaml="e", a="1")
    mirror = Mirror(bucket, "exp", here, lease)
    mirror.push()
    write(Path(bucket.root) / "exp", a="theirs", c="theirs")
    lease.gaps = 1
    mirror.push()
    mirror.push()
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
            Mirror(bucket, "exp", here, Held()).fetch(whole=True)
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
            Mirror(bucket, "exp", here, Held()).push()
        (here / "search").unlink()
    assert bucket.log == []
    # What a fetch replaces may be a link itself: it is removed, and what it leads to is left.
    (here.with_name(".exp.arriving")).symlink_to(outside)
    Mirror(bucket, "exp", here, Held()).push()
    Mirror(bucket, "exp", here, Held()).fetch(whole=True)
    assert content(outside) == {"secret": "s"}
    assert content(here) == {"experiment.yaml": "e", "a": "1", "same": "1"}


def exp(tmp_path: Path) -> Experiment:
    return Experiment.model_validate({
        "name": "exp", "model": "lenet", "data": "digits", "learner": "weight_sparse", "target": {"sparsity": 0.5},
        "storage": f"file://{tmp_path}/store",
    })  # fmt: skip


@contextmanager
def session(tmp_path: Path, machine: str, *, resume: bool) -> Iterator[Path]:
    """What a run does to its folder; ends without a word to the store where it is killed."""
    here = tmp_path / machine / "exp"
    here.parent.mkdir(exist_ok=True)
    with mirrored(exp(tmp_path), here, resume=resume) as begin:
        write(here, experiment_yaml="e")
        begin()
        yield here


def test_a_lock_that_a_killed_run_leaves_makes_its_folder_the_newest_one_and_no_other(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(remote_lock, "WATCH", 0.1)
    monkeypatch.setattr(remote_lock, "SETTLE", 0.05)
    with session(tmp_path, "one", resume=False) as here:
        write(here, a="1")
        lock = bucket.read(".exp.lock")
    bucket.write(".exp.lock", lock)  # as if killed, with "b" not sent
    write(here, b="2")
    with session(tmp_path, "one", resume=True) as here:
        assert content(here) == {"experiment.yaml": "e", "a": "1", "b": "2"}
    bucket.write(".exp.lock", lock)
    with session(tmp_path, "other", resume=True) as other:
        assert content(other) == {"experiment.yaml": "e", "a": "1", "b": "2"}
        write(other, a="one more")
    with session(tmp_path, "one", resume=True) as here:
        assert content(here)["a"] == "one more"
    # One that only looked, and was killed before it could let go, has not all of the run.
    with mirrored(exp(tmp_path), here, resume=False):
        assert content(here) == {"experiment.yaml": "e"}
    bucket.write(".exp.lock", lock)
    with session(tmp_path, "one", resume=True) as here:
        assert content(here) == {"experiment.yaml": "e", "a": "one more", "b": "2"}
    assert {name: bucket.read(f"exp/{name}") for name in bucket.names("exp")} == {
        "experiment.yaml": b"e", "a": b"one more", "b": b"2",
    }  # fmt: skip
    with session(tmp_path, "one", resume=False) as here:
        write(here, c="3")
        (here / "b").unlink(missing_ok=True)
        (here / "a").unlink(missing_ok=True)
    assert bucket.names("exp") == ["c", "experiment.yaml"]


def test_what_was_written_last_is_sent_even_when_the_run_fails(tmp_path, bucket):
    def fail() -> None:
        with session(tmp_path, "one", resume=False) as here:
            write(here, a="1")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert bucket.read("exp/a") == b"1"
    assert bucket.read(".exp.lock") is None


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A URL: moto's S3 server where it is installed."""
    monkeypatch.setattr(remote_lock, "WATCH", 1.0)
    monkeypatch.setattr(remote_lock, "SETTLE", 0.5)
    if MISSING:
        yield f"file://{tmp_path}/store"
    else:
        with s3_server():
            yield "s3://runs/deep"


def test_a_killed_run_goes_on_from_another_machine_with_every_trial_once(
    storage, tmp_path, quick, ray_cluster, capfd, monkeypatch
):
    experiment = tmp_path / "far.yaml"
    raw = {**quick, "storage": storage, "finetune": {"epochs": 1}, "export": {"tflite": False}}
    experiment.write_text(yaml.safe_dump(raw))
    environment = {**os.environ, "PFRAY_CACHE": str(tmp_path / "one")}
    # In the Ray that is up, which outlives its driver.
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, storage, str(experiment), f"resources.address={address}"]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert killed.returncode == -9, killed.stderr
    there = open_bucket(storage)
    assert "experiment.yaml" in there.names("far")
    assert "summary.json" not in there.names("far")
    before = there.read("far/search/trials.jsonl")
    assert 1 <= len(before.splitlines()) <= 3
    assert there.read(".far.lock")

    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "another"))
    assert main([str(experiment)]) == 2
    assert f"{storage}/far holds a run, unfinished. Remedy: --resume" in capfd.readouterr().err
    assert main([str(experiment), "--resume"]) == 0
    printed = capfd.readouterr()
    assert f"files: {storage}/far" in printed.out
    assert there.read(".far.lock") is None
    names = there.names("far")
    assert {"summary.json", "report.html", "model.packed", "search/trials.jsonl"} <= set(names)
    assert not [name for name in names if name.startswith("tune/")]
    for name in names:
        there.get(f"far/{name}", tmp_path / "got" / name)
    trials = (tmp_path / "got" / "search" / "trials.jsonl").read_bytes()
    assert trials.startswith(before)
    records = read_trials(tmp_path / "got" / "search" / "trials.jsonl")
    assert sorted(record["trial"] for record in records) == list(range(6))
    assert len({json.dumps(record["plan"]) for record in records}) == 6
    assert json.loads((tmp_path / "got" / "summary.json").read_text())["trials"]["finished"] == 6
    for secret in ENVIRONMENT["AWS_SECRET_ACCESS_KEY"], ENVIRONMENT["AWS_ACCESS_KEY_ID"]:
        assert secret not in printed.out + printed.err
        assert not [n for n in names if secret.encode() in (tmp_path / "got" / n).read_bytes()]

    # A third machine finds it finished, and replaces it only when told to.
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "third"))
    assert main([str(experiment)]) == 2
    assert "holds a run, finished" in capfd.readouterr().err
    assert main([str(experiment), "--resume"]) == 0
    assert f"{storage}/far is finished already" in capfd.readouterr().out
