"""Crops of encoded images of every kind, with the values of their pixels."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from pfray.data._crops import Crop, central_box, random_box
from tests.pictures import encoded

SIZE = (30, 20)


def palette(transparent: bool = False) -> bytes:
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return encoded(image, "PNG", **({"transparency": 1} if transparent else {}))


def animated() -> bytes:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


COLOURS = {
    "grey": (encoded(Image.new("L", SIZE, 77), "PNG"), (77, 77, 77)),
    "black and white": (encoded(Image.new("1", SIZE, 1), "PNG"), (255, 255, 255)),
    "16-bit grey": (encoded(Image.fromarray(np.full((20, 30), 40000, np.uint16)), "PNG"), (156, 156, 156)),
    "CMYK": (encoded(Image.new("CMYK", SIZE, (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
    "palette": (palette(), (10, 200, 30)),
    "a transparent colour of a palette": (palette(transparent=True), (255, 255, 255)),
    "transparent": (encoded(Image.new("RGBA", SIZE, (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
    "half transparent": (encoded(Image.new("LA", SIZE, (100, 128)), "PNG"), (177, 177, 177)),
    "the first frame of a film": (animated(), (255, 0, 0)),
}


@pytest.mark.parametrize("kind", COLOURS)
def test_every_kind_of_image_becomes_rgb(kind):
    data, colour = COLOURS[kind]
    crop = Crop(8)(data)
    assert crop.dtype == torch.uint8
    assert crop.shape == (3, 8, 8)
    # To a value, for JPEG and Pillow's blending.
    assert (crop.flatten(1).int() - torch.tensor(colour)[:, None]).abs().max() <= 1


def test_pixels_without_a_range_are_refused():
    for mode, words in (("I", "32-bit integers"), ("F", "floats")):
        with pytest.raises(ValueError, match=words):
            Crop(8)(encoded(Image.new(mode, SIZE, 5), "TIFF"))


def landscape(width: int, height: int) -> Image.Image:
    down, across = np.mgrid[:height, :width]
    waves = [np.sin(9 * across / width), np.cos(9 * down / height), (down + across) / (width + height)]
    return Image.fromarray((100 * np.stack(waves, 2) + 128).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (150, 260), (1600, 1200)])
def test_an_evaluations_crop_is_the_usual_one(width, height):
    """The shorter side resized to 256 of 224, and the centre cut out; the largest is decoded at half its size."""
    data = encoded(landscape(width, height), quality=95)
    scale = 64 / min(width, height)
    resized = Image.open(io.BytesIO(data)).convert("RGB").resize(
        (round(width * scale), round(height * scale)), Image.Resampling.BILINEAR
    )  # fmt: skip
    left, top = (resized.width - 56) / 2, (resized.height - 56) / 2
    wanted = np.asarray(resized)[round(top) : round(top) + 56, round(left) : round(left) + 56].transpose(2, 0, 1)
    difference = np.abs(Crop(56)(data).numpy().astype(int) - wanted)
    assert difference.mean() < 2.5  # of half a pixel in the place
    assert np.abs(Crop(56, share=0.7)(data).numpy().astype(int) - wanted).mean() > 4


def test_a_jpeg_is_not_decoded_smaller_than_the_crop_needs(monkeypatch):
    """A crop of 100 of 800 pixels to 50 needs all of them; one of 700 pixels is decoded at an eighth."""
    seen = []
    resize = Image.Image.resize

    def noted(image, *args, **options):
        seen.append(image.size)
        return resize(image, *args, **options)

    data = encoded(landscape(800, 800))
    monkeypatch.setattr(Image.Image, "resize", noted)
    for share in (0.125, 0.25, 0.5, 0.875):
        Crop(50, share=share)(data)
    assert seen == [(800, 800), (400, 400), (200, 200), (200, 200)]


def test_an_evaluation_is_the_same_every_time_and_a_training_is_not():
    data = encoded(landscape(60, 50))
    assert torch.equal(Crop(16)(data), Crop(16)(data))
    random.seed(3)
    first, other = Crop(16, training=True)(data), Crop(16, training=True)(data)
    random.seed(3)
    assert torch.equal(Crop(16, training=True)(data), first)
    assert not torch.equal(first, other)


def test_half_of_a_trainings_crops_are_mirrored():
    """In an image that grows brighter to the right."""
    pixels = np.tile(np.linspace(0, 255, 40).astype(np.uint8)[None, :, None], (30, 1, 3))
    data = encoded(Image.fromarray(pixels), "PNG")
    random.seed(0)
    crops = [Crop(8, training=True)(data).float() for _ in range(200)]
    mirrored = sum(bool(crop[..., 0].mean() > crop[..., -1].mean()) for crop in crops)
    assert 80 < mirrored < 120


def test_random_boxes_have_the_published_sizes_and_lie_within():
    random.seed(0)
    boxes = [random_box(400, 300) for _ in range(500)]
    areas = [(right - left) * (bottom - top) / 120_000 for left, top, right, bottom in boxes]
    ratios = [(right - left) / (bottom - top) for left, top, right, bottom in boxes]
    assert all(left >= 0 and top >= 0 and right <= 400 and bottom <= 300 for left, top, right, bottom in boxes)
    assert 0.07 < min(areas) < 0.12
    assert 0.8 < max(areas) <= 1
    assert 0.74 < min(ratios) < 0.78
    assert 1.3 < max(ratios) < 1.35


def test_random_boxes_take_the_least_share_that_is_asked_for_and_with_1_the_whole_image():
    random.seed(0)
    areas = [(right - left) * (bottom - top) / 120_000
             for left, top, right, bottom in (random_box(400, 300, 0.6) for _ in range(500))]  # fmt: skip
    assert 0.59 < min(areas) < 0.63
    assert 0.95 < max(areas) <= 1
    assert {random_box(400, 100, 1) for _ in range(20)} == {(0, 0, 400, 100)}


def test_a_crop_of_the_whole_image_is_the_image_or_its_mirror():
    data = encoded(landscape(60, 40), "PNG")
    whole = np.asarray(landscape(60, 40).convert("RGB").resize((16, 16), Image.Resampling.BILINEAR, reducing_gap=2.0))
    kept, mirrored = (np.ascontiguousarray(side.transpose(2, 0, 1)).tobytes() for side in (whole, whole[:, ::-1]))
    random.seed(0)
    crops = {Crop(16, training=True, min_area=1)(data).numpy().tobytes() for _ in range(40)}
    assert crops == {kept, mirrored}


@pytest.mark.parametrize(("width", "height", "box"), [(1, 500, (0, 249, 1, 250)), (500, 1, (249, 0, 250, 1)),
                                                      (1, 1, (0, 0, 1, 1))])  # fmt: skip
def test_an_image_of_one_pixel_across_has_a_box_too(width, height, box):
    random.seed(1)
    assert random_box(width, height) == box
    Crop(8, training=True)(encoded(Image.new("RGB", (width, height)), "PNG"))


def test_the_central_box_is_a_share_of_the_shorter_side():
    assert central_box(100, 60, 0.5) == (35, 15, 65, 45)
