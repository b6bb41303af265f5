from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pfray.utils import session_folder
from pfray.utils.session_folder import LOCK, make_session_folder, remove_session_folder, scratch_folder

MAKE = "import sys, time; from pfray.utils.session_folder import *; print(make_session_folder(sys.argv[1]), flush=True)"


def age(folder: Path) -> None:
    os.utime(folder / LOCK, (0, 0))


def test_what_a_killed_session_left_goes_at_the_next_start_and_what_is_in_use_or_new_stays(tmp_path):
    others = tmp_path / "pfray-older-version"
    others.mkdir()
    own = make_session_folder(str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", f"{MAKE}; time.sleep(600)", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    running = Path(process.stdout.readline().strip())
    done = [sys.executable, "-c", MAKE, str(tmp_path)]
    ended, new = (Path(subprocess.run(done, capture_output=True, text=True).stdout.strip()) for _ in range(2))
    (ended / "logs").mkdir()
    assert stat.S_IMODE(running.stat().st_mode) == 0o700
    for folder in (own, running, ended):
        age(folder)
    remove_session_folder(make_session_folder(str(tmp_path)))
    assert {*tmp_path.iterdir()} == {others, own, running, new}

    process.send_signal(signal.SIGKILL)
    process.wait()
    remove_session_folder(make_session_folder(str(tmp_path)))
    assert {*tmp_path.iterdir()} == {others, own, new}
    remove_session_folder(own)
    assert {*tmp_path.iterdir()} == {others, new}


@pytest.mark.parametrize("exists", [True, False])
def test_a_workers_folder_is_in_the_sessions_if_there_is_one(tmp_path, monkeypatch, exists):
    session = tmp_path if exists else tmp_path / "none"
    monkeypatch.setenv("RAY_TMPDIR", str(session))
    with scratch_folder() as name:
        assert (Path(name).parent == session) == exists
    assert not Path(name).exists()


def test_another_users_folder_is_left_alone(tmp_path, monkeypatch):
    folder = make_session_folder(str(tmp_path))
    session_folder._held.pop(folder).close()
    age(folder)
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    remove_session_folder(make_session_folder(str(tmp_path)))
    assert folder.exists()
