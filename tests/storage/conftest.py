from __future__ import annotations

import pytest

from pfray.storage.remote import open_bucket
from tests.storage.folders import Watched


@pytest.fixture
def bucket(tmp_path) -> Watched:
    inner = open_bucket(f"file://{tmp_path}/store")
    watched = Watched(inner.url, inner.fs, inner.root)
    object.__setattr__(watched, "log", [])
    object.__setattr__(watched, "last", 10**9)
    return watched
