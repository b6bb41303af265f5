"""Crops of encoded images: random for a training (Szegedy et al. 2015, section 6), central for an evaluation.

Notation: W x H pixels of the image as stored, S x S of the crop.
"""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Least share of the image's area, and ratio of width to height, of a random crop; draws until the central one is taken.
AREA, RATIO, DRAWS = 0.08, (3 / 4, 4 / 3), 10
# Pixels of the decoded image for each pixel of the crop, along an axis, from which on a JPEG is decoded at a half, a
# quarter or an eighth of its size. Pillow calls 2 "practically no difference" from the image at its full size.
GAP = 2.0
# 16 bits a pixel, in either order of the bytes.
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# Left, top, right and bottom, in pixels of the stored image.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Crop:
    """Decodes an image, from a file or its bytes, to a crop ``(3, S, S)``, uint8.

    size: S. share: of the shorter side that the central crop takes, as resizing it to S / share and cutting S x S do.
    training: a random crop, mirrored with probability 1/2, by Python's random generator. filter: of the resizing.
    min_area: smallest share of the area that a random crop takes.
    Raises OSError, or others of Pillow's errors, for an image that cannot be decoded.
    """

    size: int
    share: float = 0.875
    training: bool = False
    filter: str = "bilinear"
    min_area: float = AREA

    def __call__(self, source: bytes | str) -> Tensor:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            box = (
                random_box(*image.size, self.min_area) if self.training else central_box(*image.size, self.share)
            )
            mirrored = self.training and random.random() < 0.5
            pixels = np.asarray(self._cut(image, box))
        if mirrored:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def _cut(self, image: Image.Image, box: Box) -> Image.Image:
        width, height = image.size
        left, top, right, bottom = box
        needed = GAP * self.size
        # Only JPEG files are decoded at a smaller size, the smallest that is no smaller than this one.
        image.draft("RGB", (math.ceil(needed * width / (right - left)), math.ceil(needed * height / (bottom - top))))
        rgb = to_rgb(image)
        x, y = rgb.width / width, rgb.height / height
        scaled = (left * x, top * y, min(right * x, rgb.width), min(bottom * y, rgb.height))
        return rgb.resize((self.size, self.size), FILTERS[self.filter], scaled, reducing_gap=GAP)


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame in RGB: 16-bit grey scaled to 8 bits, transparent pixels on white.

    Raises ValueError for pixels without a known range, 32-bit integers and floats.
    """
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are {'32-bit integers' if image.mode == 'I' else 'floats'}, without a range")
    if image.mode in DEEP:
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image.convert("RGB")


def central_box(width: int, height: int, share: float) -> Box:
    """The central square whose side is ``share`` of the shorter side."""
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, min_area: float = AREA) -> Box:
    """A box of a random share of the area and a random ratio, anywhere; if none fits, the largest central one.

    With a ``min_area`` of 1 the whole image, of whatever ratio.
    """
    if min_area == 1:
        return 0, 0, width, height
    for _ in range(DRAWS):
        area = width * height * random.uniform(min_area, 1)
        ratio = math.exp(random.uniform(*map(math.log, RATIO)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = random.randint(0, width - across), random.randint(0, height - down)
            return left, top, left + across, top + down
    across, down = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down
