"""Several raylets on this machine, a cluster for Ray: each raylet acts as one machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.result import ROOT

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

# On a busy machine a raylet's helpers may take longer than the 15 seconds after which it gives up.
PATIENT = {"agent_register_timeout_ms": 90_000}
# A raylet that is gone is noticed within a second, and not within the 15 of Ray's default.
NOTICE_SOON = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 200, "health_check_timeout_ms": 5000}
ATTEMPTS = 4


@contextlib.contextmanager
def cluster(raylets: int, cpus: int = 1, *, head_cpus: int = 0, dashboard: bool = False) -> Iterator[Cluster]:
    """A head, to which drivers connect, and ``raylets`` machines of ``cpus`` processors.

    They share a folder, so that a job whose code is sent along has to run on a head alone: each raylet that runs a part
    of it would unpack the code anew, over that of the others. dashboard: whether the head has one, and with it a job
    server, at ``webui_url``. All of it ends with the block. Other Rays on this machine do not notice it, nor it
    them: no usual port is taken, and the file in which Ray looks for the cluster that is up, as jobs do, is one in a
    folder of its own.
    Workers, and what is started inside the block, find the modules of this repository. Only they reach the cluster: it
    listens on this machine alone, and its token is in their environment.
    """
    from ray._private.utils import write_ray_address
    from ray.cluster_utils import Cluster

    from pfray.cluster.access import private_ray

    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # In /tmp, because the names of sockets have to be short.
    own = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    address_file = mock.patch("ray._private.utils.write_ray_address", partial(write_ray_address, temp_dir=own))
    with private_ray(), address_file, mock.patch.dict(os.environ, PYTHONPATH=paths):
        found = Cluster()
        try:
            settings = {**PATIENT, **(NOTICE_SOON if raylets else {})}
            (port,) = free_ports(1)
            head = {"temp_dir": own, "include_dashboard": dashboard, "dashboard_port": port}
            add(found, head_cpus, **head, _system_config=settings)
            for _ in range(raylets):
                add(found, cpus)
            yield found
        finally:
            found.shutdown()
            shutil.rmtree(own, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    with contextlib.ExitStack() as taken:
        sockets = [taken.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def add(found: Cluster, cpus: int, **options: Any) -> None:
    """Another machine of ``cpus`` processors."""
    import psutil

    own = psutil.Process()
    for attempt in range(ATTEMPTS):
        before = {child.pid for child in own.children()}
        try:
            # Without a port of its own an agent cannot start jobs while another Ray of this machine has the usual one.
            found.add_node(num_cpus=cpus, dashboard_agent_listen_port=0, **options)
            return
        except Exception as error:  # Ray has no type of its own for it
            for child in own.children():
                if child.pid not in before:
                    child.kill()
            if attempt == ATTEMPTS - 1 or "timed out during startup" not in str(error):
                raise
