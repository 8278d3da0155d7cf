"""Assembles the Tuner and runs a study to its end: the only caller of the Ray trainable."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from cluster.connect import connect, watched_head
from cluster.processors import usable_cpus
from cluster.resources import misfit, nodes_of, room
from cluster.survey import FolderMarker, Marker, Survey
from search.engine.driver import Driver
from search.errors import InputError, RunError
from search.journal.database import LeaseLostError
from search.studies.marker import StoredMarker
from search.tune.signals import heeded
from trainables.data.splits import Data
from trainables.worker.remote import StorageError

_TRAINABLE = "trainables.worker.ray_trainable"
Watcher = Callable[[Driver], contextlib.AbstractContextManager[None]]


def run(driver: Driver, data: Data, *, address: str | None, watch: Watcher | None = None, trainable: Any = None) -> str:
    """Run what the study's budget still allows; returns why it ended.

    That is: finished, stopped, interrupted (by SIGINT), terminated (by SIGTERM), or failed: the budget is spent and no
    trial has an operating point.

    `trainable` takes the place of the one that trains (benchmarks of everything else).

    Raises `InputError` where the cluster cannot be reached or holds no trial, `RunError` where Tune
    itself fails.
    """
    resources, survey = driver.spec.resources, None
    try:
        ray = connect(address, cpus=usable_cpus() if address is None else None, preload=[_TRAINABLE])
        share = resources.cpus_per_trial, resources.gpus_per_trial
        nodes = nodes_of(ray)
        driver.workers = room(ray, nodes, *share, resources.workers)
        if not driver.workers:
            raise ValueError(misfit(nodes, *share))
        if address is not None:
            able = [node for node in nodes if node.holds(*share)]
            survey = Survey(ray, able, _marker(driver), data.folders, data.sample())
    except (ConnectionError, StorageError, ValueError) as error:
        raise InputError(str(error)) from None
    from ray import tune

    from search.tune.scheduler import RungScheduler
    from search.tune.searcher import CurveSearcher, constants, threads_of

    if survey is not None:  # imports took as long as the nodes
        try:
            survey.settle()
        except (StorageError, ValueError) as error:
            raise InputError(str(error)) from None
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # `search.tune.signals` takes it
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "100000"  # the driver hands out no more than there is room for
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    driver.folder.remove(["stop"])
    driver.record("session", {"host": os.uname().nodename, "pid": os.getpid(), "workers": driver.workers})
    driver.nodes = lambda: nodes_of(ray)
    driver.seen(nodes, driver.workers)
    driver.recover_points()
    driver.stages.tidy()
    folder = str(driver.folder.path)
    threads = threads_of(driver.spec, driver.workers, nodes[0].cpus) if address is None else 1
    told = constants(driver.spec, threads) | {"storage": driver.folder.stored_checkpoints}
    tuner = tune.Tuner(
        _trainable(tune, driver, data, trainable),
        tune_config=tune.TuneConfig(
            search_alg=CurveSearcher(folder, told),
            scheduler=RungScheduler(folder),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"session-{int(time.time())}",
            storage_path=str(driver.folder.ray),
            verbose=0,
            callbacks=[_callback(tune, folder)],
            failure_config=tune.FailureConfig(max_failures=-1),  # the driver counts (`search.state.setbacks`)
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
    try:
        with contextlib.ExitStack() as stack:
            if address is not None:
                stack.enter_context(watched_head(ray, lambda why: _end(driver, why)))
            if watch:
                stack.enter_context(watch(driver))
            stack.enter_context(heeded(driver))
            tuner.fit()
    except LeaseLostError:
        raise
    except tune.TuneError as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
        raise RunError(f"Ray Tune failed: {reason}") from error
    if driver.stopping == "full":
        raise RunError(
            f"the disk under {driver.folder.path} is full ({driver.trouble}); free some space, then:"
            f" routefront resume {driver.spec.name}"
        )
    if driver.stopping == "away":
        raise RunError(f"{driver.trouble.partition(': ')[2]}; when it can: routefront resume {driver.spec.name}")
    return _ending(driver)


def _marker(driver: Driver) -> Marker:
    """What nodes look for to see whether they see the study."""
    address = driver.folder.storage
    return FolderMarker(driver.folder.path) if address is None else StoredMarker(address, f".reach-{os.getpid()}")


def _end(driver: Driver, why: str) -> None:
    """End this process, whose threads hang in calls of Ray; the journal knows all that was reported."""
    show = "\x1b[?25h" if sys.stderr.isatty() else ""  # a live display hides the cursor
    sys.stderr.write(f"{show}error: {why}; when there is one again: routefront resume {driver.spec.name}\n")
    sys.stderr.flush()
    os._exit(1)


def _ending(driver: Driver) -> str:
    state = driver.state
    if not driver.signal and not state.live and not driver.stopping and driver.exhausted:
        return "finished" if state.has_points else "failed"
    if driver.signal:
        return "terminated" if driver.signal == signal.SIGTERM else "interrupted"
    return driver.stopping or "interrupted"


def _trainable(tune: Any, driver: Driver, data: Data, other: Any) -> Any:
    from trainables.worker.ray_trainable import RoutedTrainable

    cpus, gpus = driver.spec.resources.cpus_per_trial, driver.spec.resources.gpus_per_trial

    def asked(config: dict[str, Any]) -> Any:
        bundle = {"CPU": cpus * config["share"], "GPU": gpus * config["share"]}
        return tune.PlacementGroupFactory([{kind: amount for kind, amount in bundle.items() if amount}])

    return tune.with_resources(tune.with_parameters(other or RoutedTrainable, data=data), asked)


def _callback(tune: Any, folder: str) -> Any:
    from search.tune.callback import StudyCallback

    return StudyCallback(folder)
