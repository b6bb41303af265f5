"""The command line of a benchmark."""

from __future__ import annotations

import argparse


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Parser of ``python -m benchmarks.<name>``; its help shows the defaults."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
