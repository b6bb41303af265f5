"""Networks of timm, torchvision and transformers, as nobody here wrote them: what can be pruned, and does it ship?

Each network has random weights and inputs. It is pruned to half of its MACs by ``channel_pruned``, both its float and
its 8-bit form become .tflite files, and the files are checked as a run checks its own (``workflow/file_check.py``) and
timed. A network that cannot be pruned is not exported. The share of the MACs that can go is that of keeping 5 % of
every group, beside Torch-Pruning's own pruner at the same ratio.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.result import ROOT, SKIPPED, close
from benchmarks.studies.workers import Record, run_all

NAME = "model_zoo"
# Networks that ship as .tflite, and in 8 bits; seconds of the slowest step; networks whose predicted MACs are not those
# counted; networks of which Torch-Pruning takes out more.
SHIPPED, SHIPPED_INT8, SLOWEST, INEXACT, BEHIND = ">= 23", ">= 20", "<= 60", "<= 0", "<= 0"
# Samples of random data: those that calibrate, and those that the files are checked on.
SAMPLES, COMPARED = 64, 32
# Networks that are calibrated with the default settings, which have so many samples to take from, and that are pruned
# layer by layer too, as the chosen plan of a run is: every step as a user has it.
AS_BY_DEFAULT, ENOUGH = ("resnet50", "vit_tiny_patch16_224"), 1000
# Share of every group that stays for the share of the MACs that can go, and what rounding may change that share by.
KEPT, ROUNDED = 0.05, 0.005

# Library, name and pixels.
NETWORKS = (
    ("timm", "resnet18", 64), ("timm", "resnet50", 224), ("timm", "mobilenetv2_100", 64),
    ("timm", "mobilenetv3_small_100", 64), ("timm", "efficientnet_b0", 64), ("timm", "regnetx_002", 64),
    ("timm", "regnety_002", 64), ("timm", "repvgg_a0", 64), ("timm", "densenet121", 64), ("timm", "convnext_atto", 64),
    ("timm", "ghostnet_100", 64), ("timm", "ese_vovnet19b_dw", 64), ("timm", "mobileone_s0", 64),
    ("timm", "lcnet_050", 64), ("timm", "dla34", 64), ("timm", "resmlp_12_224", 224), ("timm", "mixer_s32_224", 224),
    ("timm", "vit_tiny_patch16_224", 224), ("timm", "deit_tiny_patch16_224", 224),
    ("torchvision", "shufflenet_v2_x0_5", 64), ("torchvision", "squeezenet1_1", 64), ("torchvision", "googlenet", 96),
    ("torchvision", "vgg11_bn", 64), ("torchvision", "mnasnet0_5", 64),
    ("torchvision", "lraspp_mobilenet_v3_large", 64),
    ("transformers", "bert", 0), ("transformers", "distilbert", 0), ("transformers", "vit", 64),
)  # fmt: skip


def examine(piece: list[Any]) -> Record:
    """piece: (library, name, pixels). Counts, shares, seconds of each step, and the error of a step that fails."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    record: Record = {"seconds": {}, "errors": {}}

    def step(name: str, action: Callable[[], Any]) -> Any:
        started = time.process_time()
        try:
            return action()
        except Exception as error:
            record["errors"][name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return None
        finally:
            record["seconds"][name] = round(time.process_time() - started, 1)

    model, task = step("build", lambda: _network(*piece)) or (None, None)
    if model is None:
        return record
    step("graph", lambda: _groups(model, task, record))
    step("torch-pruning", lambda: _peer(model, task, record))
    pruned = step("prune", lambda: _prune(model, task, record))
    if pruned is not None:
        if piece[1] in AS_BY_DEFAULT:
            step("prune in order", lambda: _prune_in_order(model, task))
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / "float.tflite", Path(folder) / "int8.tflite"]
            step("tflite", lambda: _float_file(pruned, task, record, files[0]))
            step("int8", lambda: _int8_file(pruned, task, record, files[1]))
            if not record["errors"]:
                step("time", lambda: _time(files, task, record))
    return record


def _network(library: str, name: str, pixels: int) -> tuple[Any, Any]:
    """(the network with random weights, a task of random samples for it)."""
    import torch

    from pfray.measure.metrics import accuracy
    from pfray.task import Split, Task, top1

    _torchvision_operators()  # transformers imports torchvision too
    output: str | None = None
    samples = ENOUGH if name in AS_BY_DEFAULT else SAMPLES
    inputs: Any = torch.randn(samples, 3, pixels, pixels)
    if library == "transformers":
        output = "logits"
        model = _transformer(name, pixels)
        if name != "vit":
            ids = torch.randint(1, 1000, (SAMPLES, 32))
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        model = _vision_network(library, name, pixels)
        output = "out" if name.startswith("lraspp") else None
    targets = torch.randint(10, (samples, pixels, pixels) if output == "out" else (samples,))
    split = Split(inputs, targets)
    task = Task(name, split, split, split, 10, output=output, score=accuracy if output == "out" else top1)
    _as_if_trained(model, task)
    return model.eval(), task


def _as_if_trained(model: Any, task: Any) -> None:
    """Batch norms with random scales and with statistics of the data, and no layer of zeros alone. timm begins blocks
    with a scale of 0 and some heads with weights of 0, which a converter leaves out, and without statistics the
    activations of deep networks vanish."""
    import torch

    from pfray.training.batch_norm import batch_norms, reestimate_batch_norm

    for norm in batch_norms(model):
        if norm.weight is not None:
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(norm.bias, 0.0, 0.2)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and not layer.weight.any():
            torch.nn.init.kaiming_uniform_(layer.weight)
    reestimate_batch_norm(model, task, SAMPLES, "float32")


def _vision_network(library: str, name: str, pixels: int) -> Any:
    if library == "timm":
        import timm

        sized: dict[str, Any] = {"img_size": pixels} if "vit" in name or "deit" in name else {}
        return timm.create_model(name, num_classes=10, **sized)
    import torchvision

    if name.startswith("lraspp"):
        return torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=10)
    more: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    return torchvision.models.get_model(name, num_classes=10, **more)


def _transformer(name: str, pixels: int) -> Any:
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_labels": 10,
    }  # fmt: skip
    if name == "bert":
        config = transformers.BertConfig(vocab_size=1000, intermediate_size=512, **sizes)
        return transformers.BertForSequenceClassification(config)
    if name == "distilbert":
        sizes = {"dim": 128, "n_layers": 4, "n_heads": 4, "hidden_dim": 512, "num_labels": 10}
        return transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(vocab_size=1000, **sizes))
    vision = transformers.ViTConfig(image_size=pixels, patch_size=8, intermediate_size=512, **sizes)
    return transformers.ViTForImageClassification(vision)


def _torchvision_operators() -> None:
    """Without them torchvision's wheels cannot be imported beside a CPU-only torch. Classifiers do not call them."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    if not hasattr(torch.ops.torchvision, "nms"):
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


_kept: list[Any] = []


def _groups(model: Any, task: Any, record: Record) -> None:
    import numpy as np

    from pfray.pruning.channels.keep_ratios import graph_of

    graph = graph_of(model, task)
    whole = graph.costs(graph.units)["macs"]
    kept = np.maximum(1, np.round(KEPT * graph.units))
    record.update(macs=whole, groups=len(graph.groups), share=1 - graph.costs(kept)["macs"] / whole)


def _peer(model: Any, task: Any, record: Record) -> None:
    """Share of the MACs that Torch-Pruning's pruner takes out, as its documentation uses it."""
    import copy

    import torch
    import torch_pruning as tp
    from torch import nn

    from pfray.measure.cost import total_macs
    from pfray.nn.inputs import tensors
    from pfray.task import example_input

    clone, example = copy.deepcopy(model), example_input(task)
    before = total_macs(clone, example)
    last = [module for module in clone.modules() if isinstance(module, nn.Linear) and module.out_features == 10]
    attentions = [(module, *found) for module in clone.modules() if (found := _heads_of(module)) is not None]
    pruner = tp.pruner.MagnitudePruner(
        clone, example, tp.importance.MagnitudeImportance(p=1), pruning_ratio=1 - KEPT, ignored_layers=last,
        num_heads={layer: heads for _, layers, heads in attentions for layer in layers},
        output_transform=lambda out: sum(x.sum() for x in tensors(out)),
    )  # fmt: skip
    pruner.step()
    for module, layers, _ in attentions:
        # Sizes that the forward pass reads, under the names of timm's and transformers' attentions.
        heads, width = pruner.num_heads[layers[0]], layers[0].out_features * len(layers) // 3
        sizes = {"heads": ("num_heads", "num_attention_heads", "n_heads"), "each": ("head_dim", "attention_head_size"),
                 "all": ("attn_dim", "all_head_size", "dim")}  # fmt: skip
        for kind, names in sizes.items():
            for name in names:
                if hasattr(module, name):
                    setattr(module, name, {"heads": heads, "each": width // heads, "all": width}[kind])
    with torch.no_grad():
        record["peer share"] = 1 - total_macs(clone, example) / before


def _heads_of(module: Any) -> tuple[list[Any], int] | None:
    """(layers that give queries, keys and values, number of heads) of an attention; None for other modules."""
    for names in (("qkv",), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj")):
        for heads in ("num_heads", "num_attention_heads", "n_heads"):
            if hasattr(module, heads) and all(hasattr(module, name) for name in names):
                return [getattr(module, name) for name in names], getattr(module, heads)
    return None


def _half(model: Any, task: Any) -> tuple[Any, Any]:
    """(the pruner, its uniform plan for half of the MACs)."""
    from learners.channel_pruned import ChannelPruned, Settings
    from pfray.measure.cost import total_macs
    from pfray.task import example_input

    algorithm = ChannelPruned(model, task, Settings(images=None if len(task.train) == ENOUGH else SAMPLES))
    return algorithm, algorithm.space().uniform({"macs": 0.5 * total_macs(model, example_input(task))})


def _prune_in_order(model: Any, task: Any) -> None:
    algorithm, plan = _half(model, task)
    algorithm.finish(plan)


def _prune(model: Any, task: Any, record: Record) -> Any:
    """The network at half of its MACs."""
    from pfray.measure.cost import total_macs
    from pfray.task import example_input

    algorithm, plan = _half(model, task)
    space, whole = algorithm.space(), total_macs(model, example_input(task))
    pruned = algorithm.compress(plan).model
    predicted, counted = space.costs(plan)["macs"], total_macs(pruned, example_input(task))
    record.update(pruned=counted / whole, exact=bool(predicted == counted))
    return pruned.cpu().eval()


def _float_file(model: Any, task: Any, record: Record, path: Path) -> None:
    from pfray.workflow.finalize import write_checked

    record["float distance"] = write_checked(model, task, path, COMPARED)["distance"]


def _time(files: Sequence[Path], task: Any, record: Record) -> None:
    """How many times faster the int8 file is, on one thread."""
    from pfray import bench
    from pfray.export.tflite import convert
    from pfray.task import example_input

    full, int8 = bench.latency_ms(files, rounds=15, example=convert.arrays(example_input(task)))
    record.update({"float ms": full, "int8 faster": full / int8})


def _int8_file(model: Any, task: Any, record: Record, path: Path) -> None:
    from learners.litert_quant import LitertQuant, Settings
    from pfray.workflow.finalize import write_checked

    algorithm = LitertQuant(model, task, Settings(images=None if len(task.train) == ENOUGH else SAMPLES))
    plan = dict.fromkeys(algorithm.space().names, 8.0)
    checked = write_checked(algorithm.finish(plan).model, task, path, COMPARED)
    record.update({"int8 distance": checked["distance"], "int8 rounding": checked["rounding"]})


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if missing := [name for name in ("timm", "torchvision", "transformers") if importlib.util.find_spec(name) is None]:
        print(f"{NAME}: skipped, {missing[0]} is missing. Remedy: make test-models, and PYTHONPATH=.models")
        return SKIPPED
    chosen = [list(network) for network in NETWORKS if not options.only or network[1] in options.only]
    records = run_all(examine, chosen, options.records, options.processes)
    print(table(records, options.markdown))
    for record in records:
        for step, error in record["errors"].items():
            print(f"{record['piece'][1]}, {step}: {error}")
    for value, unit, goal in judged(records):
        close(NAME, value, unit, goal)
    return 0


def judged(records: Sequence[Record]) -> list[tuple[float, str, str]]:
    """(value, unit, goal) of every goal. A network without a share, such as one without a group, is behind its peer."""
    ships = sum("float distance" in record for record in records)  # files that fail their check have none
    ships_int8 = sum("int8 distance" in record for record in records)
    slowest = max((seconds for record in records for seconds in record["seconds"].values()), default=0.0)
    # Counts are rounded, of few channels to other shares.
    behind = sum(record.get("share", 0.0) < record.get("peer share", 0.0) - ROUNDED for record in records)
    return [
        (ships, "networks as .tflite", SHIPPED),
        (ships_int8, "networks as int8", SHIPPED_INT8),
        (slowest, "processor seconds, slowest step", SLOWEST),
        (sum(record.get("exact") is False for record in records), "networks of other MACs than predicted", INEXACT),
        (behind, "networks of which Torch-Pruning takes out more", BEHIND),
    ]


COLUMNS = {
    "MMACs": ("macs", "7.1f", 1e-6), "groups": ("groups", "6.0f", 1.0), "can go": ("share", "7.1%", 1.0),
    "peer": ("peer share", "6.1%", 1.0), "to": ("pruned", "5.2f", 1.0), "float": ("float distance", "8.1e", 1.0),
    "int8": ("int8 distance", "7.3f", 1.0), "its own": ("int8 rounding", "7.3f", 1.0),
    "faster": ("int8 faster", "6.2f", 1.0),
}  # fmt: skip


def table(records: Sequence[Record], markdown: bool) -> str:
    """A row a network. Its own: the int8 model's distance from its own outputs without rounding."""
    rows = [["network, pixels", *COLUMNS, "graph, pruning, .tflite, int8 (s)"]]
    for record in records:
        _, name, pixels = record["piece"]
        values = [(record.get(key), form, scale) for key, form, scale in COLUMNS.values()]
        cells = ["-" if value is None else format(value * scale, form).strip() for value, form, scale in values]
        seconds = [f"{record['seconds'].get(step, 0):.1f}" for step in ("graph", "prune", "tflite", "int8")]
        rows.append([f"{name}, {pixels}" if pixels else name, *cells, ", ".join(seconds)])
    if markdown:
        rows.insert(1, ["---"] * len(rows[0]))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_zoo", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="names of networks")
    parser.add_argument("--processes", type=int, default=1, help="networks at a time, each on one thread (default 1)")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument(
        "--records", type=Path, default=ROOT / "runs" / "model_zoo.jsonl", help="finished networks, continued from"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
