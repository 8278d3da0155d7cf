"""Where a backbone comes from: torchvision, timm, a person's own Python file, or our own residual bodies.

=============================== =================================================================================
name                            built by
=============================== =================================================================================
``torchvision:resnet18``        `torchvision.models.get_model`, without weights
``timm:convnext_atto``          `timm.create_model`, without weights; timm is no dependency of routefront
``mine.py:build``               the function ``build(classes)`` of that file
``resnet-20``                   our own CIFAR ResNet, shortcuts B
=============================== =================================================================================

A function may take ``classes``, ``channels`` and ``size`` by name, or the number of classes alone; what it returns maps
(B, channels, size, size) to logits (B, classes). The file stands alone: it may import what is installed, not files
beside it, because it travels with checkpoints and promoted models.

Whoever builds such a network runs the file, and a process does so only where it was told to (`spaces.own_networks`).
"""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from spaces import own_networks
from spaces.space import nearest
from trainables.contracts.network import Task
from trainables.networks.initialisation import he_fan_out
from trainables.networks.resnet.cifar import blocks_per_group, cifar_resnet

LEAST_MOMENTUM = 0.1
"""Of batch norms of torchvision's and timm's networks while they train: torch's default, which our own networks have.
MobileNetV3's 0.01 and MNASNet's 0.0003 are those of trainings of 100,000 steps. Running averages would trail behind the
weights in trainings of some hundred: a MobileNetV3 of 228 steps then classified 12 % of digits by them, and 93 % by the
statistics of its batches."""
WIDE = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")
"""Networks of torchvision whose channels a factor multiplies."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a network's name says: its `kind` (torchvision, timm, file or ours), the model or function `word`, and the
    `path` of a file.
    """

    kind: str
    word: str
    path: str = ""


def named(network: str) -> Name:
    """What the name of a backbone stands for; `ValueError` with one line where it is none.

    A file needs not be here (a served model brings it along); a model of torchvision or timm must exist.
    """
    kind, colon, word = network.partition(":")
    if colon and kind == "torchvision":
        known = torchvision_models()
        if word not in known:
            raise ValueError(f"network = {network!r}: torchvision has no classifier {word!r}{nearest(word, known)}")
        return Name(kind, word)
    if colon and kind == "timm":
        if find_spec("timm") is None:
            raise ValueError(f"network = {network!r}: timm is not installed (pip install timm)")
        return Name(kind, word)
    found = own_networks.parts(network)
    if found is not None:
        return Name("file", found[1], found[0])
    if network.startswith("resnet-"):
        blocks_per_group(network)
        return Name("ours", network)
    raise ValueError(
        f"network = {network!r}: must be torchvision:MODEL, timm:MODEL, FILE.py:FUNCTION or resnet-N, for example"
        " torchvision:mobilenet_v3_small"
    )


def is_backbone(network: str) -> bool:
    """Whether a name is that of a network that others wrote."""
    return network.startswith(("torchvision:", "timm:")) or own_networks.parts(network) is not None


@cache
def torchvision_models() -> tuple[str, ...]:
    """Names of torchvision's classifiers; the segmentation, detection, video and quantised ones are not among them."""
    from torchvision import models

    return tuple(sorted(models.list_models(module=models)))


# -- files -----------------------------------------------------------------------------------------


def _function_of(network: str, text: str) -> Any:
    name = named(network)
    if not own_networks.trusts(text):
        raise ValueError(
            f"network = {network!r}: building it runs {name.path}, to which nobody has agreed here; after you have read"
            " it: routefront status STUDY --trust, or routefront.trust_network(NAME) in Python"
        )
    module = types.ModuleType(f"routefront_network_{own_networks.digest(text)[:12]}")
    module.__file__ = name.path
    try:
        exec(compile(text, name.path, "exec"), module.__dict__)  # noqa: S102  # trusted above, by its very text
    except Exception as error:
        raise ValueError(f"network = {network!r}: {name.path} fails: {type(error).__name__}: {error}") from None
    function = getattr(module, name.word, None)
    if not callable(function):
        raise ValueError(f"network = {network!r}: {name.word} of {name.path} is no function")
    return function


def _from_file(network: str, text: str, task: Task) -> tuple[nn.Module, int]:
    function = _function_of(network, text)
    offered: dict[str, Any] = {"classes": task.classes, "channels": task.channels, "size": task.size}
    try:
        takes = inspect.signature(function).parameters
    except (TypeError, ValueError):
        takes = {}
    every = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values())
    given = {name: value for name, value in offered.items() if every or name in takes}
    try:
        model = function(**given) if given else function(task.classes)
    except Exception as error:
        raise ValueError(f"network = {network!r}: the function fails: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise ValueError(f"network = {network!r}: the function returns {type(model).__name__}, no torch.nn.Module")
    return model, task.channels if "channels" in given else 3


# -- building --------------------------------------------------------------------------------------


class _Body(nn.Module):
    """One of our residual bodies as anybody's module."""

    def __init__(self, name: str, task: Task, width: float) -> None:
        super().__init__()
        body = cifar_resnet(name, task, width=width, shortcut="B")
        self.stem, self.blocks, self.classifier = body.stem, nn.Sequential(*body.blocks), body.classifier

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, size, size) to logits (B, classes)."""
        return self.classifier(self.blocks(self.stem(images)))


def build(network: str, task: Task, *, width: float = 1.0) -> tuple[nn.Module, int]:
    """The module of a backbone for a task, without pretrained weights, and the channels of images that it reads.

    Raises `ValueError` with one line for what cannot be built, and a `width` that the family does not know.
    """
    name = named(network)
    if name.kind == "ours":
        body = _Body(network, task, width)
        he_fan_out(body)
        return body, task.channels
    if width != 1.0 and not (name.kind == "torchvision" and name.word in WIDE):
        raise ValueError(f"width = {width!r}: {network} has no factor of its channels; {', '.join(WIDE)} have")
    if name.kind == "file":
        return _from_file(network, own_networks.text_of(network), task)
    try:
        model = _of_timm(name.word, task) if name.kind == "timm" else _of_torchvision(name.word, task, width)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"network = {network!r}: cannot be built for {task.pixels} pixels: {error}") from None
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, LEAST_MOMENTUM)
    return model, 3


def _of_timm(word: str, task: Task) -> nn.Module:
    """A model of timm. Those whose weights depend on the size of images (positions, windows) are told the size."""
    import timm

    if not timm.is_model(word):
        close = difflib.get_close_matches(word, timm.list_models(), n=1)
        raise ValueError(f"timm has no model {word!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    known = timm.get_pretrained_cfg(word)
    sized: dict[str, Any] = {"img_size": task.size} if known is not None and known.fixed_input_size else {}
    return timm.create_model(word, pretrained=False, num_classes=task.classes, **sized)


def _of_torchvision(word: str, task: Task, width: float) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {"num_classes": task.classes, "weights": None}
    if word in WIDE and width != 1.0:
        options["width_mult"] = width
    if word.startswith("vit_"):
        if task.height != task.width:
            raise ValueError("its positions are those of square images; give one number as image_size")
        options["image_size"] = task.size
    if word.startswith("maxvit"):
        options["input_size"] = (task.height, task.width)
    if word in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    return models.get_model(word, **options)


def wishes(network: str, weights: str = "") -> Mapping[str, Any]:
    """What the pretrained weights of a model of torchvision were trained on: `size`, `mean`, `std`, `url`, `name`.

    Of a model of timm `mean` and `std` alone: its weights are files. Empty for other networks. `weights`: their name,
    the usual ones where it is empty; `ValueError` for another name.
    """
    name = named(network)
    if name.kind == "timm" and not weights:
        import timm

        known = timm.get_pretrained_cfg(name.word) if timm.is_model(name.word) else None
        return {} if known is None else {"mean": tuple(known.mean), "std": tuple(known.std)}
    if name.kind != "torchvision":
        return {}
    from torchvision import models

    known = models.get_model_weights(name.word)
    if weights and weights not in known.__members__:
        raise ValueError(f"{network} has no weights {weights!r}{nearest(weights, list(known.__members__))}")
    found: Any = known[weights] if weights else known["DEFAULT"]
    how = found.transforms()
    return {
        "name": found.name,
        "url": found.url,
        "size": int(how.crop_size[0]),
        "mean": tuple(map(float, how.mean)),
        "std": tuple(map(float, how.std)),
    }


def packages(network: str) -> tuple[str, ...]:
    """Distributions that building a network takes beside torch: what a served model must have installed."""
    name = named(network)
    if name.kind in ("torchvision", "timm"):
        return (name.kind,) if name.kind == "torchvision" else ("timm", "torchvision")
    if name.kind == "ours":
        return ()
    brings = packages_distributions()
    found = {each for module in own_networks.imports(own_networks.text_of(network)) for each in brings.get(module, ())}
    return tuple(sorted(found - {"torch", "numpy", "safetensors", "routefront"}))
