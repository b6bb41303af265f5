"""An experiment file as short as can be, and the mistakes of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfray.config.schema import load
from pfray.errors import ConfigError
from pfray.workflow import components

BASE = {"model": "lenet", "data": "digits", "learner": "weight_sparse", "target": {"sparsity": 0.5}}


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, components.component_mistakes)
    return str(caught.value).splitlines()
