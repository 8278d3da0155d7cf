"""How long front members take as they are deployed: exported, under onnxruntime, milliseconds per image.

A member is written as `routefront export-model` writes a promoted one, for its knobs alone, into a folder that goes
away. Timed are all forms that take a batch of that size: the parts, and for one image at a time the file with ``If``
nodes, of which the quicker one counts; and the parts in eight bits, which answer otherwise and are an operating point
of their own, with the accuracy and the MACs that they have on validation images. Forms take turns, so that whatever
else runs disturbs them alike; a figure is the median of the passes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search.errors import InputError
from trainables.contracts.network import Knobs, RoutedNetwork
from trainables.data.splits import Data
from trainables.export.families import program_of
from trainables.export.folder import write
from trainables.export.int8 import INT8, add_int8
from trainables.export.program import ExportError
from trainables.export.routefront_runner import Runner, Single
from trainables.inference.latency import LEAST, PASSES, SECONDS

MEASURED = 1000
"""Validation images on which parts in eight bits are measured."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was measured of an exported member.

    `milliseconds`: by size of batch the median an image of every form, ``parts``, ``single`` and ``int8``. In eight
    bits: `correct` of `count` validation images, and mean `macs`; None where nothing can be quantised or nobody asked.
    """

    milliseconds: dict[int, dict[str, float]]
    correct: int | None = None
    count: int | None = None
    macs: float | None = None


def measured(
    network: RoutedNetwork,
    knobs: Knobs,
    images: np.ndarray,
    data: Data,
    sizes: tuple[int, ...],
    threads: int,
    *,
    int8: bool = True,
) -> Exported:
    """Export a member, time its forms, and measure what it answers in eight bits.

    `images` (n, c, h, h), uint8, of which each pass takes other ones, and by which eight bits are calibrated; `threads`
    of onnxruntime. Raises `InputError` for a network that cannot be exported.
    """
    normalisation = data.for_config(network.config).normalisation
    assert normalisation is not None
    with tempfile.TemporaryDirectory(prefix="routefront-") as scratch:
        folder = Path(scratch)
        try:
            write(
                folder,
                network,
                program_of(network, [knobs]),
                settings=[{"knobs": dict(knobs), "accuracy": 0.0, "macs": 0.0}],
                promoted=knobs,
                classes=data.classes,
                normalisation=normalisation,
                model={},
            )
        except ExportError as error:
            raise InputError(f"--runtime onnxruntime: {error}") from None
        runner = Runner(folder, threads=threads)
        forms: dict[str, Callable[[np.ndarray], Any]] = {"parts": runner.predict}
        told: dict[str, Any] = {}
        if int8 and (small := _in_eight_bits(folder, images, threads)) is not None:
            forms[INT8] = small.predict
            chosen = data.validation.take(np.arange(min(MEASURED, len(data.validation))))
            answers = small.predict(chosen.decoded())
            right = int((answers["label"] == chosen.labels).sum())
            told = {"correct": right, "count": len(chosen.labels), "macs": float(answers["macs"].mean())}
        single = {"single": Single(folder, threads=threads).predict} if runner.manifest["single"] else {}
        taken = {size: _timed({**forms, **single} if size == 1 else forms, images, size) for size in sizes}
        return Exported(taken, **told)


def _in_eight_bits(folder: Path, images: np.ndarray, threads: int) -> Runner | None:
    """The runner of the parts in eight bits; None where a network has nothing to quantise."""
    try:
        add_int8(folder, images)
    except ExportError:
        return None
    return Runner(folder, threads=threads, precision=INT8)


def _timed(forms: dict[str, Callable[[np.ndarray], Any]], images: np.ndarray, size: int) -> dict[str, float]:
    """Median milliseconds an image of every form; a first pass warms up and is not counted."""
    whole = np.concatenate([images] * -(-size // len(images)))
    batches = [whole[at : at + size] for at in range(0, len(whole) - size + 1, size)]
    taken: dict[str, list[float]] = {name: [] for name in forms}
    ending = float("inf")
    for number in range(PASSES + 1):
        batch = batches[number % len(batches)]
        for name, form in forms.items():
            started = time.perf_counter()
            form(batch)
            if number:
                taken[name].append(1000 * (time.perf_counter() - started) / size)
        if not number:
            ending = time.perf_counter() + SECONDS * len(forms)
        elif number >= LEAST and time.perf_counter() > ending:
            break
    return {name: float(np.median(times)) for name, times in taken.items()}
