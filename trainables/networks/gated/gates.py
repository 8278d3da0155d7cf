"""Routers and relaxations: what decides whether a block runs, and how the decision is made soft.

Shape legend: B images, G gates, c channels, h height (= width).

Every router answers a gate with one logit per image, ``z = U[run] - U[skip]``: P(run) is
``sigmoid(z)``, the two-way softmax of U. A router with a single output has U = (0, z).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.contracts.router import Router, Shape
from trainables.execution.macs import macs_of
from trainables.networks.gated.policy import policy_of


class LinearGate(nn.Module):
    """Global average pooling, FC(c to c), ReLU, FC(c to 2).

    ``plain`` leaves the ReLU out, as CoDiNet's public code does.
    """

    def __init__(self, shape: Shape, *, plain: bool = False) -> None:
        super().__init__()
        channels = shape[0]
        self.fc1 = nn.Linear(channels, channels)
        self.fc2 = nn.Linear(channels, 2)
        self.plain = plain

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, c, h, h) to U (B, 2)."""
        hidden = self.fc1(features.mean(dim=(2, 3)))
        return self.fc2(hidden if self.plain else F.relu(hidden))


def _conv_bn_relu(channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU()]


class ConvGate(nn.Module):
    """SkipNet's feed-forward gates.

    FF-I (``pool=True``): max-pool 2, two 3 x 3 convolutions, the second with stride 2; FF-II: one
    3 x 3 convolution with stride 2. Both end in global average pooling and a 1 x 1 convolution.
    """

    def __init__(self, shape: Shape, *, pool: bool) -> None:
        super().__init__()
        channels = shape[0]
        first = [nn.MaxPool2d(2), *_conv_bn_relu(channels, 1)] if pool else []
        self.features = nn.Sequential(*first, *_conv_bn_relu(channels, 2))
        self.out = nn.Conv2d(channels, 2, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, c, h, h) to U (B, 2)."""
        return self.out(self.features(features).mean(dim=(2, 3), keepdim=True)).flatten(1)


class PointwiseGate(nn.Module):
    """ConvNet-AIG's gate: global average pooling, 1 x 1 convolution to 16, batch norm, ReLU, 1 x 1 convolution to 2.

    Pooling leaves one value per image and channel, of which a training batch of one image has no
    variance: it is normalised by the running statistics, which then stay as they are.
    """

    def __init__(self, shape: Shape, *, hidden: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape[0], hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, 2, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, c, h, h) to U (B, 2)."""
        pooled, norm = self.conv1(features.mean(dim=(2, 3), keepdim=True)), self.bn1
        known = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        hidden = norm(pooled) if len(pooled) > 1 else F.batch_norm(pooled, *known, eps=norm.eps)
        return self.conv2(F.relu(hidden)).flatten(1)


class LocalRouter(Router):
    """Independent gates, each with its own weights and no memory."""

    def __init__(self, gates: Sequence[nn.Module], shapes: Sequence[Shape]) -> None:
        super().__init__()
        self.gates = nn.ModuleList(gates)
        self._shapes = tuple(shapes)

    def forward(self, gate: int, features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `Router`."""
        scores = self.gates[gate](features)
        return scores[:, 1] - scores[:, 0], memory

    def outputs(self) -> list[nn.Linear | nn.Conv2d]:
        """See `Router`."""
        last = [list(gate.children())[-1] for gate in self.gates]
        return [layer for layer in last if isinstance(layer, nn.Linear | nn.Conv2d)]

    def macs(self, gate: int) -> tuple[int, int]:
        """See `Router`."""
        total = macs_of(self.gates[gate], self._shapes[gate])[0]
        return total, total if isinstance(self.gates[gate], ConvGate | PointwiseGate) else 0


class RecurrentRouter(Router):
    """SkipNet's recurrent gate: pooling and a 1 x 1 convolution per gate, one LSTM for all of them.

    The LSTM's state starts at zero for every image and is carried along the depth; a shared
    linear layer turns its output into the logit.
    """

    def __init__(self, shapes: Sequence[Shape], *, embed: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Conv2d(channels, embed, 1) for channels, _, _ in shapes)
        self.lstm = nn.LSTMCell(embed, hidden)
        self.out = nn.Linear(hidden, 1)

    def begin(self, images: Tensor) -> Tensor:
        """The zero state, output and cell side by side: (B, 2 * hidden)."""
        return images.new_zeros(len(images), 2 * self.lstm.hidden_size)

    def forward(self, gate: int, features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `Router`."""
        embedded = self.embed[gate](features.mean(dim=(2, 3), keepdim=True)).flatten(1)
        output, cell = self.lstm(embedded, memory.chunk(2, dim=1))
        return self.out(output).squeeze(1), torch.cat([output, cell], dim=1)

    def outputs(self) -> list[nn.Linear | nn.Conv2d]:
        """See `Router`."""
        return [self.out]

    def macs(self, gate: int) -> tuple[int, int]:
        """See `Router`."""
        embed = self.embed[gate]
        assert isinstance(embed, nn.Conv2d)
        convolution = macs_of(embed, (embed.in_channels, 1, 1))[0]
        step = macs_of(self.lstm, (self.lstm.input_size,))[0] + macs_of(self.out, (self.lstm.hidden_size,))[0]
        return convolution + step, convolution


GATES = ("linear", "ff1", "ff2", "rnn", "conv1x1", "policy")


def router_of(
    kind: str,
    shapes: Sequence[Shape],
    *,
    plain: bool = False,
    embed: int = 10,
    hidden: int = 10,
    image: Shape | None = None,
    width: float = 1.0,
) -> Router:
    """A router for gates that read features of these shapes (c, h, h).

    `plain` concerns the linear gates, `embed` and `hidden` the recurrent one, `image` (its shape)
    and `width` the policy network. Raises `ValueError` for a kind that is not one of `GATES`, and
    for a policy network without an image.
    """
    match kind:
        case "linear":
            return LocalRouter([LinearGate(shape, plain=plain) for shape in shapes], shapes)
        case "ff1" | "ff2":
            return LocalRouter([ConvGate(shape, pool=kind == "ff1") for shape in shapes], shapes)
        case "conv1x1":
            return LocalRouter([PointwiseGate(shape) for shape in shapes], shapes)
        case "rnn":
            return RecurrentRouter(shapes, embed=embed, hidden=hidden)
        case "policy":
            if image is None:
                raise ValueError("image = None: a policy network reads images; name their shape (c, h, h)")
            return policy_of(len(shapes), image, width=width)
    raise ValueError(f"gate = {kind!r}: must be one of {', '.join(GATES)}")


def hard_at(probability: Tensor, threshold: float | Tensor = 0.5) -> Tensor:
    """1 where P(run) reaches the threshold, else 0, in the probability's type, without a gradient."""
    return (probability.detach() >= threshold).to(probability.dtype)


def gumbel(logit: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    r"""A sample of the two-way Gumbel softmax.

    .. math:: v = \mathrm{softmax}((U + g) / T)_{run} = \sigma((z + g_1 - g_0) / T)

    g is standard Gumbel noise; the difference of two such draws is a single logistic draw
    (Jang et al. 2017, arXiv 1611.01144; Maddison et al. 2017, arXiv 1611.00712).
    """
    return torch.sigmoid((logit + _logistic(logit, generator)) / temperature)


def _uniform(logit: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform draws in [0, 1) for logits (B,), float32 at least: bfloat16 has 256 of them, one in 512 of which is 0."""
    dtype = torch.promote_types(logit.dtype, torch.float32)
    return torch.rand(logit.shape, generator=generator, device=logit.device, dtype=dtype)


def _logistic(logit: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws of the standard logistic distribution, float32 at least: the difference of two standard Gumbel draws."""
    uniform = _uniform(logit, generator)
    return uniform.clamp(min=torch.finfo(uniform.dtype).tiny).log() - torch.log1p(-uniform)


def softmax(logit: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    r"""The probability itself, :math:`v = \sigma(z / T)`."""
    return torch.sigmoid(logit / temperature)


def straight_through(logit: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    r"""The hard decision forward, the soft one's gradient backward.

    .. math:: v = 1[S \ge 1/2] + (S - \mathrm{sg}[S]), \quad S = \sigma(z / T)

    (SkipNet, eq. 7.) S - sg[S] is an exact zero before it is added, so that v is exactly 0 or 1.
    """
    soft = torch.sigmoid(logit / temperature)
    return hard_at(soft) + (soft - soft.detach())


def gumbel_straight_through(logit: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    r"""A hard sample forward, the gradient of the Gumbel softmax it was taken from backward.

    .. math:: v = 1[S \ge 1/2] + (S - \mathrm{sg}[S]), \quad S = \sigma((z + g_1 - g_0) / T)
    """
    soft = gumbel(logit, temperature, generator)
    return hard_at(soft) + (soft - soft.detach())


def bernoulli(logit: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    r"""A hard sample, :math:`v \sim \mathrm{Bernoulli}(\sigma(z / T))`, without a gradient: an action of a policy."""
    uniform = _uniform(logit, generator)
    return (uniform < torch.sigmoid(logit.detach().to(uniform.dtype) / temperature)).to(logit.dtype)


def hard(logit: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """The hard decision, without noise and without a gradient."""
    return hard_at(torch.sigmoid(logit))


DETACHED = {"softmax_detached": "softmax", "gumbel_detached": "gumbel"}
"""Relaxations whose hard value mixes, without a gradient, while losses over paths read the soft one (CoDiNet)."""

RELAXATIONS: dict[str, Callable[[Tensor, float, torch.Generator | None], Tensor]] = {
    "gumbel": gumbel,
    "softmax": softmax,
    "straight_through": straight_through,
    "gumbel_straight_through": gumbel_straight_through,
    "bernoulli": bernoulli,
    "hard": hard,
}


def relax(name: str, logit: Tensor, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Decisions (B,) in [0, 1] from logits z (B,) by a relaxation of `RELAXATIONS`.

    `temperature` T divides z; noise comes from `generator`. Raises `ValueError` for an unknown name.
    """
    if name not in RELAXATIONS:
        raise ValueError(f"relaxation = {name!r}: must be one of {', '.join(RELAXATIONS)}")
    return RELAXATIONS[name](logit, temperature, generator)


def image_noise(images: Tensor, seed: int, count: int) -> Tensor:
    """Uniform draws (B, count) in [0, 1) that follow from each image's pixels and the seed alone.

    An image draws the same in whatever batch, order or process it comes, so that stochastic
    inference can be repeated. The pixels' bits are hashed by sums of odd multiples modulo 2**64,
    the draws are SplitMix64 (Steele et al. 2014) of that hash, the seed and the position.
    """
    pixels = images.detach().float().flatten(1).contiguous().view(torch.int32).long()
    odd = torch.arange(pixels.shape[1], device=images.device) * _GOLDEN | 1
    key = (pixels * _mixed(odd)).sum(dim=1)
    position = torch.arange(1, count + 1, device=images.device) * _GOLDEN
    bits = _mixed(_mixed(key + seed * 2 + 1)[:, None] + position)
    return (bits >> 40 & 0xFFFFFF).float() / (1 << 24)


_GOLDEN = -7046029254386353131  # 2**64 over the golden ratio, as a signed number


def _mixed(bits: Tensor) -> Tensor:
    """The output function of SplitMix64 on signed 64-bit numbers, whose products wrap around."""
    bits = (bits ^ (bits >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
    bits = (bits ^ (bits >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
    return bits ^ (bits >> 31 & 0x1FFFFFFFF)


@torch.no_grad()
def first_gates(router: Router, *, skip: float, run: float, std: float) -> None:
    """Draw a router's last layers with the standard deviation `std`, and set their biases for skipping and running.

    Layers that answer one logit a gate begin with the difference of the two.
    """
    for layer in router.outputs():
        nn.init.normal_(layer.weight, std=std)
        assert layer.bias is not None
        if isinstance(router, LocalRouter):  # U of one gate: skip, run
            layer.bias.copy_(torch.tensor([skip, run]))
        else:
            layer.bias.fill_(run - skip)
