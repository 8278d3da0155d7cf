"""First stages that trials share: what names one, how it is stored, how a trial goes on from it.

The first stage of a training is its first phase. Two trials that differ only in parameters of later
stages (`spaces.space`: ``stage=``) and have the same seed, data, length, device and code train
the same first stage, bit for bit on one thread. It is stored under `key`, a hash of all that, as an
ordinary checkpoint of its last epoch: ``<stages>/<key>/``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from trainables import checkpoints
from trainables.checkpoints import CheckpointError
from trainables.contracts.method import Method, config_dict
from trainables.contracts.recipe import plan
from trainables.training import donors
from trainables.training.training import Training
from trainables.version import code_version

FOLDER = "stages"  # beside the trials' own checkpoints


def last_epoch(method: Method, config: Any, epochs: int) -> int | None:
    """The last epoch of the first stage in a training of `epochs`; None where no stage follows it.

    Nor is there one where a donor takes the place of the first phase: what comes first then is a later stage.
    """
    phases = method.phases(config)
    if not 2 <= len(phases) <= epochs:
        return None
    if getattr(config, "donor", "") and len(method.phases(dataclasses.replace(config, donor=""))) > len(phases):
        return None
    return plan(phases, epochs)[0][2]


def key(
    method: Method, config: Any, *, epochs: int, seed: int, data_hash: str, device: str = "cpu", donor: str = ""
) -> str | None:
    """What names the first stage of a training: 64 hexadecimal digits; None where it has no second.

    The hash is over the method, every value of its configuration (defaults too) but those that the
    method's space marks as of a later stage, the first stage's epochs, the whole length (schedules
    may be shares of it), seed, data, device and code, and the `donor` that it begins with (`training.donors.identity`).
    """
    last = last_epoch(method, config, epochs)
    if last is None:
        return None
    later = {name for name, parameter in method.space.parameters.items() if parameter.stage > 1}
    content = {
        "method": method.name,
        "config": {name: value for name, value in config_dict(config).items() if name not in later},
        "stage_epochs": last,
        "epochs": epochs,
        "seed": seed,
        "data": data_hash,
        "device": device,
        "code": code_version(),
        **({"donor": donor} if donor else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def key_of(training: Training) -> str | None:
    """The `key` of a training's first stage."""
    return key(
        training.method,
        training.config,
        epochs=training.epochs,
        seed=training.seed,
        data_hash=training.data.hash,
        device=training.device.type,
        donor=donors.identity(training.donor),
    )


def ends(training: Training) -> bool:
    """Whether the epoch that a training has just trained is the last of its first stage."""
    return training.epoch == last_epoch(training.method, training.config, training.epochs)


def check(folder: Path) -> dict[str, Any]:
    """The record of a stored stage, its files compared with their digests.

    Raises `CheckpointError` where it is missing, cut off, changed or another stage's.
    """
    record = checkpoints.read_record(folder)
    if record.get("stage") != folder.name:
        raise CheckpointError(f"checkpoint {folder} is damaged: it says that it is stage {record.get('stage')!r}")
    return record


def publish(training: Training, root: Path, trial: str) -> str:
    """Store the first stage that a training has just ended, once; returns its key.

    A whole one stays as it is, a damaged one is replaced. It appears under its name only when it is
    whole, also where two trials on two machines store the same one at the same moment.
    """
    name = key_of(training)
    if name is None or not ends(training):
        raise RuntimeError(f"epoch {training.epoch} does not end the first of several stages")
    folder = root / name
    if _whole(folder):
        return name
    mine = root / f".{name}.{uuid.uuid4().hex}"  # process numbers are no names where machines share a folder
    training.save(mine, {"stage": name, "trial": trial})
    _place(mine, folder)
    return name


def _whole(folder: Path) -> bool:
    try:
        check(folder)
    except CheckpointError:
        return False
    return True


def _place(mine: Path, folder: Path) -> None:
    """Rename a folder to its place; a damaged one there makes way, a whole one of another trial stays."""
    for _ in range(2):
        try:
            os.rename(mine, folder)  # never replaces a folder that holds files
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _whole(folder):
            break
        damaged = mine.with_name(f"{mine.name}.damaged")
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, damaged)
            shutil.rmtree(damaged, ignore_errors=True)
    shutil.rmtree(mine, ignore_errors=True)


def restore(training: Training, folder: Path) -> None:
    """Let a training that has not begun go on behind a stored first stage, as if it had trained it.

    Its epoch, weights, optimiser and random state are the stage's; cost and seconds stay 0, they
    were another trial's. Raises `CheckpointError` where the stage is missing, damaged, or not this
    training's (other configuration, seed, data, length or code); build a new training then.
    """
    record = check(folder)
    if record["stage"] != key_of(training):
        raise CheckpointError(f"checkpoint {folder} was trained by other code or for another trial")
    try:
        training.load(folder, record)
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder} does not fit: {str(error).splitlines()[-1].strip()}") from None
    training.cost_epochs, training.seconds, training.last_report = 0.0, 0.0, None
