"""Channel groups of a model: ``pfray inspect experiment.yaml`` and ``pfray.inspect(model, train)`` show what can be
pruned.

Nothing is trained or written. An experiment's learner and target are ignored.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from pfray.config import schema
from pfray.utils import command
from pfray.workflow.experiment_file import load_experiment

if TYPE_CHECKING:
    from torch import nn

    from pfray.nn.inputs import Inputs
    from pfray.pruning.channels.graph import ChannelGroup

# Layer names shown per group; a residual stream runs through dozens.
MOST_LAYERS = 6
# Characters per line if the output is no terminal.
WIDTH = 120


@dataclass(frozen=True)
class Group:
    """Channels that go together. name: of the layer that makes them, for ``skip`` and a plan.

    channels: in words, ``16``, ``4 x 4`` if they go in fours, or ``3 heads``. units: number that can go independently.
    macs, params: what would go with the whole group. layers: all that the channels run through.
    """

    name: str
    channels: str
    units: int
    macs: int
    params: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What of a model can be pruned. It prints itself.

    inputs: shape of each input without the batch, by name; the name of a single tensor is empty. macs: multiply-adds of
    one sample. whole: the reason, by layer, why output channels stay.
    """

    model: str
    inputs: Mapping[str, tuple[int, ...]]
    macs: int
    params: int
    groups: tuple[Group, ...]
    whole: Mapping[str, str]

    def __repr__(self) -> str:
        console = plain_console(file=io.StringIO(), width=WIDTH)
        show(self, console)
        return str(console.file.getvalue()).rstrip()  # type: ignore[attr-defined]


def inspect_experiment(experiment: schema.Experiment, note: Callable[[str], None]) -> Inspection:
    """The model of an experiment on its data.

    note: called with each remark on data and weights. Raises PfrayError for every mistake that a user can correct.
    """
    # Imported here, so that a wrong experiment file is reported at once.
    from pfray.task import example_input
    from pfray.workflow import setup
    from pfray.workflow.components import resolve

    components = resolve(experiment)
    task = setup.build_task(experiment, components, note)
    return inspect_module(setup.build_model(experiment, components, task, note), example_input(task))


def inspect_given(model: Any, train: Any, adapt: Callable[[Any], Any] | None) -> Inspection:
    """A model from Python on the first samples of ``train``. Raises PfrayError."""
    from pfray.data._given import split_of
    from pfray.nn.checks import check_parameters
    from pfray.task import Task, example_input
    from pfray.workflow.given import plain_module

    own = plain_module(model)
    split = split_of("train", train, adapt, own, 0)
    check_parameters(own)
    return inspect_module(own, example_input(Task(type(own).__name__, split, split, split)))


def inspect_module(model: nn.Module, example: Inputs) -> Inspection:
    """example: inputs of one sample. Raises UnsupportedModel if the model fails on them."""
    from pfray.measure.cost import layer_macs
    from pfray.nn.inputs import named_tensors
    from pfray.pruning.channels.graph import channel_graph

    layer_macs(model, example)  # raises in plain words for a model that fails
    graph = channel_graph(model, example)
    total = graph.costs(graph.units)
    return Inspection(
        type(model).__name__,
        {name.lstrip("."): tuple(tensor.shape[1:]) for name, tensor in named_tensors(example)},
        round(total["macs"]), round(total["params"]),
        tuple(Group(g.name, _channels(g), g.units, g.macs, g.params, _layers(g)) for g in graph.groups),
        dict(graph.skipped),
    )  # fmt: skip


def plain_console(**options: Any) -> Console:
    """A console without rich's markup, because reasons and names may hold brackets."""
    return Console(markup=False, highlight=False, **options)


def show(found: Inspection, console: Console) -> None:
    """Print the totals, a table of the groups, and the layers that cannot be pruned, with the reasons."""
    console.print(f"{found.model}: {found.macs:,} MACs for {_shapes(found.inputs)}, {found.params:,} parameters")
    if found.groups:
        groups = Table(title="channel groups", title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left")
        groups.caption = "MACs, params: the share that would go with the whole group; what lies between two is in both"
        groups.add_column("group", overflow="fold")
        for heading in ("channels", "MACs", "params"):
            groups.add_column(heading, justify="right", no_wrap=True)
        groups.add_column("layers", overflow="fold")
        for group in found.groups:
            groups.add_row(
                group.name, group.channels, f"{group.macs / max(1, found.macs):.1%}",
                f"{group.params / max(1, found.params):.1%}", _some(group.layers),
            )  # fmt: skip
        console.print(groups)
    else:
        console.print("no channel groups: nothing can be pruned")
    if found.whole:
        whole = Table(title="left whole", title_justify="left", box=box.SIMPLE_HEAD)
        whole.add_column("layer", overflow="fold")
        whole.add_column("why", overflow="fold")
        for name, reason in found.whole.items():
            whole.add_row(name or "(the model itself)", reason)
        console.print(whole)


def _shapes(inputs: Mapping[str, tuple[int, ...]]) -> str:
    """``an input of 3x32x32``, or ``inputs of tokens 16, mask 16``: shapes of one sample."""
    shapes = {name: "x".join(map(str, shape)) for name, shape in inputs.items()}
    if len(shapes) == 1:
        return f"an input of {next(iter(shapes.values()))}"
    return f"inputs of {', '.join(f'{name} {shape}' for name, shape in shapes.items())}"


def _channels(group: ChannelGroup) -> str:
    """``16``, ``4 x 4`` if channels go in fours, or ``3 heads``."""
    if group.noun != "channels":
        return f"{group.units} {group.noun}"
    own = group.name.partition("#")[0]
    each = next(cut.index.shape[1] for cut in group.cuts if cut.layer == own and cut.side == "out")
    return str(group.units) if each == 1 else f"{group.units} x {each}"


def _layers(group: ChannelGroup) -> tuple[str, ...]:
    return tuple(dict.fromkeys(cut.layer for cut in group.cuts if cut.kind not in ("NUMBER", "PARTS")))


def _some(names: Sequence[str]) -> str:
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
    console = console or plain_console(width=None if sys.stdout.isatty() else WIDTH)
    experiment = load_experiment(options.experiment, options.overrides)
    show(inspect_experiment(experiment, lambda remark: console.print(f"note: {remark}", soft_wrap=True)), console)
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
