"""Class folders and shards as tasks: honest splits, one order for any number of workers, errors in one line."""

from __future__ import annotations

import pickle
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pfray.data import imagefolder
from pfray.data._task_checks import check_task
from pfray.errors import ConfigError, DataError, PfrayError
from pfray.task import Task, top5
from tests.pictures import CLASSES, encoded, epoch, make_folder, picture, records, write_parquet, write_tar


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFRAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", {"train": 20, "val": 5})


def build(place: Path, **settings: Any) -> Task:
    return imagefolder.build(**{"path": str(place), "size": 8, **settings})


def sums(batches: Any) -> list[int]:
    """A number for each image, by which it is known again."""
    return [zlib.crc32(image.numpy().tobytes()) for images, _ in batches for image in images]


def targets(split: Any) -> list[int]:
    return torch.cat([labels for _, labels in split.batches(16)]).tolist()


def shards(root: Path, write: Callable[..., Path] = write_parquet, suffix: str = "parquet", train: int = 4) -> Path:
    for number in range(train):
        write(root / f"train-{number:05d}-of-{train:05d}.{suffix}", records(15, first=15 * number))
    write(root / f"validation-00000-of-00001.{suffix}", records(15, first=900))
    return root


FORMS = {"parquet": write_parquet, "tar": write_tar}


def test_two_splits_become_three_and_the_published_one_is_the_test(folder):
    task = build(folder, validation_size=12)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [48, 12, 15]
    assert task.num_outputs == 3
    assert check_task(task) == []
    # Stratified, and no image in two splits.
    assert sorted(targets(task.validation)) == [0] * 4 + [1] * 4 + [2] * 4
    assert sorted(targets(task.test)) == [0] * 5 + [1] * 5 + [2] * 5
    train, validation, test = (sums(split.batches(16)) for split in (task.train, task.validation, task.test))
    assert len({*train, *validation, *test}) == 75
    inputs, labels = next(iter(epoch(task.train, 6, 0)))
    assert inputs.shape == (6, 3, 8, 8)
    assert inputs.dtype == torch.uint8
    # A picture is brightest in its class's channel.
    assert inputs.float().mean((2, 3)).argmax(1).tolist() == labels.tolist()


def test_three_splits_are_used_as_they_are(tmp_path):
    task = build(make_folder(tmp_path / "data", {"train": 4, "validation": 3, "test": 2}))
    assert [len(split) for split in (task.train, task.validation, task.test)] == [12, 9, 6]
    task = build(make_folder(tmp_path / "other", {"train": 10, "test": 2}))
    assert [len(split) for split in (task.train, task.validation, task.test)] == [27, 3, 6]


def test_the_order_is_of_the_seed_and_the_same_for_any_number_of_workers(folder):
    task = build(folder)
    whole = [labels.tolist() for _, labels in epoch(task.train, 12, 5)]
    parts = [[labels.tolist() for _, labels in epoch(task.train, 12, 5, rank, 3)] for rank in range(3)]
    assert len(whole) == 4
    for index, batch in enumerate(whole):
        assert [parts[rank][index] for rank in range(3)] == [batch[rank::3] for rank in range(3)]
    assert [labels.tolist() for _, labels in epoch(task.train, 12, 6)] != whole
    assert targets(build(folder).train) == targets(task.train) != targets(build(folder, split_seed=1).train)


def test_random_crops_are_for_trainings_alone(folder):
    task = build(folder)
    first, again, other = (sums(epoch(task.train, 54, seed)) for seed in (1, 1, 2))
    assert first == again
    plain = sums(task.train.batches(16))
    assert plain == sums(task.train.batches(7))
    assert sums([(task.train.head(10).inputs, None)]) == plain[:10]
    assert len(set(first) & set(plain)) < 5
    assert len(set(first) & set(other)) < 5


def test_a_damaged_image_among_the_last_of_the_test_split_can_be_replaced_before_a_run_is_resumed(tmp_path):
    place = make_folder(tmp_path / "data", {"train": 20, "val": 30})
    whole = build(place)
    path = Path(whole.test.dataset.rows.read(int(whole.test.indices[-1]))[2])
    content = path.read_bytes()
    path.write_bytes(content[:-60])
    damaged = build(place)
    check_task(damaged)  # reads the first images alone
    assert damaged.fingerprint() == whole.fingerprint()
    with pytest.raises(DataError, match=rf"^{path}: the image is damaged .*, and 1 of the 90 images of the test"):
        targets(damaged.test)
    path.unlink()
    path.write_bytes(content)
    mended = build(place)
    assert len(targets(mended.test)) == 90
    assert mended.fingerprint() == whole.fingerprint()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_training_that_sees_whole_images_has_two_crops_of_each(tmp_path, streaming):
    task = build(shards(tmp_path), min_area=1.0, streaming=streaming, num_classes=3)
    seen = {number for seed in range(12) for number in sums(epoch(task.train, 45, seed))}
    assert 45 < len(seen) <= 2 * len(task.train)


def test_what_travels_does_not_grow_with_the_images_but_for_their_order(tmp_path):
    def parts(count: int) -> tuple[int, int]:
        """Bytes of the pickle, and of the arrays that all workers of a machine share."""
        task = build(make_folder(tmp_path / str(count), {"train": count, "val": 2}))
        buffers: list[pickle.PickleBuffer] = []
        # Without the head, which the checks of a task have read.
        alone = pickle.dumps(task.train.take(slice(None)), 5, buffer_callback=buffers.append)
        assert targets(pickle.loads(pickle.dumps(task.train))) == targets(task.train)
        return len(alone), sum(buffer.raw().nbytes for buffer in buffers)

    (small, few), (large, many) = parts(20), parts(200)
    assert abs(large - small) < 20
    assert large < 2000
    assert (few, many) == (54 * 8, 540 * 8)


def test_some_classes_are_numbered_in_their_order(folder):
    task = build(folder, classes=["eel", "cat"])
    assert task.num_outputs == 2
    assert task.classes == (2, 0)
    assert len(task.train) + len(task.validation) == 40
    images, labels = next(iter(task.test.batches(16)))
    assert images.float().mean((2, 3)).argmax(1).tolist() == [(2, 0)[label] for label in labels.tolist()]
    with pytest.raises(ConfigError, match="unknown class 'cow'"):
        build(folder, classes=["cow", "cat"])


def test_the_training_can_be_cut_and_the_metric_chosen(folder):
    task = build(folder, limit_train=7, metric="top5", mean=[0.5], std=[0.25], validation_size=0.2)
    assert len(task.train) == 7
    assert len(task.validation) == 12
    assert task.metric_name == "top5"
    assert task.score is top5
    assert task.mean == (0.5,)
    assert task.normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).unique().tolist() == [2.0]


@pytest.mark.parametrize("form", FORMS)
def test_shards_on_this_machine_are_read_by_index(tmp_path, form):
    task = build(shards(tmp_path / "data", FORMS[form], form), validation_size=6)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [54, 6, 15]
    assert task.num_outputs == 3
    assert check_task(task) == []
    assert sorted(targets(task.validation)) == [0, 0, 1, 1, 2, 2]
    whole = [labels.tolist() for _, labels in epoch(task.train, 6, 5)]
    assert [labels.tolist() for _, labels in epoch(task.train, 6, 5, 1, 2)] == [batch[1::2] for batch in whole]
    assert len(set(sums(task.train.batches(9))) | set(sums(task.validation.batches(9)))) == 60


@pytest.mark.parametrize("form", FORMS)
def test_shards_that_are_streamed_are_held_out_whole(tmp_path, form):
    place = shards(tmp_path / "data", FORMS[form], form)
    task = build(place, streaming=True, num_classes=3, validation_size=16)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [30, 30, 15]
    assert check_task(task) == []
    train, validation = sums(task.train.batches(9)), sums(task.validation.batches(9))
    assert len({*train, *validation}) == 60
    one, again, other = ([labels.tolist() for _, labels in epoch(task.train, 6, seed)] for seed in (1, 1, 2))
    assert one == again != other
    assert [len(labels) for labels in one] == [6] * 5
    assert targets(task.test) == [0, 1, 2] * 5
    assert len(pickle.dumps(replace(task.train, kept={}))) < 3000


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loaders", [0, 2, 4])
def test_streamed_shards_are_read_whole_by_any_number_of_processes(tmp_path, form, loaders):
    place = tmp_path / "data"
    for split, count in (("train", 4), ("validation", 4), ("test", 1)):
        for number in range(count):
            FORMS[form](place / f"{split}-{number}.{form}", records(12, first=100 * len(split) + 12 * number))
    task = build(place, streaming=True, num_classes=3)
    train, validation = (replace(split, loaders=loaders) for split in (task.train, task.validation))
    assert train.used_loaders() == loaders
    assert sorted(targets(train)) == sorted(targets(validation)) == [0] * 16 + [1] * 16 + [2] * 16
    assert len(set(sums(validation.batches(5)))) == 48
    labels = torch.cat([labels for _, labels in epoch(train, 6, 1)]).tolist()
    assert sorted(labels) == [0] * 16 + [1] * 16 + [2] * 16


def test_shards_and_folders_of_the_same_images_give_the_same_splits(tmp_path):
    samples = [(encoded(picture(label, number)), label) for label in range(3) for number in range(8)]
    for split in ("train", "val"):
        write_parquet(tmp_path / "shards" / f"{split}-0.parquet", samples, names=CLASSES)
        for number, (data, label) in enumerate(samples):
            path = tmp_path / "folders" / split / CLASSES[label] / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    tasks = [build(tmp_path / form, validation_size=6) for form in ("shards", "folders")]
    assert tasks[0].fingerprint() == tasks[1].fingerprint()
    assert sums(epoch(tasks[0].train, 6, 3)) == sums(epoch(tasks[1].train, 6, 3))


def truncate(folder: Path, count: int) -> None:
    for path in sorted(folder.glob("*/*.jpg"))[:count]:
        path.write_bytes(path.read_bytes()[:-60])


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """1,001 images of a class, all alike, and 1,001 of another."""
    root = tmp_path / "large"
    for split, count in (("train", 1001), ("val", 1001)):
        for label in range(2):
            folder = root / split / CLASSES[label]
            folder.mkdir(parents=True)
            data = encoded(picture(label, 0))
            for number in range(count):
                (folder / f"{number:04d}.jpg").write_bytes(data)
    return root


@pytest.mark.parametrize("streaming", [False, True])
def test_shards_whose_splits_number_the_classes_differently_are_refused(tmp_path, streaming):
    for split, names in (("train", CLASSES), ("validation", ("dog", "eel")), ("test", CLASSES)):
        write_parquet(tmp_path / "shards" / f"{split}-0.parquet", records(12, len(names)), names=names)
    with pytest.raises(DataError, match=r"validation-0\.parquet: class 0 is 'dog', and 'cat' in .*train-0"):
        build(tmp_path / "shards", streaming=streaming)


def test_up_to_one_damaged_image_in_a_thousand_is_left_out_and_noted(large):
    truncate(large / "val", 2)
    truncate(large / "train", 1)
    task = build(large)
    labels = targets(task.test)
    assert len(task.test) == 2002
    assert (labels.count(0), labels.count(1)) == (999, 1001)
    assert sum(len(labels) for _, labels in epoch(task.train, 50, 0)) == 1800
    (remark,) = [remark for remark in task.remarks() if "of the test data" in remark]
    assert remark.startswith("2 of the 2002 images of the test data left out; ")
    assert "val/cat/000" in remark
    assert "jpg: the image is damaged (image file is truncated" in remark


def test_more_damaged_images_are_an_error_that_names_one(large):
    truncate(large / "val", 3)
    with pytest.raises(DataError, match=r"cat/000\d.jpg: the image is damaged .*, and 3 of the 2002 images of the "
                                        r"test data are so far; 1 in 1000 may be\. Remedy: copy"):  # fmt: skip
        targets(build(large).test)


def test_a_small_data_set_may_have_no_damaged_image(folder):
    truncate(folder / "train", 60)
    with pytest.raises(DataError, match=r"the image is damaged .*, and \d+ of the 54 images of the train data are"):
        build(folder)


def test_a_head_with_a_damaged_image_is_read_once(large):
    truncate(large / "val", 1)
    task = build(large)
    head = task.test.head(2002)
    assert len(head) == 2001
    assert task.test.head(2002).inputs.data_ptr() == head.inputs.data_ptr()


Change = Callable[[Path], object]
WRONG: dict[str, tuple[Change, dict[str, Any], type[PfrayError], str]] = {
    "no folder": (shutil.rmtree, {}, DataError, "no such folder. Remedy: give data.path a folder with train/<class>/"),
    "no split": (lambda root: shutil.rmtree(root / "train"), {}, DataError, "data: no images are found. Remedy: a fol"),
    "classes without a split": (
        lambda root: (shutil.rmtree(root / "val"), shutil.move(root / "train", root / "cats")), {}, DataError,
        "no images are found. Remedy: a folder with train/<class>/*.jpg and val/<class>/*.jpg",
    ),
    "one split": (
        lambda root: [shutil.rmtree(root / "val"), *[shutil.move(each, root) for each in (root / "train").iterdir()]],
        {}, DataError, "its folders hold images, so it looks like one split. Remedy: the folder above, with train/<cla",
    ),
    "a training split alone": (
        lambda root: shutil.rmtree(root / "val"), {}, DataError, "there is a training split alone. Remedy: add val/",
    ),
    "a class that train lacks": (
        lambda root: shutil.rmtree(root / "train" / "dog"), {}, DataError, "val: has the class 'dog', and ",
    ),
    "a class that validation lacks": (
        lambda root: shutil.rmtree(root / "val" / "dog"), {}, DataError, "train: has the class 'dog', and ",
    ),
    "an empty class": (
        lambda root: [path.unlink() for path in (root / "val" / "cat").iterdir()], {}, DataError,
        "val/cat: the class has no images",
    ),
    "one class": (
        lambda root: [shutil.rmtree(root / split / name) for split in ("train", "val") for name in ("cat", "dog")], {},
        DataError, "has 1 class, and there is nothing to tell apart",
    ),
    "another number of classes": (
        lambda root: None, {"num_classes": 10}, DataError, "has 3 classes, and 10 are expected. Remedy: data.num",
    ),
    "streamed folders": (lambda root: None, {"streaming": True}, ConfigError, "class folders are read by index"),
    "neither path nor hub": (lambda root: None, {"path": None}, ConfigError, "data: neither path nor hub is given"),
    "path and hub": (lambda root: None, {"hub": "org/name"}, ConfigError, "data: both path and hub are given"),
    "a path that is no text": (lambda root: None, {"path": 7}, ConfigError, "data.path: 7 is no text"),
    "a key in a URL": (lambda root: None, {"path": "s3://key:secret@bucket/x"}, ConfigError, "data.path: the s3 URL"),
    "size": (lambda root: None, {"size": 0}, ConfigError, "data.size: 0 is not allowed"),
    "crop": (lambda root: None, {"crop": 1.5}, ConfigError, "data.crop: 1.5 is not allowed"),
    "min_area of none": (lambda root: None, {"min_area": 0}, ConfigError, "data.min_area: 0 is not allowed: a share"),
    "min_area in percent": (
        lambda root: None, {"min_area": 60}, ConfigError,
        "data.min_area: 60 is not allowed: a share is above 0, and 1 at most. Example: data.min_area=0.5",
    ),
    "interpolation": (
        lambda root: None, {"interpolation": "bicubik"}, ConfigError, "Allowed: bilinear, bicubic. Did you mean",
    ),
    "metric": (lambda root: None, {"metric": "top1"}, ConfigError, "data.metric: 'top1' is not allowed. Allowed: acc"),
    "streaming": (lambda root: None, {"streaming": "yes"}, ConfigError, "data.streaming: 'yes' is not allowed"),
    "validation_size": (lambda root: None, {"validation_size": 1.0}, ConfigError, "data.validation_size: 1.0 is not"),
    "too large a validation": (
        lambda root: None, {"validation_size": 59}, ConfigError, "data.validation_size: holds out 59 of 60 samples",
    ),
    "mean": (lambda root: None, {"mean": 0.5}, DataError, "mean is 0.5. Remedy: a tuple of finite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("form", WRONG)
def test_a_wrong_folder_or_setting_is_one_line(folder, form):
    change, settings, kind, words = WRONG[form]
    change(folder)
    with pytest.raises(PfrayError) as caught:
        build(folder, **settings)
    text = str(caught.value)
    assert type(caught.value) is kind, text
    assert words in text
    assert "secret" not in text
    assert "\n" not in text
    assert len(text) < 600


def wrong_shards(root: Path, words: str, kind: type[PfrayError] = DataError, **settings: Any) -> None:
    with pytest.raises(PfrayError) as caught:
        build(root, **settings)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_of_shards_are_checked(tmp_path):
    root = tmp_path / "data"
    data = encoded(picture(0, 0))
    write_parquet(root / "train-0.parquet", [(data, label) for label in (0, 1, 2, 0, 1, 2)])
    write_parquet(root / "test-0.parquet", [(data, label) for label in (0, 1, 3)])
    wrong_shards(root, "the test split has the label 3; allowed are 0 to 2, the labels of the training split")
    write_parquet(root / "test-0.parquet", [(data, label) for label in (0, 1)])
    wrong_shards(root, "the test split has no image of the class '2'. Remedy: add some")
    write_parquet(root / "test-0.parquet", [(data, label) for label in (0, 1, -1)])
    wrong_shards(root, "the test split has the label -1")
    write_parquet(root / "train-0.parquet", [(data, label) for label in (0, 2)])
    write_parquet(root / "test-0.parquet", [(data, label) for label in (0, 1, 2)])
    wrong_shards(root, "the train split has no image of the class '1'")


def test_what_streamed_shards_cannot_do_is_one_line(tmp_path):
    root = shards(tmp_path / "data", train=1)
    wrong_shards(root, "data.num_classes: the shards do not tell", ConfigError, streaming=True)
    wrong_shards(root, "no 2 images can be held out for validation in whole shards, of which there are 1 with 15",
                 streaming=True, num_classes=3)  # fmt: skip
    wrong_shards(root, "data.limit_train: shards that are streamed", ConfigError, streaming=True, limit_train=5)
    wrong_shards(root, "data.classes: shards that are streamed", ConfigError, streaming=True, classes=["0", "1"])


def test_streamed_shards_in_order_of_class_are_refused(tmp_path):
    root = tmp_path / "data"
    for split in ("train", "validation", "test"):
        for label in range(3):
            write_parquet(root / f"{split}-{label:05d}-of-00003.parquet", [(encoded(picture(label, 0)), label)] * 70)
    wrong_shards(root, "the first 64 training images are all of class 0", streaming=True, num_classes=3)
    assert len(build(root).train) == 210


def test_a_network_learns_from_them(folder):
    from pfray.measure.evaluation import evaluate
    from pfray.training.loop import fit
    from pfray.training.settings import Training

    class Means(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.mean((2, 3)))

    task, model = build(folder), Means()
    fit(model, task, Training(epochs=8, lr=0.3, batch_size=9), seed=0)
    assert evaluate(model.eval(), task, task.test).accuracy == 1
