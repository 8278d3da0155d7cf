"""Analytic problems for comparing searches: five methods, six conditional parameters each, curves.

No method of search was looked at while it was written down; what decides is drawn from the seed,
and three profiles vary what a design may hope for:

========== ====================================================================================
smooth     one optimum a method, early epochs rank configurations as the last one does
rugged     several local optima a method, interactions, twice the noise
misleading what learns fast early on ends worse: early ranks are correlated weakly with late ones
========== ====================================================================================

A method m has an error that falls with the size of its network, a loss for the distance of the
parameters from an optimum of its own, a speed of learning, and settings s = 1 ... 10 that trade error
for MACs. With u the parameters in [0, 1], q their loss, z the size:

    e_final = f_m + g_m z^(-p_m) + q,   e(t) = e_final + (0.9 - e_final) exp(-(t / tau)^0.7)
    macs(s) = full(z) (c_m + (1 - c_m) (s / 10)^1.5),   e(s) = e + d (1 - macs / full)^2

Observed: e(s) + noise of the training's seed + noise of the evaluation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from spaces.space import Choice, LogRange, Range, Space, When

METHODS = ("ash", "birch", "cedar", "dogwood", "elm")
PROFILES = ("smooth", "rugged", "misleading")
SIZES = (8, 14, 20, 32, 56)
VARIANTS = ("plain", "weighted", "full")
SETTINGS = 10
CHANCE, LARGEST = 0.9, 150e6


def _space(shared_lr: LogRange | Any) -> Space:
    weighted = When("variant", ("weighted", "full"))
    return Space(
        {
            "lr": shared_lr,
            "size": Choice(SIZES),
            "variant": Choice(VARIANTS),
            "temperature": LogRange(0.1, 10.0),
            "weight": LogRange(1e-4, 1.0, when=weighted),
            "margin": Range(0.0, 1.0, when=When("variant", ("full",))),
        }
    )


class Analytic:
    """A problem of `search.simulation.simulation`; everything about it follows from (profile, seed)."""

    epochs = 27
    reference = (CHANCE, LARGEST)

    def __init__(self, profile: str = "smooth", seed: int = 0) -> None:
        if profile not in PROFILES:
            raise ValueError(f"profile = {profile!r}: must be one of {', '.join(PROFILES)}")
        self.profile, self.seed = profile, seed
        rng = random.Random(f"{profile} {seed}")
        lr = LogRange(1e-3, 1.0)
        self.spaces: Mapping[str, Space] = {name: _space(lr) for name in METHODS}
        self._methods = {name: self._draw(rng) for name in METHODS}
        self.papers: Mapping[str, Mapping[str, Any]] = {name: self._paper(rng, name) for name in METHODS}
        self.noise = 0.01 if profile == "rugged" else 0.005
        self.seed_noise = 0.003

    def _draw(self, rng: random.Random) -> dict[str, Any]:
        return {
            "best": {name: rng.uniform(0.1, 0.9) for name in ("lr", "temperature", "weight", "margin")},
            "sharp": {name: rng.uniform(0.1, 0.6) for name in ("lr", "temperature", "weight", "margin")},
            "variant": {name: rng.uniform(0.0, 0.06) for name in VARIANTS},
            "floor": rng.uniform(0.03, 0.12),
            "gain": rng.uniform(0.1, 0.5),
            "power": rng.uniform(0.5, 1.0),
            "macs": rng.uniform(0.4, 1.2) * 1e6,
            "constant": rng.uniform(0.1, 0.5),
            "drop": rng.uniform(0.1, 0.6),
            "tau": rng.uniform(1.5, 5.0),
            "tilt": rng.uniform(-1.0, 1.0),
            "waves": [(rng.uniform(0.01, 0.05), rng.uniform(2, 5), rng.uniform(0, 6.3)) for _ in range(3)],
            "together": rng.uniform(-0.3, 0.3),
        }

    def _paper(self, rng: random.Random, name: str) -> dict[str, Any]:
        """What a paper printed: good on its own data, off by a little here."""
        m = self._methods[name]

        def off(parameter: str) -> float:
            return min(1.0, max(0.0, m["best"][parameter] + rng.gauss(0, 0.2)))

        paper: dict[str, Any] = {
            "lr": 10 ** (-3 + 3 * off("lr")),
            "size": 32,
            "variant": "full",
            "temperature": 10 ** (-1 + 2 * off("temperature")),
            "weight": 10 ** (-4 + 4 * off("weight")),
            "margin": off("margin"),
        }
        return paper

    def _units(self, config: Mapping[str, Any]) -> dict[str, float]:
        units = {"lr": (math.log10(config["lr"]) + 3) / 3, "temperature": (math.log10(config["temperature"]) + 1) / 2}
        if "weight" in config:
            units["weight"] = (math.log10(config["weight"]) + 4) / 4
        if "margin" in config:
            units["margin"] = config["margin"]
        return units

    def loss(self, config: Mapping[str, Any]) -> float:
        """q: what the parameters cost in error at the end of a full training."""
        m, units = self._methods[config["method"]], self._units(config)
        q = m["variant"][config["variant"]]
        q += sum(m["sharp"][name] * (u - m["best"][name]) ** 2 for name, u in units.items())
        if self.profile == "rugged":
            q += m["together"] * (units["lr"] - m["best"]["lr"]) * (units["temperature"] - m["best"]["temperature"])
            q += sum(a * (1 + math.sin(k * 6.3 * units["lr"] + p)) / 2 for a, k, p in m["waves"])
        return max(q, 0.0)

    def exact(self, config: Mapping[str, Any], epoch: int) -> list[tuple[float, float]]:
        """(error, MACs) of every setting without noise."""
        m = self._methods[config["method"]]
        depth = (config["size"] / 8) ** m["power"]
        final = min(CHANCE, m["floor"] + m["gain"] / depth / 2 + self.loss(config))
        tau = m["tau"] * (1 + 0.15 * math.log2(config["size"] / 8))
        if self.profile == "misleading":  # what is better in the end needs longer
            tau *= 3.0 * math.exp(-4.0 * final) * math.exp(m["tilt"])
        error = final + (CHANCE - final) * math.exp(-((epoch / tau) ** 0.7))
        full = m["macs"] * config["size"]
        drop = m["drop"] * (1 - 0.7 * self._units(config).get("weight", 0.0))
        points = []
        for s in range(1, SETTINGS + 1):
            share = m["constant"] + (1 - m["constant"]) * (s / SETTINGS) ** 1.5
            points.append((min(CHANCE, error + drop * (1 - share) ** 2), full * share))
        return points

    def curve(self, config: Mapping[str, Any], seed: int, epoch: int) -> list[tuple[float, float]]:
        """(accuracy, MACs) of every setting as a validation split would show it."""
        own = random.Random(seed ^ self.seed).gauss(0, self.seed_noise)
        rng = random.Random((seed ^ self.seed) * 64 + epoch)
        return [
            (1 - min(1.0, max(0.0, error + own + rng.gauss(0, self.noise))), macs)
            for error, macs in self.exact(config, epoch)
        ]

    def seconds(self, config: Mapping[str, Any]) -> float:
        """An epoch's virtual seconds grow with the network."""
        return 10.0 * (config["size"] / 20) ** 0.5

    @property
    def ideal(self) -> float:
        """The hypervolume of a dense grid of noise-free full trainings: what a perfect search would end with."""
        return _ideal(self.profile, self.seed)


class Elsewhere(Analytic):
    """The problem of a seed on other images: optima a little aside, other floors, four times the MACs, more noise."""

    reference = (CHANCE, 4 * LARGEST)

    def __init__(self, profile: str = "smooth", seed: int = 0) -> None:
        super().__init__(profile, seed)
        rng = random.Random(f"elsewhere {profile} {seed}")
        for method in self._methods.values():
            method["best"] = {n: min(0.95, max(0.05, u + rng.gauss(0, 0.1))) for n, u in method["best"].items()}
            method["floor"] += rng.uniform(0.0, 0.1)
            method["gain"] *= rng.uniform(0.7, 1.4)
            method["macs"] *= 4
        self.noise *= 1.5


class Minutes(Analytic):
    """The analytic problem with trainings of 2 to 200 minutes, by the size of the network."""

    def seconds(self, config: Any) -> float:
        """Of one epoch: 2 minutes for the smallest network, 200 for the largest, a power of its size between."""
        return 120.0 * (config["size"] / 8) ** 2.37 / self.epochs


@lru_cache(maxsize=64)
def _ideal(profile: str, seed: int) -> float:
    from search.pareto.front import Archive

    problem, rng = Analytic(profile, seed), random.Random(1)
    archive = Archive(problem.reference)
    for method, space in problem.spaces.items():
        best = problem._methods[method]["best"]
        for _ in range(4000):
            values: dict[str, Any] = {"method": method}
            for name, parameter in space.parameters.items():
                if parameter.when is None or parameter.when.holds(values):
                    values[name] = parameter.sample(rng)
            if rng.random() < 0.5:  # half of them near the optimum
                near = {n: min(1.0, max(0.0, best[n] + rng.gauss(0, 0.05))) for n in best}
                values["lr"], values["temperature"] = 10 ** (-3 + 3 * near["lr"]), 10 ** (-1 + 2 * near["temperature"])
                if "weight" in values:
                    values["weight"] = 10 ** (-4 + 4 * near["weight"])
                if "margin" in values:
                    values["margin"] = near["margin"]
            for error, macs in problem.exact(values, problem.epochs):
                archive.add(error, macs)
    return archive.hypervolume
