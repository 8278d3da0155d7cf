"""BlockDrop's policy network as a router: one look at the image decides about all gates in advance.

Z. Wu et al., "BlockDrop: dynamic inference paths in residual networks", CVPR 2018, arXiv
1711.08393, section 3.2. Shape legend: B images, G gates, c channels, h height (= width).
"""

from __future__ import annotations

from torch import Tensor, nn

from trainables.contracts.network import Task
from trainables.contracts.router import Router, Shape
from trainables.execution.macs import macs_of
from trainables.networks.resnet.cifar import Body, cifar_resnet
from trainables.networks.resnet.imagenet import imagenet_resnet

LARGE = 128


class PolicyRouter(Router):
    """A small network that answers all gates from the image, before the first block runs.

    `body` gives the stem and the blocks (its classifier is not used), a linear head turns their
    pooled features into the logits of `gates` gates: the router's memory is these logits (B, G),
    and a gate only reads its column. `image` is the shape (c, h, h) of the images, which are
    average-pooled by `shrink` first (2 on ImageNet). `value` adds the second head of the public
    code, whose one output nobody reads.
    """

    def __init__(self, body: Body, image: Shape, gates: int, *, shrink: int = 1, value: bool = False) -> None:
        super().__init__()
        pool = [nn.AvgPool2d(shrink, ceil_mode=True)] if shrink > 1 else []
        self.features = nn.Sequential(*pool, body.stem, *body.blocks)
        channels = body.shapes[-1][0]
        self.head = nn.Linear(channels, gates)
        self.value = nn.Linear(channels, 1) if value else None
        self._image = image

    def begin(self, images: Tensor) -> Tensor:
        """The logits z (B, G) of all gates."""
        pooled = self.features(images).mean(dim=(2, 3))
        if self.value is not None:
            self.value(pooled)
        return self.head(pooled)

    def forward(self, gate: int, features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `Router`."""
        return memory[:, gate], memory

    def macs(self, gate: int) -> tuple[int, int]:
        """See `Router`: nothing is left to compute."""
        return 0, 0

    def macs_ahead(self) -> tuple[int, int]:
        """See `Router`."""
        convolutions = macs_of(self.features, self._image)[0]
        heads = [self.head] if self.value is None else [self.head, self.value]
        return convolutions + sum(head.in_features * head.out_features for head in heads), convolutions

    def outputs(self) -> list[nn.Linear | nn.Conv2d]:
        """See `Router`."""
        return [self.head]


def policy_of(gates: int, image: Shape, *, width: float = 1.0, value: bool = False) -> PolicyRouter:
    """The paper's policy network: one block in each of three groups (8 layers), of 16 to 64 channels.

    Images of `LARGE` pixels and more get that for ImageNet: one block in each of four groups (10
    layers), of 64 to 512 channels, on images pooled by 2. `width` multiplies the channels. Raises
    `ValueError` where the image is too small for the strides.
    """
    channels, height, across = image
    if min(height, across) >= LARGE:
        task = Task(size=(-(-height // 2), -(-across // 2)), channels=channels)
        return PolicyRouter(
            imagenet_resnet("resnet-10-imagenet", task, width=width), image, gates, shrink=2, value=value
        )
    body = cifar_resnet("resnet-8", Task(size=(height, across), channels=channels), width=width, shortcut="pool")
    return PolicyRouter(body, image, gates, value=value)
