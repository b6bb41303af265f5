from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pfray.errors import DataError, TrainingFailed
from pfray.nn.inputs import floats
from pfray.training import cached_views
from pfray.training.cached_views import CachedViews, bytes_of_views, fingerprint
from tests.training.toy import net

INPUTS = torch.randn(6, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Counted:
    """A teacher's answers, counted."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher, self.calls = teacher.eval(), 0

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.teacher(inputs)


@pytest.fixture
def teacher() -> Counted:
    return Counted(net())


def opened(folder: Path, teacher: Counted, task, **changes) -> CachedViews:
    options = {"batch_size": 4, "precision": "float32", "rank": 0, "world": 1, **changes}
    return CachedViews(folder, teacher.teacher, task, **options)


def epoch(views: CachedViews, teacher: Counted, view: int, batches: Tensor) -> list[Tensor]:
    views.begin(view)
    labels = [views.labels(inputs, lambda inputs=inputs: teacher(inputs)) for inputs in batches]
    views.end()
    return labels


def half(teacher: Counted, batches: Tensor) -> list[Tensor]:
    """The teacher's logits in float16."""
    with torch.no_grad():
        return [teacher.teacher(inputs).half().float() for inputs in batches]


def same(labels: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(labels, expected, strict=True))


def test_kept_labels_are_the_teachers_logits_in_float16_and_the_teacher_is_asked_once(teacher, task, tmp_path):
    views = opened(tmp_path, teacher, task)
    expected = half(teacher, INPUTS[:3]), half(teacher, INPUTS[3:])
    for _ in range(2):
        assert same(epoch(views, teacher, 0, INPUTS[:3]), expected[0])
        assert same(epoch(views, teacher, 1, INPUTS[3:]), expected[1])
        assert teacher.calls == 6
    # Another training of the run reads the same files.
    assert same(epoch(opened(tmp_path, teacher, task), teacher, 1, INPUTS[3:]), expected[1])
    assert teacher.calls == 6
    assert all(label.dtype == torch.float32 for label in expected[0])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_large_views_are_kept_in_several_files(teacher, task, tmp_path, monkeypatch):
    monkeypatch.setattr(cached_views, "PART", 2 * 4 * 40 * 2)  # two batches of four samples' forty logits
    views = opened(tmp_path, teacher, task)
    epoch(views, teacher, 0, INPUTS[:5])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert len(views.part) == 2  # of the last batch: what it read, and one tensor of labels
    assert same(epoch(views, teacher, 0, INPUTS[:5]), half(teacher, INPUTS[:5]))
    assert teacher.calls == 5


def test_a_damaged_file_is_made_again(teacher, task, tmp_path):
    epoch(opened(tmp_path, teacher, task), teacher, 0, INPUTS)
    (file,) = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-3] + b"abc")
    assert same(epoch(opened(tmp_path, teacher, task), teacher, 0, INPUTS), half(teacher, INPUTS))
    assert teacher.calls == 12
    assert file.read_bytes()[-3:] == whole[-3:]


def test_labels_of_other_inputs_are_computed_again_in_another_session(teacher, task, tmp_path):
    epoch(opened(tmp_path, teacher, task), teacher, 0, INPUTS)
    changed = INPUTS.clone()
    changed[2] = changed[2].flip(-1)
    views = opened(tmp_path, teacher, task)
    assert same(epoch(views, teacher, 0, changed), half(teacher, changed))
    assert teacher.calls == 7
    epoch(views, teacher, 0, changed)
    assert teacher.calls == 7


def test_data_that_change_within_a_session_are_refused(teacher, task, tmp_path):
    views = opened(tmp_path, teacher, task)
    epoch(views, teacher, 0, INPUTS[:3])
    with pytest.raises(DataError, match=r"task toy: .* other inputs when a view .* Remedy: distill.cached_views=0"):
        epoch(views, teacher, 0, INPUTS[3:])


@pytest.mark.parametrize("other", [{"batch_size": 5}, {"precision": "bf16"}, {"rank": 1, "world": 2}])
def test_a_training_that_reads_other_batches_has_files_of_its_own(teacher, task, tmp_path, other):
    epoch(opened(tmp_path, teacher, task), teacher, 0, INPUTS)
    epoch(opened(tmp_path, teacher, task, **other), teacher, 0, INPUTS)
    assert teacher.calls == 12
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_another_teachers_labels_are_not_read(teacher, task, tmp_path):
    epoch(opened(tmp_path, teacher, task), teacher, 0, INPUTS)
    other = Counted(net(1))
    assert same(epoch(opened(tmp_path, other, task), other, 0, INPUTS), half(other, INPUTS))


def test_outputs_beyond_float16_are_refused(teacher, task, tmp_path):
    views = opened(tmp_path, teacher, task)
    views.begin(0)
    with pytest.raises(TrainingFailed, match=r"reach 7e\+04, and .* up to 65504. Remedy: distill.cached_views=0"):
        views.labels(INPUTS[0], lambda: torch.full((4, 40), 7e4))
    hidden = torch.full((4, 40), -torch.inf)  # classes that a model rules out
    assert torch.equal(views.labels(INPUTS[0], lambda: hidden), hidden)


class Two(nn.Module):
    """Outputs as a dictionary: logits for each position, and numbers that are no floats."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor | None]:
        logits = self.layer(x)
        return {"logits": logits, "best": logits.argmax(-1), "cache": None}


def test_outputs_of_several_tensors_keep_their_structure(task, tmp_path):
    teacher = Counted(Two())
    views = opened(tmp_path, teacher, task)
    for _ in range(2):
        (labels,) = epoch(views, teacher, 0, INPUTS[:1])
        expected = floats(teacher(INPUTS[0]))
        assert torch.equal(labels["logits"], expected["logits"].half().float())
        assert torch.equal(labels["best"], expected["best"])
        assert labels["cache"] is None
    assert teacher.calls == 3  # one by the views, two by this test


def test_the_size_is_two_bytes_for_each_logit(task):
    assert bytes_of_views(net(), task, 3) == 2 * 40 * 40 * 3
    selected = replace(task, output="best", num_outputs=None)
    assert bytes_of_views(Two(), selected, 1) == 8 * 1 * 8 * 40  # int64 of 1 x 8 positions


def test_a_fingerprint_sees_a_changed_bit_and_another_order():
    whole = INPUTS[0]
    assert torch.equal(fingerprint(whole), fingerprint(whole.clone(memory_format=torch.channels_last)))
    assert not torch.equal(fingerprint(whole), fingerprint(whole.flip(-1)))
    assert not torch.equal(fingerprint(whole), fingerprint(whole[[1, 0, 2, 3]]))
    nudged = whole.clone()
    nudged[3, 0, 7, 7] = torch.nextafter(nudged[3, 0, 7, 7], torch.tensor(9.0))
    assert not torch.equal(fingerprint(whole), fingerprint(nudged))
    assert fingerprint({"ids": torch.arange(3), "mask": torch.tensor([True, False])}).tolist() == [0 + 2 + 6, 1]
