"""Models of timm and transformers by name: ``timm:mobilenetv3_small_100``, ``hf:org/name`` or ``hf:path/of/a/folder``.

Both libraries are optional and imported only for such a name, as torch is. Settings are the library's own.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from pfray.errors import ConfigError, first_line, nearest, short, shown
from pfray.utils.quiet import mute_stderr

if TYPE_CHECKING:
    from torch import nn

# Package and extra of pfray by the prefix of a name.
PACKAGES = {"timm": "timm", "hf": "transformers"}
# Seconds for the hub to answer at all, without which its client tries for a minute.
REACH_TIMEOUT = 5.0
_REMARKS: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()


def find(kind: str, name: str) -> Callable[..., nn.Module] | None:
    """The function that builds the named model; None for a name without one of the prefixes.

    Raises ConfigError if the library is not installed or has no such model.
    """
    prefix, _, rest = name.partition(":")
    if prefix not in PACKAGES or not rest:
        return None
    title = f"{kind}: {short(name)}"
    library = _library(title, prefix)
    if prefix == "hf":
        return partial(_transformers, library, title, rest)
    if hasattr(library, rest):  # timm:create_model, an import path
        return None
    if ":" not in rest and not library.is_model(rest):
        raise ConfigError(
            f"{title}: timm has no model {shown(rest)}.{nearest(rest, library.list_models())} "
            "Remedy: a name of timm.list_models()"
        )
    return partial(_timm, library, title, rest)


def remarks_on(model: nn.Module) -> Sequence[str]:
    """Sources of the weights of a model that this module built, a line each."""
    return _REMARKS.get(model, ())


def _library(title: str, prefix: str) -> Any:
    package = PACKAGES[prefix]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{title}: {package} is not installed. Remedy: pip install pfray[{prefix}]")
    try:
        return importlib.import_module(package)
    except Exception as error:  # such as a torchvision built for another torch
        raise ConfigError(
            f"{title}: {package} cannot be imported ({type(error).__name__}: {first_line(error)}). "
            f"Remedy: pip install pfray[{prefix}], and a torchvision that was built for this torch"
        ) from error


def _timm(
    library: Any, title: str, name: str, /, num_classes: int, in_chans: int | None = None, pretrained: bool = False,
    **settings: Any,
) -> nn.Module:  # fmt: skip
    channels = {} if in_chans is None else {"in_chans": in_chans}
    with _fetching(title, "pretrained: false with model.weights", pretrained or ":" in name):
        model: nn.Module = library.create_model(
            name, pretrained=pretrained, num_classes=num_classes, **channels, **settings
        )
    known: Any = getattr(model, "pretrained_cfg", None) or {}
    drawn = known.get("classifier") if known.get("num_classes") != num_classes else None
    _remark(model, title, pretrained, [drawn] if isinstance(drawn, str) else list(drawn or ()))
    return model


def _transformers(
    library: Any, title: str, name: str, /, num_labels: int, in_channels: int | None = None, pretrained: bool = True,
    revision: str = "main", trust_remote_code: bool = False, **settings: Any,
) -> nn.Module:  # fmt: skip
    """settings: of the model's configuration."""
    if name.startswith((".", "/", "~")) or os.path.isdir(name):
        name = os.path.expanduser(name)
        if not os.path.isdir(name):
            raise ConfigError(f"{title}: no folder {shown(name)}. Remedy: check the path")
    origin = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _fetching(title, "hf:path/of/its/folder", not os.path.isdir(name)), _silent(library):
        config, unknown = library.AutoConfig.from_pretrained(
            name, num_labels=num_labels, return_unused_kwargs=True, **origin, **settings
        )
        if unknown := [key for key in unknown if key not in origin]:
            raise ConfigError(
                f"{title}: unknown setting {shown(unknown[0])}.{nearest(unknown[0], config.to_dict())} "
                f"Remedy: a setting of transformers' {type(config).__name__}"
            )
        if in_channels is not None and "num_channels" not in settings and hasattr(config, "num_channels"):
            config.num_channels = in_channels
        with mute_stderr():  # this part warns of other libraries when it is imported
            importlib.import_module("transformers.modeling_utils")
        loader = _loader(library, title, config)
        if not pretrained:
            model: nn.Module = loader.from_config(config, trust_remote_code=trust_remote_code)
            drawn = []
        else:
            model, info = loader.from_pretrained(
                name, config=config, ignore_mismatched_sizes=True, output_loading_info=True, dtype="float32",
                **origin,
            )  # fmt: skip
            # transformers gives entries whose shapes differ as (name, shape, shape).
            drawn = sorted({*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])})
    _remark(model, title, pretrained, drawn)
    return model.float()


def _loader(library: Any, title: str, config: Any) -> Any:
    """transformers' Auto class for what the configuration was trained for, or may be used for."""
    known = [
        ("ForImageClassification", library.AutoModelForImageClassification),
        ("ForSequenceClassification", library.AutoModelForSequenceClassification),
    ]
    trained_for = getattr(config, "architectures", None) or []
    for ending, loader in known:
        if any(str(name).endswith(ending) for name in trained_for):
            return loader
    for _, loader in known:
        if type(config) in loader._model_mapping:
            return loader
    raise ConfigError(
        f"{title}: transformers classifies neither images nor texts with a {type(config).__name__}. Remedy: a function "
        "of your own that builds the model"
    )


def _remark(model: nn.Module, title: str, pretrained: bool, drawn: Sequence[str]) -> None:
    """drawn: names that the pretrained weights have not, or not of this shape."""
    if not pretrained:
        _REMARKS[model] = [f"{title} has random weights; pretrained: true gives trained ones"]
        return
    names = ", ".join(short(name) for name in drawn[:4]) + (f" and {len(drawn) - 4} more" if len(drawn) > 4 else "")
    fresh = f"; random, as they are new or of another shape: {names}" if drawn else ""
    _REMARKS[model] = [
        f"{title} has pretrained weights{fresh}. The teacher is trained from them; teacher.epochs: 0 takes them as "
        "they are"
    ]


@contextlib.contextmanager
def _fetching(title: str, instead: str, may_fetch: bool) -> Iterator[None]:
    """Turn an unreachable hub, or a name that it does not have, into a ConfigError, within seconds.

    instead: what a user without a network can give.
    """
    with contextlib.ExitStack() as restoring:
        if may_fetch and not _hub_answers():
            restoring.enter_context(_offline())
        try:
            yield
        except OSError as error:
            what = "cannot be fetched, and is not in the cache" if may_fetch else "cannot be read"
            reason = first_line(error).rstrip(".")
            raise ConfigError(
                f"{title} {what} ({reason}). Remedy: check the name and the network, or {instead}"
            ) from error


def _hub_answers() -> bool:
    constants: Any = importlib.import_module("huggingface_hub.constants")
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():  # offline anyway, or reached in another way
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), REACH_TIMEOUT).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Use the hub's cache only."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    kept, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = kept


@contextlib.contextmanager
def _silent(library: Any) -> Iterator[None]:
    """Without transformers' tables and bars; the hub's own bar shows a download."""
    log = library.logging
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.ERROR)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()
