"""Check of a ``.pt2`` archive's parts before torch reads it.

torch.export.load is unsafe for untrusted files (torch 2.13). It unpickles without restriction if ``weights_only``
refuses an example input, if a weight says ``use_pickle``, and for constants that are objects; it loads shared
libraries; it passes texts of the graph to ``sympify`` and ``exec``. pfray's programs need none of that: their tensors
are raw bytes, their example inputs plain tensors, and their texts names and sums of symbols. Everything else is
refused. A program of tensor operators remains, and calling it runs what its author wrote.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch.export.pt2_archive import PT2ArchiveReader

GRAPH, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
# Folders of tensors, and the stem of the file names in each.
TENSORS = {"weights": "weight", "constants": "tensor"}
PARTS = re.compile(
    rf"{re.escape(GRAPH)}|{re.escape(INPUTS)}|archive_format|archive_version|byteorder|\.data/(version|serialization_id)|"
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
# Names of modules, symbols and modes, equations of einsum, versions: no character that ends a quoted text.
NAME = re.compile(r"[\w .,:+/>@-]*")
# Metadata that torch keeps for people to read.
NOTES = ("stack_trace", "nn_module_stack", "torch_fn", "from_node", "custom")
OPERATORS = re.compile(
    r"torch\.ops\.(higher_order|\w+\.\w+)\.\w+|torch\._?sym_\w+|math\.[a-z]\w*|"
    r"_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
# Functions of symbols that torch writes (from its SYMPY_INTERP, and sympy's own).
FUNCTIONS = frozenset(re.findall(r"\w+", """
    Symbol Integer Float Rational Add Mul Pow Max Min Abs floor ceiling Eq Ne Equality Unequality StrictLessThan
    LessThan StrictGreaterThan GreaterThan Lt Le Gt Ge And Or Not FloorDiv ModularIndexing Where PythonMod Mod CleanDiv
    CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv TruncToFloat TruncToInt
    RoundToInt RoundDecimal ToFloat Identity IsNonOverlappingAndDenseIndicator
"""))  # fmt: skip
# Syntax of such expressions and of conditions on inputs, such as L['x'].size()[1] == 3.
NODES = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.UnaryOp, ast.BinOp, ast.BoolOp,
    ast.Compare, ast.Subscript, ast.Attribute, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def check(content: bytes) -> None:
    """Raise ValueError, with the reason in one line, if the archive holds anything but a plain program."""
    _check_zip(content)
    reader = PT2ArchiveReader(io.BytesIO(content))
    sizes = {name: reader.archive_file.get_record_size(name) for name in reader.get_file_names()}
    # Two zip readers may find different tables of contents in one file, and torch uses both.
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        seen = {info.filename.partition("/")[2]: info.file_size for info in archive.infolist()}
    if seen != sizes:
        raise ValueError("its table of contents can be read in two ways")
    for name in sizes:
        if not PARTS.fullmatch(name):
            raise ValueError(f"it has the part {name!r}, which no program of pfray has")
    _check_inputs(reader.read_bytes(INPUTS))
    for folder, kind in TENSORS.items():
        _check_tensors(json.loads(reader.read_string(f"data/{folder}/model_{folder}_config.json")), folder, kind, sizes)
    _check_graph(json.loads(reader.read_string(GRAPH)))


def _check_zip(content: bytes) -> None:
    """Raise ValueError unless it holds one folder of uncompressed files, each once."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = archive.infolist()
    stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
    if not stored or sum(part.file_size for part in parts) > len(content):
        raise ValueError("it has parts that are compressed")
    names = [part.filename for part in parts]
    if len(set(names)) < len(names) or len({name.partition("/")[0] for name in names}) > 1:
        raise ValueError("it has parts of one name, or several folders")


def _check_inputs(content: bytes) -> None:
    if not content:
        return
    try:
        _check_zip(content)
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise ValueError("its example inputs are pickles of more than tensors") from error


def _check_tensors(config: Any, folder: str, kind: str, sizes: dict[str, int]) -> None:
    for name, entry in config["config"].items():
        if not NAME.fullmatch(name):
            raise ValueError(f"the name {name!r} of a tensor is none")
        if entry["use_pickle"] is not False or not re.fullmatch(rf"{kind}_\d+", entry["path_name"]):
            raise ValueError(f"{name} is stored as a pickle")
        stored = sizes[f"data/{folder}/{entry['path_name']}"]
        shape = [size["as_int"] for size in entry["tensor_meta"]["sizes"]]
        # torch allocates the tensor of an empty part by its shape.
        if any(type(size) is not int or size < 0 for size in shape) or (not stored and prod(shape)):
            raise ValueError(f"{name} has the shape {shape} and {stored} bytes")


def _check_graph(graph: Any) -> None:
    for path, value in _texts(graph):
        key, parent = path[-1], path[-2] if len(path) > 1 else ""
        if key in ("expr_str", "guards_code"):
            _check_expression(value)
        elif key in ("in_spec", "out_spec"):
            _check_containers(json.loads(value)[1])
        elif key == "target" and parent == "nodes":
            if not OPERATORS.fullmatch(value):
                raise ValueError(f"{value!r} is no tensor operator")
        elif not (parent == "metadata" and key in NOTES) and not NAME.fullmatch(value):
            raise ValueError(f"{value!r} is no name")


def _texts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path of keys, text) of every text in parsed JSON, including the keys themselves."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, path)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield (*path, "key"), key
            yield from _texts(each, (*path, key))


def _check_expression(text: str) -> None:
    nodes = list(ast.walk(ast.parse(text, mode="eval")))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        known = isinstance(node, NODES)
        if isinstance(node, ast.Name):
            # torch names symbols by letters and a number; other names could be functions of Python or sympy.
            known = node.id in FUNCTIONS if id(node) in called else bool(re.fullmatch(r"[a-z]+\d+|L", node.id))
        elif isinstance(node, ast.Attribute):
            known = node.attr in ("size", "stride", "storage_offset") and isinstance(node.value, ast.Subscript)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            known = bool(re.fullmatch(r"\w+", node.value))
        elif isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name | ast.Attribute)
        if not known:
            raise ValueError(f"{text!r} is more than a sum of symbols")


def _check_containers(spec: Any) -> None:
    context = json.loads(spec["context"]) if isinstance(spec["context"], str) else spec["context"]
    keys = [] if context is None else context
    if spec["type"] not in CONTAINERS or not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys):
        raise ValueError(f"its inputs or outputs are a {spec['type']!r}")
    if any(isinstance(key, str) and not NAME.fullmatch(key) for key in keys):
        raise ValueError("its inputs or outputs have keys that are no names")
    for child in spec["children_spec"]:
        _check_containers(child)
