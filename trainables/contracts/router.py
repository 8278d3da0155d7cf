"""The contract of a router: what decides which gated blocks run.

Shape legend: B images, G gates, c channels, h height (= width).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

Shape = tuple[int, int, int]


class Router(nn.Module, ABC):
    """Decides about G gates in the order of the network's depth.

    What a router remembers from gate to gate (an LSTM's state, or decisions that a policy network
    has made in advance) is a tensor with one row per image, so that the caller can gather, copy
    and drop rows along with the activations.
    """

    def begin(self, images: Tensor) -> Tensor:
        """The memory (B, m) before the first gate; m = 0 where a router remembers nothing."""
        return images.new_zeros(len(images), 0)

    @abstractmethod
    def forward(self, gate: int, features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The logit z (B,) of a gate that reads `features` (B, c, h, h), and the new memory."""

    @abstractmethod
    def macs(self, gate: int) -> tuple[int, int]:
        """MACs per image of one answer: in all, and those in convolutions."""

    def outputs(self) -> list[nn.Linear | nn.Conv2d]:
        """The layers whose outputs are, or differ by, the logits."""
        return []

    def macs_ahead(self) -> tuple[int, int]:
        """MACs per image of `begin`: in all, and those in convolutions."""
        return 0, 0
