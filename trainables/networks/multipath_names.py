"""Names, measures and places of multi-path networks: what `multipath_bodies` builds.

D. Tissera et al., "End-to-end data-dependent routing in multi-path neural networks", arXiv 2107.02450,
table 1 and sections 6 and 7. Routing attaches at *places*, the names of layers: cross-connections and
cross-stitch behind a layer (and its pool), or at ``input``; cross-prediction in the place of a convolution or
linear layer, and in residual networks as a convolution of its own behind a stack.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from spaces.space import nearest
from trainables.networks.imagenet import GROUPS
from trainables.networks.resnet import blocks_per_group
from trainables.networks.routing_layers import GATE_SIZE

# groups of convolutions, linear layers before the classifier, whether the last group is pooled too
PLAIN = {
    "basecnn": (((32, 32), (64, 64), (128, 128)), (32, 32), False),
    "widecnn": (((64, 64), (128, 128), (256, 256)), (32, 32), False),
    "deepcnn": (((32, 32), (64, 64), (128,) * 3, (256,) * 3), (32, 32), False),
    "vgg-13": (((32, 32), (64, 64), (128, 128), (256, 256), (256, 256)), (256, 256), True),
}
_NAME = re.compile(r"(se)?(basecnn|widecnn|deepcnn|vgg-13|resnet-\d+)(?:-(\d+))?(-imagenet)?(?:-(cp|cc|stitch|none))?")
NETWORKS = (
    *PLAIN,
    *(f"{body}-{paths}" for body in ("basecnn", "resnet-20", "resnet-32") for paths in (2, 3, 4)),
    *("vgg-13-2", "resnet-8-2", "resnet-18-2-imagenet", "resnet-34-2-imagenet", "resnet-50-2-imagenet"),
)
SE_RATIO = 16
"""Squeeze and excitation's own (Hu et al.); Tissera et al. name none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a body is built from.

    `places` is ``published``, ``all``, ``first`` or ``last`` (of the published ones), or names with commas between
    them; `width` multiplies the channels of convolutions; `se_ratio` 0 is without squeeze and excitation.
    """

    family: str
    paths: int = 1
    imagenet: bool = False
    routing: str = "none"
    places: str = "published"
    width: float = 1.0
    gate_size: int = GATE_SIZE
    batch_norm: bool = True
    se_ratio: int = 0
    shortcut: str = "B"

    @property
    def residual(self) -> bool:
        """Whether the body is a residual network."""
        return self.family not in PLAIN

    def wide(self, channels: int) -> int:
        """Channels under the multiplier."""
        return max(1, round(channels * self.width))


def parse(name: str) -> Layout:
    """What a name says: ``basecnn``, ``sebasecnn``, ``basecnn-3``, ``resnet-18-2-imagenet`` and the like.

    Each may have -cp, -cc, -stitch or -none behind it, where the routing is not said elsewhere.

    Raises `ValueError` for other names, 0 paths and depths that do not exist; `routing` is empty where the name is
    silent.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        known = "must be basecnn-X, widecnn-X, deepcnn-X, vgg-13-X, resnet-N-X or resnet-N-X-imagenet with X paths"
        raise ValueError(f"network = {name!r}: {known}{nearest(name, NETWORKS)}")
    se, family, paths, imagenet, routing = match.groups()
    if paths is not None and int(paths) < 1:
        raise ValueError(f"network = {name!r}: the number of paths X must be at least 1")
    depth = family.partition("-")[2]
    if family.startswith("resnet"):
        if imagenet and depth not in GROUPS:
            raise ValueError(f"network = {name!r}: ImageNet bodies have {', '.join(GROUPS)} layers, not {depth}")
        if not imagenet:
            blocks_per_group(family)
        if se:
            raise ValueError(f"network = {name!r}: squeeze and excitation is for {', '.join(PLAIN)}")
    elif imagenet:
        raise ValueError(f"network = {name!r}: only resnet-N-X has an ImageNet form; {family} takes any image size")
    return Layout(
        family=family,
        paths=int(paths or 1),
        imagenet=bool(imagenet),
        routing=routing or "",
        se_ratio=SE_RATIO if se else 0,
    )


def places_of(layout: Layout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(all places that the body has for the routing, the published ones), from the image to the classifier."""
    predicts = layout.routing == "cp"
    if layout.residual:
        stacks = [f"stack{k + 1}" for k in range(4 if layout.imagenet else 3)]
        places = ("stem", *stacks)
        return places, (places[:-1] if predicts else places)
    groups, dense, _ = PLAIN[layout.family]
    firsts, lasts, count = [], [], 0
    for group in groups:
        firsts.append(f"conv{count + 1}")
        count += len(group)
        lasts.append(f"conv{count}")
    layers = [*(f"conv{k + 1}" for k in range(count)), *(f"dense{k + 1}" for k in range(len(dense)))]
    if predicts:
        return tuple(layers), (*firsts, "dense2")
    return ("input", *layers), ("input", *lasts, "dense1")


def chosen_places(layout: Layout) -> tuple[str, ...]:
    """The places where a body routes, in its order.

    Raises `ValueError` with the list of its places where it lacks one that is asked for.
    """
    if layout.routing == "none":
        return ()
    known, published = places_of(layout)
    words = {"published": published, "all": known, "first": published[:1], "last": published[-1:]}
    if layout.places in words:
        return words[layout.places]
    asked = [place.strip() for place in layout.places.split(",")]
    for place in asked:
        if place not in known:
            words_too = f"{', '.join(words)}, or of {', '.join(known)} with commas"
            raise ValueError(
                f"places = {layout.places!r}: {layout.family} has no place {place!r} for {layout.routing}; "
                f"it takes one of {words_too}"
            )
    return tuple(place for place in known if place in asked)
