"""Locks of run folders: who is in the way is told at once, and a run that never began leaves nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pfray.errors import RunExists
from pfray.storage.run_lock import check_free, lock_file, locked


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path):
    folder = tmp_path / "runs" / "exp"
    check_free(folder)
    assert not folder.parent.exists()
    with locked(folder, "the run"):
        with pytest.raises(RunExists, match=r"exp is in use by another process. Remedy: wait for it or stop it"):
            check_free(folder)
        with pytest.raises(RunExists, match=r"^the run is in use by another process"), locked(folder, "the run"):
            pass
        folder.mkdir()
    check_free(folder)
    assert lock_file(folder).exists()


def test_a_run_that_never_began_leaves_nothing(tmp_path):
    folder = tmp_path / "new" / "runs" / "exp"
    with locked(folder, "the run"):
        assert lock_file(folder).exists()
    assert list(tmp_path.iterdir()) == []


def test_another_run_beside_it_stays(tmp_path):
    first, second = tmp_path / "runs" / "first", tmp_path / "runs" / "second"
    with locked(first, "the run"), locked(second, "the run"):
        second.mkdir()
    assert sorted(path.name for path in first.parent.iterdir()) == [".second.lock", "second"]


def test_the_look_at_a_lock_imports_neither_torch_nor_ray():
    code = "import sys, pfray.run; print({'torch', 'ray'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
