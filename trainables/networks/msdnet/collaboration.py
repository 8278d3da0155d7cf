r"""MSDNets whose exits help one another: gradient equilibrium, knowledge paths, a frozen trunk.

H. Li, H. Zhang, X. Qi, R. Yang, G. Huang, "Improved techniques for training adaptive deep
networks", ICCV 2019, arXiv 1908.06294.

Shape legend: B images, C classes, K exits, d_i features of exit i (what its last layer reads),
F their sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.network import Task
from trainables.networks.msdnet.network import Layout, MSDNet

ISC_FORMS = ("fc", "identity")


def rescale_gradient(features: Tensor, factor: float) -> Tensor:
    r"""R(x; s): x itself going forward, s times the gradient going back (IMTA, section 3.1)."""
    if not (features.requires_grad and torch.is_grad_enabled()):
        return features
    through = features.view_as(features)
    through.register_hook(lambda gradient: gradient * factor)
    return through


class EquilibriumMSDNet(MSDNet):
    r"""An MSDNet with gradient equilibrium (GE) on all scales, or with ``scales="coarsest"`` on that one.

    Behind stage i of k (from 1) the classifier reads R(w_i; 1 / (k - i + 1)) and the next stage
    R(w_i; (k - i) / (k - i + 1)), so that every loss j >= i reaches w_i as

    .. math:: \nabla^{GE}_{w_i} L_j = \nabla_{w_i} L_j / (k - i + 1)

    and the sum of the k - i + 1 of them stays bounded. Classifiers keep their own gradients.
    ``scales="none"`` leaves gradients as they are.
    """

    def __init__(self, config: Any, task: Task, layout: Layout, *, scales: str = "all", exactly: bool = False) -> None:
        super().__init__(config, task, layout, exactly=exactly)
        self.scales = scales

    def hand_over(self, stage: int, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The same values with rescaled gradients."""
        if self.scales == "none":
            return super().hand_over(stage, features)
        left = len(self.stages) - stage  # k - i + 1
        *finer, coarsest = features
        onward = (left - 1) / left
        if self.scales == "all":
            finer = [rescale_gradient(each, onward) for each in finer]
        return rescale_gradient(coarsest, 1 / left), [*finer, rescale_gradient(coarsest, onward)]


class Head(nn.Module):
    r"""The last layer of an exit in phase II, with a knowledge path from the exit before (ISC).

    With f the exit's features (B, d) and z the logits of the exit before (B, C):
    ``identity``: :math:`FC(f) + z`; ``fc``: :math:`FC([f, ReLU(BN(W z))])` with W from C to d.
    ``isc=""`` and the first exit have no path. The gradient ends at z unless `detach` is off.
    """

    def __init__(self, width: int, classes: int, isc: str, detach: bool) -> None:
        super().__init__()
        self.isc, self.detach = isc, detach
        if isc == "fc":
            self.transfer = nn.Linear(classes, width)
            self.norm = nn.BatchNorm1d(width)
        self.fc = nn.Linear(2 * width if isc == "fc" else width, classes)

    def forward(self, features: Tensor, before: Tensor | None) -> Tensor:
        """Features (B, d) and logits of the exit before (B, C) to logits (B, C)."""
        if not self.isc:
            return self.fc(features)
        assert before is not None, "only the first exit has none before it"
        before = before.detach() if self.detach else before
        if self.isc == "identity":
            return self.fc(features) + before
        return self.fc(torch.cat([features, self._known(before)], dim=1))

    def _known(self, before: Tensor) -> Tensor:
        hidden, norm = self.transfer(before), self.norm
        if self.training and len(before) == 1:  # of one image there is no variance
            hidden = nn.functional.batch_norm(
                hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
            )
        else:
            hidden = norm(hidden)
        return hidden.relu()

    @torch.no_grad()
    def take_over(self, linear: nn.Linear) -> None:
        """Begin as a trained layer: its weights for the features, zeros for what comes along the path."""
        self.fc.weight.zero_()
        self.fc.weight[:, : linear.in_features] = linear.weight
        self.fc.bias.copy_(linear.bias)


class CollaborativeMSDNet(EquilibriumMSDNet):
    """An MSDNet of two phases: one trains trunk and classifiers, one new last layers on the frozen trunk.

    `classifiers` are those of phase I; all but their last layers belong to the trunk. `heads` are
    the last layers of phase II. The network answers in one of two forms, `second` or not; their
    exits cost differently. Until phase II begins, `state_dict` is that of the first phase alone, so
    that it does not depend on what follows; the form follows from the state that is loaded. After
    `strip` the last layers of phase I, which only teach, are gone.
    """

    routing = ("heads.",)
    second = False  # while the heads do not exist

    def __init__(
        self, config: Any, task: Task, layout: Layout, *, scales: str, isc: str, detach: bool, exactly: bool = False
    ) -> None:
        super().__init__(config, task, layout, scales=scales, exactly=exactly)
        widths = [classifier[-1].in_features for classifier in self.classifiers]  # type: ignore[index]
        paths = ["", *[isc] * (len(widths) - 1)]
        self.heads = nn.ModuleList(Head(d, task.classes, path, detach) for d, path in zip(widths, paths, strict=True))
        self.second = True
        self._describe()

    def become(self, *, second: bool) -> None:
        """Take the form of a phase: answers, units and state of the first or of the second."""
        if second != self.second:
            self.second = second
            self._describe()

    def answer(self, exit: int, read: Tensor, before: Tensor | None) -> Tensor:
        """See `ExitNetwork`: in the second form a head answers behind the frozen layers of the classifier."""
        *layers, last = self.answering(exit)
        for layer in layers:
            read = layer(read)
        return last(read, before) if self.second else last(read)

    def answering(self, exit: int) -> list[nn.Module]:
        """See `ExitNetwork`."""
        classifier = self.classifiers[exit]
        assert isinstance(classifier, nn.Sequential)
        return [*list(classifier)[:-1], self.heads[exit]] if self.second else list(classifier)

    def trunk(self, images: Tensor) -> Tensor:
        """What the last layers read, side by side: images (B, channels, size, size) to (B, F)."""
        features, read = [images], []
        for stage, classifier in zip(self.stages, self.classifiers, strict=True):
            assert isinstance(classifier, nn.Sequential)
            features = stage(*features)
            own = features[-1]
            for layer in list(classifier)[:-1]:
                own = layer(own)
            read.append(own)
        return torch.cat(read, dim=1)

    def collaborate(self, read: Tensor) -> list[Tensor]:
        """Logits (B, C) of all exits in the second form, from `trunk`'s features (B, F)."""
        logits: list[Tensor] = []
        for head, own in zip(self.heads, read.split(self.split, dim=1), strict=True):
            logits.append(head(own, logits[-1] if logits else None))
        return logits

    @property
    def split(self) -> list[int]:
        """d_i of every exit."""
        return [head.fc.in_features // (2 if head.isc == "fc" else 1) for head in self.heads]  # type: ignore[union-attr]

    def teacher(self, read: Tensor) -> Tensor:
        """Logits (B, C) of the frozen last classifier of phase I from `trunk`'s features (B, F).

        Raises `ValueError` where it is missing: the network was stored for serving.
        """
        last = self.classifiers[-1][-1]  # type: ignore[index]
        if not isinstance(last, nn.Linear):
            raise ValueError("the distillation teacher, the last classifier of phase I, is missing: it was promoted")
        return last(read[:, -last.in_features :])

    def take_over(self) -> None:
        """Begin phase II with the last layers of phase I."""
        for head, classifier in zip(self.heads, self.classifiers, strict=True):
            head.take_over(classifier[-1])  # type: ignore[index, operator]

    def strip(self) -> None:
        """See `RoutedNetwork`: in the second form, the last layers of phase I go."""
        if self.second:
            for classifier in self.classifiers:
                classifier[-1] = nn.Identity()  # type: ignore[index]

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        """As any module's; before phase II without the heads."""
        state = super().state_dict(*args, **options)
        if not self.second:
            for name in [name for name in state if name.startswith("heads.")]:
                del state[name]
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As any module's; the state decides on the form."""
        second = any(name.startswith("heads.") for name in state_dict)
        self.become(second=True)
        if second and not any(name in state_dict for name in self._taught()):
            self.strip()
        if not second:
            own = {name: value for name, value in self.state_dict().items() if name.startswith("heads.")}
            state_dict = {**state_dict, **own}
        result = super().load_state_dict(state_dict, strict, assign)
        self.become(second=second)
        return result

    def _taught(self) -> Sequence[str]:
        return [f"classifiers.{i}.{len(c) - 1}.weight" for i, c in enumerate(self.classifiers)]  # type: ignore[arg-type]
