"""Two network namespaces with a wire between them: two machines, as far as sockets are concerned."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

# Of the range for measurements between two networks (RFC 2544), which nobody is reached by.
HERE, THERE = "198.18.0.1", "198.18.0.2"


@dataclass(frozen=True)
class Namespaces:
    """here, there: what a command begins with that is run in the one that is at HERE, and in the one at THERE."""

    here: list[str]
    there: list[str]


@contextlib.contextmanager
def two_namespaces() -> Iterator[Namespaces]:
    """Raises PermissionError with the reason where this user, or this machine, cannot make any."""
    if os.geteuid() != 0:
        raise PermissionError("network namespaces are root's to make")
    if shutil.which("ip") is None:
        raise PermissionError("there is no 'ip' (Debian's package iproute2)")
    name = f"pfray-{secrets.token_hex(3)}"
    here, there = f"{name}-here", f"{name}-there"
    with contextlib.ExitStack() as closing:
        for namespace in (here, there):
            _ip("netns", "add", namespace)
            closing.callback(_ip, "netns", "del", namespace)
        _ip("-n", here, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", there)
        for namespace, address in ((here, HERE), (there, THERE)):
            _ip("-n", namespace, "addr", "add", f"{address}/30", "dev", "wire")
            for device in ("wire", "lo"):
                _ip("-n", namespace, "link", "set", device, "up")
        # Programs that look for the address of this machine take that of the way out.
        _ip("-n", here, "route", "add", "default", "via", THERE)
        yield Namespaces(["ip", "netns", "exec", here], ["ip", "netns", "exec", there])


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
