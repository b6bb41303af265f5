"""Networks of timm, torchvision and transformers with random weights, as if trained, and random data for them."""

from __future__ import annotations

from typing import Any

# Samples of random data.
SAMPLES = 64
# Networks that are calibrated with the default settings, which have so many samples to take from, and that are pruned
# layer by layer too, as the chosen plan of a run is: every step as a user has it.
AS_BY_DEFAULT, ENOUGH = ("resnet50", "vit_tiny_patch16_224"), 1000

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


def network(library: str, name: str, pixels: int) -> tuple[Any, Any]:
    """(the network with random weights, a task of random samples for it)."""
    import torch

    from benchmarks import torchvision_ops
    from pfray.measure.metrics import accuracy
    from pfray.task import Split, Task, top1

    torchvision_ops.load()  # transformers imports torchvision too
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
