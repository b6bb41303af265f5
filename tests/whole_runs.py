"""Experiment files and summaries of whole runs, for their tests."""

from __future__ import annotations

import json
from pathlib import Path

import yaml


def write(folder: Path, raw: dict, name: str = "exp.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(raw))
    return path


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())
