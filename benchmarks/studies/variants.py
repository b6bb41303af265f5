"""Searchers to compare: pfray's own, presets of configs/search, and ablations of the critic's search."""

from __future__ import annotations

from typing import Any

from benchmarks.result import ROOT

# The share of the trials that a preset's warm-up takes in searches of other lengths: a quarter, as in both papers.
WARMUP = 0.25
PRESETS = ("ddpg_amc", "ddpg_pocketflow")
# Settings of a preset that are the section's and not the searcher's.
OF_SECTION = ("name", "trials", "patience", "finetune_steps")
PARTS = ("critic_best_only", "critic_by_chance")
ABLATION = ("critic", *PARTS, *PRESETS, "random")


def variant(name: str, trials: int) -> tuple[Any, Any]:
    """(searcher class, its settings) for searches of so many trials.

    ``critic_best_only``: all draws lie around the best plan, as many as before. ``critic_by_chance``: any of the draws
    is tried.
    """
    from pfray.config.registry import find_class
    from pfray.search.base import PlanSearcher

    if name in PRESETS:
        found: Any = find_class("search", "ddpg", PlanSearcher)
        return found, found.settings_type(**preset(name, trials))
    found = find_class("search", "critic" if name in PARTS else name, PlanSearcher)
    return (_without(found)[name] if name in PARTS else found), found.settings_type()


def preset(name: str, trials: int) -> dict[str, Any]:
    """The searcher's own settings of configs/search/<name>.yaml, its warm-up shortened to these trials."""
    import yaml

    settings = yaml.safe_load((ROOT / "configs" / "search" / f"{name}.yaml").read_text())["search"]
    own = {name: value for name, value in settings.items() if name not in OF_SECTION}
    return {**own, "warmup": max(1, round(WARMUP * trials))}


def _without(critic: Any) -> dict[str, Any]:
    """The subclasses of the searcher ``critic`` that lack a part, by name."""
    import numpy as np

    class BestOnly(critic):
        def centers(self, best: np.ndarray) -> tuple[np.ndarray, ...]:
            return best, best

    class ByChance(critic):
        def choice(self, observations: np.ndarray, drawn: np.ndarray, bound: np.ndarray) -> int:
            return int(self.rng.integers(len(drawn)))

    return dict(zip(PARTS, (BestOnly, ByChance), strict=True))
