"""The operations of one forward pass, as torch-pruning's graph of layers and operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pfray.errors import first_line
from pfray.nn.fx import Untraceable
from pfray.nn.inputs import Inputs, call, map_tensors, tensors
from pfray.nn.parts import Shuffle, Split

# Operators that give a tensor's values to Python.
READING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
# Random values of tokens and masks that a model which reads them is run on.
DRAWS = 8


class Trace:
    """graph: torch-pruning's DependencyGraph, of which nodes and their ``inputs`` are used.

    order: names of the modules by their first run. ends: autograd's functions of the outputs. parts: the names of
    splits and shuffles of written out modules, by autograd's functions. The tracing changes the model: give a copy.
    Raises Untraceable.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        # torch-pruning follows gradients, which frozen layers need too.
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        known = [*model.parameters(), *tensors(inputs)]
        values = _WatchValues(tensor for tensor in known if tensor.is_floating_point())
        tokens = _WatchValues(tensor for tensor in known if not tensor.is_floating_point())
        self.ends: set[Any] = set()
        self.parts: dict[Any, str] = {}
        for name, module in model.named_modules():
            if isinstance(module, Split | Shuffle):
                module.register_forward_hook(lambda *given, name=name: self._found_parts(name, given[2]))

        def forward(model: nn.Module, inputs: Inputs) -> list[Tensor]:
            with values, tokens:
                outputs = [output for output in tensors(call(model, inputs)) if output.grad_fn is not None]
            self.ends.update(output.grad_fn for output in outputs)
            return outputs

        # The first half of tp.DependencyGraph.build_dependency. The second half guesses sizes recursively, which is not
        # needed here and never ends for an unrolled loop.
        self.graph = tp.DependencyGraph()
        self.graph.verbose, self.graph.model, self.graph.ignored_params = False, model, []
        self.graph._module2name = {module: name for name, module in model.named_modules()}
        self.graph._param_to_name, self.graph.unwrapped_parameters = self.graph._detect_unwrapped_parameters(None)
        try:
            with _order(model) as ran, torch.enable_grad():
                self.graph.module2node = self.graph._trace(model, inputs, forward, None)
        except Exception as error:
            raise Untraceable(f"the model cannot be traced ({first_line(error)})") from error
        self.order = list(ran)
        if values.read or (tokens.read and _varies(model, inputs, self.order)):
            raise Untraceable("the model's forward pass reads the values of tensors, so that its layers may vary")
        if not self.ends:
            raise Untraceable("the model's outputs hold no tensor that depends on its layers")


    def _found_parts(self, name: str, output: Any) -> None:
        self.parts |= {made.grad_fn: name for made in tensors(output) if made.grad_fn is not None}


@contextmanager
def _order(model: nn.Module) -> Iterator[dict[str, None]]:
    """The names of the modules by their first run within."""
    ran: dict[str, None] = {}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.setdefault(name))
        for name, module in model.named_modules()
    ]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def _varies(model: nn.Module, inputs: Inputs, order: Sequence[str]) -> bool:
    """True if other modules run, or in another order, for other integers than the example's.

    Those are drawn from 0 to the example's largest, because a model knows few others; what it fails on is left out.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(number: int, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() or not tensor.numel():
            return tensor
        most = max(0, int(tensor.max()))
        if number < 2:  # all the least, and all the largest
            return torch.full_like(tensor, most * number)
        return torch.randint(most + 1, tensor.shape, generator=generator).to(tensor.dtype)

    for number in range(2 + DRAWS):
        try:
            with torch.no_grad(), _order(model) as ran:
                call(model, map_tensors(partial(drawn, number), inputs))
        except Exception:
            continue
        if list(ran) != list(order):
            return True
    return False


class _WatchValues(TorchDispatchMode):
    """Records whether Python reads a value that depends on ``sources``, as ``if x.sum() > 0`` does.

    Values of constants, such as the positions of tokens, are the same in every forward pass. Those of tokens and masks
    may be read where the same layers run for all: text models ask whether a mask is all true, to choose a kernel.
    """

    def __init__(self, sources: Iterable[Tensor]) -> None:
        super().__init__()
        self.read = False
        storages = [tensor.untyped_storage() for tensor in sources]
        # By their identity; kept, so that no other has it.
        self.known = {storage._cdata: storage for storage in storages}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        depends = any(tensor.untyped_storage()._cdata in self.known for tensor in given)
        self.read |= depends and function in READING
        made = function(*args, **(kwargs or {}))
        if depends:
            # Also what is written in place.
            written = given[:1] if function._schema.is_mutable else []
            for tensor in (*written, *(leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor))):
                storage = tensor.untyped_storage()
                self.known[storage._cdata] = storage
        return made
