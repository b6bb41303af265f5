"""What users have, as splits."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

from pfray.data._given import PlainBatch, held_out, split_of
from pfray.data._stream import Stream
from pfray.errors import DataError
from pfray.task import Split, Task, as_split


class Text(nn.Module):
    def forward(self, input_ids, attention_mask=None):
        return input_ids


X, Y = torch.arange(24.0).reshape(12, 2), torch.arange(12) // 4


def given(data: object, adapt: object = None, model: nn.Module | None = None):
    return split_of("train", data, adapt, model or nn.Linear(2, 2), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [
    (X, Y), (X.numpy(), Y.numpy()), TensorDataset(X, Y), DataLoader(TensorDataset(X, Y), 4, shuffle=True),
], ids=["tensors", "arrays", "data set", "loader"])  # fmt: skip
def test_tensors_are_kept_in_memory_and_shuffled(data):
    split = given(data)

    assert isinstance(split, Split)
    assert sorted(split.inputs[:, 0].tolist()) == X[:, 0].tolist()
    assert (split.inputs[:, 0] // 8).long().tolist() == split.targets.tolist()
    assert len(set(split.head(6).targets.tolist())) == 3


@pytest.mark.parametrize("settings", [
    {"sampler": RandomSampler(range(12), replacement=True, num_samples=24), "batch_size": 4},
    {"batch_sampler": BatchSampler(WeightedRandomSampler(torch.ones(12), 24), 4, False)},
], ids=["sampler", "batch sampler"])  # fmt: skip
def test_tensors_of_a_loader_with_a_sampler_of_its_own_are_read_by_it(settings):
    split = given(DataLoader(TensorDataset(X, Y), **settings))
    assert isinstance(split, Stream)
    assert sum(len(targets) for batches in split.epochs(4, [0]) for _, targets in batches) == 24


def test_several_inputs_of_a_tensor_data_set_are_a_tuple():
    split = given(TensorDataset(X, 2 * X, Y))
    assert isinstance(split.inputs, tuple)
    assert torch.equal(split.inputs[1], 2 * split.inputs[0])


@pytest.mark.parametrize("data", [
    [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    [(x, int(y)) for x, y in zip(X[:2], Y[:2], strict=True)],
    DataLoader([(x, int(y)) for x, y in zip(X, Y, strict=True)], 4),
], ids=["list", "list of two", "loader"])  # fmt: skip
def test_samples_one_by_one_are_read_when_needed(data):
    split = given(data)
    assert isinstance(split, Stream)
    inputs, targets = next(split.batches(2))
    assert inputs.shape == (2, 2)
    assert targets.dtype == torch.int64


def test_a_hugging_face_data_set_gives_the_models_arguments():
    columns = {"input_ids": [[1, 2], [3, 4], [5, 6]], "idx": [0, 1, 2], "text": ["a", "b", "c"], "label": [0, 1, 0]}
    inputs, targets = next(given(datasets.Dataset.from_dict(columns), model=Text()).batches(3))

    assert set(inputs) == {"input_ids"}
    assert inputs["input_ids"].dtype == torch.int64
    assert sorted(targets.tolist()) == [0, 0, 1]


def test_one_input_of_another_name_is_the_models_only_one():
    inputs, _ = PlainBatch(("x",), others=False)({"image": X, "label": Y})
    assert torch.equal(inputs, X)


class Hub(nn.Module):
    def forward(self, input_ids, **options):
        return input_ids


def test_a_model_of_any_keywords_gets_those_that_it_names():
    for columns, wanted in (({"input_ids": [[1], [2]], "idx": [0, 1]}, {"input_ids"}), ({"a": [[1], [2]]}, {"a"})):
        data = datasets.Dataset.from_dict({**columns, "label": [0, 1]})
        assert set(next(given(data, model=Hub()).batches(2))[0]) == wanted


def test_parts_of_a_sample_are_arguments_and_lists_of_ones_own_are_values():
    pairs = [((x, 2 * x), int(y)) for x, y in zip(X, Y, strict=True)]
    inputs, _ = next(given(pairs).batches(3))
    assert isinstance(inputs, tuple)
    assert torch.equal(inputs[1], 2 * inputs[0])

    def listed(samples):
        return [x for x, _ in samples], torch.tensor([y for _, y in samples])

    images = [(x[:1], int(y)) for x, y in zip(X, Y, strict=True)]
    inputs, _ = next(given(DataLoader(images, 4, collate_fn=listed)).batches(3))
    assert isinstance(inputs, list)
    assert len(inputs) == 3


def test_numbers_of_numpy_and_python_become_float32():
    _, targets = PlainBatch()((X, torch.zeros(12, dtype=torch.float64)))
    assert targets.dtype == torch.float32


@pytest.mark.parametrize(("data", "words"), [
    ("data/train", "is no data"), (7, "is no data"), (X, "a Tensor"),
    ([X, Y], "a list of 2 tensors"), ((X, X, Y), "a tuple of 3 tensors"), ({"x": X, "y": Y}, "a dict of 2 tensors"),
    (datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": [1]})}), r"Remedy: train=data\['train'\]"),
])  # fmt: skip
def test_what_is_no_data_is_one_line(data, words):
    with pytest.raises(DataError, match=words):
        given(data)


@pytest.mark.parametrize(("batch", "words"), [
    (X, "data: a batch is float32 .12, 2., inputs alone, without targets"),
    ((X,), "a batch is a tuple of .0. float32 .12, 2., inputs alone"),
    ({"a": X, "b": X}, "none is named labels, label"),
    ({"a": X, "b": X, "label": Y}, "the model takes input_ids, attention_mask"),
])  # fmt: skip
def test_batches_of_another_form_ask_for_adapt(batch, words):
    with pytest.raises(DataError, match=words) as caught:
        PlainBatch(("input_ids", "attention_mask"), others=False)(batch)
    assert "adapt=" in str(caught.value)


def test_a_tenth_is_held_out_with_the_classes_in_proportion():
    x, y = np.zeros((100, 2), np.float32), np.repeat(np.arange(5), 20)
    train, validation = held_out(given((x, y)), 0)

    assert (len(train), len(validation)) == (90, 10)
    assert np.bincount(validation.targets).tolist() == [2] * 5


def test_a_tenth_of_a_data_set_is_held_out_by_index():
    whole = given([(x, int(y)) for x, y in zip(X, Y, strict=True)])
    train, validation = held_out(whole, 0)

    seen = [torch.cat([batch[0][:, 0] for batch in part.batches(3)]).tolist() for part in (train, validation)]
    assert sorted(seen[0] + seen[1]) == X[:, 0].tolist()
    assert len(seen[1]) == 1


def test_a_task_takes_loaders_as_splits():
    samples = [({"x": x, "extra": 2 * x, "label": int(y)}) for x, y in zip(X, Y, strict=True)]
    split = as_split("train", DataLoader(samples, 4))
    assert isinstance(split, Stream)
    assert set(Task("mine", split, split, split).train.head(2).inputs) == {"x", "extra"}
    adapted = as_split("train", samples, lambda batch: (batch["x"], batch["label"])).head(2)
    assert adapted.inputs.shape == (2, 2)
    assert isinstance(as_split("train", (X, Y)), Split)
