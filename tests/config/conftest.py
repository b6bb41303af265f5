from __future__ import annotations

from pathlib import Path

import pytest
import yaml


@pytest.fixture
def file(tmp_path):
    def write(raw: object, name: str = "exp.yaml") -> Path:
        path = tmp_path / name
        path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
        return path

    return write
