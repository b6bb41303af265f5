"""Marks of tests that are given by name: a name that no test has any more would be passed over in silence."""

from __future__ import annotations

import pytest

from tests.conftest import LONG, ROOT


@pytest.mark.parametrize("entry", LONG)
def test_every_name_among_the_long_tests_is_that_of_a_test(entry):
    file, _, test = entry.partition("::")
    path = ROOT / "tests" / file
    assert path.exists()
    assert not test or f"def {test}" in path.read_text(encoding="utf-8")
