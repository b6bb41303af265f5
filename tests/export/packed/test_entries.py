"""Packed files of strangers: what no file of ours says is one line, before anything is unpacked."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from safetensors.numpy import save_file

from pfray.errors import ExportError, WeightsError
from pfray.export.packed import entries, file
from pfray.quantization import affine
from pfray.quantization.qparams import QParams, attach


def frame(content: bytes, **parameters: Any) -> bytes:
    return zstandard.ZstdCompressor(**parameters).compress(content)


def write(path: Path, *named: tuple[str, list[Any], bytes], table: str | None = None, more: bytes = b"") -> Path:
    """A file of (name, [dtype, shape, encoding], frame), each as it stands."""
    text = json.dumps({name: [*fields, len(content)] for name, fields, content in named}) if table is None else table
    data = np.frombuffer(b"".join(content for _, _, content in named) + more, np.uint8)
    save_file({"frames": data}, path, {"format": file.FORMAT, "entries": text})
    return path


def refused(path: Path, most_memory: int = 2**22) -> str:
    """The reason; and what it cost is little, whatever the file says."""
    tracemalloc.start()
    with pytest.raises(WeightsError, match=r"\.packed is damaged \(.*\)\. Remedy: copy it again") as error:
        file.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most_memory
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500
    return str(error.value)


ONES = np.ones(4, np.float32).tobytes()
PLAIN = ["float32", [4], "dense"]


@pytest.mark.parametrize("encoding", ["dense", "sparse", "signed", "bytes", "same"])
def test_a_small_file_that_unpacks_to_a_gigabyte_is_refused_before_it_does(encoding: str, tmp_path: Path) -> None:
    pieces = zstandard.ZstdCompressor(level=1).compressobj(size=2**30)
    bomb = b"".join([pieces.compress(bytes(2**24)) for _ in range(64)]) + pieces.flush()
    assert len(bomb) < 200_000
    # By its frame alone, and with the shape that goes with it.
    assert "a frame has 1073741824 bytes, not" in refused(
        write(tmp_path / "w.packed", ("w", ["float32", [4], encoding], bomb), *qparams(3))
    )
    shape = [2**28] if encoding != "same" else [4]
    message = refused(write(tmp_path / "w.packed", ("w", ["float32", shape, encoding], bomb), *qparams(3)))
    assert ("more than 1000 times as many" in message) == (encoding != "same")


def qparams(bits: int, **changes: tuple[list[Any], bytes]) -> list[tuple[str, list[Any], bytes]]:
    parts = {
        "w_bits": (["uint8", [], "dense"], bytes([bits])),
        "w_low": (["float32", [1], "dense"], ONES[:4]),
        "w_step": (["float32", [1], "dense"], ONES[:4]),
        **changes,
    }
    return [(name, fields, frame(content)) for name, (fields, content) in parts.items()]


@pytest.mark.parametrize("shape", [
    [-1], [-4, -1], [2, -2], [2**63], [2**40, 2**40], [10**30], [0, 2**62, 2**62], [True, 4], [4.0], ["4"], [[4]],
    "4", None, 4,
])  # fmt: skip
def test_shapes_that_no_tensor_has_are_refused(shape: Any, tmp_path: Path) -> None:
    assert "the entry w is ['float32'" in refused(write(tmp_path / "w.packed", ("w", ["float32", shape, "dense"], b"")))


@pytest.mark.parametrize("fields", [
    ["load", [4], "dense"], ["nn", [4], "dense"], ["float33", [4], "dense"], [None, [4], "dense"],
    ["float32", [4], "x"], ["float32", [4], None], ["float32", [4]], ["float32", [4], "dense", 4], [],
])  # fmt: skip
def test_entries_of_another_form_are_refused(fields: list[Any], tmp_path: Path) -> None:
    assert "the entry w is " in refused(write(tmp_path / "w.packed", ("w", fields, frame(ONES))))


@pytest.mark.parametrize("table", [
    "[]", "null", "5", "{", '{"w": 5}', '{"w": null}', "[" * 10_000, '{"w": NaN}', f'{{"w": {"9" * 5000}}}',
    '{"w": ["float32", [4], "dense", SIZE], "w": ["float32", [4], "dense", SIZE]}', "{}",
    '{"w": ["float32", [4], "dense", -SIZE]}', '{"w": ["float32", [4], "dense", 9999]}',
    '{"w": ["float32", [4], "dense", SIZE], "v": ["float32", [0], "dense", 1]}',
])  # fmt: skip
def test_tables_that_do_not_go_with_the_frames_are_refused(table: str, tmp_path: Path) -> None:
    content = frame(ONES)
    refused(write(tmp_path / "w.packed", ("w", PLAIN, content), table=table.replace("SIZE", str(len(content)))))


@pytest.mark.parametrize(
    ("encoding", "content"),
    [("dense", ONES[:-1]), ("dense", ONES + b"\0"), ("dense", b""), ("sparse", b""), ("sparse", b"\xf0" + ONES[:-4]),
     ("sparse", b"\xf0" + ONES + b"\0"), ("sparse", b"\x80" + ONES), ("signed", b"\x80"), ("signed", b"\x80\0" + ONES),
     ("bits", bytes(1)), ("bits", bytes(3)), ("bytes", bytes(3)), ("bytes", bytes(5)), ("bytes", b"\0\1\x07\x08"),
     ("same", b"w_bits"), ("same", b"nobody"), ("same", b"w"), ("same", b"\xff"), ("same", b"a" * 100)],
)  # fmt: skip
def test_frames_that_do_not_go_with_their_shape_are_refused(encoding: str, content: bytes, tmp_path: Path) -> None:
    refused(write(tmp_path / "w.packed", ("w", ["float32", [4], encoding], frame(content)), *qparams(3)))


def test_frames_without_their_size_or_with_something_behind_are_refused(tmp_path: Path) -> None:
    for content in (frame(ONES, write_content_size=False), frame(ONES) + b"\0", frame(ONES) + frame(ONES), ONES, b"",
                    frame(ONES)[:-1]):  # fmt: skip
        refused(write(tmp_path / "w.packed", ("w", PLAIN, content)))
    assert "do not go together" in refused(write(tmp_path / "w.packed", ("w", PLAIN, frame(ONES)), more=b"more"))


@pytest.mark.parametrize("parts", [
    qparams(0), qparams(9), qparams(255), qparams(3)[1:],
    qparams(3, w_low=(["float32", [2], "dense"], ONES[:8])), qparams(3, w_low=(["float32", [], "dense"], ONES[:4])),
    qparams(3, w_low=(["int32", [1], "dense"], ONES[:4])), qparams(3, w_low=(["float64", [1], "dense"], ONES[:8])),
    qparams(3, w_low=(["float32", [0], "dense"], b""), w_step=(["float32", [0], "dense"], b"")),
    qparams(3, w_low=(["float32", [5], "dense"], ONES + ONES[:4]), w_step=(["float32", [5], "dense"], ONES + ONES[:4])),
    qparams(3, w_codebook=(["float32", [1, 4], "dense"], ONES)),
    qparams(2, w_codebook=(["float32", [4], "dense"], ONES)),
    qparams(3, w_bits=(["uint8", [2], "dense"], b"\3\3")),
    qparams(3, w_bits=(["float32", [], "dense"], b"\0\0\xc0\x7f")),
])  # fmt: skip
def test_qparams_of_another_form_are_refused(parts: list[tuple[str, list[Any], bytes]], tmp_path: Path) -> None:
    refused(write(tmp_path / "w.packed", ("w", ["float32", [4], "bytes"], frame(bytes(4))), *parts))


def test_what_is_said_right_by_hand_is_loaded(tmp_path: Path) -> None:
    named = [("w", ["float32", [4], "bytes"], frame(b"\0\1\2\7")), *qparams(3)]
    named.append(("b", ["bool", [2], "dense"], frame(b"\0\1")))
    found = file.load(write(tmp_path / "w.packed", *named))
    assert found["w"].tolist() == [1, 2, 3, 8]
    assert found["b"].tolist() == [False, True]
    named[-1] = ("b", ["bool", [2], "dense"], frame(b"\0\2"))
    assert "b holds more than true and false" in refused(write(tmp_path / "w.packed", *named))


def test_names_and_values_are_shown_in_one_short_line(tmp_path: Path) -> None:
    message = refused(write(tmp_path / "w.packed", ("\x1b[2J\n" + 500 * "w", ["float32", [-1], "dense"], b"")))
    assert "the entry \\x1b[2J\\nwww" in message


def test_a_file_that_holds_other_tensors_too_is_refused(tmp_path: Path) -> None:
    metadata = {"format": file.FORMAT, "entries": "{}"}
    for tensors in ({"frames": np.zeros(0, np.uint8), "more": np.zeros(1)}, {"frames": np.zeros(3, np.float32)},
                    {"frames": np.zeros((2, 2), np.uint8)}, {"other": np.zeros(0, np.uint8)}):  # fmt: skip
        save_file(tensors, tmp_path / "w.packed", metadata)
        refused(tmp_path / "w.packed")


def test_tensors_of_hardly_anything_but_zeros_are_not_packed_as_they_could_not_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = {"w": torch.zeros(2**18)}
    file.save(tmp_path / "w.packed", zeros)
    assert torch.equal(file.load(tmp_path / "w.packed")["w"], zeros["w"])
    monkeypatch.setattr(entries, "FREE", 2**19)
    assert "more than 1000 times as many" in refused(tmp_path / "w.packed")
    (tmp_path / "w.packed").unlink()
    with pytest.raises(ExportError, match=r"w\.packed cannot be packed: .* Remedy: leave out"):
        file.save(tmp_path / "w.packed", zeros)
    assert not (tmp_path / "w.packed").exists()


def test_changed_at_random_a_file_is_loaded_or_refused_in_one_line(tmp_path: Path) -> None:
    """Bits, bytes and the table's values. Shapes and sizes of wild numbers never cost memory."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
    model[1].weight = model[0].weight
    attach(model[2], QParams(3, *affine.fit(model[2].weight.detach(), 3, 8)))
    path = tmp_path / "w.packed"
    file.save(path, {**model.state_dict(), "sparse": torch.relu(torch.randn(40, 9)), "minus": torch.zeros(9) * -1})
    good, rng, outcomes = path.read_bytes(), random.Random(0), {"loaded": 0, "refused": 0}
    [size] = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + size])
    wild = [-1, 0, 2**28, 2**31, 2**63, 10**40, 1.5, None, True, "x\n", [], {}, *entries.ENCODINGS, "int8", "float64"]
    for _ in range(400):
        changed = bytearray(good)
        if rng.random() < 0.5:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        else:
            table = json.loads(header["__metadata__"]["entries"])
            fields = table[rng.choice(list(table))]
            target = fields[1] if rng.random() < 0.3 and fields[1] else fields
            target[rng.randrange(len(target))] = rng.choice(wild)
            about = {"format": file.FORMAT, "entries": json.dumps(table)}
            text = json.dumps({**header, "__metadata__": about}).encode()
            changed = bytearray(struct.pack("<Q", len(text)) + text + good[8 + size :])
        path.write_bytes(changed)
        try:
            file.load(path)
            outcomes["loaded"] += 1
        except WeightsError as error:
            assert str(error).isprintable()  # noqa: PT017 (either is right)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 350
