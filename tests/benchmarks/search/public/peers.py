"""The rivals on a public problem: four asynchronous workers in virtual time, one operating point a trial and epoch.

Optuna (TPE, NSGA-II, Gaussian process) trains everything to the end and is told (error, log10 cost) of the last epoch.
Syne Tune's MOASHA is shown every epoch and may stop. SMAC (ParEGO, alone or with Hyperband) asks for (configuration,
epochs); a configuration that is asked for again goes on where it was, and its earlier epochs are not paid again, which
is to the rival's advantage. So does NePS's PriMO, without priors: MOASHA first, then Bayesian optimisation. Ax is told
(error, log10 cost) of full trainings, with the hypervolume's reference as its objectives' thresholds; its own choice
of a generator is BoTorch's qLogNEHVI behind a Sobol design.

Each imports its library when it is run: none of them but Optuna belongs to the project, they live in environments of
their own, where nothing of the project is needed: ``pip install optuna syne-tune smac ax-platform onnxruntime``, and
one more for ``neural-pipeline-search``, whose requirements differ from Ax's.
"""

from __future__ import annotations

import contextlib
import datetime
import heapq
import inspect
import io
import logging
import math
import random
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.benchmarks.search.public.public_problems import Config, Parameter, Public, Segment

WORKERS = 4

Job = tuple[Any, Config, int, int]
"""(the rival's own key, configuration, first epoch, last epoch)."""
Rival = Callable[[Public, int, int], list[Segment]]
"""What a rival trains on a problem with a seed until so many epochs are spent."""


class World:
    """Workers in virtual time, until `epochs` are spent.

    `run` is given ``ask()``: the next job, or None for "nothing now"; ``over(key, epoch, error, log cost)``, called
    behind the last epoch of a job; and for those who look at every epoch ``epoch(...)`` alike: whether the job goes on.
    """

    def __init__(self, problem: Public, epochs: int) -> None:
        self.problem, self.epochs = problem, epochs
        self.segments: list[Segment] = []
        self.spent, self.now = 0, 0.0

    def run(
        self,
        ask: Callable[[], Job | None],
        over: Callable[[Any, int, float, float], Any],
        epoch: Callable[[Any, int, float, float], bool] | None = None,
    ) -> list[Segment]:
        """What was trained."""
        heap: list[tuple[float, int, int, Job]] = []
        number, idle = 0, WORKERS
        while True:
            while idle and self.spent < self.epochs:
                job = ask()
                if job is None:
                    break
                _, config, first, last = job
                seconds = self.problem.table(config)[2]
                idle -= 1
                step = first if epoch else last
                heapq.heappush(heap, (self.now + seconds * (step - first + 1), number, step, job))
                number += 1
            if not heap or self.spent >= self.epochs:
                break
            self.now, _, at, job = heapq.heappop(heap)
            key, config, first, last = job
            errors, costs, seconds = self.problem.table(config)
            self.spent += 1 if epoch else last - first + 1
            error, cost = float(errors[at - 1]), math.log10(costs[at - 1])
            if epoch and at < last and epoch(key, at, error, cost):
                heapq.heappush(heap, (self.now + seconds, number, at + 1, job))
                number += 1
                continue
            self.segments.append((config, first, at, self.now, seconds))
            over(key, at, error, cost)
            idle += 1
        for _, _, at, (_, config, first, _) in heap:  # what runs at the end has shown these epochs
            done = at - 1 if epoch else first - 1
            if done >= first:
                self.segments.append((config, first, done, self.now, self.problem.table(config)[2]))
        return self.segments


def random_full(problem: Public, seed: int, epochs: int) -> list[Segment]:
    """Configurations drawn uniformly, all trained to the end."""
    rng = random.Random(seed)
    return World(problem, epochs).run(lambda: (0, problem.sample(rng), 1, problem.epochs), lambda *_: None)


def flat(problem: Public) -> dict[str, Parameter]:
    """All parameters of all methods; the same name is the same parameter."""
    found: dict[str, Parameter] = {}
    for space in problem.spaces.values():
        for each in space:
            found.setdefault(each.name, each)
    return found


def back(problem: Public, values: dict[str, Any]) -> Config:
    """A configuration from flat values; what its method lacks is dropped."""
    method = values.get("method", next(iter(problem.spaces)))
    config: Config = {"method": method}
    for each in problem.spaces[method]:
        value = values[each.name]
        config[each.name] = value if each.options else (int(value) if each.integer else float(value))
    return config


# -- Optuna -----------------------------------------------------------------------------------------------------------


def optuna_full(make: Callable[[Any, int], Any]) -> Rival:
    """One of Optuna's samplers, over two objectives."""

    def suggest(problem: Public, trial: Any) -> Config:
        methods = list(problem.spaces)
        method = trial.suggest_categorical("method", methods) if len(methods) > 1 else methods[0]
        config: Config = {"method": method}
        for each in problem.spaces[method]:
            if each.options:
                config[each.name] = trial.suggest_categorical(each.name, each.options)
            else:
                draw = trial.suggest_int if each.integer else trial.suggest_float
                config[each.name] = draw(each.name, each.low, each.high, log=each.log)
        return config

    def run(problem: Public, seed: int, epochs: int) -> list[Segment]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=make(optuna, seed))

        def ask() -> Job:
            trial = study.ask()
            return trial, suggest(problem, trial), 1, problem.epochs

        return World(problem, epochs).run(ask, lambda trial, _, error, cost: study.tell(trial, [error, cost]))

    return run


# -- Syne Tune --------------------------------------------------------------------------------------------------------


def _syne_space(problem: Public) -> dict[str, Any]:
    from syne_tune import config_space as kinds  # pyright: ignore[reportMissingImports]

    space = {"method": kinds.choice(list(problem.spaces))} if len(problem.spaces) > 1 else {}
    for name, each in flat(problem).items():
        if each.options:
            space[name] = kinds.choice(list(each.options))
        elif each.integer:
            space[name] = (kinds.lograndint if each.log else kinds.randint)(each.low, each.high)
        else:
            space[name] = (kinds.loguniform if each.log else kinds.uniform)(each.low, each.high)
    return space


def moasha(grace: int) -> Rival:
    """Syne Tune's MOASHA: one bracket, one in three goes on, from `grace` epochs on."""

    def run(problem: Public, seed: int, epochs: int) -> list[Segment]:
        from syne_tune.backend.trial_status import Trial  # pyright: ignore[reportMissingImports]
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA  # pyright: ignore[reportMissingImports]

        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        np.random.seed(seed)
        random.seed(seed)
        known = inspect.signature(MOASHA).parameters  # names differ between releases
        given: dict[str, Any] = {"do_minimize": True} if "do_minimize" in known else {"mode": "min"}
        given |= {"random_seed": seed} if "random_seed" in known else {}
        given |= {"time_attr": "epoch", "max_t": problem.epochs, "grace_period": grace}
        scheduler = MOASHA(_syne_space(problem), metrics=["error", "cost"], reduction_factor=3, brackets=1, **given)
        numbered = bool(inspect.signature(scheduler.suggest).parameters)
        count = 0

        def ask() -> Job:
            nonlocal count
            with contextlib.redirect_stdout(io.StringIO()):
                suggestion = scheduler.suggest(count) if numbered else scheduler.suggest()
                trial = Trial(trial_id=count, config=suggestion.config, creation_time=datetime.datetime.now())
                scheduler.on_trial_add(trial)
            count += 1
            return trial, back(problem, suggestion.config), 1, problem.epochs

        def epoch(trial: Any, at: int, error: float, cost: float) -> bool:
            return scheduler.on_trial_result(trial, {"error": error, "cost": cost, "epoch": at}) == "CONTINUE"

        def over(trial: Any, at: int, error: float, cost: float) -> None:
            if at == problem.epochs:
                scheduler.on_trial_complete(trial, {"error": error, "cost": cost, "epoch": at})
            else:
                scheduler.on_trial_remove(trial)

        return World(problem, epochs).run(ask, over, epoch)

    return run


def going_on(
    problem: Public,
    propose: Callable[[], tuple[Any, dict[str, Any], int] | None],
    over: Callable[[Any, int, float, float], Any],
) -> Callable[[], Job | None]:
    """``ask()`` for `World.run`: jobs that go on where their configuration was.

    `propose` gives (key, flat values, last epoch), or None for "nothing now"; `over` is told at once of what was
    trained that far before.
    """
    reached: dict[tuple, int] = {}

    def ask() -> Job | None:
        while (proposed := propose()) is not None:
            rival, values, last = proposed
            config = back(problem, values)
            key = problem.key_of(config)
            first = reached.get(key, 0) + 1
            if first <= last:
                reached[key] = last
                return rival, config, first, last
            errors, costs, _ = problem.table(config)
            over(rival, last, float(errors[last - 1]), math.log10(costs[last - 1]))
        return None

    return ask


# -- SMAC -------------------------------------------------------------------------------------------------------------


def _smac_space(problem: Public, seed: int) -> Any:
    from ConfigSpace import (  # pyright: ignore[reportMissingImports]
        Categorical,
        ConfigurationSpace,
        Float,
        InCondition,
        Integer,
    )

    space = ConfigurationSpace(seed=seed)
    several = len(problem.spaces) > 1
    if several:
        space.add(Categorical("method", list(problem.spaces)))
    for name, each in flat(problem).items():
        if each.options:
            space.add(Categorical(name, list(each.options)))
        else:
            kind = Integer if each.integer else Float
            space.add(kind(name, (each.low, each.high), log=each.log))
        owners = [method for method, own in problem.spaces.items() if any(other.name == name for other in own)]
        if several and len(owners) < len(problem.spaces):
            space.add(InCondition(space[name], space["method"], owners))
    return space


def _smac_facade(problem: Public, seed: int, epochs: int, hyperband: bool) -> Any:
    from smac import (  # pyright: ignore[reportMissingImports]
        HyperparameterOptimizationFacade,
        MultiFidelityFacade,
        Scenario,
    )
    from smac.intensifier.hyperband import Hyperband  # pyright: ignore[reportMissingImports]
    from smac.multi_objective.parego import ParEGO  # pyright: ignore[reportMissingImports]

    given: dict[str, Any] = {
        "objectives": ["error", "cost"],
        "deterministic": True,
        "output_directory": tempfile.mkdtemp(prefix="smac-"),
        "seed": seed,
        "n_workers": 1,
    }
    if hyperband:
        given |= {"n_trials": 100_000, "min_budget": problem.epochs / 9, "max_budget": problem.epochs}
    else:
        given["n_trials"] = max(10, epochs // problem.epochs + 20)
    scenario = Scenario(_smac_space(problem, seed), **given)
    facade = MultiFidelityFacade if hyperband else HyperparameterOptimizationFacade
    more = {"intensifier": Hyperband(scenario, eta=3, incumbent_selection="highest_budget")} if hyperband else {}
    return facade(
        scenario,
        lambda config, seed=0, budget=0: [0.0, 0.0],
        multi_objective_algorithm=ParEGO(scenario),
        initial_design=facade.get_initial_design(scenario, n_configs=10),
        overwrite=True,
        logging_level=False,
        **more,
    )


def smac(hyperband: bool) -> Rival:
    """SMAC with ParEGO, trained in full or with Hyperband over epochs."""

    def run(problem: Public, seed: int, epochs: int) -> list[Segment]:
        from smac.runhistory.dataclasses import TrialValue  # pyright: ignore[reportMissingImports]

        logging.disable(logging.CRITICAL)
        facade = _smac_facade(problem, seed, epochs, hyperband)

        def propose() -> tuple[Any, Config, int]:
            info = facade.ask()
            return info, dict(info.config), round(info.budget) if hyperband else problem.epochs

        def over(info: Any, _: int, error: float, cost: float) -> None:
            facade.tell(info, TrialValue(cost=[error, cost], time=1.0), save=False)

        return World(problem, epochs).run(going_on(problem, propose, over), over)

    return run


# -- NePS -------------------------------------------------------------------------------------------------------------


def primo(problem: Public, seed: int, epochs: int) -> list[Segment]:
    """NePS's PriMO."""
    import torch
    from neps.optimizers import algorithms  # pyright: ignore[reportMissingImports]
    from neps.optimizers.ask_and_tell import AskAndTell  # pyright: ignore[reportMissingImports]
    from neps.space.parameters import HPOCategorical, HPOFloat, HPOInteger  # pyright: ignore[reportMissingImports]
    from neps.space.search_space import SearchSpace  # pyright: ignore[reportMissingImports]

    np.random.seed(seed)
    random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    space: dict[str, Any] = {"epoch": HPOInteger(max(1, problem.epochs // 9), problem.epochs, is_fidelity=True)}
    if len(problem.spaces) > 1:
        space["method"] = HPOCategorical(list(problem.spaces))
    for name, each in flat(problem).items():
        if each.options:
            space[name] = HPOCategorical(list(each.options))
        else:
            kind = HPOInteger if each.integer else HPOFloat
            space[name] = kind(each.low, each.high, log=each.log)
    rival = AskAndTell(algorithms.primo(SearchSpace(space), prior_centers={}))

    def propose() -> tuple[Any, Config, int] | None:
        try:
            trial = rival.ask()
        except ValueError:  # its Bayesian optimisation begins before a trial has ended at the rung that it looks at
            return None
        return trial, dict(trial.config), int(trial.config["epoch"])

    def over(trial: Any, _: int, error: float, cost: float) -> None:
        rival.tell(trial, {"objective_to_minimize": [error, cost], "cost": 1.0})

    return World(problem, epochs).run(going_on(problem, propose, over), over)


# -- Ax ---------------------------------------------------------------------------------------------------------------


def ax(problem: Public, seed: int, epochs: int) -> list[Segment]:
    """Ax with its own choice of a generator for two objectives."""
    import torch
    from ax.api.client import Client  # pyright: ignore[reportMissingImports]
    from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig  # pyright: ignore[reportMissingImports]

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    client, parameters = Client(random_seed=seed), []
    if len(problem.spaces) > 1:
        parameters.append(ChoiceParameterConfig("method", list(problem.spaces), "str"))
    for name, each in flat(problem).items():
        if each.options:
            parameters.append(ChoiceParameterConfig(name, list(each.options), "str"))
        else:
            kind, scaling = "int" if each.integer else "float", "log" if each.log else "linear"
            parameters.append(RangeParameterConfig(name, (each.low, each.high), kind, scaling=scaling))
    client.configure_experiment(parameters=parameters, name=problem.key)
    worst, dearest = problem.reference
    limits = [f"error <= {worst}", f"cost <= {math.log10(dearest)}"]
    client.configure_optimization(objective="-error, -cost", outcome_constraints=limits)

    def ask() -> Job:
        ((number, values),) = client.get_next_trials(max_trials=1).items()
        return number, back(problem, dict(values)), 1, problem.epochs

    def over(number: int, _: int, error: float, cost: float) -> None:
        client.complete_trial(trial_index=number, raw_data={"error": (error, 0.0), "cost": (cost, 0.0)})

    return World(problem, epochs).run(ask, over)


PEERS: dict[str, Rival] = {
    "random": random_full,
    "Optuna TPE": optuna_full(lambda optuna, seed: optuna.samplers.TPESampler(seed=seed)),
    "Optuna TPE multivariate": optuna_full(
        lambda optuna, seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    ),
    "Optuna NSGA-II": optuna_full(lambda optuna, seed: optuna.samplers.NSGAIISampler(seed=seed)),
    "Optuna GP": optuna_full(lambda optuna, seed: optuna.samplers.GPSampler(seed=seed)),
    "MOASHA": moasha(1),
    "MOASHA grace 1/9": moasha(6),
    "SMAC ParEGO": smac(False),
    "SMAC ParEGO Hyperband": smac(True),
    "NePS PriMO": primo,
    "Ax": ax,
}
