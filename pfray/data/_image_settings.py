"""Settings of image data sets of any size, the same for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pfray.data._arrays import check_count, check_fraction, check_share
from pfray.data._crops import FILTERS, Crop
from pfray.errors import ConfigError, nearest, shown
from pfray.task import top1, top5
from pfray.utils.url import check_storage

METRICS = {"accuracy": top1, "top5": top5}
EXPECTED = (
    "train/<class>/*.jpg and val/<class>/*.jpg (or validation, test), or with shards, train*.parquet and "
    "validation*.parquet, or .tar"
)


@dataclass(frozen=True)
class ImageSettings:
    """Settings of ``data``, explained in ``imagefolder.py``."""

    path: str | None
    hub: str | None
    size: int
    crop: float
    min_area: float
    interpolation: str
    mean: Sequence[float]
    std: Sequence[float]
    validation_size: int | float
    split_seed: int
    limit_train: int | None
    classes: Sequence[str] | None
    metric: str
    streaming: bool | None
    shuffle_buffer: int
    num_classes: int | None

    def check(self) -> None:
        """Raise ConfigError for values that are not allowed."""
        if (self.path is None) == (self.hub is None):
            raise ConfigError("data: " + ("neither path nor hub is" if self.path is None else "both path and hub are")
                              + f" given. Remedy: data.path, a folder or URL with {EXPECTED}; or data.hub, the name of "
                              "a data set on the Hugging Face hub")  # fmt: skip
        for key in ("path", "hub"):
            if not isinstance(value := getattr(self, key), str | None):
                raise ConfigError(f"data.{key}: {shown(value)} is no text. Remedy: put it in quotation marks")
        if self.path is not None:
            try:
                check_storage(self.path)
            except ValueError as error:
                raise ConfigError(f"data.path: {error}") from None
        for key, least in (("size", 1), ("split_seed", 0), ("shuffle_buffer", 1)):
            check_count(key, getattr(self, key), least)
        for key, least in (("limit_train", 1), ("num_classes", 2)):
            if getattr(self, key) is not None:
                check_count(key, getattr(self, key), least)
        for key in ("crop", "min_area"):
            check_share(key, getattr(self, key))
        if isinstance(self.validation_size, float):
            check_fraction("validation_size", self.validation_size)
        else:
            check_count("validation_size", self.validation_size, 1)
        for key, known in (("interpolation", FILTERS), ("metric", METRICS)):
            if (value := getattr(self, key)) not in known:
                raise ConfigError(f"data.{key}: {shown(value)} is not allowed. Allowed: {', '.join(known)}."
                                  f"{nearest(str(value), known)}")  # fmt: skip
        if not isinstance(self.streaming, bool | None):
            raise ConfigError(f"data.streaming: {shown(self.streaming)} is not allowed. Allowed: true, false, null")

    def image_crop(self, training: bool = False) -> Crop:
        return Crop(self.size, self.crop, training, self.interpolation, self.min_area)

    def held(self, count: int) -> int:
        """Samples held out of ``count`` for validation."""
        size = self.validation_size
        return max(1, round(size * count)) if isinstance(size, float) else size
