"""Damaged images: left out, counted, and an error if they are too many."""

from __future__ import annotations

import pickle

import pytest
import torch

from pfray.data._crops import Crop
from pfray.data._damage import Counted, Sample, collate, decoded
from pfray.data._readers import Order, Reader, read
from pfray.errors import DataError
from tests.pictures import encoded, picture
from tests.two_ranks import on_two_ranks

WHOLE = encoded(picture(0, 0))


def samples(count: int, damaged: int, training: bool = False) -> list[Sample]:
    """``count`` samples, the first ``damaged`` of which are cut off."""
    return [
        decoded(Crop(8, training=training), WHOLE[:200] if number < damaged else WHOLE, number % 3, f"image {number}")
        for number in range(count)
    ]


def test_a_truncated_image_is_no_sample_and_says_why():
    sample = decoded(Crop(8), WHOLE[:-40], 2, "cat/1.jpg")
    assert sample.image is None
    assert sample.name == "cat/1.jpg"
    assert sample.damaged.startswith("image file is truncated")


def test_an_evaluation_leaves_it_out_and_a_batch_of_a_training_keeps_its_size():
    evaluated, trained = collate(samples(6, 2)), collate(samples(6, 2, training=True))
    assert evaluated.labels.tolist() == [2, 0, 1, 2]
    assert trained.labels.tolist() == [2, 0, 1, 2, 2, 0]
    assert trained.images.shape == (6, 3, 8, 8)
    assert list(trained.damaged) == ["image 0", "image 1"]
    assert collate(samples(2, 2)).images.shape[0] == 0


@pytest.mark.parametrize("loaders", [0, 1])
def test_a_process_that_reads_ahead_makes_a_batch_in_shared_memory(loaders):
    def noted(read: list[Sample]) -> tuple[bool, int]:
        images = collate(read).images
        return images.is_shared(), images.untyped_storage().nbytes()

    orders = [Order(0, None, range(4), range(4))]
    assert list(read(Reader("train", samples(4, 0), noted), orders, loaders, {}, False)) == [
        (0, (loaders > 0, 4 * 3 * 8 * 8))
    ]


def test_one_in_a_thousand_is_a_remark_and_more_an_error_that_names_the_first():
    counted = Counted("train", 2000)
    assert counted.remarks() == []
    for _ in range(2):  # what is read again counts once
        images, labels = counted(collate(samples(10, 2)))
    assert images.shape == (8, 3, 8, 8)
    assert labels.dtype == torch.int64
    (remark,) = counted.remarks()
    assert remark.startswith("2 of the 2000 images of the train data left out; image 0: the image is damaged (")
    with pytest.raises(DataError, match=r"^image 0: the image is damaged \(.*\), and 3 of the 2000 images of the train "
                                        r"data are so far; 1 in 1000 may be\. Remedy: .*'RGB'") as caught:  # fmt: skip
        counted(collate(samples(10, 3)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "why"), [(b"no image", "its content is of no known form"), (b"", "it is empty")])
def test_a_file_that_is_no_image_counts_once_however_often_it_is_read(content, why):
    counted = Counted("train", 1000)
    for training in (False, True, True):
        counted(collate([decoded(Crop(8, training=training), data, 0, name)
                         for data, name in ((content, "cat/1.jpg"), (WHOLE, "cat/2.jpg"))]))  # fmt: skip
    assert counted.remarks() == [
        f"1 of the 1000 images of the train data left out; cat/1.jpg: the image is damaged ({why})"
    ]


def test_an_image_counts_once_where_each_crop_fails_in_other_words():
    counted = Counted("train", 1000)
    for why in ("43 bytes not processed", "35 bytes not processed"):
        counted(collate([Sample(None, 0, True, "cat/1.jpg", why), *samples(1, 0, training=True)]))
    assert counted.damaged == {"cat/1.jpg": "43 bytes not processed"}


def test_below_a_thousand_images_the_first_damaged_one_is_an_error():
    with pytest.raises(DataError, match=r"^image 0: .*, and 1 of the 999 images of the test data are so far"):
        Counted("test", 999)(collate(samples(10, 1)))
    assert len(Counted("test", 1000)(collate(samples(10, 1)))[1]) == 9


def test_every_process_counts_for_itself():
    counted = Counted("train", 5000)
    counted(collate(samples(4, 1)))
    assert pickle.loads(pickle.dumps(counted)) == Counted("train", 5000)


def remarks_of_a_rank() -> list[str]:
    """What the two workers of a training say, each of which has met an image of its own and one of both."""
    counted = Counted("train", 5000)
    counted.damaged.update({"image 0": "truncated", f"image {torch.distributed.get_rank() + 1}": "truncated"})
    return counted.remarks(2)


def test_workers_of_a_training_count_together_what_each_has_met(tmp_path):
    found = on_two_ranks({"said": remarks_of_a_rank}, tmp_path)["said"]
    assert found == [["3 of the 5000 images of the train data left out; image 0: the image is damaged (truncated)"]] * 2
