"""How fast temperature and learning rate fall: shares of the training, steps, defaults of its length."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search.sampling.proposals import published
from tests.support.deciders import SMALL
from trainables.contracts.recipe import HalfLife, Optimiser
from trainables.data.splits import Augment, Data, Split
from trainables.methods.decide import METHOD, Config, lr_half_life, tau_half_life, temperature
from trainables.training.partial import Interrupted
from trainables.training.training import Training

torch.set_num_threads(1)


def rate(config: Config, share: float, steps: int) -> float:
    (phase,) = METHOD.phases(config)
    return phase.optimiser.lr_at(share, steps)


def test_the_papers_rate_and_temperature_halve_every_10000_of_80000_steps() -> None:
    published = METHOD.configure(METHOD.published)
    for config in (published, Config(warmup=0.0)):  # what the paper does is what a training of its length does
        for k in range(9):
            assert rate(config, k / 8, 80_000) == pytest.approx(0.1 / 2**k)
            assert temperature(config, k / 8, 80_000) == pytest.approx(1 / 2**k)
    assert rate(published, 0, 80_000) == 0.1  # no warm-up
    # the paper's share of whatever there is
    assert rate(published, 1 / 8, 1_000) == pytest.approx(0.05)
    assert temperature(published, 1 / 8, 1_000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("steps", "of_tau", "of_lr"),
    [
        (1, 1 / 2, 1 / 5),
        (1_035, 1 / 2, 1 / 5),
        (20_000, 1 / 2, 1 / 5),
        (30_000, 1 / 3, 1 / 5),
        (50_000, 1 / 5, 1 / 5),
        (64_000, 10 / 64, 10 / 64),
        (80_000, 1 / 8, 1 / 8),
        (320_000, 1 / 8, 1 / 8),
    ],
)
def test_defaults_are_shares_that_shrink_with_the_length(steps: int, of_tau: float, of_lr: float) -> None:
    config = Config(warmup=0.0)
    assert (tau_half_life(config).share(steps), lr_half_life(config).share(steps)) == pytest.approx((of_tau, of_lr))
    assert temperature(config, of_tau, steps) == pytest.approx(0.5)
    assert rate(config, of_lr, steps) == pytest.approx(0.05)


def test_defaults_are_continuous_in_the_length() -> None:
    for rule in (tau_half_life(Config()), lr_half_life(Config())):
        shares = [rule.share(steps) for steps in range(1_000, 100_000, 100)]
        assert shares == sorted(shares, reverse=True)
        assert max(a - b for a, b in itertools.pairwise(shares)) < 0.003


def test_half_lives_in_steps_are_the_same_steps_of_any_training() -> None:
    config = Config(tau_half_life_steps=400, lr_half_life_steps=200, warmup=0.0)
    for steps in (100, 1_000, 80_000):
        for done in (0, 50, 100):
            assert temperature(config, done / steps, steps) == pytest.approx(0.5 ** (done / 400))
            assert rate(config, done / steps, steps) == pytest.approx(0.1 * 0.5 ** (done / 200))
    assert temperature(config, 1.0, 10**6) == 1e-30  # scores are divided by it
    # each of the two has its own unit
    mixed = Config(tau_half_life_steps=400, lr_half_life=0.25, warmup=0.0)
    assert temperature(mixed, 0.5, 800) == pytest.approx(0.5) and rate(mixed, 0.5, 800) == pytest.approx(0.025)


def test_optimisers_take_a_half_life_in_the_exponential_schedule_only() -> None:
    half = HalfLife(steps=100, least=0.25)
    optimiser = Optimiser(lr=1.0, schedule="exponential", half_life=half)
    assert [half.share(steps) for steps in (100, 200, 400, 800)] == [1.0, 0.5, 0.25, 0.25]
    assert [optimiser.lr_at(0.5, steps) for steps in (100, 200, 800)] == pytest.approx([0.5**0.5, 0.5, 0.25])
    assert optimiser.lr_at(1.0) == pytest.approx(0.5**0.01)  # of a single step
    plain = dataclasses.replace(optimiser, half_life=None)
    assert [plain.lr_at(0.5, steps) for steps in (1, 800)] == pytest.approx([0.1**0.5] * 2)
    step = dataclasses.replace(optimiser, schedule="step", decay_at=(0.5,))
    assert [step.lr_at(share, 200) for share in (0.4, 0.6)] == pytest.approx([1.0, 0.1])
    cosine = Config(schedule="cosine", lr_half_life=0.1, warmup=0.0)
    assert rate(cosine, 0.5, 200) == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["tau_half_life", "lr_half_life"])
@pytest.mark.parametrize(
    ("share", "steps", "message"),
    [
        (-0.5, 0, r"{0} = -0\.5: must be a share of the training, 0 to 100; {0}_steps takes steps"),
        (10_000.0, 0, r"{0} = 10000\.0: must be a share of the training"),
        (math.inf, 0, r"{0} = inf"),
        (0.0, -1, r"{0}_steps = -1: must be a whole number of at least 0"),
        (0.0, 0.5, r"{0}_steps = 0\.5"),
        (0.25, 400, r"{0}_steps = 400: {0} = 0\.25 is given too; one of them must be 0"),
    ],
)
def test_impossible_half_lives_are_refused(name: str, share: float, steps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message.format(name)) as caught:
        METHOD.configure({name: share, f"{name}_steps": steps})
    assert "\n" not in str(caught.value)


def test_the_space_draws_shares_steps_and_defaults_and_never_two_of_them() -> None:
    rng, kinds = random.Random(0), set()
    for _ in range(300):
        values = METHOD.space.sample(rng)
        config = METHOD.configure(values)
        for name in ("tau_half_life", "lr_half_life"):
            if name not in values:
                decides, halves = config.variant != "", config.schedule == "exponential"
                assert not (decides if name == "tau_half_life" else halves)
                continue
            share, steps = values[name], values.get(f"{name}_steps")
            assert (steps is None) == (share != 0)
            assert share == 0 or 1 / 16 <= share <= 2
            assert not steps or (5_000 <= steps <= 40_000 and isinstance(steps, int))
            kinds.add((name, "share" if share else "steps" if steps else "default"))
    assert len(kinds) == 6
    for name in ("tau_half_life", "lr_half_life"):  # the paper's are inside
        assert METHOD.space[name].contains(METHOD.published[name])
        assert METHOD.space[f"{name}_steps"].contains(10_000)


def test_the_first_trial_of_a_search_is_the_papers() -> None:
    values = published("decide", METHOD.space, METHOD.published, random.Random(0))
    assert values.pop("method") == "decide"
    assert METHOD.configure(values) == METHOD.configure(METHOD.published)


def data_of(count: int) -> Data:
    drawn = np.random.default_rng(0)
    split = Split(drawn.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), np.arange(count, dtype=np.int64) % 3)
    constants: dict[str, Any] = {"mean": (0.5,), "std": (0.3,), "augment": Augment(pad=1)}
    splits = {"train": split, "validation": split, "test": split}
    return Data(name="noise", task=SMALL, classes=("a", "b", "c"), hash="", **splits, **constants)


def test_an_interrupted_epoch_goes_on_with_the_same_steps(tmp_path: Path) -> None:
    data, seen = data_of(40), []  # 5 steps an epoch

    def objective(network: Any, batch: Any, phase: Any) -> Any:
        terms = METHOD.objective(network, batch, phase)
        seen.append((batch.share, batch.steps, network.temperature))
        return terms

    def training() -> Training:
        values = {"network": "pyramid-3", "width": 0.25, "batch_size": 8, "warmup": 0.0}
        config = METHOD.configure({**values, "tau_half_life_steps": 5, "lr_half_life_steps": 10})
        return Training(dataclasses.replace(METHOD, objective=objective), config, data, epochs=2, seed=1)

    straight = training()
    rates = [straight.step()["lr"] for _ in range(2)]
    whole = list(seen)
    assert [steps for _, steps, _ in whole] == [10] * 10
    assert [share for share, _, _ in whole] == pytest.approx([k / 10 for k in range(10)])
    assert [tau for _, _, tau in whole] == pytest.approx([0.5 ** (k / 5) for k in range(10)])
    assert rates == pytest.approx([0.1 * 0.5 ** (k / 10) for k in (4, 9)])
    for cut in (2, 7):  # in either epoch
        seen.clear()
        first, second = training(), training()
        first.leaving = lambda cut=cut: len(seen) == cut
        with pytest.raises(Interrupted):
            while True:
                first.step()
        first.save(tmp_path / str(cut))
        second.restore(tmp_path / str(cut))
        finished = [second.step()["lr"] for _ in range(2 - second.epoch)]
        assert seen == whole and finished == rates[-len(finished) :]
        for (name, one), other in zip(straight.network.named_parameters(), second.network.parameters(), strict=True):
            assert torch.equal(one, other), name
