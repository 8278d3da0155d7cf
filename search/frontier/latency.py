"""How long front members take on this machine: milliseconds per image, alone and in batches of 64.

A member is its checkpoint, prepared for inference as it is served (`trainables.inference.prepare.prepared`), with
its knobs, on the study's validation images: real ones, since their paths decide what is computed. The
figure is `trainables.inference.latency.milliseconds`; the images are drawn with a fixed
seed and are the same for all members. It holds for this machine and its load now, and for no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from search.errors import InputError
from search.frontier.point import FrontPoint
from search.pareto import front as pareto

if TYPE_CHECKING:
    from torch import Tensor

    from search.studies.stored import StoredStudy
    from trainables.data.splits import Data

BATCHES = (1, 64)
TORCH, ONNXRUNTIME = "torch", "onnxruntime"
RUNTIMES = (TORCH, ONNXRUNTIME)
"""What runs a member: our own execution, or onnxruntime what is exported of it (`search.frontier.exported`)."""


def measured(
    studies: Sequence[StoredStudy],
    points: Sequence[FrontPoint],
    say: Callable[[str], None] = lambda text: None,
    *,
    runtime: str = TORCH,
    threads: int | None = None,
    batches: Sequence[int] = BATCHES,
    int8: bool = True,
) -> list[FrontPoint]:
    """The points with `latency_ms` and `latency_ms_64` where their checkpoints are there, the others as they are.

    Under onnxruntime every member is followed by what it is in eight bits, where it can be: a point of its own, with
    the accuracy and MACs that were measured of that on validation images; `int8` False leaves these out.
    `threads`: of the runtime, else those that torch has here, one of onnxruntime. `batches`: which of `BATCHES` are
    measured. Raises `InputError` where no checkpoint is left, or the study's images are not at hand.
    """
    by_name = {study.spec.name: study for study in studies}
    here = [_folder(by_name[p.study], p) is not None for p in points]
    if not any(here):
        raise InputError(
            "no checkpoint of these points is left to measure (kept are those of a study's first two fronts"
            " and of each method's own)"
        )
    images: dict[str, tuple[Tensor, Data]] = {}
    for name in sorted({p.study for p, there in zip(points, here, strict=True) if there}):
        images[name] = _images(by_name[name])
    found = []
    for point, there in zip(points, here, strict=True):
        if there:
            say(f"measuring {point.point_id}")
            how = runtime, threads, tuple(batches), int8
            found += _of_point(by_name[point.study], point, *images[point.study], *how)
        else:
            found.append(point)
    return found


_FIELDS = {1: "latency_ms", 64: "latency_ms_64"}


def _folder(study: StoredStudy, point: FrontPoint) -> str | None:
    path = study.folder.checkpoint(point.checkpoint)
    inside = path.resolve().is_relative_to(study.folder.checkpoints.resolve())
    return str(path) if point.checkpoint and inside and (path / "state.json").is_file() else None


def _images(study: StoredStudy) -> tuple[Tensor, Data]:
    """Validation images, not normalised yet: as many as the largest batch, drawn with a fixed seed; and their data."""
    import torch

    from search.studies.stored import load_data
    from trainables.data.augment import to_device

    data = load_data(study.spec)
    study.check_data(study.state(), data)
    images, _ = to_device(data.validation, "cpu")
    rows = np.random.default_rng(0).permutation(len(images))[: max(BATCHES)]
    chosen = images[torch.from_numpy(np.sort(rows))]
    return torch.cat(list(chosen.split(len(rows)))), data  # images that lie in files are decoded here, once


def _of_point(
    study: StoredStudy,
    point: FrontPoint,
    images: Tensor,
    data: Data,
    runtime: str,
    threads: int | None,
    batches: tuple[int, ...],
    int8: bool,
) -> list[FrontPoint]:
    """A point with what its measurement fills in, and the point that it is in eight bits."""
    import torch

    from trainables.checkpoints import CheckpointError
    from trainables.data.augment import normalise
    from trainables.inference.latency import milliseconds
    from trainables.serving import load_network

    path = study.folder.checkpoints / point.checkpoint
    try:
        _, network, record = load_network(path)
    except (CheckpointError, ValueError) as error:
        raise InputError(f"point {point.point_id} cannot be measured: {error}") from None
    if (record.get("trial", point.trial), record.get("epoch")) != (point.trial, point.epoch):
        raise InputError(f"checkpoint {path} is of trial {record.get('trial')} at epoch {record.get('epoch')}")
    if runtime == ONNXRUNTIME:
        from search.frontier import exported

        found = exported.measured(network, point.knobs, images.numpy(), data, batches, threads or 1, int8=int8)
        taken = found.milliseconds
        small = {_FIELDS[size]: forms.pop(exported.INT8) for size, forms in taken.items() if exported.INT8 in forms}
        quickest = {_FIELDS[size]: min(forms.values()) for size, forms in taken.items()}
        form = min(taken[1], key=taken[1].__getitem__) if 1 in taken else "parts"
        points = [replace(point, **quickest, latency_form=form)]
        if found.correct is not None and found.count and found.macs is not None:
            unknown = {"membership": None, "expected": None, "expected_low": None, "expected_high": None}
            accuracy = {"accuracy": found.correct / found.count, "correct": found.correct, "count": found.count}
            if point.counted_macs is None:
                accuracy["macs"] = found.macs
            points.append(replace(point, **small, **accuracy, **unknown, latency_form=exported.INT8))
        return points
    inputs, before = normalise(images, data.for_config(network.config)), torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        taken = {_FIELDS[size]: milliseconds(network, inputs, [point.knobs], size)[0] for size in batches}
        return [replace(point, **taken)]
    finally:
        torch.set_num_threads(before)


def by_latency(points: Sequence[FrontPoint], batch: int = 1) -> list[FrontPoint]:
    """Those of the measured points that no other one beats in accuracy and latency, quickest first."""
    timed = [(p, p.latency_ms if batch == 1 else p.latency_ms_64) for p in points]
    able = [(p, t) for p, t in timed if t is not None]
    keep = pareto.non_dominated([1 - p.accuracy for p, _ in able], [t for _, t in able])
    return [p for p, _ in sorted((pair for pair, on in zip(able, keep, strict=True) if on), key=lambda pair: pair[1])]
