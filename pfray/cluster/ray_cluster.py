"""Ray for a run, started on this machine or found on a cluster, and its capacity for trials and workers."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import socket
from collections.abc import Iterator
from typing import Any

import ray

from pfray.cluster import access
from pfray.errors import TOKEN_REMEDY, ClusterError, ConfigError, first_line
from pfray.reporting.observers import Observers
from pfray.utils import command
from pfray.utils.quiet import mute_stderr
from pfray.utils.timeout import with_timeout
from pfray.utils.url import check_address

# Seconds for a cluster to answer.
ANSWER_TIMEOUT = 15.0


@contextlib.contextmanager
def ray_session(observers: Observers, *, address: str | None = None, dashboard: bool = False) -> Iterator[None]:
    """Connect to Ray for the length of the block: the cluster at ``address``, a Ray already started, or a new one.

    dashboard: a new one has a dashboard. Raises ConfigError, ClusterError.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; unset, it warns
    # A user's data set may read files by a relative path, in trials too.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # A raylet gives up if its agents start too slowly, by default after 30 s, which a busy machine may need.
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    with contextlib.ExitStack() as closing:
        with observers.stage("start ray"):
            own = reach(address) is None
            token = closing.enter_context(access.private_ray(token_file=dashboard)) if own else None
            try:
                with command.own_signals():
                    context = ray.init(
                        address="local" if own else address, include_dashboard=dashboard,
                        dashboard_host="127.0.0.1", log_to_driver=False, logging_level=logging.ERROR,
                    )  # fmt: skip
            except (ConnectionError, ValueError) as error:
                raise no_cluster_at(address, error) from error
            except OSError:
                raise  # such as a full disk, which main explains better
            except Exception as error:  # Ray has no class of its own for a start that takes too long
                raise ClusterError(
                    f"Ray did not start ({first_line(error)}). Remedy: try again when the machine has less to do; end "
                    "what earlier sessions may have left with 'ray stop', which ends all Rays of yours here"
                ) from error
        if dashboard:
            observers.note(f"dashboard: http://{context.dashboard_url}")
            if token is not None:
                observers.note(f"the dashboard's token is in {token}")
        try:
            yield
        except KeyboardInterrupt:
            # Threads may wait in Ray, and a shutdown could then wait for ever. Ray's processes end with this one.
            raise
        except BaseException:
            ray.shutdown()
            raise
        ray.shutdown()
        command.take_signals()


def reach(address: str | None) -> str | None:
    """Address of the cluster to use, after a try to reach it; None if the run has to start its own Ray.

    ``ray.init`` itself tries for minutes and seldom names the cause. Without an address, Ray's own choice is tried:
    RAY_ADDRESS, or a Ray of ``ray start`` on this machine. Forms other than ``host:port`` are left to Ray. Raises
    ConfigError if no cluster answers and for a token that cannot be read, ClusterError for another token, and for
    other versions of Ray or Python.
    """
    from ray._private.services import find_bootstrap_address
    from ray.exceptions import AuthenticationError

    access.check_token()
    asked = address or os.environ.get("RAY_ADDRESS")
    try:
        check_address(asked or "")
    except ValueError as error:
        raise ConfigError(f"{'resources.address' if address else 'RAY_ADDRESS'}: {error}") from error
    address = asked or find_bootstrap_address(None)
    if address is None or address == "local":
        return None
    if not re.fullmatch(r"[^/\s]+:\d+", address):
        return address
    if asked:
        which, otherwise = f"resources.address: the cluster at {address}", ""
    else:
        which = f"the Ray of this machine at {address}, which a run without an address uses,"
        otherwise = ", or --address local for a Ray of the run's own"
        access.show_token()  # as Ray does for a cluster that it finds itself
    try:
        with mute_stderr():  # Ray itself warns about another token
            found = with_timeout(ANSWER_TIMEOUT, lambda: cluster_versions(address))
    except AuthenticationError:
        raise ClusterError(f"{which} wants another token. {TOKEN_REMEDY}{otherwise}") from None
    except (ray.exceptions.RaySystemError, ray.exceptions.RpcError, RuntimeError, OSError) as error:
        if asked:
            raise no_cluster_at(address, error) from error
        raise ConfigError(f"{which} does not answer ({first_line(error)}). Remedy: 'ray stop'{otherwise}") from error
    own = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor":
        for versions in (own, found):
            versions["python_version"] = versions.get("python_version", "").rpartition(".")[0]
    other = [
        f"{name} {found[key]} there, {own[key]} here"
        for name, key in (("Ray", "ray_version"), ("Python", "python_version"))
        if found.get(key, own[key]) != own[key]
    ]
    if other:
        raise ClusterError(
            f"{which} has other versions: {'; '.join(other)}. "
            f"Remedy: the same on all machines, or python -m pfray.submit, which runs on the cluster itself{otherwise}"
        )
    return address


def no_cluster_at(address: str | None, error: Exception) -> ConfigError:
    """The error for an address, in any form, at which no cluster answers."""
    return ConfigError(
        f"resources.address: no Ray cluster answers at {address!r} ({first_line(error)}). "
        "Remedy: start one with 'ray start --head', or leave the address out"
    )


def cluster_versions(address: str) -> dict[str, Any]:
    """Versions of Ray and Python at ``host:port``, as ``ray_version`` and ``python_version``. Raises OSError."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    # Ray's client would keep trying if nobody listens.
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), ANSWER_TIMEOUT / 2).close()
    return json.loads(GcsClient(address=address).internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster") or b"{}")


def total(kind: str) -> int:
    """Number of ``CPU`` or ``GPU`` of the whole cluster."""
    return int(ray.cluster_resources().get(kind, 0))


def largest(kind: str) -> int:
    """Number of ``CPU`` or ``GPU`` of the machine that has most: the limit of one worker."""
    return max((int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]), default=0)


def check_room(cpu: int, gpu: float, workers: int) -> None:
    """Raise ConfigError for resources that the cluster never has, for which Ray would wait for ever.

    cpu, gpu: of one trial. workers: of a retraining.
    """
    asked = [
        ("resources.trial.cpu", cpu, largest("CPU")),
        ("resources.trial.gpu", gpu, largest("GPU")),
        ("resources.workers", workers, total("GPU" if gpu else "CPU")),
    ]
    mistakes = [
        f"{key}: {value:g} is not allowed, the cluster has {most}. Remedy: at most {most}, or a larger cluster"
        for key, value, most in asked
        if value > most
    ]
    if not mistakes and not any(node["Alive"] and _room(node["Resources"], cpu, gpu) for node in ray.nodes()):
        mistakes = [
            f"resources.trial: no machine of the cluster has {cpu} CPU and {gpu:g} GPU together. "
            "Remedy: a smaller share, or a larger machine"
        ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def parallel_trials(cpu: int, gpu: float) -> int:
    """Number of trials that fit on the cluster at once. A trial is on a single machine."""
    return max(1, sum(_room(node["Resources"], cpu, gpu) for node in ray.nodes() if node["Alive"]))


def _room(has: dict[str, float], cpu: int, gpu: float) -> int:
    fits = [has.get("CPU", 0) / cpu]
    if gpu:
        fits.append(has.get("GPU", 0) / gpu)
    return int(min(fits) + 1e-9)  # 1 / 0.1 and the like are not exact


def processors_per_worker(workers: int) -> int:
    """CPUs for each of ``workers`` that train at the same time."""
    return max(1, min(largest("CPU"), total("CPU") // workers))
