"""Runs a study to its end: connect, survey the nodes, begin, assemble the Tuner, fit.

The only caller of the Ray trainable.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.connect import beginning, connect, unguarded, watched_head
from cluster.processors import usable_cpus
from cluster.resources import Node, amounts, misfit, nodes_of, room
from cluster.survey import FolderMarker, Marker, Survey
from search.engine.driver import Driver
from search.errors import InputError, RunError
from search.journal.database import LeaseLostError
from search.spec.study import StudySpec
from search.studies.marker import StoredMarker
from search.tune.signals import heeded
from trainables.data.splits import Data
from trainables.external import Measured, source_of
from trainables.worker.remote import StorageError

if TYPE_CHECKING:
    from ray import tune

    from search.studies.folder import StudyFolder

Watcher = Callable[[Driver], contextlib.AbstractContextManager[None]]


def run(
    driver: Driver,
    data: Data | Measured,
    *,
    address: str | None,
    watch: Watcher | None = None,
    trainable: Any = None,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Run what the study's budget still allows; returns why it ended.

    That is: finished, stopped, interrupted (by SIGINT), terminated (by SIGTERM), or failed: the budget is spent and no
    trial has an operating point.

    `trainable` takes the place of the one that trains (benchmarks of everything else); `say` hears the steps until the
    first trial starts.

    Raises `InputError` where the cluster cannot be reached or holds no trial, `RunError` where Tune
    itself fails.
    """
    if driver.spec.tracking.tensorboard:
        check_scalars(driver.folder)
    if address is None and trainable is None and driver.spec.resources.gpus_per_trial and isinstance(data, Data):
        say("looking at this machine's GPU")
        _look_at_gpus(driver.spec, data)
    say("starting Ray on this machine" if address is None else f"connecting to Ray at {address}")
    ray, nodes = _connect(driver, address)
    if address is not None:
        if warning := unguarded(address):
            say(warning)
        _survey(driver, data, ray, nodes)
    _begin(driver, ray, nodes)
    say(f"Ray: {_spelled(nodes)}, trials at once: {driver.workers}; workers import torch, then train")
    tuner = _assemble(driver, data, nodes[0].cpus if address is None else None, trainable)
    return _fit(driver, tuner, ray if address is not None else None, watch)


def check_scalars(folder: StudyFolder) -> None:
    """Raise `InputError` where no worker could write curves for TensorBoard."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("tracking.tensorboard = true needs a package: pip install 'routefront[tensorboard]'")
    if folder.storage:
        raise InputError(
            f"tracking.tensorboard = true: workers write into the study's folder, and {folder.storage} is no"
            " folder; leave it out, or take MLflow"
        )


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """What the cluster or the storage says against a run is one line for the user."""
    try:
        yield
    except (ConnectionError, StorageError, ValueError) as error:
        raise InputError(str(error)) from None


def _look_at_gpus(spec: StudySpec, data: Data) -> None:
    """Raise `InputError` with one line where trials could not use this machine's GPUs."""
    from trainables.worker.gpus import refusal, seen

    try:
        why = refusal(seen(), *_asked_of_gpus(spec, data))
    except ValueError as error:
        share = spec.resources.gpus_per_trial
        raise InputError(f"resources.gpus_per_trial = {share:g}, and {error}") from None
    if why:
        raise InputError(why)


def _asked_of_gpus(spec: StudySpec, data: Data) -> tuple[float, list[str], float]:
    """What a study asks of a GPU: a trial's share, the precisions that are fixed, bytes of its smallest network."""
    from search.planning.sharing import sizes_of
    from trainables.worker.probe import device_estimate

    precisions = [str(values["precision"]) for values in spec.methods.values() if "precision" in values]
    return spec.resources.gpus_per_trial, precisions, device_estimate(sizes_of(spec, data)[0].config, data)


def _connect(driver: Driver, address: str | None) -> tuple[Any, list[Node]]:
    """Ray and its nodes; the driver learns how many trials they hold at once. Starts Ray here without an address."""
    resources = driver.spec.resources
    share = resources.cpus_per_trial, resources.gpus_per_trial
    with _refused():
        if address is None:
            with beginning():
                importlib.import_module("ray.tune")  # beside Ray, which takes longer
        ray = connect(address, cpus=usable_cpus() if address is None else None)
        nodes = nodes_of(ray)
        driver.workers = room(ray, nodes, *share, resources.workers)
        if not driver.workers:
            raise ValueError(misfit(nodes, *share))
    return ray, nodes


def _survey(driver: Driver, data: Data | Measured, ray: Any, nodes: Sequence[Node]) -> None:
    """Let every node that holds a trial look for the study's folder, its images and this code, and at its GPUs."""
    resources = driver.spec.resources
    able = [node for node in nodes if node.holds(resources.cpus_per_trial, resources.gpus_per_trial)]
    with _refused():
        device = None
        if resources.gpus_per_trial and isinstance(data, Data):
            from trainables.worker.gpus import hindered

            device = partial(hindered, *_asked_of_gpus(driver.spec, data))
        own, paths = driver.spec.references if isinstance(data, Data) else {}, list(data.folders)
        paths += [str(path) for path in map(source_of, own.values()) if path is not None]
        survey = Survey(ray, able, _marker(driver), paths, data.sample(), device)
        importlib.import_module("ray.tune")  # takes as long as the nodes, which look meanwhile
        survey.settle()


def _begin(driver: Driver, ray: Any, nodes: Sequence[Node]) -> None:
    """Begin a session: it is recorded, points that an earlier one had not flushed are written."""
    driver.folder.remove(["stop"])
    driver.record("session", {"host": os.uname().nodename, "pid": os.getpid(), "workers": driver.workers})
    driver.nodes = lambda: nodes_of(ray)
    driver.seen(nodes, driver.workers)
    driver.recover_points()
    driver.stages.tidy()


def _assemble(driver: Driver, data: Data | Measured, cpus: float | None, trainable: Any) -> tune.Tuner:
    """The Tuner of a study; `cpus` of this machine are shared by its trials' threads (None: other machines, too)."""
    from ray import tune
    from ray.air._internal import usage

    from search.tune.callback import StudyCallback
    from search.tune.scheduler import RungScheduler
    from search.tune.searcher import CurveSearcher, constants, threads_of

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # `search.tune.signals` takes it
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "100000"  # the driver hands out no more than there is room for
    if os.environ.get("RAY_USAGE_STATS_ENABLED") == "0":
        usage.tag_callbacks = lambda callbacks: False  # it imports MLflow for two seconds, to report nothing
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    folder = str(driver.folder.path)
    threads = 1 if cpus is None else threads_of(driver.spec, driver.workers, cpus)
    told = constants(driver.spec, threads) | {"storage": driver.folder.stored_checkpoints}
    return tune.Tuner(
        _trainable(driver, data, trainable),
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
            callbacks=[StudyCallback(folder)],
            failure_config=tune.FailureConfig(max_failures=-1),  # the driver counts (`search.state.setbacks`)
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )


def _fit(driver: Driver, tuner: tune.Tuner, ray: Any | None, watch: Watcher | None) -> str:
    """Run the Tuner to its end and say why it ended; the head of a cluster (`ray`) is watched meanwhile."""
    from ray import tune

    try:
        with contextlib.ExitStack() as stack:
            if ray is not None:
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


def _spelled(nodes: Sequence[Node]) -> str:
    """As "2 nodes, 16 CPUs, 1 GPU"."""
    counts = {"node": len(nodes), "CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}
    return ", ".join(f"{n:g} {what}{'' if n == 1 else 's'}" for what, n in counts.items() if n)


def _marker(driver: Driver) -> Marker:
    """What nodes look for to see whether they see the study."""
    address = driver.folder.storage
    return FolderMarker(driver.folder.path) if address is None else StoredMarker(address, f".reach-{os.getpid()}")


def _end(driver: Driver, why: str) -> None:
    """End this process, whose threads hang in calls of Ray; the journal knows all that was reported."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it
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


def _trainable(driver: Driver, data: Data | Measured, other: Any) -> Any:
    from ray import tune

    from trainables.worker.ray_trainable import RoutedTrainable

    cpus, gpus = driver.spec.resources.cpus_per_trial, driver.spec.resources.gpus_per_trial

    def asked(config: dict[str, Any]) -> Any:
        return tune.PlacementGroupFactory([amounts(cpus, gpus, config["share"])])

    images = data if isinstance(data, Data) else None
    return tune.with_resources(tune.with_parameters(other or RoutedTrainable, data=images), asked)
