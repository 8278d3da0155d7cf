"""Columns, routers and their batch norm: the layers of the actor and critic networks (`networks.columns.tree`).

M. McGill, P. Perona, "Deciding how to decide: dynamic routing in artificial neural networks",
ICML 2017, arXiv 1703.06217, section 3.1 and figure 3.

Shape legend: B images, c channels, h height (= width) of a scale; scales are listed from the finest to
the coarsest.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.execution.fused import FusedConv


class _BiasedVariance(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose running variance averages the variances over n, not n - 1, values (TensorFlow's)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        assert self.running_var is not None and self.momentum is not None
        fresh = torch.zeros_like(self.running_var)
        output = F.batch_norm(input, self.running_mean, fresh, self.weight, self.bias, True, self.momentum, self.eps)
        count = input.numel() / input.shape[1]
        self.running_var.mul_(1 - self.momentum).add_(fresh, alpha=(count - 1) / count)
        return output


class BatchNorm2d(_BiasedVariance, nn.BatchNorm2d):
    """The paper's: epsilon 1e-6, statistics decay by 0.9 a step from mean 0 and variance 1."""

    def __init__(self, features: int) -> None:
        super().__init__(features, eps=1e-6, momentum=0.1)


class BatchNorm1d(_BiasedVariance, nn.BatchNorm1d):
    """As `BatchNorm2d`."""

    def __init__(self, features: int) -> None:
        super().__init__(features, eps=1e-6, momentum=0.1)


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What batch norm in eval mode multiplies by and adds, (c,) each, float64."""
    assert isinstance(norm, _BiasedVariance) and norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


def coarser(features: Tensor) -> Tensor:
    """(B, c, h, h) to (B, c, h / 2, h / 2), rounded up: the largest of 2 x 2 neighbours."""
    return F.max_pool2d(features, 2, ceil_mode=True)


def quickly_coarser(features: Tensor) -> Tensor:
    """`coarser` without a gradient: of many pixels two maxima of halves are four times as fast as pooling."""
    if features.numel() < 2**14 or features.shape[2] % 2 or features.shape[3] % 2:
        return coarser(features)
    rows = torch.maximum(features[:, :, ::2], features[:, :, 1::2])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


class Column(nn.Module):
    r"""Features on the coarsest `scales` scales of what it reads.

    .. math:: y_0 = b_0 + h_0 * x_0, \quad y_s = b_s + h_s * x_s + v_s * \mathrm{maxpool}_2(y_{s-1})

    and ReLU(BN(y_s)) is handed on: the vertical convolution reads y *before* its batch norm. All
    convolutions are 3 x 3. Of the coarsest scales `read` are handed on, as many as anybody reads; the
    batch norms of the others are there (the paper counts them) and idle.
    """

    def __init__(self, channels_in: int, channels: int, scales: int, read: int) -> None:
        super().__init__()
        self.channels, self.count, self.idle = channels, scales, scales - read
        self.across = nn.ModuleList(nn.Conv2d(channels_in, channels, 3, padding=1) for _ in range(scales))
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(scales - 1))
        self.norms = nn.ModuleList(BatchNorm2d(channels) for _ in range(scales))

    def forward(self, *scales: Tensor) -> list[Tensor]:
        """Scales of the column before it (the pyramid, for the first) to its own that are read, finest first."""
        outputs: list[Tensor] = []
        sums: Tensor | None = None
        for s, features in enumerate(scales[-self.count :]):
            before, sums = sums, self.across[s](features)
            if before is not None:
                sums = sums + self.down[s - 1](coarser(before))
            if s >= self.idle:
                outputs.append(self.norms[s](sums).relu_())
        return outputs

    def prepared(self, dtype: torch.dtype) -> nn.Module:
        """The fast form for `inference.prepare.prepared`."""
        return FusedColumn(self, dtype)


class EitherConv(nn.Module):
    """A convolution for inference, and a ReLU with `relu`: oneDNN's, or PyTorch's own for one image.

    Of one image a oneDNN call takes three times as long as what it computes on the smaller scales;
    PyTorch has a way of its own for batches of one.
    """

    def __init__(self, convolution: nn.Conv2d, *, relu: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.fused = FusedConv(convolution, relu=relu, dtype=dtype)
        self.plain = convolution.to(dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.plain.requires_grad_(False)
        self.relu, self.dtype = relu, dtype

    def forward(self, features: Tensor, into: Tensor | None = None) -> Tensor:
        """(B, c, h, h) to (B, c', h, h), added to `into`, which is overwritten, before the ReLU."""
        if len(features) != 1:
            return self.fused(features, into)
        output = self.plain(features.to(self.dtype))
        output = output if into is None else into.add_(output)
        return output.relu_() if self.relu else output


class FusedColumn(nn.Module):
    """A column for inference: the vertical convolution adds to the horizontal one's output in the same pass.

    Batch norm is folded away on the coarsest scale, whose sums nothing else reads, and is one
    multiplication and addition on the others.
    """

    def __init__(self, column: Column, dtype: torch.dtype) -> None:
        super().__init__()
        self.count, self.idle = column.count, column.idle
        across = [copy.deepcopy(each).double() for each in column.across]
        down = [copy.deepcopy(each).double() for each in column.down]
        *others, folded = map(scale_and_shift, column.norms)
        for convolution in (across[-1], *down[-1:]):
            assert isinstance(convolution, nn.Conv2d)
            convolution.weight.data *= folded[0][:, None, None, None]
            if convolution.bias is not None:
                convolution.bias.data = convolution.bias.data * folded[0] + folded[1]

        def fused(convolutions: list[nn.Module], last: bool) -> nn.ModuleList:
            ends = [last and each is convolutions[-1] for each in convolutions]
            pairs = zip(convolutions, ends, strict=True)
            return nn.ModuleList(EitherConv(each, relu=end, dtype=dtype) for each, end in pairs)  # pyright: ignore[reportArgumentType]

        # what is computed last on the coarsest scale ends with its ReLU
        self.across, self.down = fused(across, not down), fused(down, True)
        # plain attributes are quick to reach
        self.scaling = [tuple(each.to(dtype)[:, None, None] for each in pair) for pair in others]

    def forward(self, *scales: Tensor) -> list[Tensor]:
        """See `Column`."""
        outputs: list[Tensor] = []
        sums: Tensor | None = None
        for s, features in enumerate(scales[-self.count :]):
            before, sums = sums, self.across[s](features)
            if before is not None:
                sums = self.down[s - 1](quickly_coarser(before), sums)
            assert sums is not None
            if s == self.count - 1:
                outputs.append(sums)
            elif s >= self.idle:
                scale, shift = self.scaling[s]
                outputs.append(torch.addcmul(shift, sums, scale).relu_())
        return outputs


class Router(nn.Module):
    """Scores of the sinks of a junction from the coarsest features: hidden layers of FC, BN, ReLU, then FC.

    With `priced` the price of computation is one more input, whose weights are a layer of their own,
    so that a sweep over prices reads the features once.
    """

    def __init__(self, inputs: int, sinks: int, *, width: int = 16, depth: int = 2, priced: bool = False) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(inputs if k == 0 else width, width) for k in range(depth))
        self.price = nn.Linear(1, width, bias=False) if priced else None
        self.norms = nn.ModuleList(BatchNorm1d(width) for _ in range(depth))
        self.scores = nn.Linear(width, sinks)

    def read(self, features: Tensor) -> Tensor:
        """(B, inputs) to the first layer's sums (B, width), without the price."""
        return self.hidden[0](features.to(self.scores.weight.dtype))

    def score(self, sums: Tensor, price: Tensor | None = None) -> Tensor:
        """The first layer's sums (B, width) and, where it takes one, the price (B, 1) to scores (B, sinks)."""
        if self.price is not None:
            assert price is not None, "this router reads the price of computation"
            sums = sums + self.price(price.to(self.scores.weight.dtype))
        for k, norm in enumerate(self.norms):
            sums = norm(self.hidden[k](sums) if k else sums).relu()
        return self.scores(sums)

    def forward(self, features: Tensor, price: Tensor | None = None) -> Tensor:
        """Features (B, inputs) and the price (B, 1), where it takes one, to scores (B, sinks)."""
        return self.score(self.read(features), price)

    def tell(self, features: Tensor, price: Tensor | None = None) -> list[float]:
        """The scores of one image: features (1, inputs), price (1, 1)."""
        return self(features, price)[0].tolist()

    def prepared(self, dtype: torch.dtype) -> nn.Module:
        """A copy with batch norm folded into the layers, in float32 at least, for `inference.prepare.prepared`."""
        return FoldedRouter(self)


class FoldedRouter(Router):
    """A router for inference: batch norm folded into its layers; for one image on a CPU arithmetic of numpy."""

    def __init__(self, router: Router) -> None:
        nn.Module.__init__(self)
        wide = torch.promote_types(router.scores.weight.dtype, torch.float32)
        parts = copy.deepcopy(router).double()
        for k, norm in enumerate(router.norms):
            scale, shift = scale_and_shift(norm)
            for layer in (parts.hidden[k], parts.price if k == 0 else None):
                if isinstance(layer, nn.Linear):
                    layer.weight.data *= scale[:, None]
                    if layer.bias is not None:
                        layer.bias.data = layer.bias.data * scale + shift
        parts.to(wide).requires_grad_(False)
        self.hidden, self.price, self.scores = parts.hidden, parts.price, parts.scores
        self.norms = nn.ModuleList(nn.Identity() for _ in parts.norms)
        self._layers: list[tuple[np.ndarray, np.ndarray]] | None = None
        if router.scores.weight.device.type == "cpu" and wide == torch.float32:
            # the arrays share the layers' memory; numpy's calls cost less than PyTorch's
            self._layers = [(each.weight.numpy(), each.bias.numpy()) for each in (*self.hidden, self.scores)]  # pyright: ignore

    def tell(self, features: Tensor, price: Tensor | None = None) -> list[float]:
        """See `Router`."""
        if self._layers is None or features.device.type != "cpu":
            return super().tell(features, price)
        values = features[0].float().numpy()
        for k, (weight, bias) in enumerate(self._layers):
            values = weight @ values + bias
            if k == 0 and self.price is not None and price is not None:
                values += self.price.weight[:, 0].numpy() * price.item()
            if k < len(self._layers) - 1:
                values = np.maximum(values, 0)
        return values.tolist()


def initialise(network: nn.Module, how: str) -> None:
    """Weights normal with variance 1 / fan_in (the paper's code), or Glorot's (``xavier``, its text); biases 0.

    A router's last layer is 0, so that at first every sink is as likely as any other.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if how == "xavier":
                nn.init.xavier_normal_(module.weight)
            else:
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, Router):
            if module.price is not None:  # one input among all of the first layer
                first = module.hidden[0].weight
                assert isinstance(first, Tensor)
                nn.init.normal_(module.price.weight, std=(first[0].numel() + 1) ** -0.5)
            nn.init.zeros_(module.scores.weight)
