"""Gates that a point passes before an alias points to it: each is measured again, and its evidence is kept.

A gate passes, fails, or cannot be evaluated (`passed` is None: there is no champion to beat yet, no
other seed was trained). What cannot be evaluated says so and stops nothing.

By the gate `champion` a point replaces what an alias points to only where it is better at the alias's budget.
Both are compared by the validation split of the same images (the test split ranks nothing), with the
figures that their promotions measured again.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search.errors import InputError
from search.frontier.point import FrontPoint
from search.promotion.choice import Budget
from search.promotion.ledger import current_version
from search.promotion.versions import PROMOTION
from search.state.state import StudyState
from search.studies.folder import StudyFolder
from search.units import AxesText, show_count, show_share
from trainables.checkpoints import NETWORK, CheckpointError, difference, read_record
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork
from trainables.data.augment import normalise, to_device
from trainables.data.splits import Data
from trainables.execution.macs import counted
from trainables.export.routefront_runner import added, figures_of
from trainables.inference.latency import milliseconds
from trainables.inference.prepare import prepared
from trainables.registry import get_method
from trainables.serving import load_network

_IMAGES = 32  # how many images MACs are counted on and both passes are compared on
_CLOSE = 1e-5  # of the largest logit: the contract of `trainables.network`
_BYTES = 64  # a checkpoint's bytes per learned parameter, generously; what is larger is no such network
_BATCH = 128  # as the served model's
_LUCK = 3.0  # standard deviations that a seed may be better than its repeats


@dataclass(frozen=True, slots=True)
class Gate:
    """What was looked at, whether it passed (None: it cannot be evaluated), one line, and the figures behind it."""

    name: str
    passed: bool | None
    says: str
    evidence: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def failed(gates: list[Gate]) -> Gate | None:
    """The first gate that does not pass, or None."""
    return next((gate for gate in gates if gate.passed is False), None)


# -- the checkpoint --------------------------------------------------------------------------------


def open_checkpoint(folder: StudyFolder, state: StudyState, point: FrontPoint) -> tuple[Method, RoutedNetwork, Gate]:
    """The network of a point and the gate `checkpoint`; nothing is built before the files are what they say.

    Raises `InputError` where the checkpoint is missing, damaged, another one, outside the study's
    folder, or larger than such a network can be.
    """
    try:
        path = inside(folder, point)
        expected = _expected(state, point)
        size = (path / NETWORK).stat().st_size if (path / NETWORK).exists() else 0
        most = (1 << 24) + _BYTES * max(point.params, 1)
        if size > most:
            raise CheckpointError(f"checkpoint {path} is damaged: {NETWORK} has {show_count(size)} bytes, not < {most}")
        record = read_record(path)
        digest = record.get("files", {}).get(NETWORK)
        if digest is None:
            raise CheckpointError(f"checkpoint {path} is damaged: it has no digest of {NETWORK}")
        for name, value in expected.items():
            if name in record and record[name] != value:
                raise CheckpointError(f"checkpoint {path} is another one: its {name} is {_short(record[name])}")
        wrong = difference(get_method(point.method), state.kept.configure(point.config), record)
        if wrong:
            raise CheckpointError(f"checkpoint {path} is another one: {wrong}")
        method, network, _ = load_network(path)
    except (CheckpointError, ValueError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"checkpoint is damaged ({error!r})"
        raise InputError(f"point {point.point_id} cannot be promoted: {reason}") from None
    lines = [line for line in state.promotions if line.get("checkpoint") == point.checkpoint]
    known = {line["checkpoint_sha256"] for line in lines if "checkpoint_sha256" in line}
    evidence = {"sha256": digest, "bytes": size, "checkpoint": point.checkpoint}
    says = f"{show_count(size)} bytes, SHA-256 {digest[:12]}"
    if known and digest not in known:
        return method, network, Gate("checkpoint", False, f"{says}; promoted before was {min(known)[:12]}", evidence)
    return method, network, Gate("checkpoint", True, says, evidence)


def inside(folder: StudyFolder, point: FrontPoint) -> Path:
    """The folder of a point's checkpoint; `InputError` where there is none, or it lies outside the study's."""
    if not point.checkpoint:
        raise InputError(f"point {point.point_id} was recorded without a checkpoint")
    path = folder.checkpoints / point.checkpoint
    if not path.resolve().is_relative_to(folder.checkpoints.resolve()):
        raise InputError(f"checkpoint {point.checkpoint!r} leads out of {folder.checkpoints}")
    return folder.checkpoint(point.checkpoint)


def _expected(state: StudyState, point: FrontPoint) -> dict[str, Any]:
    """What the journal says that the checkpoint is, beside its configuration."""
    task = state.created["data"]["task"]
    return {"method": point.method, "task": task, "trial": point.trial, "epoch": point.epoch}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -- figures ---------------------------------------------------------------------------------------


@torch.inference_mode()
def reference_of(network: RoutedNetwork, data: Data, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """What is counted of an operating point in use, of the validation images: see `routefront_runner.figures_of`."""
    images, _ = to_device(data.validation, "cpu")
    fast, total = prepared(network), None
    for batch in normalise(images, data.for_config(network.config)).split(_BATCH):
        result = fast.infer(batch, knobs)
        answers = {"macs": result.macs.double().numpy(), "path": result.path.double().numpy()}
        answers["probabilities"] = result.logits.double().softmax(dim=1).numpy()
        if result.exits is not None:
            answers["exit"] = result.exits.numpy()
        figures = figures_of(answers, len(network.exits))
        total = figures if total is None else added(total, figures)
    assert total is not None, "a validation split has images"
    return total


def repeats(point: FrontPoint, measured: Mapping[str, Any], calibrated: bool) -> Gate:
    """Gate `validation`: the hard pass gives the figures that the study recorded."""
    accuracy, macs = _tolerances(point, measured["count"], calibrated)
    off_accuracy, off_macs = abs(measured["accuracy"] - point.accuracy), abs(measured["macs"] - point.macs)
    good = off_accuracy <= accuracy and off_macs <= macs
    says = (
        f"measured again {show_share(measured['accuracy'])} at {show_count(measured['macs'])} MACs, recorded"
        f" {show_share(point.accuracy)} at {show_count(point.macs)}"
    )
    evidence = {"accuracy": point.accuracy, "macs": point.macs, "tolerance": accuracy, "tolerance_macs": macs}
    return Gate("validation", good, says, {**evidence, **{f"measured_{k}": v for k, v in measured.items()}})


def _tolerances(point: FrontPoint, count: int, calibrated: bool) -> tuple[float, float]:
    """How far accuracy and MACs may be off.

    Gates repeat but for rounding on another device, which may turn single images. Calibrated
    thresholds were recorded across halves and are measured with those of the whole.
    """
    if not calibrated:
        return max(2.5 / count, 0.002), 0.01 * point.macs
    error = math.sqrt(max(point.accuracy * (1 - point.accuracy), 1 / count) / count)
    return max(0.01, 3 * error), 0.1 * point.macs_full


@torch.inference_mode()
def both_passes(network: RoutedNetwork, images: Tensor, knobs: Mapping[str, Any]) -> list[Gate]:
    """Gates `macs` and `forward` on a batch: the work counted call by call, and the differentiable pass.

    `images` (B, channels, size, size), normalised. MACs are those of `trainables.execution.macs.counted`,
    which hears every convolution and linear layer that runs; `forward` gets the decisions of `infer`.
    """
    generator = torch.Generator(images.device).manual_seed(int(knobs.get("seed", 0)))
    with counted(network) as tally:
        result = network.infer(images, knobs, generator=generator)
    total, said = sum(tally.values()), float(result.macs.sum())
    per_image = total / len(images)
    macs = Gate(
        "macs",
        abs(total - said) <= 1e-6 * said,
        f"counted {show_count(per_image)} per image on {len(images)} images, charged {show_count(said / len(images))}",
        {"counted": total, "charged": said, "images": len(images), "macs_full": network.macs_full},
    )
    routed = network(images, decisions=result.decisions)
    largest = float(result.logits.abs().max())
    off = float((routed.output - result.logits).abs().max()) / max(largest, 1e-30)
    forward = Gate(
        "forward",
        off <= _CLOSE,
        f"both passes differ by {off:.1g} of the largest logit (at most {_CLOSE:g})",
        {"difference": off, "limit": _CLOSE, "images": len(images)},
    )
    return [macs, forward]


def latency(network: RoutedNetwork, images: Tensor, knobs: Mapping[str, Any], most: float | None) -> Gate:
    """Gate `latency`: median milliseconds per image of the prepared network, one by one and in batches of 64.

    Measured on this machine, with as many threads as torch uses here. `most`: seconds that one image
    may take by itself; without it nothing can fail.
    """
    figures = {f"batch_{size}_ms": round(milliseconds(network, images, [knobs], size)[0], 4) for size in (1, 64)}
    alone = figures["batch_1_ms"]
    says = f"{alone:.3g} ms alone, {figures['batch_64_ms']:.3g} ms in batches of 64"
    if most is not None:
        says += f" (at most {1000 * most:.3g} ms alone)"
    here = {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    evidence = {**figures, **here, "torch": torch.__version__, "limit_ms": None if most is None else 1000 * most}
    return Gate("latency", most is None or alone <= 1000 * most, says, evidence)


def seeds(state: StudyState, point: FrontPoint, count: int) -> Gate:
    """Gate `seeds`: other seeds of the configuration at the same setting and epoch are not far worse.

    A seed that is more than three standard deviations better than the mean of its repeats, sampling of
    `count` validation images included, is luck and not the configuration's.
    """
    trial = state.trials[point.trial]
    others = {
        other.id: float(curve[point.index]["accuracy"])
        for other in state.trials.values()
        if other.id != trial.id and other.identity == trial.identity and other.seed != trial.seed
        and len(curve := other.curves.get(point.epoch, [])) > point.index
    }  # fmt: skip
    if not others:
        says = "this configuration was trained with one seed only (routefront confirm trains others)"
        return Gate("seeds", None, says, {"seeds": 1, "accuracies": [point.accuracy]})
    mean = statistics.fmean(others.values())
    spread = statistics.stdev([*others.values(), point.accuracy])
    rate = min(max(mean, 1 / count), 1 - 1 / count)
    sampling = rate * (1 - rate) / count
    between = statistics.variance(others.values()) if len(others) > 1 else 0.0
    luck = (point.accuracy - mean) / math.sqrt((sampling + between) * (1 + 1 / len(others)))
    says = f"{len(others) + 1} seeds, others {show_share(mean)} on average, standard deviation {show_share(spread)}"
    accuracies = [point.accuracy, *others.values()]
    evidence = {"seeds": len(others) + 1, "accuracies": accuracies, "trials": list(others), "deviations": luck}
    return Gate("seeds", luck <= _LUCK, says, evidence)


@dataclass(frozen=True, slots=True)
class Champion:
    """The version that an alias points to, with its tags."""

    version: str
    alias: str
    tags: Mapping[str, str]

    @property
    def budget(self) -> Budget:
        """What it was promoted for under this alias."""
        try:
            said = json.loads(self.tags.get(PROMOTION + self.alias, "{}")).get("budget") or {}
            return Budget(said.get("max_macs"), said.get("min_accuracy"), said.get("max_cost"))
        except (ValueError, AttributeError):
            return Budget()


def champion_of(client: Any | None, model: str, alias: str) -> Champion | None:
    """The present champion, or None where there is none (or no registry yet)."""
    version = None if client is None else current_version(client, model, alias)
    if client is None or version is None:
        return None
    return Champion(version, alias, dict(client.get_model_version(model, version).tags))


def beats(champion: Champion | None, mine: Mapping[str, str], asked: Budget) -> Gate:
    """The gate `champion` for a point of which `mine` would be the version's tags.

    Under a budget of MACs the more accurate wins, of equals the cheaper; where only an accuracy was
    asked for, the cheaper one that has it. Without a budget of its own the point takes the champion's. Under a budget
    of milliseconds a champion whose latency was not measured on the same machine is taken to be within it.
    """
    if champion is None:
        return Gate("champion", None, "no champion yet", {})
    tags, version = champion.tags, f"version {champion.version}"
    evidence: dict[str, Any] = {"version": champion.version}
    old = _figures(tags)
    if old is None or not {"data_hash", "point_id"} <= set(tags):
        return Gate("champion", False, f"{version} was not promoted by routefront: nothing to compare with", evidence)
    if _identity(tags) == _identity(mine):
        return Gate("champion", True, f"it is the champion already ({version})", evidence)
    for name, what in (
        ("data_hash", "measured on other images"),
        ("calibrated_on", "calibrated on other images"),
        ("merit", "promoted for another accuracy, plain or balanced"),
    ):
        if tags.get(name, "") != mine.get(name, ""):
            then, now = (each.get(name, "")[:12] or "none" for each in (tags, mine))
            says = f"{version} was {what} (digest {then}, now {now}): take another alias, or roll back first"
            return Gate("champion", False, says, {**evidence, "data": then, "data_now": now})
    budget = champion.budget if asked == Budget() else asked
    new = _figures(mine)
    assert new is not None
    evidence |= {"accuracy": old[0], "macs": old[1], **budget.record()}
    axes = AxesText.of_tags(mine)
    unit = " MACs" if axes.usual else ""
    says = f"{axes.point(*new)}{unit} against {axes.point(*old)} of {version}"
    told = _latency(mine), None if tags.get("machine") != mine.get("machine") else _latency(tags)
    if budget.max_cost is not None:
        says += f" ({' against '.join('an unknown latency' if ms is None else f'{ms:.4g} ms' for ms in told)})"
        evidence["latency_ms"] = told[1]
    fits_new, fits_old = _fits(budget, new, told[0]), _fits(budget, old, told[1])
    if budget.max_cost is not None and told[0] is None:
        says = f"{says}: its study measured no latency"
        return Gate("champion", False, f"{says}, and {version} was promoted for {_shown(budget, axes)}", evidence)
    if not fits_new:
        return Gate(
            "champion", False, f"{says}, which was promoted for {_shown(budget, axes)}: give a budget", evidence
        )
    if not fits_old:
        return Gate("champion", True, f"{says}, which is outside {_shown(budget, axes)}", evidence)
    better = (-new[1], new[0]) > (-old[1], old[0]) if budget.cheapest else (new[0], -new[1]) > (old[0], -old[1])
    wish = "cheaper" if budget.cheapest else "better"
    return Gate("champion", better, says if better else f"{says}: not {wish}", evidence)


def _identity(tags: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(tags.get(name, "") for name in ("study_id", "point_id", "knobs", "calibrated_on"))


def _figures(tags: Mapping[str, str]) -> tuple[float, float] | None:
    try:
        return float(tags["validation_accuracy"]), float(tags["macs"])
    except (KeyError, ValueError):
        return None


def _latency(tags: Mapping[str, str]) -> float | None:
    try:
        return float(tags["latency_ms"])
    except (KeyError, ValueError):
        return None


def _fits(budget: Budget, figures: tuple[float, float], latency: float | None) -> bool:
    cheap = budget.max_macs is None or figures[1] <= budget.max_macs
    cheap = cheap and (budget.max_cost is None or latency is None or latency <= budget.max_cost)
    return cheap and (budget.min_accuracy is None or figures[0] >= budget.min_accuracy)


def _shown(budget: Budget, axes: AxesText) -> str:
    merit, cost = axes.objective.merit, axes.objective.cost
    parts = []
    if budget.max_macs is not None:
        most = "least" if cost.maximise else "most"
        parts.append(f"at {most} {axes.cost(budget.max_macs)} {axes.cost_title}")
    if budget.max_cost is not None:
        parts.append(f"at most {budget.max_cost:g} ms")
    if budget.min_accuracy is not None:
        least = "least" if merit.maximise else "most"
        title = "" if axes.usual else f" {axes.merit_title}"
        parts.append(f"at {least} {axes.merit(budget.min_accuracy)}{title}")
    return " and ".join(parts) or "no budget"
