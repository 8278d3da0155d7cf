"""Which checkpoints of a study are kept, and which trials have their paths drawn.

Both are functions of the state alone: the driver removes by them, `gc` reclaims by them, reports choose by them.
"""

from __future__ import annotations

import numpy as np

from search.pareto.front import front_layers
from search.state.state import StudyState
from search.state.trial import Trial

MOST_TRIALS = 6
"""A page shows the paths of at most so many trials."""


def kept_checkpoints(state: StudyState) -> set[str]:
    """Names ``trial/epoch-NNNN`` of the checkpoints in the first two fronts and in each method's own, of promoted
    points, of the trials whose paths a report shows, of the members of the cascades that were composed last, of those
    that later ones are tried with in cascades, and of those that trials begin with (`search.state.donors`).
    """
    owners: list[tuple[Trial, int]] = []
    errors: list[float] = []
    macs: list[float] = []
    for trial in state.trials.values():
        for epoch in trial.curves:
            error, cost = trial.arrays(epoch)  # NaN where a point misses a constraint: in the last layer
            owners += [(trial, epoch)] * len(error)
            errors += error.tolist()
            macs += cost.tolist()
    keep = {name for promotion in state.promotions for name in promotion.get("checkpoints", [promotion["checkpoint"]])}
    keep |= {trial.checkpoint for trial in chosen(state) if trial.checkpoint}
    own = state.created["spec"]["name"] if state.cascades else ""
    composed = [member for line in state.cascades[-1:] for point in line["points"] for member in point["members"]]
    keep |= {member["checkpoint"] for member in composed if member["study"] == own}
    keep |= {trial.checkpoints[epoch] for epoch, trials in state.partners.items() for trial in trials}
    if owners:
        error_of, macs_of = np.array(errors), np.array(macs)
        near = front_layers(error_of, macs_of) <= 1
        methods = np.array([trial.method for trial, _ in owners])
        for method in np.unique(methods):
            own = np.flatnonzero((methods == method) & ~np.isnan(error_of))
            near[own[front_layers(error_of[own], macs_of[own]) == 0]] = True
        for index in np.flatnonzero(near):
            trial, epoch = owners[index]
            if epoch in trial.checkpoints:
                keep.add(trial.checkpoints[epoch])
    return keep | _donated(state, keep)


def _donated(state: StudyState, kept: set[str]) -> set[str]:
    """Checkpoints that trials may begin with: new ones, those that are not over, repeats of those in `kept`, and who
    trains a lost first stage again.
    """
    from search.state.donors import Donors, takers  # they bring torch, and most questions about checkpoints need none

    if not takers(state.created["spec"]["methods"]):
        return set()
    names = {name.partition("/")[0] for name in kept} | {stage.trial for stage in state.stages.values()}
    begun = [trial.donor for trial in state.trials.values() if not trial.over or trial.id in names]
    planned = {plan["donor"]["checkpoint"] for plan in state.planned if plan.get("donor")}
    return Donors(state).kept() | {donor.checkpoint for donor in begun if donor} | planned


def chosen(state: StudyState, most: int = MOST_TRIALS) -> list[Trial]:
    """The trials whose paths are shown: they took decisions, and their last epoch was measured.

    The most accurate of every method and variant first, so that variants can be compared; then the
    most accurate others on the front.
    """
    front = {name for name, _, _ in state.front()}
    able = [t for t in state.trials.values() if t.diagnostics is not None and t.diagnostics["decisions"] > 0]
    able.sort(key=lambda t: (-(t.diagnostics or {})["acc"], t.number))
    firsts: dict[tuple[str, str], Trial] = {}
    for trial in able:
        firsts.setdefault((trial.method, variant_of(trial)), trial)
    others = [trial for trial in able if trial.id in front and trial not in firsts.values()]
    found = [*firsts.values(), *others][:most]
    return sorted(found, key=lambda t: (t.method, variant_of(t), t.number))


def variant_of(trial: Trial) -> str:
    """The variant of a trial's method; empty where it has none."""
    return str(trial.config.get("variant", ""))
