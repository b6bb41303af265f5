"""What the Ray cluster has, against what an experiment asks of it."""

from __future__ import annotations

import ray

from pfray.config import Resources, Share
from pfray.errors import ConfigError


def total(kind: str) -> int:
    """All of ``CPU`` or ``GPU`` that the cluster has."""
    return int(ray.cluster_resources().get(kind, 0))


def largest(kind: str) -> int:
    """``CPU`` or ``GPU`` of the machine that has most of it: no worker can be given more."""
    return max((int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]), default=0)


def check(resources: Resources) -> None:
    """Raise ConfigError for a share or a number of workers that the cluster can never give; Ray would wait for ever."""
    asked = [
        ("resources.trial.cpu", resources.trial.cpu, largest("CPU")),
        ("resources.trial.gpu", resources.trial.gpu, largest("GPU")),
        ("resources.workers", resources.workers, total("GPU" if resources.trial.gpu else "CPU")),
    ]
    mistakes = [
        f"{key}: {value:g} is not allowed, the cluster has {most}. Remedy: at most {most}, or a larger cluster"
        for key, value, most in asked
        if value > most
    ]
    share = resources.trial
    if not mistakes and not any(node["Alive"] and _room(node["Resources"], share) for node in ray.nodes()):
        mistakes = [
            f"resources.trial: no machine of the cluster has {share.cpu} CPU and {share.gpu:g} GPU together. "
            "Remedy: a smaller share, or a larger machine"
        ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def parallel_trials(resources: Resources) -> int:
    """How many trials fit on the cluster at once; one trial is on one machine."""
    return max(1, sum(_room(node["Resources"], resources.trial) for node in ray.nodes() if node["Alive"]))


def _room(has: dict[str, float], share: Share) -> int:
    fits = [has.get("CPU", 0) / share.cpu]
    if share.gpu:
        fits.append(has.get("GPU", 0) / share.gpu)
    return int(min(fits) + 1e-9)  # 1 / 0.1 and the like are not exact


def processors_per_worker(workers: int) -> int:
    """The share of each of so many workers that train at the same time."""
    return max(1, min(largest("CPU"), total("CPU") // workers))
