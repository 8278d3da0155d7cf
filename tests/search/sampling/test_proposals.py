from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from search.sampling.observations import Observations
from search.sampling.optuna_space import record, shared, suggest
from search.sampling.proposals import Proposer, seed_of
from search.sampling.samplers import SAMPLERS


def observations(state: Any) -> dict[str, float]:
    return Observations().scores(state)


def propose(spec: Any, spaces: Any, state: Any, number: int) -> Any:
    proposer = Proposer(spec, spaces)
    return proposer.propose(proposer.view(state), number)


def _grown(story: Callable[..., Any], sampler: str = "tpe") -> Any:
    """A study of 14 trials of two methods with curves at two rungs."""
    s = story()
    s.spec = s.spec.model_copy(
        update={"sampler": s.spec.sampler.model_copy(update={"startup": 4, "name": sampler, "published": False})}
    )
    spaces = s.spec.spaces()
    for number in range(14):
        config = propose(s.spec, spaces, s.state, number).config
        values = {k: v for k, v in config.items() if k != "method"}
        name = s.ask(number, config["method"], **values)
        s.report(name, 1, [(0.5 + number / 50, 1e7 - number * 1e5), (0.4, 5e6)])
        if number % 3 == 0:
            s.report(name, 3, [(0.7 + number / 50, 1e7 - number * 1e5)])
        else:
            s.decide(name, 1, "stop")
    return s, spaces


WHY = {
    "surrogate": "",
    "budgets": "the best of",
    "tpe": "tpe after",
    "nsga2": "nsga2 after",
    "evolution": "",
    "qmc": "point 14 of",
    "random": "random",
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seed_and_state_give_the_same_proposal(story: Callable[..., Any], name: str) -> None:
    s, spaces = _grown(story, name)
    proposer = Proposer(s.spec, spaces)
    view = proposer.view(s.state)
    first = proposer.propose(view, 14)
    assert first == proposer.propose(view, 14) == propose(s.spec, spaces, s.state, 14)
    assert name == "qmc" or first != proposer.propose(view, 15)
    config, why, *_ = first
    spaces[config["method"]].check({k: v for k, v in config.items() if k != "method"})
    assert why.startswith(WHY[name])


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_respect_bounds_conditions_and_what_is_given(story: Callable[..., Any], name: str) -> None:
    s, spaces = _grown(story, name)
    s.add("failed", {"reason": "loss term cost became nan"}, "t0013")
    s.ask(14)  # and one that runs
    proposer = Proposer(s.spec, spaces)
    view = proposer.view(s.state)
    for number in range(15, 35):
        config = proposer.propose(view, number).config
        spaces[config["method"]].check({k: v for k, v in config.items() if k != "method"})
        given = {"method": "skipnet", "lr": 0.0625, "network": "resnet-14"}
        config = proposer.asked(view, number, given).config
        spaces["skipnet"].check({k: v for k, v in config.items() if k != "method"})
        assert {**config, **given} == config


def test_stopped_trials_teach_their_rung_and_no_more(story: Callable[..., Any]) -> None:
    s, _ = _grown(story)
    state = s.state
    scores = observations(state)
    for trial in state.trials.values():
        top = max(trial.curves)
        assert {1: 0, 3: 1}[top] <= scores[trial.id] <= {1: 0, 3: 1}[top] + 1
    best_stopped = max(v for k, v in scores.items() if state.trials[k].state == "stopped")
    worst_beyond = min(v for k, v in scores.items() if 3 in state.trials[k].curves)
    assert best_stopped <= 1 <= worst_beyond


def test_failed_trials_are_the_worst_and_silent_ones_are_not_observed(story: Callable[..., Any]) -> None:
    s = story()
    failed, silent = s.ask(0), s.ask(1)
    s.add("failed", {"reason": "loss term cost became nan"}, failed)
    assert observations(s.state) == {failed: -1.0} and silent not in observations(s.state)


def test_published_settings_come_first(story: Callable[..., Any]) -> None:
    s = story()
    spaces = s.spec.spaces()
    methods = [propose(s.spec, spaces, s.state, n)[0]["method"] for n in range(2)]
    assert methods == ["static", "skipnet"]
    assert "paper" in propose(s.spec, spaces, s.state, 0)[1]


def test_record_is_the_inverse_of_suggest(story: Callable[..., Any]) -> None:
    import optuna

    spaces = story(("static", "skipnet", "codinet", "imta")).spec.spaces()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        trial = study.ask()
        config = suggest(trial, spaces)
        params, distributions = record(config, spaces)
        assert params == trial.params
        assert distributions == trial.distributions


def test_shared_parameters_are_shared_unless_narrowed_for_one_method(story: Callable[..., Any]) -> None:
    from spaces.space import Fixed
    from spaces.written import narrowed

    spaces = story().spec.spaces()
    assert {"lr", "weight_decay"} <= shared(spaces)
    narrowed = {**spaces, "static": narrowed(spaces["static"], {"lr": 0.1})}
    assert narrowed["static"]["lr"] == Fixed(0.1) and "lr" not in shared(narrowed)


def test_seeds_differ_and_fit_32_bits() -> None:
    seeds = {seed_of(0, n) for n in range(1000)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**32 for seed in seeds)
