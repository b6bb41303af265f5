"""Bayesian optimization with a Gaussian process, by bayesian-optimization, for many knobs and few trials.

Notation, for L knobs and n different plans tried:
    x   ``(L,)``    positions of a plan
    z   ``(L,)``    x minus its mean over the knobs that the target moves: the base moves every plan onto the target by
                    a common step, so plans that differ only by such a step are the same plan
    Z   ``(n, L)``  z of the plans tried
    k   ``(n,)``    covariances of a plan with the plans tried, c (1 + r + r^2 / 3) exp(-r) (Matern 5/2), where
                    r = sqrt(5) |Z_i - z| / l

Three measures make it work with tens of knobs. Length scales are fitted in units of sqrt(L), in proportion to the
distance between plans (Hvarfner et al. 2024, "Vanilla Bayesian optimization performs great in high dimensions"). The
next plan is searched only in a box around the best one, the trust region of TuRBO (Eriksson et al. 2019) without its
schedule. The best plan is the one of the highest posterior mean, not of the highest noisy score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from bayes_opt import BayesianOptimization
from bayes_opt.acquisition import UpperConfidenceBound
from bayes_opt.target_space import TargetSpace
from pydantic import Field
from scipy.linalg import cho_solve
from scipy.optimize import minimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel, Matern, WhiteKernel
from threadpoolctl import threadpool_limits

from pfray.search.base import PlanSearcher
from pfray.space import Plan

# L-BFGS-B steps from each of the two starts; the box is small, and more steps hardly change a plan.
STEPS = 50


@dataclass(frozen=True)
class Settings:
    """Lengths measure a plan's total move. Per knob, as shares of its range, they are divided by the square root of the
    number of knobs.

    spread: standard deviation of the random plans around the first one. startup: random trials before the first fit.
    trust: half the side of the box around the best plan in which the next one is searched. kappa: posterior standard
    deviations that the upper confidence bound adds to the mean. refit: trials between fits of the length scale, the
    variance and the noise. nearest: maximum number of plans in the process, the nearest to the best one; a fit takes
    time cubic in it.
    """

    spread: Annotated[float, Field(gt=0, le=10)] = 0.4
    startup: Annotated[int, Field(ge=2)] = 10
    trust: Annotated[float, Field(gt=0, le=10)] = 0.4
    kappa: Annotated[float, Field(ge=0)] = 3.0
    refit: Annotated[int, Field(ge=1)] = 10
    nearest: Annotated[int, Field(ge=10)] = 500


class GP(PlanSearcher):
    settings_type = Settings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Logarithms of c, l / sqrt(L) and the noise of the last fit, and its number of trials.
        self.theta: np.ndarray | None = None
        self.fitted = 0

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        values, tensors = super().state()
        theta = None if self.theta is None else self.theta.tolist()
        return {**values, "theta": theta, "fitted": self.fitted}, tensors

    def load_state(self, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        super().load_state(values, tensors)
        self.theta = None if values["theta"] is None else np.array(values["theta"], dtype=float).reshape(3)
        self.fitted = values["fitted"]

    def ask(self) -> Plan:
        told = self.history
        searched = len(told) >= self.settings.startup and any(score is not None for _, score in told)
        self.learned = searched
        return self._best_bound() if searched else self.sample_around(self.center, self.settings.spread)

    def _best_bound(self) -> Plan:
        """Plan of the highest upper confidence bound near the best one; a random one near it if that is a duplicate."""
        moved = self.moved
        positions, scores = self.near_best(*self.observations())
        whole = self.space.free | self.space.layers_beside_others
        reach = np.where(whole, 1.0, self.spread_factor * self.settings.trust / np.sqrt(len(self.space)))
        bound = NearBest(positions, moved, reach, self.settings.kappa)
        optimizer = BayesianOptimization(
            None,
            dict.fromkeys(self.space.names, (-1.0, 1.0)),
            acquisition_function=bound,
            random_state=int(self.rng.integers(2**31)),
            verbose=0,
        )
        # Not ``optimizer.register``, which lists all earlier observations on every call.
        for z, score in zip(without_common_step(positions, moved), scores, strict=True):
            optimizer.space.register(z, score)
        refit = self.theta is None or len(self.history) >= self.fitted + self.settings.refit
        kernel = make_kernel(len(self.space), self.theta)
        # The noise is part of the kernel; alpha only keeps the matrix positive definite.
        optimizer.set_gp_params(
            kernel=kernel, alpha=1e-8, n_restarts_optimizer=0, optimizer="fmin_l_bfgs_b" if refit else None
        )
        # The matrices are small: threads slow the fit down, on a busy machine tenfold.
        with threadpool_limits(1):
            suggested = optimizer.suggest()
        if refit:
            self.theta, self.fitted = bound.theta, len(self.history)
        plan = self.space.decode(np.array([suggested[name] for name in self.space.names]))
        if self._within_limits(plan) in self.tried_plans:
            return self.sample_around(bound.best, self.settings.spread)
        return plan

    def near_best(self, positions: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions ``(m, L)`` and scores ``(m,)`` of the m <= ``nearest`` plans closest to the best-scored one."""
        away = without_common_step(positions - positions[scores.argmax()], self.moved)
        kept = np.sort(np.argsort((away**2).sum(1), kind="stable")[: self.settings.nearest])
        return positions[kept], scores[kept]

    @property
    def moved(self) -> np.ndarray:
        """Mask ``(L,)`` of the knobs whose common step the target determines; none if plans may be below it."""
        return ~self.space.free if self.use_full_budget else np.zeros_like(self.space.free)

    def observations(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions ``(n, L)`` and scores ``(n,)`` of the plans that differ in z; the mean score of one tried twice.

        A failed plan gets the worst score. A running one gets the mean (a "constant liar", Ginsbourger et al. 2010):
        near the best that is a bad score, so it is not suggested again, and elsewhere it is uninformative.
        """
        finite = [score for _, score in self.history if score is not None]
        worst, mean = min(finite), float(np.mean(finite))
        told = [(plan, worst if score is None else score) for plan, score in self.history]
        told += [(entry["plan"], mean) for entry in self.pending.values()]
        positions = np.array([self.space.encode(plan) for plan, _ in told])
        keys = np.round(without_common_step(positions, self.moved), 9) + 0.0  # -0.0 would be another key
        found: dict[bytes, tuple[int, list[float]]] = {}
        for number, (_, score) in enumerate(told):
            found.setdefault(keys[number].tobytes(), (number, []))[1].append(score)
        scores = [own[0] if len(own) == 1 else np.mean(own) for _, own in found.values()]
        return positions[[number for number, _ in found.values()]], np.array(scores)


class NearBest(UpperConfidenceBound):
    """Upper confidence bound, maximized over the box around the best of the plans tried.

    positions ``(n, L)``: x of the plans, in the order in which their z were registered. moved ``(L,)``: mask of the
    knobs that the target moves. reach ``(L,)``: half the sides of the box. kappa: weight of the standard deviation.

    The library's own maximization calls the process some 10,000 times and differentiates numerically, with L + 1 calls
    a step; here the gradient is exact and a suggestion takes two short climbs.
    """

    def __init__(self, positions: np.ndarray, moved: np.ndarray, reach: np.ndarray, kappa: float) -> None:
        super().__init__(kappa=kappa)
        self.positions, self.moved, self.reach = positions, moved, reach
        # Known after ``suggest``: x of the best plan, and the fitted kernel's parameters (see ``make_kernel``).
        self.best = positions[0]
        self.theta = np.zeros(3)

    def suggest(
        self,
        gp: GaussianProcessRegressor,
        target_space: TargetSpace,
        n_random: int = 1,
        n_smart: int = 1,
        fit_gp: bool = True,
        random_state: int | np.random.RandomState | None = None,
    ) -> np.ndarray:
        """x ``(L,)`` of the next plan. The library's own ``n_random`` and ``n_smart`` are not used."""
        self._fit_gp(gp, target_space)
        self.theta = gp.kernel_.theta - [0.0, np.log(np.sqrt(len(self.moved))), 0.0]
        self.best = self.positions[np.argmax(gp.predict(gp.X_train_))]
        low, high = np.maximum(self.best - self.reach, 0.0), np.minimum(self.best + self.reach, 1.0)
        assert isinstance(random_state, np.random.RandomState)
        climbs = [
            minimize(
                self.loss,
                start,
                (gp, *np.exp(gp.kernel_.theta[:2])),
                jac=True,
                bounds=np.stack([low, high], 1),
                method="L-BFGS-B",
                options={"maxiter": STEPS},
            )
            for start in (self.best, random_state.uniform(low, high))
        ]
        return min(climbs, key=lambda climb: climb.fun).x

    def loss(
        self, x: np.ndarray, gp: GaussianProcessRegressor, variance: float, length: float
    ) -> tuple[float, np.ndarray]:
        """Negative bound at x, in standard deviations of the scores, and its gradient ``(L,)``."""
        away = gp.X_train_ - without_common_step(x, self.moved)
        r = np.sqrt(5 * (away**2).sum(1)) / length
        k = variance * (1 + r + r**2 / 3) * np.exp(-r)
        slopes = (variance * 5 / (3 * length**2) * (1 + r) * np.exp(-r))[:, None] * away
        weights = cho_solve((gp.L_, True), k)
        deviation = np.sqrt(max(variance - k @ weights, 1e-10))
        # Z and z have mean 0 over the moved knobs, hence so has this: it is the gradient in x as well as in z.
        gradient = slopes.T @ (gp.alpha_ - self.kappa / deviation * weights)
        return -float(self.base_acq(k @ gp.alpha_, deviation)), -gradient


def without_common_step(positions: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """z of x ``(..., L)``: positions minus their mean over the ``moved`` knobs, on those knobs."""
    if not moved.any():
        return positions
    return positions - moved * positions[..., moved].mean(-1, keepdims=True)


def make_kernel(knobs: int, theta: np.ndarray | None) -> Kernel:
    """c Matern(l) + noise, of standardized scores. theta: logarithms of c, l / sqrt(L) and the noise; None at first."""
    variance, length, noise = (1.0, 0.2, 0.1) if theta is None else np.exp(theta)
    root = np.sqrt(knobs)
    return ConstantKernel(variance, (0.05, 1e3)) * Matern(length * root, (0.02 * root, 5 * root), nu=2.5) + WhiteKernel(
        noise, (1e-4, 2.0)
    )
