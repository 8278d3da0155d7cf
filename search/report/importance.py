"""Which parameters mattered: random forests that predict what a trial's curve reached.

The target is the hypervolume of a trial's last curve against the study's reference; the features are its
configuration and the epoch of that curve, since a trial that was stopped had less time. Importances are
by permutation (Breiman, "Random forests", 2001): how much of the variance the forest no longer explains
when a feature's values are shuffled among the trials, in scikit-learn. Optuna's evaluators take only
the parameters that all trials share, so of a conditional space only the method; here every method has
a forest of its own beside the one over all. What a forest explains of trials that it has not seen (its
out-of-bag score) is told with it, and where that is nothing, there is no ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.pareto import front as pareto
from search.state.state import StudyState

LEAST_TRIALS = 12
_MOST_TRIALS, _TREES, _REPEATS = 600, 48, 3
EPOCH = "epochs trained"


@dataclass(frozen=True, slots=True)
class Importances:
    """`shares` by parameter, falling, of the variance among `trials` trials; `explained`: R2 on unseen trials."""

    what: str
    trials: int
    explained: float
    shares: Mapping[str, float]


def results(state: StudyState) -> list[tuple[dict[str, Any], float]]:
    """(configuration with its epoch, hypervolume of the last curve) of every trial that showed one."""
    reference = (state.created["reference"]["error"], state.created["reference"]["macs"])
    found = []
    for trial in state.trials.values():
        if trial.curves:
            epoch = max(trial.curves)
            volume = pareto.hypervolume(*trial.arrays(epoch), reference)
            found.append(({**trial.config, EPOCH: epoch}, volume))
    return found


def importances(results: Sequence[tuple[Mapping[str, Any], float]]) -> list[Importances]:
    """One over all trials, by what they share, then one for every method; those with too few trials are left out."""
    found = [_forest("all methods", results)]
    methods = sorted({str(config["method"]) for config, _ in results})
    for method in methods:
        mine = [(c, v) for c, v in results if c["method"] == method]
        found.append(_forest(method, mine) if len(methods) > 1 else None)
    return [each for each in found if each is not None]


def _forest(what: str, results: Sequence[tuple[Mapping[str, Any], float]]) -> Importances | None:
    if len(results) < LEAST_TRIALS:
        return None
    if len(results) > _MOST_TRIALS:
        rows = np.random.default_rng(0).permutation(len(results))[:_MOST_TRIALS]
        results = [results[row] for row in np.sort(rows).tolist()]
    shared = set.intersection(*(set(config) for config, _ in results))
    names = [name for name in results[0][0] if name in shared]
    columns = {name: _numbers([config[name] for config, _ in results]) for name in names}
    columns = {name: values for name, values in columns.items() if np.ptp(values) > 0}
    target = np.array([volume for _, volume in results])
    if not columns or np.ptp(target) == 0:
        return None
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    features = np.column_stack(list(columns.values()))
    forest = RandomForestRegressor(_TREES, min_samples_leaf=2, oob_score=True, random_state=0, n_jobs=1)
    forest.fit(features, target)
    lost: Any = permutation_importance(forest, features, target, n_repeats=_REPEATS, random_state=0, n_jobs=1)
    shares = dict(zip(columns, np.clip(lost["importances_mean"], 0, None).tolist(), strict=True))
    ranked = dict(sorted(shares.items(), key=lambda entry: -entry[1]))
    return Importances(what, len(results), float(forest.oob_score_), ranked)


def _numbers(values: Sequence[Any]) -> np.ndarray:
    """Numbers as they are; of anything else its place among the sorted distinct values."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return np.array(values, dtype=float)
    texts = [str(v) for v in values]
    order = {text: place for place, text in enumerate(sorted(set(texts)))}
    return np.array([order[text] for text in texts], dtype=float)
