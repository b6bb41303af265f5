from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.cifar_files import TEST, TRAIN, encode, write_parquet, write_pickle


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    folder = tmp_path / "parquet"
    write_parquet(folder / "train-0.parquet", [encode(x) for x in TRAIN[:60]], [i % 10 for i in range(60)])
    write_parquet(folder / "train-1.parquet", [encode(x) for x in TRAIN[60:]], [i % 10 for i in range(40)])
    write_parquet(folder / "test.parquet", [encode(x) for x in TEST], [i % 10 for i in range(20)])
    return folder


@pytest.fixture
def pickles(tmp_path: Path) -> Path:
    folder = tmp_path / "pickles"
    folder.mkdir()
    for n in range(5):
        write_pickle(folder / f"data_batch_{n + 1}", TRAIN[20 * n : 20 * n + 20])
    write_pickle(folder / "test_batch", TEST)
    return folder
