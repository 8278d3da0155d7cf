"""What trials on other images say about configurations here."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from search.journal.events import Event
from search.planning.warm_start import taught
from search.sampling import surrogate
from search.sampling.codec import Codec
from search.sampling.surrogate import ask_surrogate
from search.sampling.transfer import BELIEF, Transfer, belief
from search.simulation.simulation import Simulation, study_spec
from search.state.state import StudyState
from search.state.trial import Trial
from tests.benchmarks.search.bench_transfer import searched, told
from tests.benchmarks.search.problems import Analytic, Elsewhere
from tests.search.sampling.test_surrogate import SPACE, error_of, macs_of, model, trials, view
from tests.support.kept_study import keep


def elsewhere(count: int, misleading: bool = False) -> list[Trial]:
    """Trials at another size: four times the MACs, twice the error; misleading ones are best where these are worst."""
    rng, found = random.Random(5), []
    for number in range(count):
        config = {"method": "m", **SPACE.sample(rng)}
        error = min(0.99, 2 * error_of(config))
        trial = Trial(f"earlier/t{number:04d}", -1 - number, config, 0, "", 0.0, state="finished")
        trial.take_arrays(0, np.array([1 - error if misleading else error]), np.array([4 * macs_of(config)]))
        found.append(trial)
    return found


def test_how_configurations_compare_elsewhere_is_foretold() -> None:
    codec = Codec(SPACE)
    transfer = Transfer.of(view(trials(4), elsewhere=elsewhere(60)), "m", codec)
    assert transfer is not None
    fresh = [trial.config for trial in trials(50, seed=8)]
    z = transfer.within(1.0)(codec.features(codec.encode(fresh)))
    assert (
        np.corrcoef(z, np.log([error_of(config) for config in fresh]))[0, 1] > 0.85
    )  # errors near 1 are all alike there


def test_a_model_of_few_trials_begins_where_the_others_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "UNIFORM", 0.0)
    monkeypatch.setattr(surrogate, "DENSITIES", 0.0)
    known = trials(4)
    with_them = [error_of(ask_surrogate(view(known, elsewhere=elsewhere(60)), seed).config) for seed in range(20)]
    without = [error_of(ask_surrogate(view(known), seed).config) for seed in range(20)]
    assert np.mean(with_them) < np.mean(without) - 0.05
    assert "other images count 0." in ask_surrogate(view(known, elsewhere=elsewhere(60)), 0).why


def test_what_misleads_is_forgotten() -> None:
    helps, misleads = (model(view(trials(40), elsewhere=elsewhere(60, wrong))) for wrong in (False, True))
    assert helps._belief[-1] > 0.5 and misleads._belief.max() == 0.0
    alone = model(view(trials(40)))
    fresh = alone.codec.features(alone.codec.encode([trial.config for trial in trials(30, seed=4)]))
    np.testing.assert_allclose(misleads._foretold(fresh)[0], alone._foretold(fresh)[0], atol=0.02)


def test_belief_begins_and_is_outweighed() -> None:
    assert belief(np.zeros(0), np.zeros(0)) == BELIEF
    z = np.random.default_rng(0).normal(size=200)
    assert belief(z, z) == pytest.approx(1.0, abs=0.02) and belief(z, -z) == 0.0
    assert belief(z, np.zeros(200)) < 0.05


def test_few_trials_elsewhere_say_nothing() -> None:
    assert Transfer.of(view(trials(4), elsewhere=elsewhere(5)), "m", Codec(SPACE)) is None


def test_a_study_is_taught_by_one_on_other_images_and_replays(story: type, tmp_path: Path) -> None:
    one = story()
    for number in range(12):
        trial = one.ask(number, "static", lr=0.02 * (1 + number))
        one.report(trial, 1, [(0.3 + number / 30, 1e6), (0.4 + number / 30, 2e6)])
        if number % 2:
            one.report(trial, 9, [(0.5 + number / 30, 1e6), (0.6 + number / 30, 2e6)])
    one.add("ended", {"why": "finished"})
    keep(one, tmp_path, "earlier")
    spec = one.spec.model_copy(update={"name": "later"})
    spec = spec.model_copy(update={"warm_start": type(spec.warm_start)(studies=["earlier"])})
    events = taught(spec, "other images", tmp_path)
    assert [kind for kind, _ in events] == ["elsewhere", "plan"]
    assert [kind for kind, _ in taught(spec, "0" * 64, tmp_path)] == ["known", "plan"]
    payload = json.loads(json.dumps(events[0][1]))
    best = payload["trials"][0]["curve"]
    assert len(payload["trials"]) == 12 and best == [pytest.approx([0.5 - 11 / 30, 0.4 - 11 / 30]), [1e6, 2e6]]
    two = story()
    two.add("elsewhere", payload)
    state = StudyState.of(two.events)
    assert [trial.config["lr"] for trial in state.elsewhere] == [each["config"]["lr"] for each in payload["trials"]]
    assert all(trial.steps(0)[0] == [1e6, 2e6] for trial in state.elsewhere) and not state.trials


def test_a_search_that_knows_other_images_replays() -> None:
    earlier = told(searched(Elsewhere("smooth", 0), 1, 10, [])[1])
    problem = Analytic("smooth", 0)
    spec = study_spec(problem, budget={"trials": 40}, sampler={"startup": 4})
    simulation, checked = Simulation(problem, spec, workers=3), []
    simulation.engine.record("elsewhere", {"study": "earlier", "trials": earlier})

    def listen(event: Event, state: StudyState) -> None:
        if event.kind == "ask" and state.proposed % 9 == 0:
            checked.append(simulation.again().digest() == simulation.engine.digest())

    simulation.engine.listeners.append(listen)
    state = simulation.run()
    assert len(checked) >= 4 and all(checked)
    assert sum("other images count" in trial.why for trial in state.trials.values()) >= 5
