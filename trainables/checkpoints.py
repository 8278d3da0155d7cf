"""Checkpoints as safetensors and JSON, written so that a crash leaves the old one or the new one.

A checkpoint is a folder: ``network.safetensors`` (parameters and buffers), optionally
``training.safetensors`` (optimiser and random states), ``diagnostics.safetensors`` (what was
measured per image) and ``predictions.npz`` (what every point of its curve answers on every validation image,
`trainables.inference.predictions`), and ``state.json``, which is written last and holds the SHA-256 of the others.
Nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import reprlib
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.contracts.earlier import completed
from trainables.contracts.method import Method, config_dict
from trainables.contracts.network import RoutedNetwork

NETWORK, TRAINING, STATE = "network.safetensors", "training.safetensors", "state.json"
DIAGNOSTICS = "diagnostics.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that is missing, cut off, changed or of another network."""


def network_record(method: Method, network: RoutedNetwork) -> dict[str, Any]:
    """What is needed to build the network again, as plain JSON values; a person's own file comes along."""
    text = getattr(network, "source_text", "")
    own = {"source": text} if text else {}
    return {**own, "method": method.name, "config": config_dict(network.config), "task": asdict(network.task)}


def config_of(method: Method, record: Mapping[str, Any]) -> Any:
    """The configuration in a checkpoint's record, which may be of earlier code (`trainables.contracts.earlier`)."""
    return method.configure(completed(method, record["config"]))


def difference(method: Method, config: Any, record: Mapping[str, Any]) -> str:
    """The first value in which a checkpoint's configuration is not `config`, in words; empty where they are the same.

    Fields that only one of them knows do not count, as far as `config` has what they mean
    (`trainables.contracts.earlier`).
    """
    said, expected = record.get("config"), config_dict(config)
    if not isinstance(said, Mapping):
        return f"its config is {reprlib.repr(said)}"
    found = {name: said[name] for name in expected if name in said}
    if found.keys() != expected.keys() and all(found[name] == expected[name] for name in found):
        found = config_dict(config_of(method, record))  # what the record says is as expected, so this is safe
    for name, value in found.items():
        if value != expected[name]:
            return f"its config has {name} = {reprlib.repr(value)}, expected {reprlib.repr(expected[name])}"
    return ""


def save(
    folder: Path,
    record: Mapping[str, Any],
    network: RoutedNetwork,
    training: Mapping[str, Tensor] | None = None,
    diagnostics: Mapping[str, Tensor] | None = None,
    beside: Mapping[str, Callable[[Path], object]] | None = None,
) -> None:
    """Write a checkpoint folder; it appears under its name only once it is whole.

    `beside`: by name what writes further files of it.
    """
    files = {NETWORK: network.state_dict(), TRAINING: training, DIAGNOSTICS: diagnostics}
    write(folder, record, {name: tensors for name, tensors in files.items() if tensors is not None}, beside)


def write(
    folder: Path,
    record: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Tensor]],
    beside: Mapping[str, Callable[[Path], object]] | None = None,
) -> None:
    """Write a checkpoint folder of these files of tensors, and of what is written `beside` them (`write_files`)."""

    def put(part: Path) -> None:
        for file, tensors in files.items():
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part / file)
        for file, other in (beside or {}).items():
            other(part / file)

    write_files(folder, record, put)


def write_files(folder: Path, record: Mapping[str, Any], put: Callable[[Path], None]) -> None:
    """Write a checkpoint folder of the files that `put` writes into it; it appears only once it is whole."""
    part = folder.with_name(f".{folder.name}.part-{socket.gethostname()}-{os.getpid()}")  # a trial may run twice
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    put(part)
    digests = {path.name: _digest(path) for path in sorted(part.iterdir())}
    (part / STATE).write_text(json.dumps({**record, "files": digests}, indent=1))
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:  # in pieces: whoever made the file may have made it large
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint, after every file was compared with its digest."""
    try:
        record = json.loads((folder / STATE).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {folder}: {STATE} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise CheckpointError(f"checkpoint {folder} is damaged: {STATE} is not whole JSON") from None
    if not isinstance(record, dict) or not isinstance(record.get("files", {}), dict):
        raise CheckpointError(f"checkpoint {folder} is damaged: {STATE} is no record of a checkpoint")
    for name, digest in record.get("files", {}).items():
        if Path(name).name != name:
            raise CheckpointError(f"checkpoint {folder} is damaged: its file {name!r} leads out of its folder")
        path = folder / name
        if not path.exists():
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} is missing")
        if _digest(path) != digest:
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} was cut off or changed")
    return record


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint."""
    try:
        return load_file(folder / name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {name}: {error}") from None


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a trial's folder, ``epoch-NNNN`` or one in the middle of the next, or None."""
    for candidate in sorted(folder.glob("epoch-*"), reverse=True):
        try:
            read_record(candidate)
        except CheckpointError:
            continue
        return candidate
    return None


def epoch_folder(folder: Path, epoch: int) -> Path:
    """Where a trial's checkpoint of one epoch lies."""
    return folder / f"epoch-{epoch:04d}"


def partial_folder(folder: Path, epoch: int, steps: int) -> Path:
    """Where a trial's checkpoint so many steps behind an epoch lies: its name comes after that epoch's."""
    return folder / f"epoch-{epoch:04d}-{steps:06d}"


def __getattr__(name: str) -> Any:
    """`load_network`, where scripts of models that were promoted earlier look for it; it is a floor above."""
    if name == "load_network":
        return importlib.import_module("trainables.serving").load_network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
