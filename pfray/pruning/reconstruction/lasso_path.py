"""The LASSO path from a Gram matrix, by the homotopy of Osborne, Presnell and Turlach (2000), known as LARS with the
LASSO modification (Efron et al. 2004).

Notation: U regressors with Gram matrix G ``(U, U)`` and correlations g = G 1 with their own sum, the target. The
solution b(lambda) of 1/2 b'G b - g'b + lambda |b|_1 is piecewise linear. Between two breakpoints, the regressors A are
active with the signs s, the others, I, are not. As lambda falls the coefficients of A move along d = G_AA^-1 s, and the
correlations c = g - G b of I along -a, with a = G_IA d.

The tableau M is G swept by the active regressors (Goodnight 1979, The American Statistician 33): M_AA = -G_AA^-1,
M_AI = G_AA^-1 G_AI and M_II = G_II - G_IA G_AA^-1 G_AI. A regressor that enters or leaves changes it by the product of
one row with itself. ``BLOCK`` of these are added at once, as one product of matrices, which reads M once for all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Steps of a path for each regressor, at most: regressors may leave and enter again.
STEPS = 8
# A regressor is left out if less than this share of its square is independent of the active ones.
DEPENDENT = 1e-10
# The smallest change, relative to lambda's, at which an inactive correlation counts as approaching lambda.
SLOWEST = 1e-12
# Changes of the tableau that are added at once.
BLOCK = 64


def lasso_path(gram: np.ndarray, lowest: float = 1e-14) -> Iterator[np.ndarray]:
    """Coefficients ``(U,)`` at every breakpoint, as lambda falls to the share ``lowest`` of its first value.

    The coefficient of a regressor that leaves is 0 at its last breakpoint.
    """
    path = _Path(gram)
    for _ in range(STEPS * len(gram)):
        if path.level <= lowest * path.start or not path.step():
            return
        yield path.coefficients.copy()
        path.turn()


class _Path:
    """The state at a breakpoint; arrays ``(U,)``, a regressor an entry.

    tableau, rows ``(BLOCK, U)``, weights ``(BLOCK,)``: M is the tableau - rows' diag(weights) rows, of which the first
    ``pending`` count. change: M_.A s, which is -d on A and a on I. free: False for regressors that are left out.
    """

    def __init__(self, gram: np.ndarray) -> None:
        units = len(gram)
        self.squares, self.tableau = gram.diagonal().copy(), gram.copy()
        self.rows, self.weights, self.pending = np.zeros((BLOCK, units)), np.zeros(BLOCK), 0
        self.active, self.free = np.zeros(units, dtype=bool), np.ones(units, dtype=bool)
        self.coefficients, self.signs, self.change = np.zeros(units), np.zeros(units), np.zeros(units)
        self.correlations = gram.sum(1)
        self.level = self.start = float(np.abs(self.correlations).max(initial=0.0))
        self.event: tuple[str, int, float] = ("none", 0, 0.0)
        if self.level > 0:
            first = int(np.abs(self.correlations).argmax())
            self._enter(first, float(np.sign(self.correlations[first])))

    def step(self) -> bool:
        """Go on to the next breakpoint, the ``event``. False at the end of the path."""
        if not self.active.any():
            return False
        length, event = self.level, ("none", 0, 0.0)
        waiting = self.free & ~self.active
        for sign in (1.0, -1.0):
            gap = np.maximum(self.level - sign * self.correlations, 0.0)
            speed = 1.0 - sign * self.change
            lengths = np.divide(gap, speed, out=np.full(len(gap), np.inf), where=waiting & (speed > SLOWEST))
            if lengths.min() < length:
                length, event = float(lengths.min()), ("enter", int(lengths.argmin()), sign)
        # Coefficients move along -change.
        falling = self.active & (self.coefficients * self.change > 0)
        lengths = np.divide(self.coefficients, self.change, out=np.full(len(falling), np.inf), where=falling)
        if lengths.min() < length:
            length, event = float(lengths.min()), ("leave", int(lengths.argmin()), 0.0)
        self.coefficients[self.active] -= length * self.change[self.active]
        self.correlations -= length * np.where(self.active, self.signs, self.change)
        self.level -= length
        self.event = event
        if event[0] == "leave":
            self.coefficients[event[1]] = 0.0
        return True

    def turn(self) -> None:
        """Let the regressor of the event enter or leave."""
        kind, regressor, sign = self.event
        if kind == "enter":
            self._enter(regressor, sign)
        elif kind == "leave":
            self._leave(regressor)

    def _enter(self, regressor: int, sign: float) -> None:
        row = self._row(regressor)
        if row[regressor] <= DEPENDENT * self.squares[regressor]:
            self.free[regressor] = False
            return
        share = (self.change[regressor] - sign) / row[regressor]
        self.change -= share * row
        self.change[regressor] = share
        self._sweep(regressor, row, 1.0)
        self.active[regressor], self.signs[regressor], self.coefficients[regressor] = True, sign, 0.0

    def _leave(self, regressor: int) -> None:
        row, sign = self._row(regressor), self.signs[regressor]
        share = self.change[regressor] / row[regressor]
        self.change -= share * row
        self.change[regressor] = sign - share
        self._sweep(regressor, row, -1.0)
        self.active[regressor], self.signs[regressor] = False, 0.0
        self.correlations[regressor] = sign * self.level

    def _row(self, regressor: int) -> np.ndarray:
        """A row of M."""
        weights = self.weights[: self.pending] * self.rows[: self.pending, regressor]
        return self.tableau[regressor] - weights @ self.rows[: self.pending]

    def _sweep(self, regressor: int, row: np.ndarray, sign: float) -> None:
        """M_ij - M_ik M_jk / M_kk, with M_kj / M_kk in row and column k, of the opposite sign for one that leaves, and
        -1 / M_kk on the diagonal."""
        pivot, row = row[regressor], row.copy()
        swept = sign * row / pivot
        swept[regressor] = -1 / pivot
        self.tableau[regressor] = self.tableau[:, regressor] = swept
        row[regressor] = 0.0
        self.rows[: self.pending, regressor] = 0.0
        self.rows[self.pending], self.weights[self.pending] = row, 1 / pivot
        self.pending += 1
        if self.pending == BLOCK:
            self.tableau -= (self.rows * self.weights[:, None]).T @ self.rows
            self.pending = 0
