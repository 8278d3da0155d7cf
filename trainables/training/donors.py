"""Donors: trained static networks whose weights a routed network of the same body begins with.

A donor is a checkpoint folder (`trainables.checkpoints`) or a file of its tensors, ``.safetensors`` with our names.
Stem, blocks and classifier are taken by name, batch-norm statistics with them. What a donor has no counterpart
for (routers, paths around blocks, the last layers of a second phase) keeps its own initialisation, and routers begin
open (`RoutedNetwork.begin_open`), so that the network begins as the donor.

Strided shortcuts without weights (He et al.'s option A) are convolutions of option B whose matrix is a part of
the identity, behind them a batch norm that changes nothing (`as_projection`): a donor with option A is computed
exactly by a network with option B.

A donor is read before the first epoch and never again: checkpoints of the training hold all weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from spaces.donor import STUDY
from trainables import checkpoints
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork, Task
from trainables.networks.resnet.cifar import ResidualNetwork, ZeroPadShortcut

OPEN = 0.95
"""P(run) that routers begin with."""


class DonorError(ValueError):
    """A donor that is missing, damaged or of another body; one line that names it."""


@dataclass(frozen=True, slots=True)
class Donor:
    """A donor that was read. `name` is how it was asked for; `record` the JSON part of its checkpoint, of a file alone
    {}; `digest` the SHA-256 of its tensors' file.
    """

    name: str
    tensors: Mapping[str, Tensor]
    digest: str
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What it is: ``static resnet-20, epoch 9``."""
        if "method" not in self.record:
            return "a file of weights"
        epoch = f", epoch {self.record['epoch']}" if "epoch" in self.record else ""
        return f"{self.record['method']} {self.record['config'].get('network', '')}{epoch}"


def read(place: Path | str, name: str = "") -> Donor:
    """Read a donor from a checkpoint folder or a ``.safetensors`` file.

    `name` is what messages call it, where that is not its path. Raises `DonorError`.
    """
    path, name = Path(place).expanduser(), name or str(place)
    if path.is_dir():
        try:
            record = checkpoints.read_record(path)
            tensors = checkpoints.read_tensors(path, checkpoints.NETWORK)
        except checkpoints.CheckpointError as error:
            raise DonorError(f"donor = {name!r}: {error}") from None
        return Donor(name, tensors, record.get("digest") or _digest(path / checkpoints.NETWORK), record)
    if not path.is_file():
        raise DonorError(f"donor = {name!r}: there is no such checkpoint folder or file")
    if path.suffix != ".safetensors":
        raise DonorError(f"donor = {name!r}: must be a checkpoint folder or a .safetensors file")
    try:
        return Donor(name, load_file(path), _digest(path))
    except (SafetensorError, OSError) as error:
        raise DonorError(f"donor = {name!r}: no weights could be read ({str(error).splitlines()[0][:100]})") from None


def keep(donor: Donor, folder: Path) -> None:
    """Write a donor as a checkpoint folder of its tensors, what its record says of the network, and its digest."""
    said = ("method", "config", "task", "epoch")
    record = {name: donor.record[name] for name in said if name in donor.record}
    checkpoints.write(folder, {**record, "digest": donor.digest}, {checkpoints.NETWORK: donor.tensors})


def identity(place: Path | str) -> str:
    """What tells a donor from others of one study, ``trial/epoch-NNNN``: the end of its path; empty without one."""
    return "/".join(Path(place).parts[-2:]) if place else ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(donor: Donor, method: Method, config: Any, task: Task) -> None:
    """Raise `DonorError` naming what differs where a donor's checkpoint is of another body than a configuration's.

    A file of tensors alone says nothing of itself: `plan` compares its names and shapes.
    """
    if method.donor is None:
        raise DonorError(f"donor = {donor.name!r}: {method.name} begins with no other network's weights")
    record = donor.record
    if "method" not in record:
        return
    there = {**record.get("config", {}), "method": record["method"], **record.get("task", {})}
    wanted = {**method.donor(config, task), **asdict(task)}
    shown = " ".join(str(wanted[name]) for name in ("method", "network") if not isinstance(wanted[name], tuple))
    for name, value in wanted.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if there.get(name) not in allowed:
            must = " or ".join(map(repr, allowed))
            raise DonorError(
                f"donor = {donor.name!r}: its {name} is {there.get(name)!r} and must be {must};"
                f" {method.name} on {config.network} takes a trained {shown}"
            )


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a network takes of a donor: tensors by our names, and how many it keeps of its own by part.

    `made`: shortcuts that begin as the donor's shortcuts without weights, with the option that these are.
    """

    tensors: Mapping[str, Tensor]
    kept: Mapping[str, int]
    made: Mapping[str, str]


def plan(donor: Donor, network: RoutedNetwork) -> Transfer:
    """Which tensors of a donor a network takes.

    Raises `DonorError` with the first name that has no counterpart, or one of another shape.
    """
    here = network.state_dict()
    theirs = donor.tensors
    made = _made(donor, network)
    for name, tensor in theirs.items():
        if name not in here or here[name].shape != tensor.shape:
            shape = tuple(here[name].shape) if name in here else "no counterpart"
            raise DonorError(
                f"donor = {donor.name!r}: is of another network than {network.config.network}:"
                f" {name} has shape {tuple(tensor.shape)} there and {shape} here"
            )
    left = [name for name in here if name not in theirs]
    kept: dict[str, int] = {}
    for name in left:
        part = next((part for part in made if name.startswith(f"{part}.")), None)
        if part is None and not name.startswith(network.routing):
            other = f"is of another network than {network.config.network}"
            raise DonorError(f"donor = {donor.name!r}: {other}: it lacks {name}")
        if part is None:
            part = name.partition(".")[0]
            kept[part] = kept.get(part, 0) + 1
    return Transfer(theirs, kept, made)


def _made(donor: Donor, network: RoutedNetwork) -> dict[str, str]:
    """Names of the network's projections whose counterparts in the donor have no weights, and which option these are.

    Raises `DonorError` where a shortcut without weights is not the donor's: what it computes is then another function.
    """
    if not isinstance(network, ResidualNetwork) or network.config.network.startswith("preact-"):
        return {}
    found: dict[str, str] = {}
    for k in range(len(network.blocks)):
        shortcut, name = network.block(k).shortcut, f"blocks.{k}.shortcut"
        if isinstance(shortcut, nn.Identity):
            continue
        there = "B" if f"{name}.0.weight" in donor.tensors else _weightless(donor)
        here = "B"
        if isinstance(shortcut, ZeroPadShortcut):
            here = "pool" if shortcut.average else "A"
        if here == "B" and there != "B":
            found[name] = there or "A"
        elif there not in ("", here):
            raise DonorError(
                f"donor = {donor.name!r}: its shortcuts are {there}, these are {here}; set shortcut = {there!r}"
            )
    return found


def _weightless(donor: Donor) -> str:
    """Which shortcuts without weights a donor has, A or pool; empty where nothing tells."""
    option = donor.record.get("config", {}).get("shortcut", "")
    return "A" if option == "auto" else option


@torch.no_grad()
def as_projection(projection: nn.Module, option: str) -> None:
    """Let a strided 1 x 1 convolution and its batch norm begin as a shortcut without weights.

    Of option A (every second pixel, channels of zeros on both sides) this is exact in eval mode; in training
    the batch norm divides by the batch's own deviation. Of ``pool`` it takes one of the four pixels.
    """
    assert isinstance(projection, nn.Sequential)
    convolution, norm = projection
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    out, channels = convolution.weight.shape[:2]
    before = (out - channels) // 2 if option == "A" else 0
    convolution.weight.zero_()
    each = torch.arange(channels)
    convolution.weight[before + each, each, 0, 0] = 1.0
    norm.reset_parameters()
    assert norm.running_var is not None
    norm.running_var.fill_(1.0 - norm.eps)


@torch.no_grad()
def give(donor: Donor, network: RoutedNetwork) -> dict[str, Any]:
    """Let a network that was not trained yet begin as a donor: what it was and what it gave, as plain values.

    ``from`` (in words), ``digest``; ``tensors`` that were taken; ``as_projection``: shortcuts that begin as the
    donor's; ``kept``: tensors of the network's own initialisation, by part. Raises `DonorError`, and then nothing
    was changed.
    """
    found = plan(donor, network)
    nn.Module.load_state_dict(network, dict(found.tensors), strict=False)
    for name, option in found.made.items():
        as_projection(network.get_submodule(name), option)
    network.begin_open(OPEN)
    return {
        "from": donor.words,
        "digest": donor.digest,
        "tensors": len(found.tensors),
        "as_projection": list(found.made),
        "kept": dict(found.kept),
    }


def begin(network: RoutedNetwork, method: Method, place: Path | str, name: str = "") -> dict[str, Any]:
    """Read a donor, compare it with a network of a method, and let that begin with it: see `give`.

    Raises `DonorError` with one line.
    """
    if str(place) == STUDY:
        raise DonorError(f"donor = {STUDY!r}: only a study has a best static network; name a checkpoint folder")
    donor = read(place, name)
    check(donor, method, network.config, network.task)
    return give(donor, network)
