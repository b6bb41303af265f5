"""Class folders: listed once, found again in the cache, small to send."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from pfray.data import _class_folders
from pfray.data._class_folders import class_folders, class_names
from pfray.errors import DataError, StorageError
from tests.pictures import CLASSES, make_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", {"train": 4}) / "train"


def test_images_are_in_order_of_class_and_name(folder):
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").write_text("")
    (folder / "cat" / "Thumbs.db").write_text("")
    found = class_folders(folder, class_names(folder))

    assert class_names(folder) == CLASSES
    assert len(found) == 12
    assert found.labels().tolist() == [0] * 4 + [1] * 4 + [2] * 4
    data, label, name = found.read(6)
    assert (label, name) == (1, str(folder / "dog" / "00002.jpg"))
    assert data == Path(name).read_bytes()


def test_a_listing_is_made_once_and_again_when_a_file_is_added(folder, monkeypatch, own_cache):
    class_folders(folder, CLASSES).labels()
    (listing,) = own_cache.glob("images-*.arrow")
    with monkeypatch.context() as patched:
        patched.setattr(_class_folders, "_images", lambda _: pytest.fail("listed again"))
        assert len(class_folders(folder, CLASSES)) == 12
    listing.write_bytes(listing.read_bytes()[:100])
    assert len(class_folders(folder, CLASSES)) == 12

    (folder / "eel" / "new.JPEG").write_bytes(b"")
    os.utime(folder / "eel", ns=(0, 5))
    assert class_folders(folder, CLASSES).labels().tolist().count(2) == 5


def test_what_travels_is_a_key_and_not_the_list(folder, own_cache):
    found = class_folders(folder, CLASSES)
    found.labels()
    for number in range(200):
        (folder / "cat" / f"more-{number}.jpg").write_bytes(b"")
    more = class_folders(folder, CLASSES)
    assert len(more) == 212
    assert len(pickle.dumps(more)) == len(pickle.dumps(found)) < 500

    # On a machine with another cache.
    for listing in own_cache.glob("*"):
        listing.unlink()
    assert len(pickle.loads(pickle.dumps(more))) == 212
    with pytest.raises(DataError, match="the class folders have changed since the run began"):
        len(pickle.loads(pickle.dumps(found)))


def test_a_class_without_images_is_named(folder):
    (folder / "fox").mkdir()
    (folder / "fox" / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"train/fox: the class has no images \(.jpg, .*Remedy: put some"):
        len(class_folders(folder, class_names(folder)))


def test_what_macos_leaves_beside_the_images_is_none(folder):
    for name in ("._00000.jpg", ".DS_Store", ".hidden.png"):
        (folder / "cat" / name).write_bytes(b"\0\5\x16\7")
    (folder / "cat" / ".thumbnails").mkdir()
    (folder / ".DS_Store").write_bytes(b"\0")
    found = class_folders(folder, class_names(folder))
    assert found.names == CLASSES
    assert [Path(found.read(index)[2]).name for index in range(4)] == [f"{number:05d}.jpg" for number in range(4)]
    assert len(found) == 12


@pytest.mark.parametrize("name", ["young", "young.jpg"])
def test_a_folder_within_a_class_is_named_rather_than_left_out(folder, name):
    (folder / "cat" / name).mkdir()
    with pytest.raises(DataError, match=rf"^{folder}/cat/{name}: a folder within a class folder.*\. Remedy: move"):
        len(class_folders(folder, CLASSES))


def test_an_image_that_is_gone_is_no_damaged_one(folder):
    found = class_folders(folder, CLASSES)
    found.labels()
    (folder / "cat" / "00000.jpg").unlink()
    with pytest.raises(StorageError, match=r"cat/00000.jpg: the image cannot be read \(.*No such file"):
        found.read(0)
    with pytest.raises(DataError, match="nowhere: the folder cannot be read"):
        class_names(folder / "nowhere")


def test_names_of_any_bytes_are_read(folder):
    path = os.fsencode(folder) + b"/cat/\xff\xfe.jpg"
    Path(os.fsdecode(path)).write_bytes(b"pixels")
    found = class_folders(folder, CLASSES)
    assert b"pixels" in [found.read(index)[0] for index in range(len(found))]
