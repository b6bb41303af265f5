"""Short names of the tensors in a ``.tflite``: a converter's have hundreds of bytes, a tenth of a small int8 file.

``pfray.models.resnet.CifarResNet/torch.nn.modules.conv.Conv2d_conv1;...`` becomes ``conv1``: the module's name in the
network, of the first place that a name lists. Of equal names all but the first get a number.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

# A module's class, with a capital unlike its package, and its name: ``torch.nn.modules.conv.Conv2d_conv1``.
MODULE = re.compile(r"^(?:[^.]+\.)+?_?[A-Z][A-Za-z0-9]*_(.+)$")


def shorten(file: Any) -> None:
    """Shorten the names in a parsed file, in place; inputs and outputs keep theirs."""
    for subgraph in file.subgraphs:
        ends = {int(i) for i in (*subgraph.inputs, *subgraph.outputs)}
        seen: Counter[str] = Counter()
        for index, tensor in enumerate(subgraph.tensors):
            if index in ends:
                continue
            name = short(tensor.name.decode())
            seen[name] += 1
            tensor.name = (name if seen[name] == 1 else f"{name}:{seen[name]}").encode()


def short(name: str) -> str:
    """The module's name, such as ``layer2.0.conv1``; for other names the part up to the first ``;``."""
    return module_of(name) or name.partition(";")[0].split("/")[-1]


def module_of(name: str) -> str:
    """The name in the network of the module that a converter's name tells; empty for the network itself."""
    found = [MODULE.match(part) for part in name.partition(";")[0].split("/")]
    return ".".join(match[1] for match in found if match)
