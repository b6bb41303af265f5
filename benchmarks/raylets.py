"""Several raylets on this machine: a Ray cluster as far as Ray is concerned, each raylet a machine of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

# A raylet that is gone is noticed within a second, and not within the 15 of Ray's default.
NOTICE_SOON = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 200, "health_check_timeout_ms": 5000}


@contextlib.contextmanager
def cluster(raylets: int, cpus: int = 1, *, head_cpus: int = 0, dashboard: bool = False) -> Iterator[Cluster]:
    """A head, to which drivers connect, and ``raylets`` machines of ``cpus`` processors.

    They share a folder, so that a job whose code is sent along has to run on a head alone: each raylet that runs a part
    of it would unpack the code anew, over that of the others. Ended with the block. Other Rays on this machine do not notice it: the address file in which ``ray.init`` looks for
    a cluster that is up is left alone.
    """
    from ray.cluster_utils import Cluster

    with mock.patch("ray._private.utils.write_ray_address"):
        found = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": head_cpus, "include_dashboard": dashboard, "_system_config": NOTICE_SOON,
            },
        )  # fmt: skip
        try:
            for _ in range(raylets):
                found.add_node(num_cpus=cpus)
            yield found
        finally:
            found.shutdown()
