"""The Gaussian process: its likelihood, its posterior, its hyperparameters."""

from __future__ import annotations

import math

import numpy as np
import pytest

from search.sampling.gaussian_process import Process, _squares


def features(points: np.ndarray) -> list[np.ndarray]:
    return [points[:, [j]] for j in range(points.shape[1])]


def observed(count: int, seed: int = 0, rungs: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    points, rung = rng.random((count, 3)), rng.integers(0, rungs, count)
    y = np.sin(4 * points[:, 0]) + 2 * points[:, 1] ** 2 + 0.3 * rung + 0.05 * rng.normal(size=count)
    return points, rung, (y - y.mean()) / y.std()


def test_the_gradient_is_that_of_the_loss() -> None:
    points, rung, y = observed(18)
    process = Process(3, 3, 0.02)
    gap = np.abs(rung[:, None] - rung[None]).astype(float)
    squares = _squares(features(points))
    theta = process.theta + np.linspace(-0.4, 0.4, len(process.theta))
    _, gradient = process._loss(theta, squares, gap, y)
    for i in range(len(theta)):
        step = np.zeros_like(theta)
        step[i] = 1e-5
        ahead, behind = (process._loss(theta + sign * step, squares, gap, y)[0] for sign in (1, -1))
        assert gradient[i] == pytest.approx((ahead - behind) / 2e-5, rel=1e-4, abs=1e-6)


def test_the_posterior_is_that_of_the_textbook() -> None:
    """Rasmussen and Williams, equations 2.25, 2.26 and 4.17, written out for every pair."""
    points, rung, y = observed(9)
    process = Process(3, 3, 0.02)
    process.begin([math.log(0.5), math.log(1.5), math.log(0.8), math.log(1.3), math.log(0.04), 0.7])
    process.condition(features(points), rung, y)
    rho, lengths = 1 / (1 + math.exp(-0.7)), (0.5, 1.5, 0.8)

    def covariance(a: np.ndarray, b: np.ndarray, one: int, other: int) -> float:
        d = math.sqrt(sum(((a[j] - b[j]) / lengths[j]) ** 2 for j in range(3)))
        matern = (1 + math.sqrt(5) * d + 5 / 3 * d * d) * math.exp(-math.sqrt(5) * d)
        return 1.3 * matern * rho ** abs(int(one) - int(other))

    new = np.array([0.2, 0.4, 0.9])
    known = np.array(
        [[covariance(a, b, r, q) for b, q in zip(points, rung, strict=True)] for a, r in zip(points, rung, strict=True)]
    )
    known += (0.04 + 1e-6) * np.eye(9)
    between = np.array([covariance(new, b, 2, q) for b, q in zip(points, rung, strict=True)])
    mean = between @ np.linalg.solve(known, y)
    variance = 1.3 - between @ np.linalg.solve(known, between)
    (found,), (deviation,) = process.predict(features(new[None]), 2)
    assert found == pytest.approx(mean, abs=1e-6) and deviation**2 == pytest.approx(variance, abs=1e-6)


def test_a_fit_finds_what_matters() -> None:
    points, rung, y = observed(80)
    process = Process(3, 3, 0.02)
    process.fit(features(points), rung, y)
    process.fit(features(points), rung, y)
    lengths = np.exp(process.theta[:3])
    assert lengths[2] > 1.5 * max(lengths[0], lengths[1])  # the third feature says nothing
    process.condition(features(points), rung, y)
    fresh, at, truth = observed(200, seed=1)
    mean, _ = process.predict(features(fresh[at == 2]), 2)
    assert np.corrcoef(mean, truth[at == 2])[0, 1] > 0.97


@pytest.mark.parametrize("strange", [[], [0.0], ["a"] * 6, [math.nan] * 6, None, [[0.0] * 6]])
def test_hyperparameters_of_another_process_are_not_taken(strange: object) -> None:
    process = Process(3, 3, 0.02)
    before = process.theta.copy()
    assert not process.begin(strange)  # type: ignore[arg-type]
    assert (process.theta == before).all()


def test_hyperparameters_beyond_their_bounds_are_cut_to_them() -> None:
    process = Process(1, 2, 0.02)
    assert process.begin([1e9, -1e9, 1e9, 1e9]) and np.isfinite(np.exp(process.theta)).all()
