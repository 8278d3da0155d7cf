"""What the surrogate sampler makes of curves."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from search.journal.events import Event
from search.pareto.front import Archive
from search.sampling import surrogate
from search.sampling.surrogate import Model, Told, ask_surrogate, improvement
from search.sampling.view import View
from search.simulation.simulation import Simulation, study_spec
from search.spec.study import StudySpec
from search.state.state import StudyState
from search.state.trial import Trial
from spaces.space import Choice, Fixed, LogRange, Range, Space, When
from tests.benchmarks.search.problems import Analytic

SPACE = Space(
    {
        "lr": LogRange(1e-3, 1.0),
        "width": Range(0.1, 1.0),
        "router": Choice(("linear", "rnn")),
        "margin": Range(0.0, 1.0, when=When("router", ("rnn",))),
        "body": Fixed("resnet-8"),
    }
)
REFERENCE = 0.9, 12e6
SPEC = StudySpec.parse({"name": "x", "methods": {"m": {}}, "sampler": {"startup": 1}}, trusted=True)


def error_of(config: dict[str, Any]) -> float:
    """Best at lr = 0.03, and with an rnn of margin 0.7; smaller with width."""
    away = abs(math.log10(config["lr"]) + 1.5) + (0.3 * abs(config["margin"] - 0.7) if "margin" in config else 0.4)
    return 0.1 + 0.3 * away + 0.2 * (1 - config["width"])


def macs_of(config: dict[str, Any]) -> float:
    return 10e6 * config["width"] ** 2


def trials(count: int, seed: int = 0, rungs: Sequence[int] = (1, 3)) -> list[Trial]:
    """Half of them stop at the first rung, where errors are larger by a fifth."""
    rng, found = random.Random(seed), []
    for number in range(count):
        config = {"method": "m", **SPACE.sample(rng)}
        trial = Trial(f"t{number:04d}", number, config, 0, "", 0.0)
        for rung in rungs[: 1 + number % len(rungs)]:
            error = min(1.0, error_of(config) * (1.2 if rung == rungs[0] else 1.0))
            trial.take_arrays(rung, np.array([error + 0.1, error]), np.array([0.5, 1.0]) * macs_of(config))
        found.append(trial)
    return found


def view(known: Sequence[Trial], **parts: Any) -> View:
    rungs: dict[int, list[Trial]] = {}
    for trial in known:
        for epoch in trial.comparable:
            rungs.setdefault(epoch, []).append(trial)
    given: dict[str, Any] = {
        "spec": SPEC, "spaces": {"m": SPACE}, "asked": len(known), "scored": len(known), "scores": {},
        "trials": {}, "silent": [], "owners": [], "rungs": rungs,
        "reference": REFERENCE,
    }  # fmt: skip
    return View(**{**given, **parts})


def told(seen: View) -> Told:
    return Told(seen, seen.rungs)


def model(seen: View) -> Model:
    return Model(seen, "m", told(seen))


@pytest.fixture
def only_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "UNIFORM", 0.0)
    monkeypatch.setattr(surrogate, "DENSITIES", 0.0)


def test_proposals_are_better_than_the_trials_that_they_learn_from(only_the_model: None) -> None:
    """By what each adds to the front of the trials that are known."""
    seen = view(trials(40))
    front = Archive(REFERENCE)
    for trial in seen.rungs[1]:
        front.add(error_of(trial.config), macs_of(trial.config))

    def adds(config: dict[str, Any]) -> float:
        more = Archive(REFERENCE)
        for error, macs, _ in front:
            more.add(error, macs)
        more.add(error_of(config), macs_of(config))
        return more.hypervolume - front.hypervolume

    asked = [ask_surrogate(seen, seed).config for seed in range(16)]
    drawn = [adds({"method": "m", **SPACE.sample(random.Random(seed))}) for seed in range(200)]
    assert np.mean([adds(config) for config in asked]) > np.quantile(drawn, 0.95)
    assert sum(config["router"] == "rnn" for config in asked) >= 10


def test_what_is_expected_to_be_added_is_what_draws_add() -> None:
    """Errors and MACs drawn from what both processes foretell, and the hypervolume that they add to the front.

    Cells of the axis round the front off, hence the tolerance.
    """
    made = model(view(trials(60)))
    rows = np.stack([made.search(np.random.default_rng(seed)) for seed in range(4)])
    features, rng = made.codec.features(rows), np.random.default_rng(0)
    (mean, deviation), (middle, spread) = made._foretold(features), made._cheapest(features)
    expected, front, edges = made.score(rows), np.exp(made._best), made._edges
    for i in range(len(rows)):
        z, cost = rng.normal(size=(20_000, 1)), rng.normal(middle[i], spread[i], size=(20_000, 1))
        gain = np.maximum(front - np.exp(mean[i] + deviation[i] * z), 0)
        cells = (edges[1:] - np.maximum(edges[:-1], cost)).clip(0)
        assert expected[i] == pytest.approx((gain * cells).sum(1).mean(), rel=0.05)


def test_cheap_ones_are_proposed_where_the_front_is_open_to_the_left() -> None:
    """MACs rise with the width alone; what is cheaper than all that is known counts from the reference's error on."""
    known = [trial for trial in trials(90) if trial.config["width"] > 0.6]
    made = model(view(known))
    cheapest = min(macs_of(trial.config) for trial in known)
    found = [macs_of(made.codec.decode(made.search(np.random.default_rng(seed)))) for seed in range(12)]
    assert np.mean([macs < cheapest for macs in found]) >= 0.7


def test_foretold_at_the_last_rung() -> None:
    made, fresh = model(view(trials(80))), trials(60, seed=9)
    means, deviations = made._foretold(made.codec.features(made.codec.encode([trial.config for trial in fresh])))
    mean, deviation = means[:, -1], deviations[:, -1]  # within all that was seen
    truth = np.log([error_of(trial.config) for trial in fresh])
    assert np.corrcoef(mean, truth)[0, 1] > 0.9
    good = truth < np.median(truth)  # the bad ones are cut off
    assert np.mean(np.abs(mean - truth)[good] < 2.5 * np.sqrt(deviation**2 + 0.01)[good]) > 0.8


def test_the_front_of_other_methods_counts() -> None:
    """A method that is far behind adds nothing to the front of all; its own best is improved all the same."""
    known = trials(40)
    best = Trial("t0099", 99, {"method": "n"}, 0, "", 0.0)
    best.take_arrays(3, np.array([0.01]), np.array([1e3]))
    made = model(view([*known, best]))
    row = made.codec.encode([trial.config for trial in known[:1]])
    assert made.score(row)[0] < 0.1 * model(view(known)).score(row)[0]
    found = made.codec.decode(made.search(np.random.default_rng(0)))
    assert error_of(found) < np.median([error_of(trial.config) for trial in known])


def test_running_trials_are_taken_to_show_what_is_expected() -> None:
    known = trials(40)
    alone = model(view(known))
    first = alone.codec.decode(alone.search(np.random.default_rng(0)))
    running = Trial("t0040", 40, {"method": "m", **first}, 0, "", 0.0)
    beside = model(view(known, silent=[running]))
    at = beside.codec.encode([first])
    assert beside.score(at)[0] < 0.5 * alone.score(at)[0]


def test_of_trials_that_wait_the_one_whose_like_did_well_goes_on() -> None:
    """Its own first rung looked as bad as that of another one, whose like did badly."""
    good = {"method": "m", "lr": 10**-1.5, "width": 1.0, "router": "rnn", "margin": 0.7, "body": "resnet-8"}
    waiting = [Trial(f"t{90 + i}", 90 + i, {**good, **own}, 0, "", 0.0) for i, own in enumerate([{"lr": 0.9}, {}])]
    for trial in waiting:
        trial.take_arrays(1, np.array([0.5, 0.4]), np.array([0.5, 1.0]) * macs_of(trial.config))
    made = model(view([*trials(40), *waiting], waiting=[(trial, 1) for trial in waiting]))
    worse, better = (made.codec.encode([trial.config]) for trial in waiting)
    seen = view([], waiting=[(trial, 1) for trial in waiting])
    name, why = made.returning(seen, worse[0]) or ("", "")
    assert name == "t91" and why.startswith("trials like it did well: ") and "expected" in why
    assert made.returning(view([], waiting=[(waiting[0], 1)]), better[0]) is None
    assert made.returning(view([]), worse[0]) is None


def test_what_fails_or_misses_a_constraint_is_avoided() -> None:
    def unusable(config: dict[str, Any]) -> bool:
        return config["router"] == "rnn" and config["lr"] > 0.01

    known, failed = trials(60), []
    for trial in list(known):
        if unusable(trial.config):
            known.remove(trial)
            bare = Trial(trial.id, trial.number, trial.config, 0, "", 0.0)
            if trial.number % 2:
                failed.append(bare)
            else:
                bare.take_arrays(1, np.array([math.nan]), np.array([macs_of(trial.config)]))
                known.append(bare)
    made = model(view(known, failed=failed))
    found = [made.codec.decode(made.search(np.random.default_rng(seed))) for seed in range(12)]
    assert sum(unusable(config) for config in found) <= 3


def test_hyperparameters_come_from_the_journal_until_a_third_more_is_known() -> None:
    known = trials(40)
    first = model(view(known)).fitted
    assert first is not None
    kept = {"m": json.loads(json.dumps(first))}
    again = model(view(known, models=kept))
    assert again.fitted is None and again._error.theta.tolist() == first["error"]
    assert model(view(trials(44), models=kept)).fitted is None
    assert model(view(trials(60), models=kept)).fitted is not None
    assert model(view(known, models=kept, asked=90)).fitted is not None  # a method that hardly grows
    other = {"m": {**first, "error": [*first["error"], 0.0]}}
    assert model(view(known, models=other)).fitted is not None  # of another space
    assert model(view(known, models={"m": {**first, "observations": "?"}})).fitted is not None


def test_a_process_is_told_a_bounded_number_of_trials() -> None:
    seen = view(trials(400))
    made = model(seen)
    assert made._trials == surrogate.CAP
    front = Archive(REFERENCE)
    for trial in seen.rungs[3]:
        error, macs = trial.arrays(3)
        front.add(float(error[1]), float(macs[1]), trial.id)
    kept = {each.trial.id for each in made._chosen(told(seen).of(seen, "m"))}
    members = {name for *_, name in front}  # cells of the axis tell two close ones not apart
    assert len(members) >= 8 and len(members & kept) >= 0.8 * len(members)


def test_a_method_of_few_trials_or_without_a_choice_is_drawn_from(only_the_model: None) -> None:
    assert ask_surrogate(view(trials(4)), 3).why.endswith("after 4 m trials")
    assert ask_surrogate(view(trials(3)), 3).why == "random"
    fixed = Space({"lr": Fixed(0.1), "width": Fixed(1.0), "router": Fixed("linear")})
    assert ask_surrogate(view(trials(30), spaces={"m": fixed}), 3).config == {
        "method": "m", "lr": 0.1, "width": 1.0, "router": "linear",
    }  # fmt: skip


def test_equal_figures_of_all_trials_are_no_error(only_the_model: None) -> None:
    known = trials(20)
    for trial in known:
        trial.take_arrays(1, np.array([0.5]), np.array([1e6]))
        trial.take_arrays(3, np.array([0.5]), np.array([1e6]))
    for seed in range(5):
        SPACE.check({k: v for k, v in ask_surrogate(view(known), seed).config.items() if k != "method"})


def test_expected_improvement_is_the_mean_of_what_draws_improve() -> None:
    rng = np.random.default_rng(0)
    for mean, deviation, best in ((-1.0, 0.4, -1.0), (-0.5, 0.3, -0.7), (-2.0, 0.2, -1.0)):
        draws = np.exp(rng.normal(mean, deviation, 400_000))
        (found,) = improvement(np.array([mean]), np.array([deviation]), np.array([best]))
        assert found == pytest.approx(np.maximum(math.exp(best) - draws, 0).mean(), rel=0.03)


def test_a_study_replays_to_the_proposals_that_it_would_have_made(story: Callable[..., Any]) -> None:
    """After every ask, an engine that only reads the journal has the same prepared proposal, model and state."""
    problem = Analytic("smooth", 5)
    spec = study_spec(problem, budget={"trials": 60}, sampler={"startup": 4}, rungs={"epochs": [1, 3, 9]})
    simulation, checked = Simulation(problem, spec, workers=3), []

    def listen(event: Event, state: StudyState) -> None:
        if event.kind == "ask" and state.proposed % 9 == 0:
            checked.append(simulation.again().digest() == simulation.engine.digest())

    simulation.engine.listeners.append(listen)
    simulation.run()
    assert len(checked) >= 6 and all(checked)
    asks = [event.payload for event in simulation.journal.events if event.kind == "ask"]
    fitted = [payload["model"] for payload in asks if "model" in payload]
    assert 3 <= len(fitted) < len(asks) / 2
    assert simulation.engine.state.models == {each["method"]: each for each in fitted}
    assert any("expected" in payload["why"] and "within" in payload["why"] for payload in asks)
