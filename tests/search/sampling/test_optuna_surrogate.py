"""The default sampler in Optuna's own studies, and Optuna's samplers in ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest

import routefront
from search.errors import InputError
from search.sampling.optuna_surrogate import SurrogateSampler, _space
from search.sampling.proposals import Proposer
from search.spec.study import StudySpec
from spaces.space import Choice, Range, When


def two(trial: optuna.Trial) -> tuple[float, float]:
    """Error and cost of a network: best at lr = 0.03, smaller and dearer with depth."""
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    depth = trial.suggest_int("depth", 2, 32, step=2)
    router = trial.suggest_categorical("router", ["none", "rnn"])
    cost = float(depth)
    error = 0.02 + 0.1 * (math.log10(lr) + 1.5) ** 2 + 0.6 / depth
    if router == "rnn":
        margin = trial.suggest_float("margin", 0.0, 1.0)
        cost *= 0.6
        error += 0.5 * (margin - 0.3) ** 2
    return error, cost


def run(sampler: optuna.samplers.BaseSampler, trials: int = 50) -> optuna.Study:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(two, n_trials=trials)
    return study


def volume(study: optuna.Study) -> float:
    from search.pareto.front import hypervolume

    values = np.array([trial.values for trial in study.get_trials()])
    return hypervolume(np.minimum(values[:, 0], 1), values[:, 1], (1.0, 40.0))


def test_it_is_ahead_of_random_draws_in_a_study_of_optuna() -> None:
    ours = [volume(run(SurrogateSampler(seed=seed))) for seed in range(3)]
    theirs = [volume(run(optuna.samplers.RandomSampler(seed=seed))) for seed in range(3)]
    assert np.mean(ours) > np.mean(theirs) and min(ours) > np.median(theirs)


def test_the_same_seed_gives_the_same_trials_and_a_study_goes_on_as_if_it_had_not_stopped() -> None:
    whole = [trial.params for trial in run(routefront.SurrogateSampler(seed=7), 24).get_trials()]
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=SurrogateSampler(seed=7))
    study.optimize(two, n_trials=14)
    again = optuna.create_study(directions=["minimize", "minimize"], sampler=SurrogateSampler(seed=7))
    for trial in study.get_trials():
        again.add_trial(trial)
    again.optimize(two, n_trials=10)
    startup = 8
    assert [trial.params for trial in again.get_trials()][:14] == whole[:14]
    assert [trial.params for trial in again.get_trials()][14:] == whole[14:]
    assert [trial.params for trial in run(SurrogateSampler(seed=8), 24).get_trials()][startup:] != whole[startup:]


def test_conditions_are_learnt_from_the_trials() -> None:
    study = run(optuna.samplers.RandomSampler(seed=0), 20)
    distributions = {n: d for t in study.get_trials() for n, d in t.distributions.items()}
    space, back = _space(distributions, study.get_trials())
    assert space["margin"].when == When("router", (1,))
    assert space["router"] == Choice((0, 1)) and back["router"](1) == "rnn"
    assert space["depth"] == Range(0, 15, integer=True) and back["depth"](3) == 8


def test_one_objective_with_pruned_trials_and_failures() -> None:
    def objective(trial: optuna.Trial) -> float:
        lr, momentum = trial.suggest_float("lr", 1e-4, 1.0, log=True), trial.suggest_float("momentum", 0.0, 1.0)
        if momentum > 0.95:
            raise ValueError("diverged")
        best = 0.95 - 0.1 * (math.log10(lr) + 2) ** 2 - 0.2 * (momentum - 0.6) ** 2
        for step in (1, 3, 9):
            trial.report(best * (1 - 0.5 / step), step)
            if step < 9 and trial.should_prune():
                raise optuna.TrialPruned
        return best

    pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    study = optuna.create_study(direction="maximize", sampler=SurrogateSampler(seed=1), pruner=pruner)
    study.optimize(objective, n_trials=60, catch=(ValueError,))
    states = {trial.state for trial in study.get_trials()}
    assert optuna.trial.TrialState.PRUNED in states
    assert study.best_value > 0.94 and abs(math.log10(study.best_params["lr"]) + 2) < 0.5


def test_any_scale_and_violated_constraints() -> None:
    """A reward below and above 0 is maximised; what costs more than 20 is not allowed."""

    def constraint(trial: optuna.trial.FrozenTrial) -> tuple[float]:
        return (trial.values[1] - 20,)

    class Constrained(SurrogateSampler):
        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            study._storage.set_trial_system_attr(trial._trial_id, "constraints", (values[1] - 20,))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", -3, 3)
        cost = trial.suggest_float("cost", -10, 40)
        return -50 + 10 * math.cos(x) + cost, cost

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=Constrained(seed=0))
    study.optimize(objective, n_trials=50)
    late = study.get_trials()[25:]
    assert np.median([abs(trial.params["x"]) for trial in late]) < 1.0
    assert np.mean([constraint(trial)[0] <= 0 for trial in late]) > 0.6


def test_three_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["minimize"] * 3, sampler=SurrogateSampler(seed=0, startup=1))
    with pytest.raises(ValueError, match="3 objectives: SurrogateSampler takes one or two"):
        study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0, 2.0), n_trials=3)
    with pytest.raises(ValueError, match="startup = 0"):
        SurrogateSampler(startup=0)


# -- Optuna's samplers in a study file -------------------------------------------------------------


def grown(story: Callable[..., Any], **sampler: Any) -> Any:
    s = story()
    given = {"startup": 4, "published": False, **sampler}
    s.spec = s.spec.model_copy(update={"sampler": type(s.spec.sampler)(**given)})
    for number in range(12):
        lr = 0.05 + 0.02 * number
        name = s.ask(number, ("static", "skipnet")[number % 2], lr=lr, network="resnet-8")
        s.report(name, 1, [(0.4 + number / 50, 1e7 - number * 1e5), (0.4, 5e6)])
    return s


@pytest.mark.parametrize(
    "sampler",
    [
        {"name": "optuna.samplers:TPESampler", "arguments": {"multivariate": True}},
        {"name": "optuna.samplers:RandomSampler", "objectives": 1},
        {"name": "optuna.samplers:NSGAIIISampler", "arguments": {"population_size": 6}},
        {"name": "optuna.samplers:TPESampler", "objectives": 1},
    ],
    ids=str,
)
def test_a_sampler_is_named_by_its_class(story: Callable[..., Any], sampler: dict[str, Any]) -> None:
    s = grown(story, **sampler)
    proposer = Proposer(s.spec, s.spec.spaces())
    view = proposer.view(s.state)
    found = proposer.propose(view, 20)
    assert found == Proposer(s.spec, s.spec.spaces()).propose(view, 20) != proposer.propose(view, 21)
    space = s.spec.spaces()[found.config["method"]]
    space.check({k: v for k, v in found.config.items() if k != "method"})
    assert found.why.startswith(f"{sampler['name'].split(':')[1]} after ")


@pytest.mark.parametrize(
    ("sampler", "why"),
    [
        ({"name": "nowhere.samplers:Best"}, "nowhere.samplers cannot be imported here"),
        ({"name": "optuna.samplers:Best"}, "optuna.samplers has no Best"),
        ({"name": "subprocess:Popen", "arguments": {"args": ["touch", "/tmp/never"]}}, "is no sampler"),
        ({"name": "os:system", "arguments": {"command": "true"}}, "is no sampler"),
        ({"name": "optuna.samplers:TPESampler", "arguments": {"depth": 3}}, "does not take these arguments"),
    ],
)
def test_a_class_that_is_no_sampler_is_refused(story: Callable[..., Any], sampler: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        Proposer(grown(story, **sampler).spec, {})


@pytest.mark.parametrize(
    ("sampler", "why"),
    [
        ({"name": "gp"}, "unknown sampler 'gp'.*module:Class"),
        ({"name": "a b:C"}, "unknown sampler"),
        ({"arguments": {"seed": 1}}, "sampler 'surrogate' takes no arguments"),
        ({"name": "tpe", "objectives": 1}, "sampler 'tpe' takes no objectives"),
        ({"name": "optuna.samplers:TPESampler", "objectives": 3}, "objectives"),
    ],
)
def test_what_a_study_file_says_wrong(sampler: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        StudySpec.parse({"name": "x", "methods": {"static": {}}, "sampler": sampler})
