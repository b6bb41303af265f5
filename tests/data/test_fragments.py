"""The fragments of configs/data: each names classes that there are, and its file says which."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfray.data import cifar10, cifar100
from pfray.data.subset import check_classes
from pfray.errors import DataError
from pfray.overlay import read_with_includes

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "data"
DATA = {path.stem: read_with_includes(path)["data"] for path in sorted(FOLDER.glob("*.yaml"))}
BUILD = {"cifar10": cifar10.build, "cifar100": cifar100.build}


@pytest.mark.parametrize("name", DATA)
def test_its_classes_are_those_of_the_data_set(name: str) -> None:
    """Unknown names are refused before any file is looked for."""
    settings = {key: value for key, value in DATA[name].items() if key not in ("name", "path")}
    with pytest.raises(DataError, match=r"^/nowhere"):
        BUILD[DATA[name]["name"]](path="/nowhere", **settings)


def test_the_subsets_are_the_superclasses_that_their_files_are_named_after() -> None:
    superclasses = {name: data["superclass"] for name, data in DATA.items() if "superclass" in data}
    assert superclasses == {f"cifar100_{superclass}": superclass for superclass in superclasses.values()}
    assert len(superclasses) == 8
    parts = [check_classes(DATA[f"cifar10_{part}"]["classes"], cifar10.NAMES) for part in ("animals", "vehicles")]
    assert sorted(parts[0] + parts[1]) == list(range(10))
