"""A search for a front with cascades: what a trial is worth, told by its report's event, the same after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.cascades.selection import halves
from search.cascades.sweep import Chain, execute
from search.cascades.worth import Worth, points_of
from search.errors import InputError
from search.rungs.decisions import decide
from search.spec.study import StudySpec
from search.state.retention import kept_checkpoints
from search.state.state import PARTNERS
from search.study import Study
from tests.support.in_process import search
from trainables.data.splits import Data
from trainables.inference.predictions import PREDICTIONS, read

METHODS = {
    "static": {"network": "resnet-8", "width": [0.125, 0.25], "batch_size": 32},
    "imta": {"network": "msdnet-2", "width": 0.25, "batch_size": 32},
}


def spec(name: str, front: str = "cascades", **changes: Any) -> StudySpec:
    return StudySpec.parse(
        {
            "name": name,
            "seed": 1,
            "data": {"name": "digits", "limit": 64, "image_size": 8},
            "budget": {"trials": 6, "epochs": 3},
            "rungs": {"epochs": [1], "reduction": 2.0},
            "sampler": {"startup": 2, "published": False},
            "stages": {"enabled": False},
            "resources": {"workers": 1},
            "objective": {"front": front},
            "diagnostics": False,
            "methods": METHODS,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def images() -> Data:
    from search.studies.stored import load_data

    return load_data(spec("any"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, images: Data) -> Study:
    """A study that nobody interrupted; nobody changes it."""
    study = Study.create(spec("whole"), root=tmp_path_factory.mktemp("worth"), data=images)
    search(study, images)
    return study


def told(study: Study) -> list[Any]:
    """What a study's events say of configurations, cascades and decisions."""
    with study.driving() as driver:
        events = driver.journal.events()
        kept = {"ask": ("config", "why", "model"), "report": ("together",), "decision": ("action", "why")}
        return [
            [e.kind, e.trial, {k: e.payload.get(k) for k in kept[e.kind]}] for e in events if e.kind in kept
        ]  # fmt: skip


def test_reports_say_what_cascades_reach(whole: Study, images: Data) -> None:
    state = whole.state()
    found = [(t, e, each) for t in state.trials.values() for e, every in t.together.items() for each in every]
    assert found and {e for _, e, _ in found} <= {1, 3} and any(each.other != t.id for t, _, each in found)
    for trial, epoch, each in found:  # both members know of it
        assert any(
            (o.error, o.macs) == each[:2] and o.other == trial.id for o in state.trials[each.other].together[epoch]
        )
    for trial in state.trials.values():
        for epoch in trial.curves:
            error, _ = trial.worth(epoch)
            assert len(error) == len(trial.curves[epoch]) + len(trial.together.get(epoch, ()))
            assert trial.steps(epoch)[1][-1] == min(error) and trial.ends(epoch)[0] == min(trial.arrays(epoch)[0])
    for epoch, partners in state.partners.items():
        owners = {name for _, _, both in state.joint_front(epoch) for name in both}
        assert {trial.id for trial in partners} <= owners and len(partners) <= PARTNERS
        assert all((whole.folder.checkpoints / t.checkpoints[epoch] / PREDICTIONS).exists() for t in partners)
        assert {trial.checkpoints[epoch] for trial in partners} <= kept_checkpoints(state)


def test_a_study_goes_on_as_if_nobody_had_interrupted_it(whole: Study, tmp_path: Path, images: Data) -> None:
    study = Study.create(spec("whole"), root=tmp_path, data=images)
    while search(study, images, most=2):
        pass
    assert study.state().count()["total"] == 6 and told(study) == told(whole)


def test_single_networks_alone_are_the_default(tmp_path: Path, images: Data) -> None:
    assert StudySpec.parse({"name": "s"}).objective.front == "networks"
    study = Study.create(spec("plain", "networks", budget={"trials": 2, "epochs": 2}), root=tmp_path, data=images)
    search(study, images)
    assert all("together" not in payload for _, _, payload in told(study) if payload.get("together"))
    assert not study.state().partners


def test_pairs_are_chosen_on_one_half_and_scored_on_the_other(whole: Study) -> None:
    """By hand: of all thresholds of all pairs the best on one half within the budget, its figures on the other."""
    from search.cascades.worth import _scored

    state = whole.state()
    last = [t for t in state.trials.values() if 3 in t.curves][:2]
    kept = [read(whole.folder.checkpoints / t.checkpoints[3] / PREDICTIONS) for t in last]
    one, other = (points_of(each, [0]) for each in kept)
    assert one is not None and other is not None
    from search.cascades.worth import _joined

    both = _joined(one.last, other.last)
    on, off = halves(both.labels, 1)
    budget = 1.5 * both.macs.mean(axis=1).max()
    ((error, macs),) = _scored([both], 1, on, off, np.array([budget]))
    best = None
    for first, second in ((0, 1), (1, 0)):
        doubts = np.unique(both.doubts[first][on]).astype(float)
        for threshold in (doubts[1:] + doubts[:-1]) / 2:
            done = execute(both, Chain((first, second), (float(threshold),)))
            cost = float(done.macs[on].mean())
            if cost <= budget:
                key = (int(done.correct[on].sum()), -cost)
                if best is None or key > best[0]:
                    best = key, 1 - float(done.correct[off].mean()), float(done.macs[off].mean())
    assert best is not None and np.isclose(error, best[1]) and np.isclose(macs, best[2])


def test_a_network_that_adds_to_others_passes_a_rung(story: type) -> None:
    """Alone it is the worst; the cascade that it makes is the best of the rung, and none of it is its partner's."""
    for together, action in (([], "stop"), ([[0.1, 2.1e6, "t0002"]], "continue")):
        study = story()
        for number in range(6):
            study.report(study.ask(number), 1, [(0.6 + 0.02 * number, 2e6 + 1e5 * number)], together=[])
            study.decide(f"t{number:04d}", 1, "continue")
        trial = study.ask(6)
        study.report(trial, 1, [(0.5, 4e6)], together=together)
        state = study.state
        assert decide(study.spec, state, state.trials[trial], 1).action == action
        view = state.trials["t0002"].still()
        assert len(view.worth(1)[0]) == 1 + len(together)
        study.report(study.ask(7), 1, [(0.4, 5e6)], together=[[0.05, 3e6, "t0002"]])
        later = study.state.trials["t0002"]
        assert len(later.worth(1)[0]) == 2 + len(together) == 1 + len(later.worth(1, "t0007")[0])
        assert [t.id for t in study.state.partners[1]][-1] == "t0007" and len(view.worth(1)[0]) == 1 + len(together)


def test_what_a_view_holds_does_not_change(story: type) -> None:
    study = story()
    study.report(study.ask(0), 1, [(0.6, 2e6)], together=[])
    study.report(study.ask(1), 1, [(0.5, 1e6)], together=[[0.3, 3e6, "t0000"]])
    state = study.state
    before = state.trials["t0000"].still()
    assert before is state.trials["t0000"].still()
    study.report(study.ask(2), 1, [(0.5, 1e6)], together=[[0.2, 3e6, "t0000"]])
    state.apply(study.events[-3]), state.apply(study.events[-2]), state.apply(study.events[-1])
    assert len(before.together[1]) == 1 and len(state.trials["t0000"].together[1]) == 2
    assert min(before.steps(1)[1]) == 0.3 and min(state.trials["t0000"].steps(1)[1]) == 0.2


def test_partners_are_few_and_who_left_comes_back_never(story: type) -> None:
    study = story()
    for number in range(PARTNERS + 4):
        study.report(study.ask(number), 1, [(0.3 + 0.01 * number, 1e6 + 1e5 * number)], together=[])
    names = [trial.id for trial in study.state.partners[1]]
    assert len(names) == PARTNERS and names == [f"t{n:04d}" for n in range(4, PARTNERS + 4)]
    study.report(study.ask(20), 1, [(0.9, 1.45e6)], together=[])  # it dominates all dearer ones
    assert [trial.id for trial in study.state.partners[1]] == ["t0004", "t0020"]


@pytest.mark.parametrize("bad", [[[2.0, 1e6, "t0000"]], [[0.5, 0, "t0000"]], [[0.5, 1e6, "t0009"]], [[0.5, 1e6]], 3])
def test_cascades_of_a_stranger_are_one_line(story: type, bad: Any) -> None:
    study = story()
    study.report(study.ask(0), 1, [(0.6, 2e6)], together=bad)
    with pytest.raises(InputError, match="the journal is damaged"):
        _ = study.state


def test_predictions_that_are_gone_cost_cascades_not_the_study(
    whole: Study, tmp_path: Path, images: Data, caplog: pytest.LogCaptureFixture
) -> None:
    study = Study.create(spec("gone", budget={"trials": 1, "epochs": 2}), root=tmp_path, data=images)
    search(study, images)
    trial = study.state().trials["t0000"]
    (study.folder.checkpoints / trial.checkpoints[1] / PREDICTIONS).write_bytes(b"PK")
    with study.driving() as driver:
        result = {"epoch": 1, "curve": {"points": trial.curves[1]}, "checkpoint": trial.checkpoints[1]}
        assert Worth(driver)(trial, result) == []
    assert "predictions of t0000 cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"objective": {"front": "both"}}, "objective.front = 'both': input should be 'networks' or 'cascades'"),
        ({"predictions": False}, "cascades are made of kept predictions"),
        ({"sampler": {"name": "tpe"}}, "sampler 'tpe' learns from single networks alone"),
        ({"rungs": {"pause": True}}, "leave rungs.pause out"),
    ],
)
def test_what_cannot_be_is_one_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        StudySpec.parse({"name": "s", "objective": {"front": "cascades"}, "methods": METHODS, **values})
    assert "\n" not in str(caught.value)
