"""Names of tensors in a ``.tflite`` file: a converter's are hundreds of bytes each, a tenth of a small int8 file.

``pfray.models.resnet.CifarResNet/torch.nn.modules.conv.Conv2d_conv1;...`` becomes ``conv1``: what the modules are
called in the network, of the first of the places that a name lists; of equal names all but the first get a number.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from pfray.export.tflite import flatbuffer
from pfray.utils.files import replacing

# A module's class and what it is called: ``torch.nn.modules.conv.Conv2d_conv1``.
MODULE = re.compile(r"^(?:\w+\.)+[A-Za-z0-9]+_(.+)$")
# Above this a file keeps its names, for the format then keeps constants where rewriting would lose them.
LARGEST = 2_000_000_000


def shorten(path: str | Path) -> None:
    """Rewrite the file with short names; inputs and outputs keep theirs. Raises ExportError for a damaged file."""
    content = flatbuffer.read(path)
    if len(content) >= LARGEST:
        return
    model = flatbuffer.parse(content, path)
    for subgraph in model.subgraphs:
        ends = {int(i) for i in (*subgraph.inputs, *subgraph.outputs)}
        seen: Counter[str] = Counter()
        for index, tensor in enumerate(subgraph.tensors):
            if index in ends:
                continue
            name = short(tensor.name.decode())
            seen[name] += 1
            tensor.name = (name if seen[name] == 1 else f"{name}:{seen[name]}").encode()
    with replacing(path) as temporary:
        temporary.write_bytes(flatbuffer.pack(model))


def short(name: str) -> str:
    """``layer2.0.conv1`` for the place of a module in the network; other names up to their first ``;``."""
    parts = name.partition(";")[0].split("/")
    called = [found[1] for part in parts if (found := MODULE.match(part))]
    return ".".join(called) or parts[-1]
