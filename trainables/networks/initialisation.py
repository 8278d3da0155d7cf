r"""How weights begin: one rule a family of networks, as the authors' code has it.

Standard deviations, with k the kernel's edge, *in* and *out* the channels that one output reads and one input writes:

=============================== ============================== ===================================================
family                          convolutions                   linear layers, the classifier
=============================== ============================== ===================================================
ResNets: static, ConvNet-AIG,   :math:`\sqrt{2/(k^2 out)}`     PyTorch's default, uniform in
BlockDrop, stochastic depth,                                   :math:`\pm 1/\sqrt{in}`, biases too
CoDiNet, multi-path, DenseNet
SkipNet                         the same                       :math:`\sqrt{2/(in \cdot out)}`, biases by default
ACT, SACT                       :math:`\sqrt{2/(k^2 in)}`,     PyTorch's default; biases of convolutions 0
                                truncated at two deviations
MSDNet (IMTA)                   PyTorch's default              PyTorch's default
columns (decide), in            :math:`\sqrt{1/(k^2 in)}`      :math:`\sqrt{1/in}`, biases 0
`networks.columns.layers`
=============================== ============================== ===================================================

The first row is K. He et al., "Delving deep into rectifiers", ICCV 2015, arXiv 1502.01852, section 2.2, by
fan out. The public codes of CoDiNet, ACT and SACT draw the classifier by He's rule, too (0.18 at 64 inputs, where
PyTorch's default has 0.07): the first loss is then far above that of guessing and short trainings end points lower
(`DECISIONS.md`). Here that is ``init="published"`` of these methods.

Gates and routers follow the rule of their family but for what their methods say: a first bias that opens ConvNet-AIG's
gates, -3 for halting scores, zeros in the last layer of routers between columns.
"""

from __future__ import annotations

import math

from torch import nn

INITS = ("default", "published")
"""``published`` is the public code's rule where the default is another one."""
_TRUNCATED = 0.87962566103423978
"""Standard deviation of a standard normal variable that is cut off at two."""


def _area(convolution: nn.Conv2d) -> int:
    return convolution.kernel_size[0] * convolution.kernel_size[1]


def he_fan_out(network: nn.Module) -> None:
    r"""Convolutions normal with standard deviation :math:`\sqrt{2/(k^2 out)}`; all else as PyTorch has it.

    Of a convolution in groups, *out* counts the channels of one group: what one input channel writes.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan = _area(module) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan))


def he_everywhere(network: nn.Module) -> None:
    r"""CoDiNet's public code: every weight normal with :math:`\sqrt{2/(k^2 in)}`; biases by PyTorch's default."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def skipnet(network: nn.Module, *, zero_linear_biases: bool = False) -> None:
    r"""SkipNet's public code: convolutions :math:`\sqrt{2/(k^2 out)}`, linear layers :math:`\sqrt{2/(in \cdot out)}`.

    Only weights are drawn; biases keep PyTorch's default, those of linear layers are 0 with `zero_linear_biases`
    (the code's recurrent networks that learn by rewards alone).
    """
    he_fan_out(network)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.in_features * module.out_features)))
            if zero_linear_biases:
                nn.init.zeros_(module.bias)


def xavier_lstm(network: nn.Module) -> None:
    """SkipNet's ImageNet code: LSTM weights by Glorot's normal rule, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.LSTMCell):
            for name, parameter in module.named_parameters():
                (nn.init.zeros_ if name.startswith("bias") else nn.init.xavier_normal_)(parameter)


def preactivation(network: nn.Module, how: str) -> None:
    r"""ACT's and SACT's networks: convolutions by He's rule for what they read, truncated; their biases 0.

    With ``how="published"`` linear layers by the same rule with biases 0 (in the code they are 1 x 1 convolutions);
    else they keep PyTorch's default.
    """
    for module in network.modules():
        convolution = isinstance(module, nn.Conv2d)
        if not convolution and not (how == "published" and isinstance(module, nn.Linear)):
            continue
        assert isinstance(module, nn.Conv2d | nn.Linear)
        std = math.sqrt(2 / module.weight[0].numel()) / _TRUNCATED
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
