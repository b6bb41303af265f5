"""The command ``pfray report``: reports of run folders, made again from their summaries and trials."""

from __future__ import annotations

import sys

from pfray.errors import StorageError
from pfray.utils import command

if __name__ == "__main__":
    command.begin()

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path


def main(arguments: Sequence[str] | None = None, program: str = "python -m pfray.reporting") -> int:
    """Exit code: 0, 1 for a run folder that cannot be read, 2 for a wrong request."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return command.run_command(partial(_main, given, program), given)


def _main(arguments: Sequence[str], program: str) -> int:
    options = _parser(program).parse_args(arguments)
    from pfray.reporting import report

    errors = []
    for folder in options.runs:
        try:
            print(report.write(folder.resolve()))
        except StorageError as error:
            errors.append(str(error))
    if errors:
        raise StorageError("\n".join(errors))
    return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = command.make_parser(
        program,
        "Make the report of a finished run again, from the files of its run folder.",
        ["runs/mobilenet_sparse", "runs/*"],
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folders of finished runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
