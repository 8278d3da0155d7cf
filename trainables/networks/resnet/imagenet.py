"""The ImageNet ResNets of He et al.: basic and bottleneck blocks in four groups, torchvision's weights.

Reference: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR
2016, arXiv 1512.03385, table 1. A bottleneck's stride is on its 3 x 3 convolution, as in
torchvision and in SkipNet's public code (the paper has it on the first 1 x 1).
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from spaces.space import nearest
from trainables.contracts.network import RoutedNetwork, Task
from trainables.networks.resnet.cifar import (
    NETWORKS,
    SHORTCUTS,
    BasicBlock,
    Body,
    Classifier,
    ResidualBlock,
    Shape,
    blocks_per_group,
    cifar_resnet,
    shortcut_of,
)

GROUPS = {"10": (1, 1, 1, 1), "18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}
IMAGENET_NETWORKS = tuple(f"resnet-{depth}-imagenet" for depth in GROUPS)
RESIDUAL_NETWORKS = (*NETWORKS, *IMAGENET_NETWORKS)
RESIDUAL_SHORTCUTS = ("auto", *SHORTCUTS)
SMALLEST_IMAGENET_IMAGE = 32
"""Pixels below which the last group would see maps of less than a position: they are halved five times."""


class Bottleneck(ResidualBlock):
    """1 x 1, 3 x 3 (strided) and 1 x 1 convolutions with batch norm, the last four times as wide."""

    EXPANSION = 4

    def __init__(self, channels_in: int, channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        out = channels * self.EXPANSION
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.shortcut = shortcut_of(shortcut, channels_in, out, stride)

    def branch(self, inputs: Tensor) -> Tensor:
        """See `ResidualBlock`."""
        inner = F.relu(self.bn1(self.conv1(inputs)))
        return self.bn3(self.conv3(F.relu(self.bn2(self.conv2(inner)))))


def check_residual(name: str) -> None:
    """Raise `ValueError` unless `name` is a residual network: ``resnet-(6n+2)`` or one of `IMAGENET_NETWORKS`."""
    if name in IMAGENET_NETWORKS:
        return
    if re.fullmatch(r"resnet-\d+", name) is None:
        known = f"must be resnet-N with N = 6n + 2, for example resnet-20, or one of {', '.join(IMAGENET_NETWORKS)}"
        raise ValueError(f"network = {name!r}: {known}{nearest(name, RESIDUAL_NETWORKS)}")
    blocks_per_group(name)


def block_count(name: str) -> int:
    """The residual blocks of a network by name; `ValueError` for an unknown one."""
    check_residual(name)
    return sum(GROUPS[name.split("-")[1]]) if name in IMAGENET_NETWORKS else 3 * blocks_per_group(name)


def residual_body(name: str, task: Task, *, width: float = 1.0, shortcut: str = "auto") -> Body:
    """The parts of a residual network by name.

    `width` multiplies the channels; the shortcut ``auto`` is the one that the network was published
    with: A on CIFAR, B on ImageNet. Raises `ValueError` for an unknown name or shortcut and for
    images that are too small.
    """
    check_residual(name)
    if name not in IMAGENET_NETWORKS:
        return cifar_resnet(name, task, width=width, shortcut="A" if shortcut == "auto" else shortcut)
    return imagenet_resnet(name, task, width=width, shortcut="B" if shortcut == "auto" else shortcut)


def static_donor(config: Any, task: Task, shortcut: str = "") -> dict[str, Any]:
    """See `Method.donor`: the static network of the same residual body.

    Option B can compute what a donor's option A does, shortcuts without weights only themselves; `shortcut` is the
    configuration's where it is not given.
    """
    wanted = {"method": "static", "network": config.network, "width": config.width}
    option, published = shortcut or config.shortcut, "B" if config.network in IMAGENET_NETWORKS else "A"
    option = published if option == "auto" else option
    if option == "B":
        return wanted
    return {**wanted, "shortcut": ("auto", option) if option == published else option}


def imagenet_resnet(name: str, task: Task, *, width: float = 1.0, shortcut: str = "B") -> Body:
    """The parts of ``resnet-18-imagenet`` and its like: 7 x 7 stem, pooling, four groups, classifier."""
    if task.edge < SMALLEST_IMAGENET_IMAGE:
        raise ValueError(
            f"size = {task.size!r}: {name} halves images five times and takes at least "
            f"{SMALLEST_IMAGENET_IMAGE} pixels a side"
        )
    depth = name.split("-")[1]
    base = max(1, round(64 * width))
    stem = nn.Sequential(
        nn.Conv2d(task.channels, base, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(base),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    height, across = (math.ceil(math.ceil(edge / 2) / 2) for edge in (task.height, task.width))
    blocks: list[ResidualBlock] = []
    shapes: list[Shape] = [(base, height, across)]
    for group, count in enumerate(GROUPS[depth]):
        for i in range(count):
            entering, height, across = shapes[-1]
            stride = 2 if group > 0 and i == 0 else 1
            channels = base * 2**group
            if depth in ("10", "18", "34"):
                blocks.append(BasicBlock(entering, channels, stride, shortcut))
            else:
                blocks.append(Bottleneck(entering, channels, stride, shortcut))
                channels *= Bottleneck.EXPANSION
            shapes.append((channels, math.ceil(height / stride), math.ceil(across / stride)))
    return Body(stem, blocks, Classifier(shapes[-1][0], task.classes), shapes)


def torchvision_names(name: str) -> dict[str, str]:
    """Our names of a body's layers by torchvision's, for ``resnet-18-imagenet`` and its like."""
    names = {"conv1": "stem.0", "bn1": "stem.1", "fc": "classifier.fc"}
    first = 0
    for group, count in enumerate(GROUPS[name.split("-")[1]], start=1):
        for i in range(count):
            theirs, ours = f"layer{group}.{i}", f"blocks.{first + i}"
            for part in range(1, 4):
                names |= {f"{theirs}.{kind}{part}": f"{ours}.{kind}{part}" for kind in ("conv", "bn")}
            names |= {f"{theirs}.downsample.{part}": f"{ours}.shortcut.{part}" for part in range(2)}
        first += count
    return names


def load_pretrained(network: RoutedNetwork, file: str) -> bool:
    """Take the weights of an ImageNet body from a file of torchvision's names; routers keep theirs.

    Pre-activation networks, which torchvision does not have, take files of our names: a checkpoint's network.

    `file` is .safetensors, or .pth as torchvision publishes it (read without unpickling code). A
    classifier of another number of classes keeps its own initialisation: the answer is whether the file's was
    taken. Raises `ValueError` with one line where the file is missing, cut off, needs unpickling,
    or is of another network.
    """
    name = network.config.network
    own = name.startswith("preact-")
    if name not in IMAGENET_NETWORKS and not own:
        raise ValueError(f"pretrained = {file!r}: only {', '.join(IMAGENET_NETWORKS)} take weights, not {name}")
    theirs = _tensors(file)
    state, names, taken = network.state_dict(), {} if own else torchvision_names(name), True
    mapped: dict[str, Tensor] = {}
    for key, tensor in theirs.items():
        layer, _, leaf = key.rpartition(".")
        ours = f"{names.get(layer, layer)}.{leaf}"
        if layer == ("classifier.fc" if own else "fc") and tensor.shape != state[ours].shape:
            taken = False
        elif ours not in state or state[ours].shape != tensor.shape:
            shape = f"has shape {tuple(tensor.shape)}" if ours in state else "does not exist here"
            raise ValueError(f"pretrained = {file!r}: is of another network than {name}; {key} {shape}")
        else:
            mapped[ours] = tensor
    wanted = [key for key in state if key.startswith(("stem.", "blocks.")) and not key.endswith("num_batches_tracked")]
    missing = [key for key in wanted if key not in mapped]
    if missing:
        raise ValueError(f"pretrained = {file!r}: is of another network than {name}; it lacks {missing[0]}")
    network.load_state_dict(mapped, strict=False)
    return taken


def _tensors(file: str) -> Mapping[str, Tensor]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"pretrained = {file!r}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"pretrained = {file!r}: no weights could be read ({reason[:100]}); "
            "it takes .safetensors, or .pth with tensors only"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"pretrained = {file!r}: holds no table of tensors")
    return found
