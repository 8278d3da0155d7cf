"""The front as logged models of a real MLflow: asked by metrics, linked to the images, never doubled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.tracking.models import MOST, Member, thinned
from search.tracking.server import quiet
from tests.support.tracked import Place, runs_by_key, told


@pytest.fixture
def place(tmp_path: Path, story: type) -> Iterator[Place]:
    place = Place(tmp_path, told(story()))
    yield place
    place.journal.close()


def models(uri: str, wish: str = "", **options: Any) -> list[Any]:
    mlflow = quiet()
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("routefront")
    return list(client.search_logged_models([experiment.experiment_id], filter_string=wish or None, **options))


def points(found: list[Any]) -> list[str]:
    return sorted(model.tags["routefront.point"] for model in found)


def front(place: Place) -> list[str]:
    return sorted(f"{trial}-{epoch}-{index}" for trial, epoch, index in place.story.state.front())


def test_the_most_accurate_under_a_budget_is_asked_of_mlflow(place: Place, uri: str) -> None:
    place.upload(uri, final=True)
    assert points(models(uri)) == front(place) and len(front(place)) >= 3
    best = [{"field_name": "metrics.accuracy", "ascending": False}]
    (found,) = models(uri, "metrics.accuracy > .6 AND metrics.macs < 3000000", order_by=best)
    values = {metric.key: metric for metric in found.metrics}
    assert {name: metric.value for name, metric in values.items()} == {"accuracy": pytest.approx(0.8), "macs": 2e6}
    assert all((m.dataset_name, m.dataset_digest) == ("digits", "0" * 16) for m in values.values())
    assert points(models(uri, "metrics.accuracy > .6", datasets=[{"dataset_name": "digits"}], order_by=best))
    assert models(uri, "metrics.accuracy > .6", datasets=[{"dataset_name": "mnist"}]) == []
    assert found.params["method"] == "skipnet" and found.params["knobs.threshold"] == "0.0"
    assert str(found.status) == "READY" and found.source_run_id == runs_by_key(uri)["t0000"].info.run_id
    assert found.tags["routefront.promote"] == "routefront promote story --point t0000-9-0 --model NAME"


def test_uploading_again_doubles_nothing_and_what_is_beaten_goes(place: Place, uri: str) -> None:
    place.upload(uri, final=True)
    before = {model.model_id for model in models(uri)}
    uploader = place.uploader(uri)
    uploader.restart()
    uploader.deliver(final=True)
    assert {model.model_id for model in models(uri)} == before
    name = place.story.ask(3, "skipnet")
    place.story.report(name, 9, [(0.85, 1.5e6)])
    for event in place.story.events[-3:]:
        place.append(event)
    uploader.deliver(final=True)
    assert points(models(uri)) == front(place) and f"{name}-9-0" in front(place)
    assert {model.model_id for model in models(uri)} & before and not before <= {m.model_id for m in models(uri)}


def test_an_interrupted_upload_is_made_whole(place: Place, uri: str) -> None:
    """A process that died between creating a model and measuring it, and one that measured but did not finish."""
    place.upload(uri, final=True)
    client = quiet().MlflowClient(tracking_uri=uri)
    whole = models(uri)
    tags = {name: value for name, value in whole[0].tags.items() if name.startswith("routefront.")}
    client.create_logged_model(whole[0].experiment_id, name="half", tags=tags)
    client.delete_logged_model(whole[-1].model_id)
    uploader = place.uploader(uri)
    uploader.restart()
    uploader.deliver(final=True)
    assert points(models(uri)) == front(place)
    assert all(str(model.status) == "READY" and len(model.metrics) == 2 for model in models(uri))


def test_models_wait_while_the_study_runs(place: Place, uri: str) -> None:
    place.upload(uri)
    assert models(uri) == []


def test_a_large_front_is_thinned_evenly_over_the_cost() -> None:
    members = [Member(str(n), "t0000", {}, {}, 1e5 * 1.01**n, 0) for n in range(1000)]
    kept = thinned(members[::-1])
    assert len(kept) == MOST and (kept[0].point, kept[-1].point) == ("0", "999")
    gaps = [int(b.point) - int(a.point) for a, b in itertools.pairwise(kept)]
    assert min(gaps) >= 16 and max(gaps) <= 18
    assert thinned(members[:5]) == members[:5]
