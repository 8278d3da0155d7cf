"""What the tests of promotion share: a study that was really trained, and promotions in processes of their own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

from search.promotion.promotion import promote_study
from search.spec.study import StudySpec
from search.studies.stored import load_data
from search.study import Study
from search.tracking.process import rebuild
from search.tracking.server import default_uri, quiet
from tests.support.once import registry_in
from trainables.data.splits import Data
from trainables.registry import get_method
from trainables.training.training import Training

METHODS = {
    "static": {"network": "resnet-8", "width": 0.25, "batch_size": 32, "lr": 0.1},
    "skipnet": {"network": "resnet-8", "width": 0.25, "batch_size": 32, "lr": 0.1, "gate": "linear"},
    "imta": {"network": "msdnet-2", "width": 0.25, "batch_size": 32, "lr": 0.1},
}


def spec(name: str = "tiny", **changes: Any) -> StudySpec:
    """A study of one trial a method, on the digits at 8 pixels."""
    return StudySpec.parse(
        {
            "name": name,
            "data": {"name": "digits", "limit": 400, "image_size": 8},
            "budget": {"trials": 3, "epochs": 3},
            "rungs": {"enabled": False},
            "resources": {"workers": 1},
            "methods": METHODS,
            **changes,
        }
    )


def train(study: Study, images: Data, *, track: bool = True) -> None:
    """Run a study here and now, as `search.tune.run` does on Ray; `track`: then as `routefront track` does."""
    with study.driving() as driver:
        driver.prune = lambda: None  # every method's checkpoint is wanted here
        while (trial := driver.ask()) is not None:
            driver.started(trial.id)
            method = get_method(trial.method)
            values = {k: v for k, v in trial.config.items() if k != "method"}
            epochs = study.spec.budget.epochs
            training = Training(
                method,
                method.configure(values),
                images,
                epochs=epochs,
                seed=trial.seed,
                evaluate_at=[epochs - 1, epochs],
                predictions=True,
                timing=study.spec.axes.timing,
            )
            action = "continue"
            while action == "continue" and not training.done:
                report = training.step()
                name = f"{trial.id}/epoch-{report['epoch']:04d}"
                training.save(study.folder.checkpoints / name, {"trial": trial.id})
                cost = {"params": 1000, "macs_full": training.network.macs_full}
                action = driver.report(trial.id, {**report, **cost, "checkpoint": name})
        driver.end("finished")
    if track:
        journal = study.journal()
        try:
            rebuild(registry_in(study.folder.path.parent), "routefront", journal, study.folder.path)
        finally:
            journal.close()


def copied(trained: Path, root: Path) -> None:
    """Copy a root with trained studies; what is recorded there from now on lies beside the copy, too."""
    shutil.copytree(trained, root, dirs_exist_ok=True)
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            moved = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            database.execute(moved, (trained.as_uri(), root.as_uri()))


def client(uri: str) -> Any:
    """MLflow's client of a registry."""
    return quiet().MlflowClient(tracking_uri=uri, registry_uri=uri)


def point_of(study: Study, method: str, index: int = -1) -> str:
    """A point of the last epoch of a method's trial: by default the one of the last setting."""
    trial = next(trial for trial in study.state().trials.values() if trial.method == method)
    return f"{trial.id}-{trial.epoch}-{range(len(trial.curves[trial.epoch]))[index]}"


# -- in a process of its own -----------------------------------------------------------------------


def processes() -> Any:
    """Processes forked from a server that has imported everything and opened nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.support.promoting", "mlflow.pyfunc", "mlflow.store.model_registry.sqlalchemy_store"]
    )
    return context


def promote_alone(
    root: Path, name: str, words: dict[str, Any], die_before: str, limit: int, barrier: Any, answers: Any
) -> None:
    """Promote from a study in this process and put ("", record) or (kind of error, its line) into `answers`.

    `die_before`: the function of `search.promotion.promotion` or `search.promotion.ledger` before which this process
    is killed (``module.function``; with a trailing ``+`` right after it). `limit`: bytes that a file
    may have. `barrier`: waited for when the gates have been passed.
    """
    import importlib

    from search.promotion import promotion as promoting

    study = Study.load(name, root=root)
    images = load_data(study.spec)
    if die_before:
        module_name, _, function = die_before.rstrip("+").rpartition(".")
        module = importlib.import_module(module_name)
        real = getattr(module, function)

        def deadly(*args: Any, **kwargs: Any) -> Any:
            if die_before.endswith("+"):
                real(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(module, function, deadly)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if barrier is not None:
        carry_out = promoting.Promoter.carry_out

        def together(self: Any, *args: Any) -> Any:
            barrier.wait(120)
            return carry_out(self, *args)

        promoting.Promoter.carry_out = together
    try:
        record = promote_study(study, model="digits", uri=default_uri(root), data=images, **words)
    except Exception as error:
        answers.put((name, type(error).__name__, str(error)))
    else:
        answers.put((name, "", json.loads(json.dumps(record))))
