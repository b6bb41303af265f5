from __future__ import annotations

import pytest

from pfray.task import Task
from tests.training.toy import toy_task


@pytest.fixture(scope="module")
def task() -> Task:
    return toy_task()
