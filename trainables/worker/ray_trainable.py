"""The class trainable that wraps every method, and every trainable of somebody else's, for Ray Tune.

It trains one epoch a step and writes its own checkpoints.

Ray's checkpoints are not used. After every epoch, and before its report is returned, the trial
writes ``<checkpoints>/<trial>/epoch-NNNN`` with the report inside; an actor that starts a trial
goes on from the newest whole one and returns that report again, so that a worker that died
between writing and reporting loses nothing (the driver ignores a report it knows).

A trial that was given a finished first stage begins behind it, and one that ends its own first
stage stores it (`trainables.training.stages`); both only where the driver said so.

A report of an error says whether memory ran out (`memory`: the trial is tried again when nothing else
runs), the disk is full or the storage away (`full`, `away`: the study stops, nothing is lost). An error
of the GPU itself (an illegal access, a failed assertion in a kernel) leaves a process that can use it no more:
it ends itself, and the trial is tried again in another one. A process that takes more memory than a trial may
have, or has not given that of its last trial back, ends itself (`trainables.worker.guard`); so does one whose
node is leaving, in the middle of an epoch, behind a checkpoint of it.
"""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import re
import traceback
from pathlib import Path
from typing import Any

import torch
from ray import tune

from spaces import own_networks
from trainables import checkpoints
from trainables.contracts.objective import Objective, Timing
from trainables.data.splits import Data
from trainables.external import ExternalTraining
from trainables.registry import get_method
from trainables.training import stages
from trainables.training.partial import Interrupted
from trainables.training.training import Training
from trainables.worker.guard import Guard, end_children, leave
from trainables.worker.machine import Meter, own_memory, take_device_memory
from trainables.worker.order import Order
from trainables.worker.remote import StorageError
from trainables.worker.scalars import Scalars
from trainables.worker.shelf import Shelf

_LEAK = 2e9
"""Bytes above those that a process held behind its first trial that it may keep: caches, fragments."""
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|CU\w+_STATUS_ALLOC_FAILED|DEVICE_ALLOCATION_FAILED"
    r"|CUBLAS_STATUS_NOT_INITIALIZED",  # cuBLAS asks for its workspace when it is first called
    re.IGNORECASE,
)
_BROKEN = re.compile(r"\bCUDA (driver )?error\b|\bCU(BLAS|DNN|FFT|SPARSE|SOLVER)_STATUS_|\bNCCL error", re.IGNORECASE)
_NO_DEVICE = re.compile(r"no CUDA-capable device|no kernel image|driver version|invalid device ordinal", re.IGNORECASE)
_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)  # as safetensors says it


class RoutedTrainable(tune.Trainable):
    """One trial. Its `config` is the record of a `trainables.worker.order.Order`."""

    _fresh: int | None = None

    def setup(self, config: dict[str, Any], data: Data | None = None) -> None:
        """Remember the images (None in a study without methods).

        The network is built in the first step, where a failure can be reported.
        """
        self._data = data
        self._guard = Guard()
        self._leak = ""
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in the same process (`reuse_actors`)."""
        self._shelf.clear()
        self._scalars.close()
        self._begin(new_config)
        gc.collect()
        held = own_memory()
        RoutedTrainable._fresh = RoutedTrainable._fresh or held  # behind the first trial: libraries, workspaces
        if held > RoutedTrainable._fresh + min(_LEAK, (self._order.memory or math.inf) / 2):
            self._leak = f"the process still held {held / 1e6:.0f} MB of earlier trials"
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._order = order = Order.of(config)
        self._training: Training | ExternalTraining | None = None
        self._shelf = Shelf(order.checkpoints, order.trial, order.storage)
        self._lost = ""
        self._scalars = Scalars(Path(order.checkpoints).parent / "tensorboard" / order.trial if order.scalars else None)
        self._meter = Meter()
        self._guard.watch(self._shelf.note, order.memory)

    def step(self) -> dict[str, Any]:
        """One epoch's report; an exception becomes a report with `error`, which costs no retry.

        The report travels as one JSON string under the key `report`: Tune flattens nested results.
        """
        try:
            report = self._step()
        except Exception as error:
            reason, trouble = f"{type(error).__name__}: {error}".splitlines()[0], _trouble(error)
            if not trouble and _broken(error):  # every later call on the device would fail with the same error
                leave(self._shelf.note, "died", f"the GPU failed, and this process with it: {reason}")
            report = {"error": reason, "traceback": traceback.format_exc(), **trouble}
        return {"report": json.dumps(report)}

    def _step(self) -> dict[str, Any]:
        if self._leak:
            leave(self._shelf.note, "leak", self._leak)
        if self._training is None:
            torch.set_num_threads(self._order.threads)
            if self._order.device == "cuda":
                take_device_memory(self._order.device_share)
            self._training = self._build()
            self._training.leaving = self._shelf.leaving
            known = self._shelf.newest()
            if known is not None:
                self._training.restore(known)
                if self._training.partial is None:
                    return self._result(self._training.last_report or {}, known)
            elif self._order.stage:
                self._begin_behind(self._order.stage)
        donor = self._order.donor if self._training.epoch == 0 and self._training.partial is None else None
        if donor:
            self._shelf.bring(donor)
        try:
            report = self._training.step()
        except Interrupted as far:
            assert self._training.partial is not None
            steps = self._training.partial.steps
            folder = checkpoints.partial_folder(self._shelf.folder, self._training.epoch, steps)
            self._shelf.keep(self._training, folder)
            leave(self._shelf.note, "drained", f"its node is leaving the cluster or the study stops; {far}, and go on")
            raise
        if donor:
            self._shelf.let_go(donor)
        report["machine"] = self._meter.read()
        folder = checkpoints.epoch_folder(self._shelf.folder, report["epoch"])
        self._shelf.keep(self._training, folder)
        self._scalars.add(report)
        # the driver decides on checkpoints whose curves may stand on a front
        self._shelf.drop_before(report["epoch"], kept=report["epoch"] - 1 in set(self._order.evaluate_at))
        return self._result(report, folder)

    def _build(self) -> Training | ExternalTraining:
        order = self._order
        if order.trainable is not None:
            assert order.objective is not None, "the driver says what a trainable is searched for"
            return ExternalTraining(
                order.trainable,
                order.config,
                name=order.method,
                objective=Objective.of(order.objective),
                epochs=order.epochs,
                seed=order.seed,
                evaluate_at=order.evaluate_at,
            )
        assert self._data is not None, "tune.with_parameters hands the images in"
        method = get_method(order.method)
        own_networks.trust_digests(order.sources)  # what the driver's person has agreed to, and nothing else
        return Training(
            method,
            method.configure(order.config),
            self._data,
            epochs=order.epochs,
            seed=order.seed,
            evaluate_at=order.evaluate_at,
            device=order.device,
            diagnostics=order.diagnostics,
            latency=order.latency,
            timing=Timing(**order.timing) if order.timing else None,
            predictions=order.predictions,
            donor=self._shelf.at(order.donor) if order.donor else None,
            deterministic=order.deterministic,
            capture=order.capture,
        )

    def _begin_behind(self, stage: str) -> None:
        """Take a finished first stage over; where it cannot be, train it and say why in the next report."""
        assert isinstance(self._training, Training), "only methods have stages"
        try:
            self._shelf.behind(self._training, stage)
        except checkpoints.CheckpointError as error:
            self._lost = str(error)
            self._training = self._build()

    def _result(self, report: dict[str, Any], folder: Path) -> dict[str, Any]:
        training = self._training
        assert training is not None
        params, macs_full = training.size
        more: dict[str, Any] = {"stage_lost": self._lost} if self._lost else {}
        if self._order.publish and isinstance(training, Training) and stages.ends(training):
            more["stage"] = self._shelf.publish(training)
        return {
            **report,
            **more,
            "checkpoint": f"{folder.parent.name}/{folder.name}",
            "params": params,
            "macs_full": macs_full,
            "worker": os.getpid(),
        }

    def cleanup(self) -> None:
        """Let go of the network, and of what trials may have started and left behind."""
        self._training = None
        self._shelf.clear()
        self._scalars.close()
        end_children()


def _trouble(error: BaseException) -> dict[str, bool]:
    """What an error says of the machine, not of the trial."""
    if isinstance(error, StorageError):
        return {"away": True}
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(text):
        return {"memory": True}
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(text):
        return {"full": True}
    return {}


def _broken(error: BaseException) -> bool:
    """Whether an error says that this process can use its GPU no more: CUDA's own, but for lack of memory.

    Not one that says that there is none to use, which another process would meet, too.
    """
    text = f"{type(error).__name__}: {error}"
    return bool(isinstance(error, torch.AcceleratorError) or _BROKEN.search(text)) and not _NO_DEVICE.search(text)
