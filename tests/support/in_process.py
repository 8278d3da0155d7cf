"""A study's trials run in this process, one after the other, as workers on Ray would run them."""

from __future__ import annotations

from search.cascades.worth import Worth
from search.engine.driver import Driver
from search.study import Study
from trainables import checkpoints
from trainables.data.splits import Data
from trainables.registry import get_method
from trainables.training.training import Training
from trainables.worker.shelf import Shelf


def search(study: Study, images: Data, most: int | None = None) -> int:
    """Run what the study's budget still allows, at most so many epochs; returns how many were trained.

    What `most` interrupts goes on from its newest checkpoint at the next call, whose driver is a new one.
    """
    trained = 0
    with study.driving() as driver:
        if study.spec.objective.front == "cascades":
            driver.worth = Worth(driver)
        driver.record("session", {"host": "here", "pid": 1, "workers": 1})
        while (most is None or trained < most) and (trial := driver.ask()) is not None:
            trained += _trained(driver, trial.id, images, None if most is None else most - trained)
        if not driver.state.live:
            driver.end("finished")
    return trained


def _trained(driver: Driver, name: str, images: Data, most: int | None) -> int:
    driver.started(name)
    trial, spec = driver.state.trials[name], driver.spec
    shelf = Shelf(str(driver.folder.checkpoints), name, driver.folder.stored_checkpoints)
    method = get_method(trial.method)
    training = Training(
        method, method.configure(driver.values(trial)), images, epochs=spec.budget.epochs, seed=trial.seed,
        evaluate_at=(shown := [*spec.rung_epochs, spec.budget.epochs]), predictions=True,
    )  # fmt: skip
    if (known := shelf.newest()) is not None:
        training.restore(known)
    epochs = 0
    while not training.done and (most is None or epochs < most):
        report = training.step()
        epochs += 1
        at = checkpoints.epoch_folder(shelf.folder, report["epoch"])
        shelf.keep(training, at)
        shelf.drop_before(report["epoch"], kept=report["epoch"] - 1 in shown)
        size = dict(zip(("params", "macs_full"), training.size, strict=True))
        if driver.report(name, {**report, **size, "checkpoint": f"{name}/{at.name}"}) != "continue":
            break
    shelf.clear()
    return epochs
