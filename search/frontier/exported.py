"""How long front members take as they are deployed: exported, under onnxruntime, milliseconds per image.

A member is written as `routefront export-model` writes a promoted one, for its knobs alone, into a folder that goes
away. Timed are all forms that take a batch of that size: the parts, and for one image at a time the file with ``If``
nodes. The quicker one counts. Forms take turns, so that whatever else runs disturbs them alike; a figure is the median
of the passes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from search.errors import InputError
from trainables.contracts.network import Knobs, RoutedNetwork
from trainables.data.splits import Data
from trainables.export.families import program_of
from trainables.export.folder import write
from trainables.export.program import ExportError
from trainables.export.routefront_runner import Runner, Single
from trainables.inference.latency import LEAST, PASSES, SECONDS


def milliseconds(
    network: RoutedNetwork, knobs: Knobs, images: np.ndarray, data: Data, sizes: tuple[int, ...], threads: int
) -> dict[int, dict[str, float]]:
    """By size of batch the median milliseconds an image of every form, ``parts`` and ``single``.

    `images` (n, c, h, h), uint8, of which each pass takes other ones; `threads` of onnxruntime. Raises `InputError` for
    a network that cannot be exported.
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
        forms: dict[str, Callable[[np.ndarray], Any]] = {"parts": Runner(folder, threads=threads).predict}
        if 1 in sizes and Runner(folder).manifest["single"]:
            forms["single"] = Single(folder, threads=threads).predict
        return {size: _timed(forms if size == 1 else {"parts": forms["parts"]}, images, size) for size in sizes}


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
