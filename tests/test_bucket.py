"""A storage folder behind a URL: what is seen, written and refused there."""

from __future__ import annotations

import importlib
import json
import socket
import sys
import threading
import time

import pytest

from pfray import bucket as module
from pfray import lease
from pfray.bucket import check_storage, hidden, open_bucket
from pfray.errors import RunExists, StorageError
from pfray.lease import locked
from tests.stores import ask_for_keys, needs_s3, s3_server


@pytest.fixture(params=["file", pytest.param("s3", marks=needs_s3)])
def bucket(request, tmp_path):
    if request.param == "file":
        yield open_bucket(f"file://{tmp_path}/store/deep")
    else:
        with s3_server():
            yield open_bucket("s3://runs/deep")


@pytest.fixture
def quick_locks(monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.02)
    monkeypatch.setattr(lease, "WATCH", 3.0)


def test_files_are_put_got_listed_and_removed(bucket, tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    for name in ("exp/a", "exp/search/b", "exp/.c.12.part", "other/d"):
        bucket.put(tmp_path / "a", name)
    assert bucket.names("exp") == ["a", "search/b"]
    assert bucket.names("none") == []
    (tmp_path / "a").write_bytes(b"three")
    bucket.put(tmp_path / "a", "exp/a")
    assert bucket.read("exp/a") == b"three"
    bucket.get("exp/search/b", tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_bytes() == b"one"
    bucket.remove("exp/a")
    bucket.remove("exp/a")
    assert bucket.names("exp") == ["search/b"]
    assert bucket.read("exp/a") is None


def test_a_new_file_never_replaces_one(bucket):
    assert bucket.write("lock", b"mine", new=True)
    assert not bucket.write("lock", b"yours", new=True)
    assert bucket.read("lock") == b"mine"


def test_a_reader_of_a_plain_folder_never_sees_a_file_before_it_is_whole(tmp_path, monkeypatch):
    bucket = open_bucket(f"file://{tmp_path}/store")
    (tmp_path / "a").write_bytes(b"whole")
    bucket.put(tmp_path / "a", "exp/a")
    put = bucket.fs.put_file

    def torn(local, path, **more):
        put(local, path, **more)
        raise OSError("the line went dead")

    monkeypatch.setattr(bucket.fs, "put_file", torn)
    (tmp_path / "a").write_bytes(b"another")
    with pytest.raises(StorageError, match="the line went dead"):
        bucket.put(tmp_path / "a", "exp/a")
    assert bucket.read("exp/a") == b"whole"
    assert bucket.names("exp") == ["a"]


def test_a_lock_is_held_by_one_and_let_go_at_the_end(bucket, quick_locks):
    with locked(bucket, ".exp.lock", "here") as (left, still_ours):
        assert not left
        with pytest.raises(RunExists, match=rf"exp is in use by another process, on {socket.gethostname()}\. Remedy"):
            locked(bucket, ".exp.lock", "there").__enter__()
        assert still_ours()
    assert bucket.read(".exp.lock") is None


def test_a_lock_seen_while_its_owner_writes_it_is_looked_at_again(tmp_path, quick_locks, monkeypatch):
    bucket = open_bucket(f"file://{tmp_path}/runs")
    whole, torn = bucket.fs.cat_file, iter([b"", b'{"owner": "he'])

    def half_written(path):
        # The owner's signs of life read it in a thread of their own.
        content = next(torn, None) if threading.current_thread() is threading.main_thread() else None
        return whole(path) if content is None else content

    with locked(bucket, ".exp.lock", "here"):
        monkeypatch.setattr(bucket.fs, "cat_file", half_written)
        with pytest.raises(RunExists, match=rf"in use by another process, on {socket.gethostname()}\."):
            locked(bucket, ".exp.lock", "there").__enter__()
    assert next(torn, None) is None


def test_a_lock_without_a_sign_of_life_is_taken_over_and_its_owner_told_of_it(bucket, quick_locks, monkeypatch):
    bucket.write(".exp.lock", json.dumps({"owner": "killed", "host": "far"}).encode())
    with locked(bucket, ".exp.lock", "here") as (left, still_ours):
        assert not left
        end = time.monotonic() + 20
        while still_ours() and time.monotonic() < end:
            # Again and again, as an owner does: one sign may cross one of ours.
            bucket.write(".exp.lock", json.dumps({"owner": "there", "host": "far"}).encode())
            time.sleep(0.05)
        assert not still_ours()
    assert bucket.read(".exp.lock") is not None


def test_a_lock_that_a_killed_run_of_the_same_folder_left_is_taken_at_once(bucket, monkeypatch):
    monkeypatch.setattr(lease, "WATCH", 1e9)
    bucket.write(".exp.lock", json.dumps({"owner": "here"}).encode())
    with locked(bucket, ".exp.lock", "here") as (left, _):
        assert left


@pytest.mark.parametrize("url", [
    "s3://KEYOFMINE:SECRETOFMINE@runs/deep", "sftp://me:SECRETOFMINE@host/runs", "s3://runs?key=SECRETOFMINE",
])  # fmt: skip
def test_a_url_with_a_secret_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="Remedy: leave them out") as error:
        check_storage(url)
    assert "SECRETOFMINE" not in str(error.value)


def test_a_storage_is_a_folder_or_a_url_of_a_known_kind():
    assert check_storage("runs/of/mine") == "runs/of/mine"
    assert check_storage("s3://runs/deep/") == "s3://runs/deep"
    for url in ("s4://runs", "memory://runs"):
        with pytest.raises(ValueError, match=r"not known\. Allowed: a folder, or s3://"):
            check_storage(url)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(StorageError, match=r"pip install 'pfray\[s3\]'"):
        open_bucket("s3://runs")


def test_a_store_that_does_not_answer_is_an_error_and_no_wait(monkeypatch, tmp_path):
    # The first answer, the watch over a lock, and a little for the rest.
    assert max(lease.PATIENCE, lease.WATCH) <= 25
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(module.Bucket, "write", lambda *args, **options: silent.accept())
        monkeypatch.setattr(lease, "PATIENCE", 0.2)
        refused = pytest.raises(StorageError, match=r"/runs: no answer within 0 s\. Remedy: check the address")
        with refused, locked(open_bucket(f"file://{tmp_path}/runs"), ".exp.lock", "me"):
            pass


@needs_s3
def test_wrong_keys_a_missing_bucket_and_a_dead_address_are_one_line_each(monkeypatch):
    def refusal(url: str) -> str:
        started = time.monotonic()
        with pytest.raises(StorageError, match=rf"{url} .*Remedy: ") as error:
            locked(open_bucket(url), ".exp.lock", "here").__enter__()
        assert time.monotonic() - started < 30
        assert len(str(error.value).splitlines()) == 1
        assert "secret-of-the-tests" not in str(error.value)
        return str(error.value)

    with s3_server() as endpoint:
        assert "The specified bucket does not exist" in refusal("s3://none/deep")
        ask_for_keys(endpoint, 0)
        assert "PermissionError" in refusal("s3://runs/deep")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "127.0.0.1:9" in refusal("s3://runs/deep")


def test_values_of_secret_variables_are_hidden(monkeypatch):
    monkeypatch.setenv("SOME_STORE_TOKEN", "abcdefgh1234")
    assert hidden("no such key abcdefgh1234 here") == "no such key *** here"
