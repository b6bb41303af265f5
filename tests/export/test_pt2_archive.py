"""Programs of strangers: whatever would run code while it is loaded is refused, in one line, before it does."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfray.errors import ExportError
from pfray.export import pt2
from pfray.quantization.pt2e import int8_model

CONFIG = "data/{0}/model_{0}_config.json"
GRAPH, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
Parts = dict[str, bytes]


class Evil:
    """Unpickled, it makes the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (making(self.path),)


def making(path: Path) -> str:
    return f"open({str(path)!r}, 'w').close()"


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2, 2)
        self.register_buffer("shift", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)) + torch.tensor([1.0, 2.0])) + self.shift


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The parts of a good program, by name."""
    path = tmp_path_factory.mktemp("good") / "model.pt2"
    pt2.save(Net(), torch.zeros(1, 1, 4, 4), path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, parts: Parts, **zip_options: Any) -> None:
    with zipfile.ZipFile(path, "w", **zip_options) as archive:
        for name, content in parts.items():
            archive.writestr(f"model/{name}", content)


def edited(content: bytes, edit: Callable[[Any], object]) -> bytes:
    raw = json.loads(content)
    edit(raw)
    return json.dumps(raw).encode()


def graph(edit: Callable[[dict[str, Any], str], object]) -> Callable[[Parts, Path], Parts]:
    """Parts whose graph is edited; the edit is given the code that makes the file."""
    return lambda parts, mark: {GRAPH: edited(parts[GRAPH], lambda raw: edit(raw, making(mark)))}


def symbol(raw: dict[str, Any], code: str) -> None:
    [name] = raw["graph_module"]["graph"]["inputs"][-1:]
    meta = raw["graph_module"]["graph"]["tensor_values"][name["as_tensor"]["name"]]
    meta["sizes"][0]["as_expr"]["expr_str"] = f"exec({code!r})"


def signature(raw: dict[str, Any]) -> dict[str, Any]:
    return raw["graph_module"]["module_call_graph"][0]["signature"]


def by_config(folder: str, part: str, content: Callable[[Path], bytes], **entry: Any) -> Callable[[Parts, Path], Parts]:
    """A weight or constant more, stored as ``part``."""
    meta = {"path_name": part, "is_param": False, "use_pickle": True, "tensor_meta": None, **entry}
    config = CONFIG.format(folder)
    return lambda parts, mark: {
        config: edited(parts[config], lambda raw: raw["config"].update(extra=meta)),
        f"data/{folder}/{part}": content(mark),
    }


EXPLOITS: dict[str, Callable[[Parts, Path], Parts]] = {
    "example inputs": lambda parts, mark: {INPUTS: saved(((Evil(mark),), {}))},
    "example inputs, an old pickle": lambda parts, mark: {INPUTS: pickle.dumps(((Evil(mark),), {}), 2)},
    "a pickled weight": by_config("weights", "weight_99", lambda mark: saved(Evil(mark))),
    "a pickled constant": by_config("constants", "tensor_99", lambda mark: saved(Evil(mark))),
    "an object": by_config("constants", "opaque_obj_0", lambda mark: pickle.dumps(Evil(mark), 2)),
    "a script object": by_config("constants", "custom_obj_0", lambda mark: saved(Evil(mark))),
    "weights of an older form": lambda parts, mark: {"data/weights/model.pt": saved({"a": Evil(mark)})},
    "constants of an older form": lambda parts, mark: {"data/constants/model.pt": saved({"a": Evil(mark)})},
    "a shared library": lambda parts, mark: {"data/aotinductor/model/model.so": b"\x7fELF"},
    "files besides": lambda parts, mark: {"extra/readme": b"hello"},
    "a second program": lambda parts, mark: {"models/other.json": parts[GRAPH]},
    "a condition": graph(lambda raw, code: raw.update(guards_code=[f"exec({code!r}) or True"])),
    "a condition's attributes": graph(lambda raw, code: raw.update(guards_code=["().__class__ == 1"])),
    "a size": graph(symbol),
    "an argument's name": graph(lambda raw, code: signature(raw).update(forward_arg_names=[f"x={code}"])),
    "a node's name": graph(lambda raw, code: raw["graph_module"]["graph"]["nodes"][0].update(name=f"a\n{code}")),
    "an operator": graph(lambda raw, code: raw["graph_module"]["graph"]["nodes"][0].update(target="torch.os.system")),
    "a library's loading": graph(
        lambda raw, code: raw["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.load_library")
    ),
    "an import by outputs": graph(lambda raw, code: signature(raw).update(out_spec=json.dumps(
        [1, {"type": "collections.defaultdict", "children_spec": [], "context": json.dumps(
            {"default_factory_module": "os", "default_factory_name": "system", "dict_context": []})}]))),
    "an import by keys": graph(lambda raw, code: signature(raw).update(out_spec=json.dumps(
        [1, {"type": "builtins.dict", "children_spec": [], "context": json.dumps(
            [{"__enum__": True, "fqn": "antigravity:x", "name": "y"}])}]))),
    "a weight's name": lambda parts, mark: {CONFIG.format("weights"): edited(
        parts[CONFIG.format("weights")],
        lambda raw: raw["config"].update({f'a"), {making(mark)}, ("': raw["config"]["shift"]}))},
}  # fmt: skip


def refused(path: Path) -> str:
    with pytest.raises(ExportError, match=r"model\.pt2 is refused: .* Remedy: ") as error:
        pt2.load(path)
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("name", EXPLOITS)
def test_a_program_that_would_run_code_is_refused_before_it_does(name: str, parts: Parts, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    write(tmp_path / "model.pt2", {**parts, **EXPLOITS[name](parts, mark)})
    refused(tmp_path / "model.pt2")
    assert not mark.exists()


def test_the_same_parts_without_a_change_are_loaded(parts: Parts, tmp_path: Path) -> None:
    write(tmp_path / "model.pt2", parts)
    assert pt2.load(tmp_path / "model.pt2")(torch.ones(3, 1, 4, 4)).shape == (3, 2)


def test_an_archive_of_the_older_form_is_not_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("version", "8.20")
        archive.writestr("serialized_exported_program.json", "{}")
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", saved(Evil(mark)))
    with pytest.raises(ExportError, match=r"model\.pt2 .* Remedy: "):
        pt2.load(tmp_path / "model.pt2")
    assert not mark.exists()


def test_parts_that_readers_may_see_in_two_ways_are_refused(parts: Parts, tmp_path: Path) -> None:
    write(tmp_path / "model.pt2", parts)
    with zipfile.ZipFile(tmp_path / "model.pt2", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"model/{INPUTS}", parts[INPUTS])
    assert "parts of one name" in refused(tmp_path / "model.pt2")
    write(tmp_path / "model.pt2", parts)
    with zipfile.ZipFile(tmp_path / "model.pt2", "a") as archive:
        archive.writestr("version", "8.20")
    assert "several folders" in refused(tmp_path / "model.pt2")


def test_what_would_grow_when_it_is_read_is_refused(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    write(path, {**parts, "data/weights/weight_9": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED)
    assert "parts that are compressed" in refused(path)
    config = CONFIG.format("weights")
    for sizes in ([2**40], [-1], [2**40, -1]):
        huge = edited(parts[config], lambda raw, sizes=sizes: raw["config"]["shift"].update(
            path_name="weight_99", tensor_meta={**raw["config"]["shift"]["tensor_meta"],
                                                "sizes": [{"as_int": size} for size in sizes]}))  # fmt: skip
        write(path, {**parts, config: huge, "data/weights/weight_99": b""})
        assert "shift has the shape" in refused(path)


@pytest.mark.parametrize("part", [GRAPH, INPUTS, CONFIG.format("weights"), CONFIG.format("constants")])
@pytest.mark.parametrize("content", [None, b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"config": {"a": {}}}'])
def test_parts_of_another_kind_are_one_line(part: str, content: bytes | None, parts: Parts, tmp_path: Path,
                                            capfd: pytest.CaptureFixture) -> None:  # fmt: skip
    left = {name: text for name, text in parts.items() if name != part}
    write(tmp_path / "model.pt2", left if content is None else {**left, part: content})
    with pytest.raises(ExportError, match=r"model\.pt2 is .* Remedy: ") as error:
        pt2.load(tmp_path / "model.pt2")
    assert str(error.value).isprintable()
    assert capfd.readouterr().err == ""


def test_an_int8_program_is_loaded_in_a_process_that_made_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 1, 8, 8)
    model = int8_model.prepare(Net().eval(), inputs, [inputs])
    pt2.save(model, inputs, tmp_path / "model.pt2")
    torch.save(model(inputs), tmp_path / "outputs")
    code = (
        "import torch, pfray; torch.manual_seed(0); x = torch.randn(16, 1, 8, 8); "
        f"model = pfray.load({str(tmp_path / 'model.pt2')!r}); expected = torch.load({str(tmp_path / 'outputs')!r}); "
        "print(float((model(x) - expected).abs().max() / expected.abs().max()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.02
