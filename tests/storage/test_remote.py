"""A storage folder behind a URL: what is seen, written and refused there."""

from __future__ import annotations

import importlib
import sys
import time

import pytest

from pfray.errors import StorageError
from pfray.storage.remote import open_bucket
from pfray.storage.remote_lock import locked
from pfray.utils.url import check_storage, hidden
from tests.stores import ask_for_keys, needs_s3, s3_server


@pytest.fixture(params=["file", pytest.param("s3", marks=needs_s3)])
def bucket(request, tmp_path):
    if request.param == "file":
        yield open_bucket(f"file://{tmp_path}/store/deep")
    else:
        with s3_server():
            yield open_bucket("s3://runs/deep")


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


HOSTILE = ("/abs/path", "../up", "a/../../up", "./a", "a/./b", "a//b", "a\\b", "a\x00b", "a\nb", "a\x1b[2Jb", "C:/x",
           "..", "a/..")  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_elsewhere_is_refused_wherever_it_comes_from(name, tmp_path, monkeypatch):
    bucket = open_bucket(f"file://{tmp_path}/store")
    (tmp_path / "a").write_bytes(b"one")
    monkeypatch.setattr(bucket.fs, "find", lambda top: [f"{top}/fine", f"{top}/{name}"])
    acts = (
        lambda: bucket.names("exp"), lambda: bucket.put(tmp_path / "a", f"exp/{name}"),
        lambda: bucket.get(f"exp/{name}", tmp_path / "got"), lambda: bucket.read(f"exp/{name}"),
        lambda: bucket.write(f"exp/{name}", b""), lambda: bucket.remove(f"exp/{name}"),
    )  # fmt: skip
    for act in acts:
        with pytest.raises(StorageError, match=r"Remedy: re(move|name) it") as error:
            act()
        assert str(error.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_store_that_lists_another_folder_is_refused(tmp_path, monkeypatch):
    bucket = open_bucket(f"file://{tmp_path}/store")
    monkeypatch.setattr(bucket.fs, "find", lambda top: ["/etc/passwd"])
    with pytest.raises(StorageError, match=r"no run has, '/etc/passwd' \(a path elsewhere\)"):
        bucket.names("exp")


@needs_s3
def test_keys_of_a_bucket_that_lead_elsewhere_are_refused_and_empty_folders_passed_over():
    with s3_server():
        bucket = open_bucket("s3://runs/deep")
        # s3fs itself would tidy such a key up.
        put = lambda key, body=b"": bucket.fs.call_s3("put_object", Bucket="runs", Key=f"deep/{key}", Body=body)  # noqa: E731
        for key in ("exp/", "exp/a", "exp/search/", "exp/search/b"):
            put(key)
        assert bucket.names("exp") == ["a", "search/b"]
        for key in ("exp//abs/path", "exp/../x", "exp/a\\b", "exp/a\x01b", "exp/c//d", "exp//"):
            put(key, b"evil")
            with pytest.raises(StorageError, match=r"s3://runs/deep/exp holds a file with a name that no run has, '"):
                bucket.names("exp")
            bucket.fs.call_s3("delete_object", Bucket="runs", Key=f"deep/{key}")
        assert bucket.names("exp") == ["a", "search/b"]


def test_a_link_in_a_folder_of_runs_leads_nowhere_else(tmp_path):
    bucket = open_bucket(f"file://{tmp_path}/store")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").write_bytes(b"mine")
    (tmp_path / "a").write_bytes(b"one")
    bucket.put(tmp_path / "a", "exp/a")
    (tmp_path / "store" / "exp" / "search").symlink_to(tmp_path / "outside")
    for act in (
        lambda: bucket.names("exp"), lambda: bucket.put(tmp_path / "a", "exp/search/mine"),
        lambda: bucket.read("exp/search/mine"), lambda: bucket.remove("exp/search/mine"),
    ):  # fmt: skip
        with pytest.raises(StorageError, match=r"exp/search(/mine)? is a link that leads out of .*store\. Remedy"):
            act()
    assert (tmp_path / "outside" / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("url", [
    "s3://KEYOFMINE:SECRETOFMINE@runs/deep", "sftp://me:SECRETOFMINE@host/runs", "s3://runs?key=SECRETOFMINE",
    "s3://SECRETOFMINE@runs/deep", "S3://SECRETOFMINE@runs", "s3:///SECRETOFMINE@runs", "gs://SECRETOFMINE@runs",
    "s3://a@SECRETOFMINE@runs", "https://SECRETOFMINE@host/runs", "s3://runs#SECRETOFMINE",
])  # fmt: skip
def test_a_url_with_a_secret_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="Remedy: leave them out") as error:
        check_storage(url)
    assert "SECRETOFMINE" not in str(error.value)


@pytest.mark.parametrize("url", [
    "filecache::s3://SECRETOFMINE@runs", "s3://SECRETOFMINE@ru\nns", "s3://SECRETOFMINE @runs", "s3://SECRETOFMINE@[x",
])  # fmt: skip
def test_a_url_that_would_be_read_in_two_ways_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="Allowed: ") as error:
        check_storage(url)
    assert "SECRETOFMINE" not in str(error.value)


@pytest.mark.parametrize("url", [
    "sftp://me@host/runs", "smb://me@host/runs", "abfs://runs@mine.dfs.core.windows.net/deep", "s3://runs/me@home",
    "file:///home/me@work/runs",
])  # fmt: skip
def test_a_user_of_a_machine_and_a_container_are_no_secret(url):
    assert check_storage(url) == url


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
