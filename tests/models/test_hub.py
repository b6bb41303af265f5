"""Models of timm and transformers by name, without a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import torchvision_ops
from pfray.config.registry import find_function
from pfray.errors import ConfigError
from pfray.models import _hub
from pfray.nn.build import build

KNOWN = {"num_outputs": 5, "in_channels": 1}


@pytest.fixture
def timm() -> Any:
    torchvision_ops.load()
    return pytest.importorskip("timm")


@pytest.fixture
def transformers() -> Any:
    torchvision_ops.load()
    return pytest.importorskip("transformers")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(_hub.urllib.request, "getproxies", dict)
    monkeypatch.setattr(_hub.socket, "create_connection", refuse)


@pytest.fixture
def vit(transformers: Any, tmp_path: Path) -> Path:
    """The folder of a small configuration, as transformers saves it."""
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    config.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def made(name: str, notes: list[str] | None = None, **settings: Any) -> Any:
    return build("model", find_function("model", name), KNOWN, settings, None if notes is None else notes.append)


def refusal(name: str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        made(name, **settings)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(f"model: {name}")
    assert text.count("Remedy") == 1
    return text


def test_a_timm_model_is_built_for_the_task_with_its_settings(timm):
    notes: list[str] = []
    model = made("timm:mobilenetv3_small_050", notes, drop_rate=0.3)
    assert type(model).__name__ == "MobileNetV3"
    assert (model.classifier.out_features, model.conv_stem.in_channels, model.drop_rate) == (5, 1, 0.3)
    assert notes == ["model: its function is given num_classes=5, in_chans=1 from the task"]
    assert _hub.remarks_on(model) == [
        "model: timm:mobilenetv3_small_050 has random weights; pretrained: true gives trained ones"
    ]
    assert made("timm:mobilenetv3_small_050", num_classes=7, in_chans=3).conv_stem.in_channels == 3


def test_a_name_that_timm_does_not_have_is_refused_with_the_nearest(timm):
    text = refusal("timm:mobilenetv3_smal_100")
    assert "timm has no model 'mobilenetv3_smal_100'. Did you mean 'mobilenetv3_small_100'? Remedy" in text


def test_timms_own_factory_stays_an_import_path(timm):
    model = made("timm:create_model", model_name="resnet18")
    assert (model.fc.out_features, model.conv1.in_channels) == (5, 1)


def test_pretrained_weights_that_cannot_be_fetched_are_one_line(timm, offline):
    text = refusal("timm:resnet18", pretrained=True)
    assert "cannot be fetched, and is not in the cache (" in text
    assert text.endswith("Remedy: check the name and the network, or pretrained: false with model.weights")


def test_a_repository_that_cannot_be_fetched_is_one_line(transformers, offline):
    assert "cannot be fetched, and is not in the cache (" in refusal("hf:nobody/nothing")


def test_a_folder_with_a_configuration_gives_random_weights_if_asked(vit):
    model = made(f"hf:{vit}", pretrained=False)
    assert type(model).__name__ == "ViTForImageClassification"
    assert (model.classifier.out_features, model.config.num_channels) == (5, 1)
    assert model(torch.zeros(2, 1, 16, 16)).logits.shape == (2, 5)
    assert made(f"hf:{vit}", pretrained=False, hidden_size=32).classifier.in_features == 32
    assert "hf:path/of/its/folder" in refusal(f"hf:{vit}")


def test_pretrained_weights_are_loaded_and_what_does_not_fit_is_said(transformers, vit):
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(vit)
    saved = transformers.AutoModelForImageClassification.from_config(config)
    saved.half().save_pretrained(vit)
    model = made(f"hf:{vit}", num_channels=3)
    name = "vit.embeddings.cls_token"
    assert model.state_dict()[name].dtype == torch.float32
    assert torch.equal(model.state_dict()[name], saved.state_dict()[name].float())
    (remark,) = _hub.remarks_on(model)
    assert "random, as they are new or of another shape: classifier.bias, classifier.weight. The teacher" in remark
    (remark,) = _hub.remarks_on(made(f"hf:{vit}", num_labels=3, num_channels=3))
    assert "has pretrained weights. The teacher is trained from them; teacher.epochs: 0 takes them" in remark


def test_a_text_model_classifies_sequences_and_others_are_refused(transformers, tmp_path):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertConfig(**size).save_pretrained(tmp_path / "bert")
    model = made(f"hf:{tmp_path / 'bert'}", pretrained=False)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.num_labels == 5
    transformers.Wav2Vec2Config().save_pretrained(tmp_path / "wave")
    text = refusal(f"hf:{tmp_path / 'wave'}", pretrained=False)
    assert "classifies neither images nor texts with a Wav2Vec2Config" in text


def test_a_setting_that_the_configuration_does_not_have_is_refused(vit):
    text = refusal(f"hf:{vit}", pretrained=False, hidden_szie=3)
    assert "unknown setting 'hidden_szie'. Did you mean 'hidden_size'? Remedy: a setting of transformers' ViT" in text


def test_a_folder_that_is_not_there_is_not_looked_for_in_the_hub(transformers):
    assert "no folder './nothing'. Remedy: check the path" in refusal("hf:./nothing")


@pytest.mark.parametrize(("name", "package", "extra"), [
    ("timm:resnet18", "timm", "timm"), ("hf:a/b", "transformers", "hf"),
])  # fmt: skip
def test_a_library_that_is_not_installed_is_named_with_the_extra(monkeypatch, name, package, extra):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == package else find_spec(wanted))
    assert refusal(name) == f"model: {name}: {package} is not installed. Remedy: pip install pfray[{extra}]"


def test_a_library_that_does_not_import_is_one_line(monkeypatch):
    def fail(_: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    pytest.importorskip("timm")
    monkeypatch.setattr(importlib, "import_module", fail)
    text = refusal("timm:resnet18")
    assert "timm cannot be imported (RuntimeError: operator torchvision::nms does not exist). Remedy" in text
