"""Torch-Pruning (Fang et al. 2023, "DepGraph") on CIFAR's ResNets, as its repository documents it.

Its ``reproduce/readme.md`` gives for ResNet-56, without sparse learning, ``--method group_norm --global-pruning``, and
``reproduce/main.py`` the rest: groups ranked by their l2 norm over the whole network, pruned in steps of 1/400 of the
channels until the speed-up in MACs is reached, the last layer left alone; then SGD with momentum 0.9 (not Nesterov's)
and a weight decay of 5e-4, batches of 128, a learning rate of 0.01 that is divided by 10 after 60 and 80 % of the
epochs, of which it takes 100.

One thing differs: its ResNets have convolutions as shortcuts, ours pad with zeros (He et al.'s option A). Behind a
padding the pruner takes wrong channels and the network no longer runs, so the residual stream is left whole here, by
its own ``ignored_layers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pfray.training.settings import Training

STEPS = 400
LR, MOMENTUM, WEIGHT_DECAY, BATCH_SIZE = 0.01, 0.9, 5e-4, 128
MILESTONES, GAMMA = (0.6, 0.8), 0.1


def prune(model: nn.Module, example: Tensor, factor: float) -> None:
    """Prune a ``CifarResNet`` in place to at most 1 / ``factor`` of its MACs. example: ``(1, C, H, W)``.

    Raises ValueError if no number of steps reaches that.
    """
    import torch_pruning as tp

    from pfray.measure.cost import total_macs

    model.eval()
    most = total_macs(model, example) / factor
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.GroupNormPruner(
        model, example, importance, global_pruning=True, pruning_ratio=1.0, max_pruning_ratio=1.0,
        iterative_steps=STEPS, ignored_layers=outside_blocks(model),
    )  # fmt: skip
    while (macs := total_macs(model, example)) > most:
        if pruner.current_step == STEPS:
            raise ValueError(f"Torch-Pruning's last step leaves {macs} MACs, more than {most:.0f}")
        pruner.step()


def outside_blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that write the residual stream, and the last one: all but the first of each block."""
    return [m for name, m in model.named_modules() if name in ("conv1", "linear") or name.endswith(".conv2")]


def own_training(epochs: int) -> Training:
    """Its settings of the training; the learning rate falls as in ``own_decay``."""
    from pfray.training.settings import Training

    return Training(
        epochs=epochs, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, batch_size=BATCH_SIZE, warmup_epochs=0
    )


@contextmanager
def own_decay(total: int) -> Iterator[Callable[[int], None]]:
    """Its learning rate and its momentum in every training inside, in place of the loop's own.

    total: optimizer steps. Gives the training's hook, which has to be told the steps that are done.
    """
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    done = 0

    def count(step: int) -> None:
        nonlocal done
        done = step

    def before_step(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            group.update(lr=rate(done, total), nesterov=False)

    registered = register_optimizer_step_pre_hook(before_step)
    try:
        yield count
    finally:
        registered.remove()


def rate(step: int, total: int) -> float:
    """Learning rate of the optimizer step that follows ``step`` of ``total``."""
    return LR * GAMMA ** sum(step >= milestone * total for milestone in MILESTONES)
