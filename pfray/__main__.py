"""The command ``pfray``. Each subcommand is a module, imported only when it is called."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pfray.errors import ConfigError, nearest, print_error, shown
from pfray.utils import command

COMMANDS = {
    "run": ("pfray.run", "compress a model as an experiment file says"),
    "inspect": ("pfray.workflow.inspection", "show what of an experiment's model can be pruned"),
    "submit": ("pfray.submit", "send experiments to a Ray cluster, one job each"),
    "bench": ("pfray.bench", "time .tflite files against each other"),
    "report": ("pfray.reporting.__main__", "make the report of a run folder again"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: the subcommand's, or 2 for an unknown one."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    program = "python -m pfray" if Path(sys.argv[0]).name == "__main__.py" else "pfray"
    name, rest = (given[0], given[1:]) if given else ("", [])
    command.begin(command.resume_hint(f"{program} run", rest) if name == "run" else "")
    if name in ("-h", "--help"):
        print(_help(program))
        return 0
    if name not in COMMANDS:
        what = f"unknown command {shown(name)}" if name else "no command is given"
        allowed = f"Allowed: {', '.join(COMMANDS)}.{nearest(name, COMMANDS)}"
        return print_error(ConfigError(f"{program}: {what}. {allowed} Remedy: {program} --help"))
    _find_modules_here()
    module = importlib.import_module(COMMANDS[name][0])
    code: int = module.main(rest, f"{program} {name}")
    return code


def _find_modules_here() -> None:
    """Find a user's own modules in the working folder, as ``python -m`` does and an installed script does not."""
    with contextlib.suppress(OSError):  # the folder is gone
        here = os.getcwd()
        if not {"", here} & set(sys.path):
            sys.path.insert(0, here)


def _help(program: str) -> str:
    commands = "\n".join(f"  {name:<8} {about}" for name, (_, about) in COMMANDS.items())
    return (
        f"usage: {program} COMMAND ...\n\nCompress trained PyTorch models, searched on Ray.\n\n"
        f"commands:\n{commands}\n\n"
        f"examples:\n  {program} run experiments/mobilenet_sparse.yaml\n  {program} run --help"
    )


if __name__ == "__main__":
    sys.exit(main())
