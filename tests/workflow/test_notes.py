"""What a training found out about its data reaches the driver by the training's curve."""

from __future__ import annotations

from dataclasses import replace

import torch

from learners.weight_sparse import Settings, WeightSparse
from pfray.data._crops import Crop
from pfray.data._damage import Counted, Sample, collate, decoded
from pfray.data._stream import Stream
from pfray.learner.context import Context, Recipe
from pfray.nn.modes import place
from pfray.training.loop import Shard
from pfray.training.settings import Training
from pfray.workflow.curve import read_curve, read_lines
from pfray.workflow.worker import TrainingSpec, train_candidate
from tests.pictures import encoded, picture
from tests.small import make_task
from tests.zoo import conv, head


class Pictures:
    """Twenty pictures of three classes, of which ``bad`` is cut off."""

    def __init__(self, bad: int) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Sample:
        data = encoded(picture(index % 3, index))
        crop = Crop(8, training=True)
        return decoded(crop, data[:-60] if index == self.bad else data, index % 3, f"picture {index}")


def test_a_damaged_image_is_noted_once_a_training(tmp_path):
    def stream(bad: int) -> Stream:
        # As of a data set that is long enough to have one.
        return Stream("train", Pictures(bad), collate, Counted("train", 1000), torch.arange(20))

    task = replace(make_task(), train=stream(7), validation=stream(-1), test=stream(-1))
    assert len(task.remarks()) == 1  # the checks of a task have read it
    teacher = place(torch.nn.Sequential(conv(3, 8), head(8, 3)), "cpu")
    plan = WeightSparse(teacher, task).space().uniform({"sparsity": 0.5})
    candidate = Recipe(WeightSparse, Settings(), Training(epochs=2, lr=0.01, batch_size=10)).candidate(plan)
    spec = TrainingSpec(candidate, Context(task, teacher), tmp_path)
    train_candidate(spec, Shard(), torch.device("cpu"), None, lambda state: None)

    (note,) = read_lines(tmp_path, "note")
    assert note["note"].startswith("1 of the 1000 images of the train data left out; picture 7: the image is damaged (")
    assert [entry["epoch"] for entry in read_curve(tmp_path)] == [1, 2]
