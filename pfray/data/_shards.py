"""Images in shards, parquet files or webdataset tars: found, counted, and their columns checked, without being read.

A place is a folder, an fsspec URL of one, or the name of a data set on the Hugging Face hub.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pfray.data._parquet import quiet
from pfray.data._rows import tar_samples
from pfray.data._track import track
from pfray.errors import DataError, first_line
from pfray.utils.url import is_url

# The ``datasets`` library's name of each form of shards, by suffix.
FORMS = {".parquet": "parquet", ".tar": "webdataset"}
IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
LABELS = ("label", "cls", "fine_label")
# Shards that are looked at together: a bucket answers after a tenth of a second.
AT_ONCE = 16
# Samples of a tar that tell its columns.
LOOKED_AT = 5
# Files beside tar shards that say how many samples each holds: webdataset's, and that of the hub's sets of timm.
SIZES, INFO = "sizes.json", "_info.json"


@dataclass(frozen=True)
class Shards:
    """Shards of one split, in order.

    form: a key of the ``datasets`` library. files: paths or URLs. lengths: samples in each. image, label: the columns.
    names: of the classes; None if the shards do not tell.
    """

    form: str
    files: tuple[str, ...]
    lengths: tuple[int, ...]
    image: str
    label: str
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return sum(self.lengths)

    @property
    def is_remote(self) -> bool:
        return any(map(is_url, self.files))

    def take(self, which: Iterable[int]) -> Shards:
        """The shards at the positions ``which``."""
        chosen = list(which)
        return replace(
            self, files=tuple(self.files[i] for i in chosen), lengths=tuple(self.lengths[i] for i in chosen)
        )


def find(path: str | None, hub: str | None) -> dict[str, Shards]:
    """The shards of a place by split (``train``, ``validation``, ``test``), empty if it has none. Raises DataError."""
    import datasets
    from datasets.data_files import DataFilesDict, get_data_patterns

    where = f"'{hub}' on the Hugging Face hub" if path is None else path
    with quiet():
        try:
            if path is None:
                found: Any = datasets.load_dataset_builder(str(hub)).config.data_files
            else:
                found = DataFilesDict.from_patterns(get_data_patterns(path), base_path=path)
        except FileNotFoundError:
            if path is not None:
                return {}
            raise DataError(f"{where}: no such data set, or it may not be read. Remedy: check data.hub, accept its "
                            "terms on its page, and set HF_TOKEN") from None
        except Exception as error:  # fsspec and the hub's client raise many types, by cause
            remedy = "check data.path, the network and the credentials" if path else "HF_TOKEN, or give data.path"
            raise DataError(f"{where} cannot be read ({first_line(error)}). Remedy: {remedy}") from error
    return {
        str(split): _described(form, chosen, str(split))
        for split, files in (found or {}).items()
        for suffix, form in FORMS.items()
        if (chosen := [str(file) for file in files if str(file).endswith(suffix)])
    }


def _described(form: str, files: Sequence[str], split: str) -> Shards:
    """The shards with their columns and lengths, from the ends of parquet files and the first samples of tars."""
    if form == "parquet":
        footers = list(_each(files, _footer, f"looking at the {split} shards"))
        lengths, schemas = zip(*footers, strict=True)
        kinds = [_columns(file, schema) for file, schema in zip(files, schemas, strict=True)]
        for (first, file), (own, other) in pairwise(zip(kinds, files, strict=True)):
            if first != own:
                raise DataError(f"{other}: its columns are {_words(own)}, and those of {file} are {_words(first)}. "
                                "Remedy: shards of one data set")
        image, label = kinds[0][0][0], kinds[0][1][0]
        return Shards(form, tuple(files), lengths, image, label, _class_names(schemas[0], label))
    image, label = _fields(files[0])
    return Shards(form, tuple(files), _tar_lengths(files, label, split), image, label)


# (name, type) of the columns of images and of labels.
Columns = tuple[tuple[str, str], tuple[str, str]]


def _columns(file: str, schema: pa.Schema) -> Columns:
    image, label = chosen_columns(file, schema.names)
    kind, number = schema.field(image).type, schema.field(label).type
    encoded = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)):
        raise DataError(f"{file}: column {image} holds no encoded images ({kind}). Remedy: store the files' bytes, or "
                        "a struct with a field bytes")
    if not pa.types.is_integer(number):
        raise DataError(f"{file}: column {label} holds {number}, no class numbers. Remedy: whole numbers from 0 on")
    return (image, "encoded images"), (label, str(number))


def _words(columns: Columns) -> str:
    return " and ".join(f"{name} ({kind})" for name, kind in columns)


def chosen_columns(file: str, names: Sequence[str]) -> tuple[str, str]:
    """(column of the images, column of the labels). Raises DataError if one is missing."""
    image = next((name for name in IMAGES if name in names), None)
    label = next((name for name in LABELS if name in names), None)
    if image is None or label is None:
        raise DataError(f"{file}: columns are {', '.join(names)}. Remedy: name one of them {', '.join(IMAGES)} "
                        f"(the images) and one {', '.join(LABELS)} (the class numbers)")
    return image, label


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Names that the ``datasets`` library wrote into a parquet file's schema."""
    import datasets

    names = getattr(datasets.Features.from_arrow_schema(schema)[label], "names", None)
    return None if names is None else tuple(names)


def _footer(file: str) -> tuple[int, pa.Schema]:
    import fsspec

    try:
        with fsspec.open(file, "rb") as opened:
            parquet = pq.ParquetFile(opened)
            return parquet.metadata.num_rows, parquet.schema_arrow
    except Exception as error:  # fsspec and pyarrow raise many types
        raise DataError(f"{file}: not a parquet file, or damaged, or out of reach ({first_line(error)}). Remedy: copy "
                        "the file again, or check the network and the credentials") from error


def _fields(file: str) -> tuple[str, str]:
    try:
        names = dict.fromkeys(name for sample in islice(tar_samples(file), LOOKED_AT) for name in sample)
    except Exception as error:  # tarfile and fsspec raise many types
        raise DataError(f"{file}: not a webdataset tar, or damaged, or out of reach ({first_line(error)}). Remedy: "
                        "copy the file again, or check the network and the credentials") from error
    return chosen_columns(file, list(names))


def _tar_lengths(files: Sequence[str], label: str, split: str) -> tuple[int, ...]:
    """Samples in each tar: as a file beside them says, else counted, which only files on this machine can be quickly.
    """
    said = _said_lengths(files[0].rpartition("/")[0])
    names = [PurePosixPath(file).name for file in files]
    if all(name in said for name in names):
        return tuple(said[name] for name in names)
    if any(map(is_url, files)):
        raise DataError(f"{files[0]}: nothing tells how many samples the tar holds. Remedy: {SIZES} beside the tars, "
                        '{"name.tar": 1000, ...}')
    return tuple(_each(files, lambda file: _count(file, label), f"counting the {split} shards"))


def _said_lengths(folder: str) -> dict[str, int]:
    import fsspec

    said: dict[str, int] = {}
    for name in (SIZES, INFO):
        try:
            with fsspec.open(f"{folder}/{name}", "rb") as file:
                content = json.load(file)
        except Exception:  # it is not there, or no JSON
            continue
        if name == SIZES and isinstance(content, dict):
            said |= {str(key): value for key, value in content.items() if isinstance(value, int)}
        elif isinstance(content, dict):
            for part in content.get("splits", {}).values():
                said |= dict(zip(part.get("filenames", ()), part.get("shard_lengths", ()), strict=False))
    return said


def _count(file: str, label: str) -> int:
    """Members of the tar that are labels; the contents between the headers are passed over."""
    try:
        with tarfile.open(file) as opened:
            return sum(PurePosixPath(member.name).name.partition(".")[2] == label for member in opened)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{file}: not a tar, or damaged ({first_line(error)}). Remedy: copy the file again") from error


def _each(files: Sequence[str], look: Callable[[str], Any], label: str) -> Iterator[Any]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from track(pool.map(look, files), len(files), label)
