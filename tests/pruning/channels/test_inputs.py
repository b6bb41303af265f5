"""Channel graphs of models with several inputs, tokens, and outputs of any form."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfray.measure.cost import count_params
from pfray.nn.inputs import Inputs, call, map_tensors, tensors
from pfray.pruning.channels.graph import channel_graph
from pfray.pruning.channels.proof import Proof
from pfray.pruning.channels.prune import prune
from tests.zoo import conv, head


class Text(nn.Module):
    """The mean over all tokens that the mask has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.one, self.two, self.last = (
            nn.Embedding(50, 12), nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(12, 3),
        )  # fmt: skip

    def forward(self, ids: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        x = self.two(F.relu(self.one(self.embed(ids)))) * scale
        weights = torch.ones_like(ids) if mask is None else mask
        return {"logits": self.last((x * weights[..., None]).sum(1) / weights.sum(1, keepdim=True))}


@dataclasses.dataclass
class Answer:
    boxes: Tensor
    classes: list[Tensor]


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.boxes, self.classes = conv(3, 8), head(8, 4), head(8, 2)

    def forward(self, first: Tensor, second: Tensor) -> Answer:
        x = (self.body(first) - self.body(second)).abs()
        return Answer(self.boxes(x), [self.classes(x)])


class Images(nn.Module):
    """A list of images, of sizes of their own, as torchvision's detectors take them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv(3, 8), head(8)

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        return [self.head(self.body(image[None])) for image in images]


IDS = torch.randint(50, (1, 7), generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[type[nn.Module], Inputs, list[tuple[str, int]]]] = {
    "tokens": (Text, IDS, [("embed", 12), ("one", 16), ("two", 12)]),
    "mapping": (Text, {"ids": IDS, "mask": torch.ones(1, 7), "scale": 0.5}, [("embed", 12), ("one", 16), ("two", 12)]),
    "tuple": (Siamese, (torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)), [("body.0", 8)]),
    "list": (Images, [torch.randn(3, 8, 9)], [("body.0", 8)]),
}


@pytest.mark.parametrize("case", CASES)
def test_inputs_and_outputs_of_any_form_have_groups_with_exact_costs(case):
    make, inputs, groups = CASES[case]
    torch.manual_seed(0)
    model = make().eval()
    graph = channel_graph(model, inputs)
    assert [(group.name, group.units) for group in graph.groups] == groups
    pruned = copy.deepcopy(model)
    prune(pruned, graph, {name: range(units // 2) for name, units in groups})
    costs = graph.costs([units // 2 for _, units in groups])
    assert costs["params"] == count_params(pruned)[0]
    assert costs["macs"] == Proof(pruned, inputs).macs
    before, after = tensors(call(model, inputs)), tensors(call(pruned, inputs))
    assert [output.shape for output in after] == [output.shape for output in before]


def test_costs_of_a_text_model_are_those_worked_out_by_hand():
    graph = channel_graph(Text().eval(), IDS)
    # 7 tokens in two layers, one pooled vector in the last; a lookup multiplies nothing.
    assert graph.costs([12, 16, 12]) == {
        "macs": 7 * (12 * 16 + 16 * 12) + 12 * 3, "params": 50 * 12 + 12 * 16 + 16 + 16 * 12 + 12 + 12 * 3 + 3
    }  # fmt: skip
    assert graph.costs([5, 4, 3])["macs"] == 7 * (5 * 4 + 4 * 3) + 3 * 3


def test_tokens_keep_their_values_and_type_and_floats_are_drawn():
    inputs = {"ids": IDS, "mask": torch.ones(1, 7), "scale": 0.5}
    proof = Proof(Text(), inputs)
    assert torch.equal(proof.inputs["ids"], IDS)
    assert proof.inputs["ids"].dtype == torch.int64
    assert proof.inputs["scale"] == 0.5
    assert not torch.equal(proof.inputs["mask"], inputs["mask"])


class Cast(Text):
    """Tokens that come as floating-point numbers, and are no indices if they are drawn."""

    def forward(self, ids: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Any:
        return super().forward(ids.long(), mask, scale)


def test_a_model_that_fails_on_random_numbers_is_proven_on_the_examples_own():
    inputs = IDS.float()
    assert torch.equal(Proof(Cast(), inputs).inputs, inputs)
    assert [group.name for group in channel_graph(Cast().eval(), inputs).groups] == ["embed", "one", "two"]


def test_the_example_is_left_as_it_is():
    inputs = (torch.randn(1, 3, 8, 8, requires_grad=True), torch.randn(1, 3, 8, 8))
    before = map_tensors(lambda x: x.detach().clone(), inputs)
    channel_graph(Siamese().eval(), inputs)
    assert all(torch.equal(one, other) for one, other in zip(inputs, before, strict=True))
    assert inputs[0].grad is None


class Masked(Text):
    """It asks whether the mask is all true, as transformers does to choose a kernel."""

    def forward(self, ids: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Any:
        return super().forward(ids, None if mask is not None and bool(mask.all()) else mask, scale)


class Peeking(Text):
    """It asks whether an embedding is positive."""

    def forward(self, ids: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Any:
        return super().forward(ids, mask, 1.0 if bool((self.embed(ids) > 0).any()) else 2.0)


def test_values_of_masks_may_be_read_and_those_that_depend_on_weights_may_not():
    inputs = {"ids": IDS, "mask": torch.ones(1, 7, dtype=torch.int64)}
    assert [group.name for group in channel_graph(Masked().eval(), inputs).groups] == ["embed", "one", "two"]
    peeking = channel_graph(Peeking().eval(), inputs)
    assert not peeking.groups
    assert "reads the values of tensors" in peeking.skipped["one"]


class Routed(nn.Module):
    """The first token says which layer reads the embeddings, or how often one does."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.embed = way, nn.Embedding(50, 12)
        self.one, self.two = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).mean(1)
        if self.way == "branch":
            return self.one(x) if int(ids[0, 0]) > 3 else self.two(x)
        if self.way == "any":
            return self.one(x) if (ids[:, 0] > 3).any() else self.two(x)
        return torch.stack([self.one(x) for _ in range(1 + int(ids.max()))]).mean(0)


@pytest.mark.parametrize("first", [2, 40])
@pytest.mark.parametrize("way", ["branch", "any"])
def test_layers_that_vary_with_the_tokens_have_no_groups(way, first):
    ids = torch.tensor([[first, 7, 30, 1, 12]])
    graph = channel_graph(Routed(way).eval(), ids)
    assert not graph.groups
    assert set(graph.skipped.values()) == {
        "the model's forward pass reads the values of tensors, so that its layers may vary"
    }


def test_a_number_of_steps_that_tokens_give_keeps_no_channel_from_going():
    graph = channel_graph(Routed("steps").eval(), torch.tensor([[4, 0, 3]]))
    assert [(group.name, group.units) for group in graph.groups] == [("embed", 12)]


class NotTrainable(nn.Module):
    """Its training wants targets."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv(3, 8), head(8)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.training and targets is None:
            raise ValueError("targets are missing")
        return self.head(self.body(x))


def test_a_training_mode_that_cannot_be_tried_is_told_once(caplog):
    graph = channel_graph(NotTrainable().eval(), torch.randn(1, 3, 8, 8))
    assert [group.name for group in graph.groups] == ["body.0"]
    assert [record.getMessage() for record in caplog.records] == [
        "NotTrainable: pruned networks are tried in evaluation mode only, since the model itself does not run in "
        "training mode (targets are missing)"
    ]
    caplog.clear()
    channel_graph(Siamese().eval(), (torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)))
    assert not caplog.records
