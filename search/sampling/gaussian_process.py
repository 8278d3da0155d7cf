r"""A Gaussian process over configurations and rungs.

The covariance of what configuration x shows at rung r with what x' shows at r' is

    k((x, r), (x', r')) = s^2 Matern_5/2(d(x, x')) rho^|r - r'|,   d^2 = sum_g |f_g(x) - f_g(x')|^2 / l_g^2

with a length scale l_g for every group of features of `search.sampling.codec.Codec`: neighbouring rungs foretell each
other by rho. Observations have noise of one variance. The hyperparameters maximise their posterior under a normal
prior on their logarithms (rho: on its logit).

Rasmussen and Williams, Gaussian Processes for Machine Learning (2006): the posterior, equations 2.25 and 2.26; the
Matern covariance, 4.17; the likelihood and its gradient, 5.8 and 5.9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Array = np.ndarray

_SQRT5 = math.sqrt(5.0)
_JITTER = 1e-6
_STEPS = 10
"""Most iterations of a fit; it begins where the last one ended."""


class Process:
    """A process with prior mean 0, for values of deviation about 1; several at once where y has columns.

    Columns (n, columns) share hyperparameters and places, and their likelihoods are averaged: they are the same trials.

    `theta` (groups + 3,): the logarithms of the length scales and of the variances of the signal and of the noise, and
    the logit of rho. `noise`: the mean of its variance's prior. `rungs`: of how many rungs there are observations; with
    one rho is not fitted. Features are lists by group of arrays (n, k), rungs are arrays (n,) of whole numbers.
    """

    def __init__(self, groups: int, rungs: int, noise: float) -> None:
        self.groups, self.rungs = groups, rungs
        self._mean = np.concatenate([np.full(groups, math.log(0.7)), [0.0, math.log(noise), 1.4]])
        self._deviation = np.concatenate([np.full(groups, 0.9), [0.7, 1.5, 1.0]])
        self.theta = self._mean.copy()
        self._bounds = [(math.log(0.05), math.log(20.0))] * groups + [(-3.0, 3.0), (math.log(1e-5), 1.0), (-3.0, 5.0)]

    def begin(self, theta: Sequence[float]) -> bool:
        """Take hyperparameters from an earlier fit; False, and the prior's stay, where they are not of this process."""
        try:
            found = np.asarray(theta, dtype=float)
        except (TypeError, ValueError):
            return False
        if found.shape != self.theta.shape or not np.isfinite(found).all():
            return False
        low, high = np.array(self._bounds).T
        self.theta = found.clip(low, high)
        return True

    def fit(self, features: Sequence[Array], rung: Array, y: Array, known: Array | float = 0.0) -> None:
        """Maximise the posterior of the hyperparameters, beginning where they are.

        `known` (n,): the variance of each observation's own error, where one is known; the noise is what comes on top.
        """
        gap = np.abs(rung[:, None] - rung[None]).astype(float)
        given = _squares(features), gap, y, known
        found = minimize(
            self._loss, self.theta, given, "L-BFGS-B", jac=True, bounds=self._bounds, options={"maxiter": _STEPS}
        )
        if np.isfinite(found.fun) and found.fun < _IMPOSSIBLE:
            self.theta = found.x

    def _loss(
        self, theta: Array, squares: Array, gap: Array, y: Array, known: Array | float = 0.0
    ) -> tuple[float, Array]:
        """The negative logarithm of the posterior, up to a constant, and its gradient (equations 5.8 and 5.9)."""
        g, count = self.groups, len(y)
        weights = np.exp(-2 * theta[:g])
        total = np.tensordot(weights, squares, 1)
        r = np.sqrt(total + 1e-12)
        fall = np.exp(-_SQRT5 * r)
        signal, noise, rho = math.exp(theta[g]), math.exp(theta[g + 1]), _logistic(theta[g + 2])
        between = rho**gap
        plain = signal * (1 + _SQRT5 * r + 5 / 3 * total) * fall
        covariance = plain * between
        noisy = covariance.copy()
        noisy[np.diag_indices(count)] += noise + known + _JITTER
        try:
            root = cholesky(noisy, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return _IMPOSSIBLE, np.zeros_like(theta)
        inverse = cho_solve((root, True), np.eye(count), check_finite=False)
        alpha = inverse @ y
        z = (theta - self._mean) / self._deviation
        columns = y.size / count
        loss = 0.5 * float((y * alpha).sum()) / columns + np.log(np.diag(root)).sum() + 0.5 * (z**2).sum()
        slope = alpha.reshape(count, -1) @ alpha.reshape(count, -1).T / columns - inverse
        gradient = np.empty_like(theta)
        base = slope * (signal * (5 / 3) * (1 + _SQRT5 * r) * fall) * between
        gradient[:g] = -0.5 * np.tensordot(squares, base, 2) * weights
        gradient[g] = -0.5 * (slope * covariance).sum()
        gradient[g + 1] = -0.5 * noise * np.trace(slope)
        of_rho = (slope * plain * gap * rho ** np.maximum(gap - 1, 0)).sum() * rho * (1 - rho)
        gradient[g + 2] = -0.5 * of_rho if self.rungs > 1 else 0.0
        return float(loss), gradient + z / self._deviation

    def condition(self, features: Sequence[Array], rung: Array, y: Array, known: Array | float = 0.0) -> None:
        """Condition the process on observations `y` (n,) or (n, columns), with errors of the variances `known` (n,)."""
        self._rung, self._known = rung, self._stretched(features)
        self._rho = _logistic(self.theta[self.groups + 2])
        covariance = self._covariance(self._known, self._known) * self._rho ** np.abs(rung[:, None] - rung[None])
        covariance[np.diag_indices(len(y))] += math.exp(self.theta[self.groups + 1]) + known + _JITTER
        self._y, self._own = y, np.broadcast_to(np.asarray(known, dtype=float), y.shape[:1])
        self._root = cholesky(covariance, lower=True, check_finite=False)
        self._alpha = cho_solve((self._root, True), y, check_finite=False)

    def predict(self, features: Sequence[Array], rung: int) -> tuple[Array, Array]:
        """Mean (m,), or (m, columns), and deviation (m,) at a rung, without noise (equations 2.25 and 2.26)."""
        between = self._rho ** np.abs(rung - self._rung)[None]
        covariance = self._covariance(self._stretched(features), self._known) * between
        solved = solve_triangular(self._root, covariance.T, lower=True, check_finite=False)
        variance = math.exp(self.theta[self.groups]) - (solved**2).sum(0)
        return covariance @ self._alpha, np.sqrt(np.maximum(variance, 1e-9))

    def without_errors(self) -> tuple[Array, Array]:
        r"""Mean and deviation (n,) of what the observations would be without their own errors.

        With the covariance A of the observations and D the diagonal of `known`, y - D A^-1 y and the diagonal of
        D - D A^-1 D (equations 2.25 and 2.26, for f + noise at the places of the observations).
        """
        inverse = cho_solve((self._root, True), np.eye(len(self._y)), check_finite=False)
        variance = self._own - self._own**2 * np.diag(inverse)
        return self._y - self._own * self._alpha, np.sqrt(np.maximum(variance, 0.0))

    def _stretched(self, features: Sequence[Array]) -> Array:
        """All features side by side, in units of their length scales."""
        return np.concatenate([each * math.exp(-self.theta[g]) for g, each in enumerate(features)], 1)

    def _covariance(self, a: Array, b: Array) -> Array:
        total = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T, 0)
        r = np.sqrt(total + 1e-12)
        return math.exp(self.theta[self.groups]) * (1 + _SQRT5 * r + 5 / 3 * total) * np.exp(-_SQRT5 * r)


_IMPOSSIBLE = 1e10


def _squares(features: Sequence[Array]) -> Array:
    """Squared distances (groups, n, n)."""
    found = np.empty((len(features), len(features[0]), len(features[0])))
    for g, each in enumerate(features):
        own = (each**2).sum(1)
        found[g] = np.maximum(own[:, None] + own[None] - 2 * each @ each.T, 0)
    return found


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))
