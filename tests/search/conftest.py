from __future__ import annotations

import pytest

from tests.search.toy import NAMES, OPEN_ENDED


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=OPEN_ENDED)
def open_ended(request: pytest.FixtureRequest) -> str:
    return request.param
