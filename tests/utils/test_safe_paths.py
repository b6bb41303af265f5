"""Names that come from elsewhere, and the folders that they may not leave."""

from __future__ import annotations

import pytest

from pfray.errors import StorageError
from pfray.utils.safe_paths import flaw, inside, refuse_links_outside
from tests.storage.test_open_run import opened


@pytest.mark.parametrize("name", ["a", "a/b.json", ".hidden", "a..b/..c", "events.1.host:6006", "übung/ж 1"])
def test_plain_relative_names_have_no_flaw(name, tmp_path):
    assert flaw(name) is None
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    ("name", "reason"),
    [("/a", "an absolute path"), ("a//b", "the part ''"), ("", "the part ''"), ("a/", "the part ''"),
     ("..", "the part '..'"), ("a/../b", "the part '..'"), (".", "the part '.'"), ("a\\b", "a character"),
     ("a\0b", "a character"), ("a\x85b", "a character"), ("a\u202eb", "a character"), ("c:/a", "a drive's letter"),
     ("a/C:b", "a drive's letter"), ("\ud800", "a character")],
)  # fmt: skip
def test_other_names_are_refused_with_the_reason(name, reason, tmp_path):
    assert flaw(name).startswith(reason)
    with pytest.raises(StorageError, match="Remedy: rename it") as error:
        inside(tmp_path, name)
    assert str(error.value).isprintable()


def test_links_may_lead_anywhere_within_the_folder_and_the_folder_may_be_one(tmp_path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    folder = tmp_path / "folder"
    folder.symlink_to(tmp_path / "real")
    (folder / "within").symlink_to(folder / "deep")
    refuse_links_outside(folder)
    assert inside(folder, "within/x") == folder / "within" / "x"
    for target in (tmp_path / "outside", "../../outside", "out", "/etc/passwd"):
        link = folder / "deep" / "out"
        link.symlink_to(target)
        with pytest.raises(StorageError, match=r"deep/out is a link that leads out of .*folder\. Remedy: remove it"):
            refuse_links_outside(folder)
        with pytest.raises(StorageError, match="is a link that leads out of"):
            inside(folder, "deep/out/x")
        link.unlink()


def test_a_run_folder_whose_links_lead_elsewhere_is_not_resumed(tmp_path):
    folder = opened(tmp_path / "runs").path
    (tmp_path / "outside").mkdir()
    (folder / "search").rmdir()
    (folder / "search").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match=r"exp/search is a link that leads out of .*exp\. Remedy: remove it"):
        opened(tmp_path / "runs", resume=True)
    # Replaced, only the link goes.
    (tmp_path / "outside" / "mine").write_text("mine")
    assert opened(tmp_path / "runs", force=True).search.is_dir()
    assert (tmp_path / "outside" / "mine").read_text() == "mine"
