"""Channel groups of an experiment's model: ``pfray inspect experiment.yaml [key=value ...]`` shows what can be pruned.

Nothing is trained or written. The experiment's learner and target are ignored.
"""

from __future__ import annotations

import sys

from pfray.utils import command

if __name__ == "__main__":
    command.begin()

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from pfray.config import schema
from pfray.workflow.experiment_file import load_experiment

if TYPE_CHECKING:
    from torch import nn

    from pfray.nn.inputs import Inputs
    from pfray.pruning.channels.graph import ChannelGraph, ChannelGroup

# Layer names shown per group; a residual stream runs through dozens.
MOST_LAYERS = 6
# Characters per line if the output is no terminal.
WIDTH = 120


def inspect(experiment: schema.Experiment, note: Callable[[str], None]) -> tuple[nn.Module, Inputs, ChannelGraph]:
    """Model, the inputs of one sample of its data, and the channel graph of both.

    note: called with each remark on data and weights. Raises PfrayError for every mistake that a user can correct.
    """
    # Imported here, so that a wrong experiment file is reported at once.
    from pfray.pruning.channels.graph import channel_graph
    from pfray.task import example_input
    from pfray.workflow import setup
    from pfray.workflow.components import resolve

    components = resolve(experiment)
    task = setup.build_task(experiment, components, note)
    model, example = setup.build_model(experiment, components, task, note), example_input(task)
    return model, example, channel_graph(model, example)


def show(model: nn.Module, example: Inputs, graph: ChannelGraph, console: Console) -> None:
    """Print the totals, a table of the groups, and the layers that cannot be pruned, with the reasons."""
    total = graph.costs(graph.units)
    console.print(
        f"{type(model).__name__}: {total['macs']:,.0f} MACs for {_shapes(example)}, {total['params']:,.0f} parameters"
    )
    if graph.groups:
        groups = Table(title="channel groups", title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left")
        groups.caption = "MACs, params: the share that would go with the whole group; what lies between two is in both"
        groups.add_column("group", overflow="fold")
        for heading in ("channels", "MACs", "params"):
            groups.add_column(heading, justify="right", no_wrap=True)
        groups.add_column("layers", overflow="fold")
        for group in graph.groups:
            groups.add_row(
                group.name, _channels(group), f"{group.macs / max(1.0, total['macs']):.1%}",
                f"{group.params / max(1.0, total['params']):.1%}", _layers(group),
            )  # fmt: skip
        console.print(groups)
    else:
        console.print("no channel groups: nothing can be pruned")
    if graph.skipped:
        whole = Table(title="left whole", title_justify="left", box=box.SIMPLE_HEAD)
        whole.add_column("layer", overflow="fold")
        whole.add_column("why", overflow="fold")
        for name, reason in graph.skipped.items():
            whole.add_row(name or "(the model itself)", reason)
        console.print(whole)


def _shapes(example: Inputs) -> str:
    """``an input of 3x32x32``, or ``inputs of tokens 16, mask 16``: shapes of one sample."""
    from pfray.nn.inputs import named_tensors

    shapes = [(name.lstrip("."), "x".join(map(str, tensor.shape[1:]))) for name, tensor in named_tensors(example)]
    if len(shapes) == 1:
        return f"an input of {shapes[0][1]}"
    return f"inputs of {', '.join(f'{name} {shape}' for name, shape in shapes)}"


def _channels(group: ChannelGroup) -> str:
    """``16``, ``4 x 4`` if channels go in fours, or ``3 heads``."""
    if group.noun != "channels":
        return f"{group.units} {group.noun}"
    own = group.name.partition("#")[0]
    each = next(cut.index.shape[1] for cut in group.cuts if cut.layer == own and cut.side == "out")
    return str(group.units) if each == 1 else f"{group.units} x {each}"


def _layers(group: ChannelGroup) -> str:
    names = list(dict.fromkeys(cut.layer for cut in group.cuts if cut.kind not in ("NUMBER", "PARTS")))
    more = len(names) - MOST_LAYERS
    return ", ".join(names[:MOST_LAYERS]) + (f" and {more} more" if more > 0 else "")


def main(
    arguments: Sequence[str] | None = None, program: str = "python -m pfray.inspect", console: Console | None = None
) -> int:
    """Exit code: 0, 2 for a wrong request, 1 for another failure."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return command.run_command(partial(_main, given, program, console), given)


def _main(arguments: Sequence[str], program: str, console: Console | None) -> int:
    options = _parser(program).parse_intermixed_args(arguments)
    # Without rich's markup, because reasons and names may hold brackets.
    console = console or Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    experiment = load_experiment(options.experiment, options.overrides)
    show(*inspect(experiment, lambda remark: console.print(f"note: {remark}", soft_wrap=True)), console)
    return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = command.make_parser(
        program,
        "Show what of an experiment's model can be pruned: its channel groups, what each of them costs, and the layers "
        "that stay whole with the reason. Nothing is trained.",
        ["experiments/mobilenet_sparse.yaml", "experiments/mobilenet_sparse.yaml model=resnet20"],
    )
    parser.add_argument("experiment", type=Path, help="the experiment file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
