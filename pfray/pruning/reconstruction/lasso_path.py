"""The LASSO path from a Gram matrix, by the homotopy of Osborne, Presnell and Turlach (2000), known as LARS with the
LASSO modification (Efron et al. 2004).

Notation: U regressors with Gram matrix G ``(U, U)`` and correlations g = G 1 with their own sum, the target. The
solution b(lambda) of 1/2 b'G b - g'b + lambda |b|_1 is piecewise linear. Between two breakpoints, n regressors A are
active with the signs s. As lambda falls their coefficients move along d = G_AA^-1 s, and the correlations c = g - G b
of the others along -a, with a = G_{.A} d.

The Cholesky factor L of G_AA is kept together with its inverse and with G_{.A} L^-T for the inactive regressors. Then a
regressor that enters costs one product of a vector and a matrix, n U multiplications, and no system is solved.
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


def lasso_path(gram: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(active regressors ``(n,)``, their coefficients ``(n,)``) at every breakpoint, as lambda falls to 0.

    The coefficient of a regressor that leaves is 0 at its last breakpoint.
    """
    path = _Path(gram)
    for _ in range(STEPS * len(gram)):
        if not path.step():
            return
        yield path.order[: path.count].copy(), path.coefficients[: path.count].copy()
        path.turn()


class _Path:
    """The state at a breakpoint. Arrays of length U are in the order ``order``, whose first ``count`` are active.

    factor: ``(U, 2 U)``. Row k < n holds column k of L and of its continuation to the inactive regressors, then row k
    of the inverse of L.
    """

    def __init__(self, gram: np.ndarray) -> None:
        units = len(gram)
        self.gram, self.units, self.count = gram, units, 0
        self.order, self.free = np.arange(units), np.ones(units, dtype=bool)
        self.factor = np.zeros((units, 2 * units))
        self.coefficients, self.direction, self.signs = np.zeros(units), np.zeros(units), np.zeros(units)
        self.correlations, self.change = gram.sum(1), np.zeros(units)
        self.level = self.start = float(np.abs(self.correlations).max(initial=0.0))
        self.event: tuple[str, int, float] = ("none", 0, 0.0)
        if self.level > 0:
            first = int(np.abs(self.correlations).argmax())
            self._enter(first, float(np.sign(self.correlations[first])))

    def step(self) -> bool:
        """Go on to the next breakpoint, the ``event``. False at the end of the path."""
        if not self.count or self.level <= 1e-14 * self.start:
            return False
        n, length, event = self.count, self.level, ("none", 0, 0.0)
        for sign in (1.0, -1.0):
            gap = np.maximum(self.level - sign * self.correlations[n:], 0.0)
            speed = 1.0 - sign * self.change[n:]
            possible = self.free[n:] & (speed > SLOWEST)
            lengths = np.divide(gap, speed, out=np.full(len(gap), np.inf), where=possible)
            if len(lengths) and lengths.min() < length:
                length, event = float(lengths.min()), ("enter", n + int(lengths.argmin()), sign)
        coefficients, direction = self.coefficients[:n], self.direction[:n]
        lengths = np.divide(-coefficients, direction, out=np.full(n, np.inf), where=coefficients * direction < 0)
        if lengths.min() < length:
            length, event = float(lengths.min()), ("leave", int(lengths.argmin()), 0.0)
        coefficients += length * direction
        self.correlations[n:] -= length * self.change[n:]
        self.level -= length
        self.event = event
        if event[0] == "leave":
            coefficients[event[1]] = 0.0
        return True

    def turn(self) -> None:
        """Let the regressor of the event enter or leave."""
        kind, position, sign = self.event
        if kind == "enter":
            self._enter(position, sign)
        elif kind == "leave":
            self._leave(position)

    def _enter(self, position: int, sign: float) -> None:
        n, units, factor = self.count, self.units, self.factor
        for array in (self.order, self.correlations, self.change, self.free, factor[:n].T):
            array[[n, position]] = array[[position, n]]
        own = self.gram[self.order[n], self.order[n:]]
        products = factor[:n, n] @ factor[:n, n : units + n]
        rest = own - products[: units - n]
        if rest[0] <= DEPENDENT * own[0]:
            self.free[n] = False
            return
        pivot = rest[0] ** 0.5
        factor[n, n:units] = rest / pivot
        inverse = factor[n, units:]
        inverse[:n], inverse[n], inverse[n + 1 :] = -products[units - n :] / pivot, 1 / pivot, 0.0
        self.signs[n], self.coefficients[n], self.direction[n] = sign, 0.0, 0.0
        share = inverse[: n + 1] @ self.signs[: n + 1]
        self.direction[: n + 1] += share * inverse[: n + 1]
        self.change[n + 1 :] += share * factor[n, n + 1 : units]
        self.count += 1

    def _leave(self, position: int) -> None:
        """Move the regressor behind the other active ones, and restore the triangles by rotations of pairs of rows."""
        n, units, factor = self.count, self.units, self.factor
        sign, moved = self.signs[position], [*range(position + 1, n), position]
        for array in (self.order, self.signs, self.coefficients, factor[:n].T, factor[:n, units:].T):
            array[position:n] = array[moved]
        factor[:n, units + n - 1] = 0.0
        for row in range(position, n - 1):
            along, across = factor[row : row + 2, row] / np.hypot(*factor[row : row + 2, row])
            pair = factor[row : row + 2, row : units + n]
            pair[:] = np.array([[along, across], [-across, along]]) @ pair
        n = self.count = n - 1
        self.correlations[n] = sign * self.level
        inverse = factor[:n, units : units + n]
        shares = inverse @ self.signs[:n]
        self.direction[:n] = shares @ inverse
        self.change[n:] = shares @ factor[:n, n:units]
