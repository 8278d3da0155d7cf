"""Pretrained weights of backbones: from a file, or from the library's cache where they lie there already.

Nothing is ever downloaded, and nothing unpickled but tensors: a file is .safetensors, or one that `torch.load` reads
with ``weights_only=True``.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.networks.backbones.cutting import Part
from trainables.networks.backbones.source import named, wishes

CACHE = "cache"
"""``pretrained = "cache"``: the usual weights out of torchvision's cache; ``cache:NAME``: those of a name."""
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Classifiers that only the training of these networks needs."""


def cached(pretrained: str) -> bool:
    """Whether the word asks for the library's cache."""
    return pretrained.partition(":")[0] == CACHE and not Path(pretrained).expanduser().is_file()


def place(network: str, pretrained: str) -> Path:
    """The file that `pretrained` names; `ValueError` with one line where it is not here."""
    if not cached(pretrained):
        path = Path(pretrained).expanduser()
        if not path.is_file():
            raise ValueError(f"pretrained = {pretrained!r}: no such file")
        return path
    try:
        found = wishes(network, pretrained.partition(":")[2])
    except ValueError as error:
        raise ValueError(f"pretrained = {pretrained!r}: {error}") from None
    if "url" not in found:
        raise ValueError(f"pretrained = {pretrained!r}: {network} has no cache of weights; name a file")
    path = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(found["url"])
    if not path.is_file():
        raise ValueError(
            f"pretrained = {pretrained!r}: {path} is not there, and nothing is downloaded; get {found['url']} yourself"
        )
    return path


def tensors_of(pretrained: str, path: Path) -> dict[str, Tensor]:
    """The table of tensors in a file; `ValueError` with one line where it is none.

    A table may lie in another one below ``state_dict`` or ``model``, and its names may begin with ``module.``.
    """
    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"pretrained = {pretrained!r}: no weights could be read ({reason[:100]});"
            " it takes .safetensors, or a file of torch.save with tensors only"
        ) from None
    for word in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(word), Mapping):
            found = found[word]
    if not isinstance(found, Mapping) or not found or not all(isinstance(each, Tensor) for each in found.values()):
        raise ValueError(f"pretrained = {pretrained!r}: holds no table of tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}


def library_names(network: nn.Module) -> dict[str, str]:
    """Names in the network's `state_dict` by the names that the library has for them."""
    parts = [name for name, module in network.named_modules() if isinstance(module, Part)]
    found = {}
    for ours in network.state_dict():
        for at in parts:
            if ours.startswith(f"{at}.body."):
                found[ours.removeprefix(f"{at}.body.")] = ours
    return found


def take_weights(network: Any, pretrained: str) -> bool:
    """Let a cut network begin with pretrained weights; whether its classifier's were taken, too.

    A last layer of another number of classes keeps its own initialisation. Position embeddings of a vision transformer
    are interpolated to the images' size. Raises `ValueError` with one line naming the tensors that do not fit; then
    nothing was changed.
    """
    config = network.config
    theirs = tensors_of(pretrained, place(config.network, pretrained))
    theirs = {name: each for name, each in theirs.items() if not name.startswith(_AUXILIARY)}
    theirs = _interpolated(config.network, network.pixels[0], theirs)
    names, state, taken = library_names(network), network.state_dict(), {}
    unfit, own = [], False
    for name, tensor in theirs.items():
        ours = names.get(name)
        if ours is not None and state[ours].shape == tensor.shape:
            taken[ours] = tensor
        elif ours is not None and name.rpartition(".")[0] == network.last_layer:
            own = True
        elif ours is not None:
            unfit.append(f"{name} has shape {tuple(tensor.shape)} and must have {tuple(state[ours].shape)}")
        elif not name.endswith("num_batches_tracked"):
            unfit.append(f"{name} does not exist here")
    lacks = [n for n, ours in names.items() if n not in theirs and not ours.endswith("num_batches_tracked")]
    unfit += [f"{name} is missing in the file" for name in lacks]
    if unfit:
        more = f", and {len(unfit) - 3} more" if len(unfit) > 3 else ""
        raise ValueError(f"pretrained = {pretrained!r}: does not fit {config.network}: {'; '.join(unfit[:3])}{more}")
    nn.Module.load_state_dict(network, taken, strict=False)
    return not own


def _interpolated(network: str, size: int, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    name, key = named(network), "encoder.pos_embedding"
    if name.kind != "torchvision" or not name.word.startswith("vit_") or key not in theirs:
        return theirs
    from torchvision.models.vision_transformer import interpolate_embeddings

    patch = int(name.word.rpartition("_")[2])
    return dict(interpolate_embeddings(size, patch, dict(theirs)))  # pyright: ignore[reportArgumentType]
