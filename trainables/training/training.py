"""One training loop for every method: phases, epochs, steps, curves, checkpoints. Knows no cluster."""

from __future__ import annotations

import dataclasses
import logging
import math
import reprlib
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables import checkpoints
from trainables.contracts.method import Method
from trainables.contracts.objective import Timing
from trainables.contracts.recipe import Phase, plan
from trainables.data.augment import Drawn, Place, draws, normalise, to_device
from trainables.data.splits import Data
from trainables.diagnostics.measure import Diagnostics, diagnose, usual_setting
from trainables.execution.arithmetic import deterministic_on
from trainables.execution.eager import eagerly
from trainables.inference.evaluation import Curve, curve
from trainables.inference.latency import machine_of, milliseconds, repeated
from trainables.inference.predictions import PREDICTIONS
from trainables.inference.predictions import write as write_predictions
from trainables.networks.backbones.network import Backbone
from trainables.networks.resnet.imagenet import load_pretrained
from trainables.training import donors
from trainables.training.partial import Interrupted, Partial
from trainables.training.precision import computes_bfloat16
from trainables.training.steps import CAPTURES, Steps, steps_of

_log = logging.getLogger(__name__)
Report = dict[str, Any]
COMPILATIONS = 64
"""Shapes for which a training compiles one region of a network at most."""


class Training:
    """One trial in training: `step` trains an epoch and reports it, `save` and `restore` carry it on.

    `epochs` is the length of the whole training (schedules are shares of it), `evaluate_at` the
    epochs whose report carries a curve (the last one always does); with `diagnostics` the last
    report carries them too (`trainables.diagnostics.measure`), with `latency` every point the milliseconds that
    one image takes alone. With `timing` the cost of every point is the latency that is measured so: ``macs`` are then
    milliseconds (`trainables.contracts.objective`), and ``counted_macs`` the MACs. With `predictions` a curve's
    checkpoint keeps what every point answers on every validation image (`trainables.inference.predictions`). The same
    seed, data and configuration give, but for latencies,
    the same reports on one thread of one machine, on a GPU with `deterministic`
    (`trainables.execution.arithmetic.deterministic_on`).

    `leaving` is asked after every step: where it says yes, `step` raises `training.partial.Interrupted`, and `save`
    then keeps the part of the epoch that is done (`partial`); whoever restores it ends with the same weights.

    On a GPU the steps are captured as CUDA graphs where that is possible (`trainables.training.steps`), with
    ``capture="off"`` never; `uncaptured` says why that ended.

    `donor`: the checkpoint folder or file of a trained static network to begin with (`trainables.training.donors`),
    where it is not what the configuration's `donor` says, or says none. It is read before the first epoch, whose report
    tells under ``donor`` what was taken (`donated`). Raises `ValueError` where the method takes none.
    """

    def __init__(
        self,
        method: Method,
        config: Any,
        data: Data,
        *,
        epochs: int,
        seed: int = 0,
        evaluate_at: Collection[int] = (),
        device: torch.device | str = "cpu",
        diagnostics: bool = False,
        latency: bool = False,
        timing: Timing | None = None,
        donor: Path | str | None = None,
        deterministic: bool = False,
        capture: str = "auto",
        predictions: bool = False,
    ) -> None:
        if capture not in CAPTURES:
            raise ValueError(f"capture = {capture!r}: must be {' or '.join(CAPTURES)}")
        if donor is not None and method.donor is None:
            raise ValueError(f"donor = {str(donor)!r}: {method.name} begins with no other network's weights")
        if donor is not None and not config.donor:
            config = dataclasses.replace(config, donor=str(donor))
        self.donor = donor or getattr(config, "donor", "")
        self.donated: dict[str, Any] | None = None
        self.method, self.config, self.data, self.seed = method, config, data.for_config(config), seed
        self.diagnostics, self.latency, self.predictions = diagnostics, latency, predictions
        self.timing = timing
        self.device, self.deterministic = torch.device(device), deterministic
        self.capture, self.uncaptured = capture, ""
        self.steps: Steps | None = None
        auto = config.precision == "auto" and computes_bfloat16(self.device)
        self.bfloat16 = auto or config.precision == "bfloat16"
        self.plan = plan(method.phases(config), epochs)
        self.epochs = epochs
        self.evaluate_at = {*evaluate_at, epochs}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = method.build(config, data.task)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a tenth faster on CPUs
        self.network = network.to(self.device)
        if config.compiled and not network.regions():
            raise ValueError(f"compiled = True: {config.network} of {method.name} has no regions to compile")
        if config.compiled:
            from torch import _dynamo as compiler  # late: it takes a process seconds

            # blocks of all shapes share one compiled function; those of trainings before this one would count, too,
            # and behind the limit everything silently runs as it is written
            compiler.reset()
            compiler.config.recompile_limit = COMPILATIONS
            for region in network.regions():
                region.compile(dynamic=False)  # in place: names of parameters stay
        self.generator = torch.Generator(self.device).manual_seed(seed + 1)
        self.images, self.labels = to_device(data.train, self.device)
        validation, self.validation_labels = to_device(data.validation, self.device)
        self.validation = normalise(validation, self.data)
        self.epoch = 0
        self.cost_epochs = 0.0
        self.seconds = 0.0
        self.leaving: Callable[[], bool] = lambda: False
        self.partial: Partial | None = None
        self.phase: Phase | None = None
        self.cache: Any = None
        self.optimiser: torch.optim.Optimizer | None = None
        self.last_report: Report | None = None
        self.last_curve: Curve | None = None
        self.last_diagnostics: Diagnostics | None = None

    @property
    def size(self) -> tuple[int, int]:
        """The network's parameters, and its MACs with every unit executed."""
        return sum(parameter.numel() for parameter in self.network.parameters()), self.network.macs_full

    @property
    def done(self) -> bool:
        """Whether all epochs are trained."""
        return self.epoch >= self.epochs

    def _enter(self, epoch: int) -> tuple[Phase, int, int]:
        """Make the phase of an epoch the current one: what is trained, how, by which optimiser."""
        phase, first, last = next(entry for entry in self.plan if entry[1] <= epoch <= entry[2])
        if phase is not self.phase:
            self.phase, self.cache, self.steps = phase, None, None
            self.network.relaxation = phase.relaxation
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(phase.trains(name))
                parameter.grad = None
            trained = self._trained()
            if not trained:
                raise ValueError(f"phase {phase.name!r} trains no parameter of {self.config.network}")
            self.optimiser = phase.optimiser.over([parameter for _, parameter in trained])
        self.network.train()
        for name, module in self.network.named_modules():
            if phase.eval_mode and name.startswith(phase.eval_mode):
                module.eval()
        return phase, first, last

    def _trained(self) -> list[tuple[str, Tensor]]:
        """Names and parameters that the phase trains, in the order in which its optimiser numbers them."""
        assert self.phase is not None
        return self.phase.optimiser.ordered((n, p) for n, p in self.network.named_parameters() if p.requires_grad)

    def step(self) -> Report:
        """Train one epoch; the report of it.

        Raises `FloatingPointError` naming the step and the term where a loss is not finite, `Interrupted` where
        `leaving` said so.
        """
        with deterministic_on(self.device, self.deterministic):
            return self._step()

    def _step(self) -> Report:
        if self.done:
            raise RuntimeError(f"all {self.epochs} epochs are trained")
        started = time.perf_counter()
        epoch = self.epoch + 1
        new = self.epoch == 0 and self.partial is None  # a restored network has its weights already
        if new and getattr(self.config, "pretrained", ""):
            if isinstance(self.network, Backbone):
                self.network.take_weights(self.config.pretrained)
            else:
                load_pretrained(self.network, self.config.pretrained)
        if new and self.donor:
            self.donated = donors.begin(self.network, self.method, self.donor, self.config.donor)
        before = self.phase
        phase, first, last = self._enter(epoch)
        if phase is not before and self.method.begin is not None:
            with torch.no_grad():
                self.method.begin(self.network, phase)
        views = self.method.views(self.config)
        terms, rate = train_epoch(self, phase, epoch - first, last - first + 1, views)
        self.epoch = epoch
        self.cost_epochs += views
        seconds = time.perf_counter() - started
        self.seconds += seconds
        report: Report = {
            "epoch": epoch,
            "phase": phase.name,
            "comparable": phase.comparable,
            "losses": terms,
            "lr": rate,
            "images": len(self.labels) * views,
            "precision": "bfloat16" if self.bfloat16 else "float32",
            "cost_epochs": self.cost_epochs,
            "seconds": seconds,
        }
        if self.device.type == "cuda":
            report["captured_steps"] = self.steps.captured if self.steps is not None else 0  # of the phase so far
            if self.uncaptured:
                report["uncaptured"] = self.uncaptured
        if epoch == 1 and self.donated is not None:
            report["donor"] = self.donated
        self.last_curve = None
        if epoch in self.evaluate_at:
            report["curve"] = self._evaluate()
        if self.diagnostics and self.done:
            report["diagnostics"] = self._diagnose()
        self.last_report = report
        return report

    def _evaluate(self) -> dict[str, Any]:
        with eagerly():  # a sweep's batches have every size
            self.last_curve = curve(
                self.method,
                self.network,
                self.validation,
                self.validation_labels,
                keep=self.predictions,
                merit=self.data.merit,
            )
        if self.latency:
            points = self.last_curve.points
            measured = milliseconds(self.network, self.validation, [point["knobs"] for point in points], passes=15)
            for point, alone in zip(points, measured, strict=True):
                point["latency_ms"] = alone
        self.seconds += self.last_curve.seconds
        timed = self._time(self.last_curve.points) if self.timing is not None else {}
        return {
            "points": self.last_curve.points,
            "diagnostics": self.last_curve.diagnostics,
            "seconds": self.last_curve.seconds,
            **timed,
        }

    def _time(self, points: list[dict[str, Any]]) -> dict[str, Any]:
        """Measure the latency of the points and make it their cost; what is said of the measurement once a curve."""
        assert self.timing is not None
        began = time.perf_counter()
        machine = machine_of(self.device)
        with eagerly():  # measured as it is served, not as it is trained
            taken = repeated(self.network, self.validation, [point["knobs"] for point in points], self.timing)
        for point, (alone, least, most) in zip(points, taken, strict=True):
            point |= {"counted_macs": point["macs"], "counted_macs_std": point["macs_std"], "machine": machine}
            point |= {"macs": alone, "macs_std": (most - least) / 2, "merit": point["accuracy"], "cost": alone}
        seconds = time.perf_counter() - began
        self.seconds += seconds
        return {"timing": {**self.timing.record(), "machine": machine, "seconds": seconds}}

    def _diagnose(self) -> dict[str, Any]:
        """Diagnostics at the usual setting, with the knobs that the curve found for it."""
        assert self.last_curve is not None, "the last epoch has a curve"
        setting = usual_setting(self.method, self.config)
        knobs = next(point["knobs"] for point in self.last_curve.points if point["setting"] == setting)
        found = diagnose(self.method, self.network, self.data, setting=setting, knobs=knobs, seed=self.seed)
        self.last_diagnostics = found
        self.seconds += found.record["seconds"]
        return {**found.record, "share_of_time": found.record["seconds"] / self.seconds}

    def save(self, folder: Path, extra: dict[str, Any] | None = None) -> None:
        """Write a checkpoint from which `restore` goes on as if nothing had happened."""
        assert self.optimiser is not None, "nothing was trained yet"
        training: dict[str, Tensor] = {"generator": self.generator.get_state()}
        trained = self._trained()
        for index, state in self.optimiser.state_dict()["state"].items():
            training |= {f"{key}/{trained[index][0]}": value for key, value in state.items() if value is not None}
        if self.partial is not None:
            training |= self.partial.tensors()
        elif self.last_curve is not None:
            # per-image correctness, one bit each: what comparisons of points near the front need later
            training["correct_bits"] = torch.from_numpy(np.packbits(self.last_curve.correct, axis=1))
        record = {
            **checkpoints.network_record(self.method, self.network),
            "epoch": self.epoch,
            "epochs": self.epochs,
            "seed": self.seed,
            "seconds": self.seconds,
            "cost_epochs": self.cost_epochs,
            "data": {"name": self.data.name, "hash": self.data.hash},
            "report": self.last_report,
            "device": self.device.type,
            **({"donor": self.donated} if self.donated is not None else {}),
            **({"partial": self.partial.record()} if self.partial is not None else {}),
            **(extra or {}),
        }
        measured = self.last_diagnostics.arrays if self.last_diagnostics is not None else None
        answers = None if self.partial is not None or self.last_curve is None else self.last_curve.predictions
        beside = {} if answers is None else {PREDICTIONS: lambda path: write_predictions(path, answers)}
        checkpoints.save(folder, record, self.network, training, measured, beside)

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint of the same configuration, data and length.

        Raises `CheckpointError` where it is damaged or was written for something else.
        """
        record = checkpoints.read_record(folder)
        expected = checkpoints.network_record(self.method, self.network) | {"epochs": self.epochs, "seed": self.seed}
        for key, value in expected.items():
            if key != "config" and record.get(key) != value:
                raise checkpoints.CheckpointError(
                    f"checkpoint {folder} is of another trial: {key} is {reprlib.repr(record.get(key))}, expected"
                    f" {reprlib.repr(value)}"
                )
        wrong = checkpoints.difference(self.method, self.network.config, record)
        if wrong:
            raise checkpoints.CheckpointError(f"checkpoint {folder} is of another trial: {wrong}")
        if record["data"]["hash"] != self.data.hash:
            raise checkpoints.CheckpointError(f"checkpoint {folder} was trained on other data ({record['data']})")
        self.load(folder, record)

    def load(self, folder: Path, record: dict[str, Any]) -> None:
        """Take over the state in a checkpoint that is known to fit; `record` is its JSON part."""
        self.network.load_state_dict(checkpoints.read_tensors(folder, checkpoints.NETWORK))
        tensors = checkpoints.read_tensors(folder, checkpoints.TRAINING)
        self.epoch, self.seconds = record["epoch"], record["seconds"]
        self.cost_epochs, self.last_report = record["cost_epochs"], record["report"]
        self.donated = record.get("donor")
        self.partial = Partial.taken(record.get("partial"), tensors)
        drawn = tensors.pop("generator")
        if len(drawn) != len(self.generator.get_state()):  # of another kind of device, whose states mean nothing here
            drawn = self._drawn_anew(record.get("device", "another kind of device"))
        self.phase = None
        self._enter(self.epoch + (self.partial is not None))
        assert self.optimiser is not None
        trained = self._trained()
        state = self.optimiser.state_dict()
        known: dict[str, dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            key, _, name = path.partition("/")
            known.setdefault(name, {})[key] = tensor
        # the fused optimiser walks raw memory: a buffer must be laid out as its parameter is
        state["state"] = {
            index: {
                key: torch.empty_like(parameter.data).copy_(value) if value.shape == parameter.shape else value
                for key, value in known[name].items()
            }
            for index, (name, parameter) in enumerate(trained)
            if name in known
        }
        self.optimiser.load_state_dict(state)
        self.generator.set_state(drawn)

    def _drawn_anew(self, device: str) -> Tensor:
        """A state of the generator to go on with behind a checkpoint of another kind of device; it is said in the log.

        It follows from seed and epoch. An epoch that was begun there has as many steps as any: what is left of it
        trains on another shuffle's images, so that some come twice and some not at all.
        """
        fresh = torch.Generator(self.device)
        states = [fresh.manual_seed(_seed_of(self.seed, self.epoch, draw)).get_state() for draw in range(2)]
        if self.partial is not None:
            self.partial = dataclasses.replace(self.partial, began=states[0], now=states[1])
        _log.warning(
            "epoch %d goes on on %s behind a checkpoint of %s: images and noise are drawn anew from here",
            self.epoch + 1,
            self.device.type,
            device,
        )
        return states[1]


def _seed_of(*numbers: int) -> int:
    """A seed that several numbers make together."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def fit(
    method: Method,
    config: Any,
    data: Data,
    report: Callable[[Report], Any],
    *,
    epochs: int,
    seed: int = 0,
    evaluate_at: Collection[int] = (),
    device: torch.device | str = "cpu",
    donor: Path | str | None = None,
) -> Training:
    """Train to the end, handing every report on; a report that returns False stops the training."""
    training = Training(
        method, config, data, epochs=epochs, seed=seed, evaluate_at=evaluate_at, device=device, donor=donor
    )
    while not training.done:
        if report(training.step()) is False:
            break
    return training


def train_epoch(
    training: Training, phase: Phase, epoch: int, epochs: int, views: int
) -> tuple[dict[str, float], float]:
    """Epoch `epoch` of `epochs` of a phase (from 0); mean loss terms and the last learning rate.

    Goes on behind `training.partial`, and leaves it there where `training.leaving` says so after a step.
    Raises `Interrupted` then, `FloatingPointError` where a loss is not finite.
    """
    partial, size = training.partial, phase.batch_size or training.config.batch_size
    each = max(1, size // views)
    steps = math.ceil(len(training.labels) / each)
    history: list[Tensor] = []
    names: list[str] = []
    place = None
    if partial is not None:
        history, names = list(partial.history.to(training.device)), partial.names
        training.generator.set_state(partial.began)
        place = Place(partial.steps, partial.now)
    began = training.generator.get_state()
    rate = phase.optimiser.lr
    if training.steps is None or training.steps.phase is not phase:
        training.steps = steps_of(training, phase, each)
    for index, drawn in enumerate(_draws(training, phase, size, views, place), len(history)):
        share = (epoch + index / steps) / epochs
        rate = phase.optimiser.lr_at(share, steps * epochs)
        history.append(training.steps(drawn, share=share, steps=steps * epochs))
        names = training.steps.names
        if training.leaving():
            now = training.generator.get_state()
            training.partial = Partial(index + 1, names, torch.stack(history).cpu(), began, now)
            raise Interrupted(f"{index + 1} of {steps} steps of epoch {training.epoch + 1} are done")
    training.partial = None
    if not history:
        raise ValueError(f"batch_size = {size!r}: no batch can be made of {len(training.labels)} training images")
    table = torch.stack(history).cpu()  # the only synchronisation with the device in an epoch
    bad = (~table.isfinite()).nonzero()
    if len(bad):
        at, term = int(bad[0, 0]), names[int(bad[0, 1])]
        raise FloatingPointError(
            f"loss term {term} became {table[at, bad[0, 1]].item()} in step {at + 1} of epoch {training.epoch + 1}"
        )
    means = table.double().mean(dim=0).tolist()
    return dict(zip(names, means, strict=True)), rate


def _draws(training: Training, phase: Phase, size: int, views: int, place: Place | None) -> Iterator[Drawn]:
    """One epoch of a phase, from images or from features that are computed in its first epoch here."""
    images, labels, data, generator = training.images, training.labels, training.data, training.generator
    if phase.source == "images":
        return draws(images, labels, data, batch_size=size, views=views, generator=generator, place=place)
    method = training.method
    if method.features is None:
        raise ValueError(f"phase {phase.name!r} reads {phase.source!r}, which {method.name} does not make")
    if training.cache is None:  # its copies follow from the seed: a restored training makes the same
        of = training.network, images, labels, data
        training.cache = method.features(*of, views=phase.cached_views, seed=training.seed + 2)
    return training.cache.draws(size, generator, place)
