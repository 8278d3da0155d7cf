"""Whole studies on a real Ray: to the end, twice the same, through dead workers and dead drivers."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search.errors import InputError
from search.spec.study import StudySpec
from search.studies.stored import load_data
from search.study import Study


def _spec(name: str, **changes: Any) -> StudySpec:
    values: dict[str, Any] = {
        "name": name,
        "data": {"name": "digits", "image_size": 16, "limit": 200},
        "budget": {"trials": 5, "epochs": 3},
        "rungs": {"epochs": [1], "grace": 0},
        "sampler": {"startup": 2},
        "resources": {"workers": 1},
        "methods": {
            "static": {"network": "resnet-8", "width": 0.25, "batch_size": 64},
            "skipnet": {"network": "resnet-8", "width": 0.25, "batch_size": 64},
        },
    }
    return StudySpec.parse({**values, **changes})


def _listening(listener: Callable[[Any, Any, Any], None]) -> Any:
    """A watcher that hears every event: listener(driver, event, state)."""

    @contextlib.contextmanager
    def watch(driver: Any) -> Iterator[None]:
        driver.listeners.append(lambda event, state: listener(driver, event, state))
        yield

    return watch


def _launch(study: Study, address: str, listener: Callable[..., None] | None = None) -> str:
    return study.launch(address=address, watch=_listening(listener) if listener else None, tracking="off")


def _events(study: Study) -> list[Any]:
    journal = study.journal()
    try:
        return list(journal.events())
    finally:
        journal.close()


def _over(study: Study) -> Counter[str | None]:
    """How often each trial came to an end."""
    return Counter(
        e.trial
        for e in _events(study)
        if e.kind == "failed" or (e.kind == "decision" and e.payload["action"] in ("stop", "finish"))
    )


def _told(study: Study) -> list[tuple[Any, ...]]:
    return [(t.id, t.config, t.seed, t.curves, t.state, t.reason) for t in study.state().trials.values()]


def test_the_same_seed_with_one_worker_gives_the_same_trials_even_through_a_stop(
    ray_address: str, tmp_path: Path
) -> None:
    straight = Study.create(_spec("twice"), root=tmp_path / "a")
    assert _launch(straight, ray_address) == "finished"
    halted = Study.create(_spec("twice"), root=tmp_path / "b")

    def stop(driver: Any, event: Any, state: Any) -> None:
        if event.kind == "report" and event.trial == "t0001":
            driver.folder.stop.touch()
            driver.stopping = "stopped"

    assert _launch(halted, ray_address, stop) == "stopped"
    assert halted.status() == "stopped" and halted.state().live
    assert halted.left is not None and halted.left.digest() == halted.state().digest()  # what the driver held
    assert _launch(halted, ray_address) == "finished"
    assert not halted.state().live and set(_over(halted).values()) == {1}
    assert _told(halted) == _told(straight)


def test_a_stop_does_not_wait_for_the_end_of_an_epoch(ray_address: str, tmp_path: Path) -> None:
    methods = {"static": {"network": "resnet-8", "width": 0.25, "batch_size": 2}}
    long = {"budget": {"trials": 1, "epochs": 2}, "data": {"name": "digits", "image_size": 8}, "methods": methods}
    study = Study.create(_spec("long", **long), root=tmp_path)

    def stop(driver: Any, event: Any, state: Any) -> None:
        if event.kind == "report" and not driver.stopping:
            driver.folder.ask_to_stop()

    assert _launch(study, ray_address, stop) == "stopped"
    (kept,) = study.folder.checkpoints.glob("t0000/epoch-0001-*")
    (trial,) = study.state().live
    assert trial.epoch == 1 and trial.setbacks == []
    assert _launch(study, ray_address) == "finished"
    assert not kept.exists() and study.state().trials["t0000"].epoch == 2


def test_another_spec_under_the_same_name_is_refused(tmp_path: Path) -> None:
    Study.create(_spec("same"), root=tmp_path)
    Study.create(_spec("same", budget={"trials": 9, "epochs": 3}), root=tmp_path)  # only longer
    with pytest.raises(InputError, match=r"exists with another spec \(seed differ"):
        Study.create(_spec("same", seed=5), root=tmp_path)
    with pytest.raises(InputError, match=r"no study 'sam'.*did you mean 'same'"):
        Study.load("sam", root=tmp_path)


def test_other_images_and_folders_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    study = Study.create(_spec("images"), root=tmp_path)
    other = load_data(_spec("images", data={"name": "digits", "image_size": 16, "limit": 150}))
    with pytest.raises(InputError, match="began with other images"):
        study.check_data(study.state(), other)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Study.create(_spec("nowhere"), root=tmp_path / "file")
