"""Time of LASSO selection: the channels of each block of ResNet-56 for 20 keep ratios, selected in two ways.

pfray's: the Gram matrix of the channels' contributions, from the covariance of the layer's inputs, and one LASSO path
over it. The other: scikit-learn's ``Lasso`` on the contributions themselves (a regressor per channel, a sample per
sampled row and output), with a binary search on alpha for each count, as in He, Zhang and Sun 2017. Both use the same
rows, ten positions of each image as in the paper. Neither time includes the forward pass, which is printed separately.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

# Before numpy is imported: both on one core.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parser import make_parser
from benchmarks.result import SKIPPED, close, is_missing
from benchmarks.sparse_resnet import needed

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pfray.pruning.reconstruction.covariance import Moments

NAME = "lasso_path"
MODEL = "resnet56"
RATIOS = 20
POSITIONS = 10  # of each image
FITS = 40  # at most, in a search for one alpha


class Layer(NamedTuple):
    """rows: what the layer read, centred, ``(R, C K)``. weight: ``(C K, O)``."""

    name: str
    rows: Tensor
    weight: Tensor
    channels: int


class Result(NamedTuple):
    """Seconds of both ways, and of each count: whether the channels are the same, and both errors."""

    ours: float
    theirs: float
    same: list[bool]
    errors: list[tuple[float, float]]


def read_layers(limit: int, images: int) -> tuple[list[Layer], float]:
    """(the second convolution of the first ``limit`` blocks, seconds of the forward pass that fills their rows)."""
    import torch

    from benchmarks.sparse_resnet import job
    from pfray.nn.im2col import draw_positions, input_rows, weight_rows
    from pfray.nn.modes import evaluating

    own = job(MODEL)
    names = [name for name, _ in own.teacher.named_modules() if name.endswith(".conv2")][:limit]
    generator = torch.Generator().manual_seed(0)
    rows = {}

    def keep(name: str, layer: torch.nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        rows[name] = input_rows(layer, inputs, draw_positions(layer, outputs, POSITIONS, generator)).double()

    for name in names:
        own.teacher.get_submodule(name).register_forward_hook(
            lambda layer, inputs, outputs, name=name: keep(name, layer, inputs[0], outputs)
        )
    start = time.perf_counter()
    with evaluating(own.teacher):
        own.teacher(own.task.normalize(own.task.train.inputs[:images]))
    seconds = time.perf_counter() - start
    layers = []
    for name in names:
        layer = own.teacher.get_submodule(name)
        layers.append(Layer(name, rows[name] - rows[name].mean(0), weight_rows(layer), layer.weight.shape[1]))
    return layers, seconds


def compare(layer: Layer) -> Result:
    import numpy as np
    import torch

    from pfray.pruning.reconstruction import lasso
    from pfray.pruning.reconstruction.covariance import Moments

    units = np.arange(layer.channels)[:, None]
    counts = sorted({round(ratio * layer.channels) for ratio in np.arange(1, RATIOS + 1) / (RATIOS + 1)} - {0})
    moments = Moments((layer.rows.T @ layer.rows / len(layer.rows)).float(), torch.zeros(layer.rows.shape[1]))
    start = time.perf_counter()
    selections = lasso.lasso_selections(lasso.unit_gram(moments, layer.weight, units, layer.channels))
    ours = time.perf_counter() - start
    regressors = contributions(layer)
    start = time.perf_counter()
    found = searched(regressors, counts)
    theirs = time.perf_counter() - start
    pairs = [(selections[count], other) for count, other in zip(counts, found, strict=True)]
    errors = [(error(layer, moments, own), error(layer, moments, other)) for own, other in pairs]
    return Result(ours, theirs, [np.array_equal(*pair) for pair in pairs], errors)


def contributions(layer: Layer) -> np.ndarray:
    """``(R O, C)``: what each channel adds to each output of each row."""
    import numpy as np

    rows = layer.rows.numpy().reshape(len(layer.rows), layer.channels, -1)
    weight = layer.weight.numpy().reshape(layer.channels, -1, layer.weight.shape[1])
    return np.asfortranarray(np.einsum("rck,cko->roc", rows, weight, optimize=True).reshape(-1, layer.channels))


def searched(regressors: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """The channels of each count: alpha is halved between one that keeps too many and one that keeps too few.

    Where no alpha of the search keeps exactly as many, those of the largest contribution of the next larger support.
    """
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    target = regressors.sum(1)
    top = np.abs(regressors.T @ target).max() / len(target)
    size = np.linalg.norm(regressors, axis=0)
    found = []
    for count in counts:
        # Warm starts as in the authors' code: the search for one count is through similar solutions.
        lasso = Lasso(fit_intercept=False, warm_start=True)
        low, high = np.log(1e-7 * top), np.log(top)
        support = np.ones(regressors.shape[1])
        for _ in range(FITS):
            middle = (low + high) / 2
            lasso.alpha = float(np.exp(middle))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                lasso.fit(regressors, target)
            kept = int(np.count_nonzero(lasso.coef_))
            if kept >= count:
                support, low = np.abs(lasso.coef_) * size, middle
            else:
                high = middle
            if kept == count:
                break
        found.append(np.sort(np.argsort(support)[::-1][:count]))
    return found


def error(layer: Layer, moments: Moments, kept: np.ndarray) -> float:
    """The share of the output's variance that is lost with the channels ``kept``, reconstructed."""
    import numpy as np

    from pfray.pruning.reconstruction import least_squares

    kernel = layer.rows.shape[1] // layer.channels
    rows = (kept[:, None] * kernel + np.arange(kernel)).ravel()
    return float(least_squares.lost_shares(moments, layer.weight, [rows])[0])


def report(results: Sequence[Result]) -> None:
    """The closing lines."""
    same = [equal for result in results for equal in result.same]
    # Of equal channels the errors are equal but for the order of the sums.
    as_good = [own <= other * (1 + 1e-9) for result in results for own, other in result.errors]
    ratio = sum(result.theirs for result in results) / sum(result.ours for result in results)
    close(NAME, ratio, "times as fast as a search on alpha", ">= 20")
    close(NAME, sum(same) / len(same), "share of the choices that are the same channels", ">= 0.95")
    close(NAME, sum(as_good) / len(as_good), "share of the choices with an equal or a lower error", ">= 0.95")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    import numpy as np

    if is_missing(NAME, needed(MODEL), "put the data there"):
        return SKIPPED
    layers, seconds = read_layers(options.layers, options.images)
    rows = options.images * POSITIONS
    print(f"{len(layers)} layers, {rows} rows each, read in {seconds:.1f} s; 1-minute load {os.getloadavg()[0]:.1f}")
    results = []
    for layer in layers:
        result = compare(layer)
        results.append(result)
        print(
            f"{layer.name}: {layer.channels} channels, {len(result.same)} counts, ours {1e3 * result.ours:.1f} ms, "
            f"a search on alpha {1e3 * result.theirs:.0f} ms, same channels {sum(result.same)} of {len(result.same)}",
            flush=True,
        )
    own, other = np.mean([pair for result in results for pair in result.errors], 0)
    print(f"mean error {own:.5f}, with the search on alpha {other:.5f}")
    report(results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(NAME, "Measure LASSO channel selection against a search on alpha, on ResNet-56 and CIFAR-10.")
    parser.add_argument("--layers", type=int, default=27, help="how many blocks of the network")
    parser.add_argument("--images", type=int, default=50, help="images, with ten positions of each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
