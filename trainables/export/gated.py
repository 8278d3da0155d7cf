"""Gated residual networks as parts: stem, routers, gated blocks, the paths around them, classifier.

Shape legend: B images, G gates, c channels, h height (= width).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.contracts.network import Knobs
from trainables.export.program import IMAGES, LOGITS, UNREAD, Draw, Part, Program, Step, joined
from trainables.methods.sdv import StochasticDepthResNet
from trainables.networks.gated.gates import LocalRouter, PointwiseGate, RecurrentRouter
from trainables.networks.gated.network import GatedResNet, limits_of
from trainables.networks.gated.policy import PolicyRouter

RULE = "block k runs where P(run) of its router reaches `threshold`; where a setting draws, where it reaches a draw"
_MEMORY = ("output", "cell")
"""The registers of a recurrent router."""
SDV_RULE = "block k is dropped where its draw lies below its rate; the draws follow from the image and `seed`"


class _Enter(nn.Module):
    """Stem and the blocks before the first gate; with a policy also which blocks run."""

    def __init__(self, network: GatedResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        return _plain(network, network.stem(images), 0)


def _plain(network: GatedResNet, features: Tensor, k: int) -> Tensor:
    """The blocks from k to the next gated one."""
    while k < len(network.blocks) and k not in network.gated:
        features = network.block(k)(features)
        k += 1
    return features


class _Blocks(nn.Module):
    """The blocks without a gate from block k on."""

    def __init__(self, network: GatedResNet, k: int) -> None:
        super().__init__()
        self.network, self.k = network, k

    def forward(self, features: Tensor) -> Tensor:
        return _plain(self.network, features, self.k)


class _Block(nn.Module):
    """A block whose shortcut has been computed already, or not."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, features: Tensor, *short: Tensor) -> Tensor:
        return self.block(features, *short)


class _Gate(nn.Module):
    """The answer of a router without memory at one gate: whether its block runs (B,).

    Of a last layer with two outputs U the difference is kept, ``z = U[run] - U[skip]``, which is all that is asked.
    """

    def __init__(self, network: GatedResNet, gate: int) -> None:
        super().__init__()
        self.router, self.gate = network.router, gate
        self.own: nn.Module | None = None
        if isinstance(network.router, LocalRouter):
            self.own = copy.deepcopy(network.router.gates[gate])
            name, last = list(self.own.named_children())[-1]
            assert isinstance(last, nn.Linear | nn.Conv2d)
            setattr(self.own, name, _difference(last))
            if isinstance(self.own, PointwiseGate):
                self.own = _Pointwise(self.own)

    def forward(self, features: Tensor, limit: Tensor) -> Tensor:
        if self.own is not None:
            logit = self.own(features).squeeze(1)
        else:
            logit = self.router(self.gate, features, features.new_zeros(features.shape[0], 0))[0]
        return torch.sigmoid(logit) >= limit


class _Pointwise(nn.Module):
    """ConvNet-AIG's gate in eval mode, where no batch has statistics of its own, whatever its size."""

    def __init__(self, gate: PointwiseGate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.relu(self.gate.bn1(self.gate.conv1(features.mean(dim=(2, 3), keepdim=True))))
        return self.gate.conv2(hidden).flatten(1)


@torch.no_grad()
def _difference(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """A layer with two outputs as one with their difference, the second minus the first."""
    found = copy.deepcopy(layer)
    found.weight = nn.Parameter((layer.weight[1:].double() - layer.weight[:1].double()).float())
    if layer.bias is not None:
        found.bias = nn.Parameter((layer.bias[1:].double() - layer.bias[:1].double()).float())
    if isinstance(found, nn.Conv2d):
        found.out_channels = 1
    else:
        found.out_features = 1
    return found


class _RecurrentGate(nn.Module):
    """A recurrent router's answer at one gate: whether its block runs (B,), the LSTM's output and cell (B, hidden).

    The gate's linear embedding and the LSTM's two products are one: with pooled features p, output h and
    ``W = [W_ih E, W_hh]``, the LSTM's gates are ``W [p, h] + W_ih e + b_ih + b_hh``. Its rows are sorted as input,
    forget and output gates, then the new cell, so that each function is called once.
    """

    def __init__(self, network: GatedResNet, gate: int) -> None:
        super().__init__()
        router = network.router
        assert isinstance(router, RecurrentRouter)
        embed, cell, self.out = router.embed[gate], router.lstm, router.out
        assert isinstance(embed, nn.Conv2d) and embed.bias is not None
        self.size, self.first = cell.hidden_size, gate == 0
        with torch.no_grad():
            inner = cell.weight_ih.double()
            weight = inner @ embed.weight.double().flatten(1)
            bias = inner @ embed.bias.double() + cell.bias_ih.double() + cell.bias_hh.double()
            if not self.first:
                weight = torch.cat([weight, cell.weight_hh.double()], dim=1)
            i, f, g, o = torch.arange(4 * self.size).chunk(4)
            order = torch.cat([i, f, o, g])
            self.inside = nn.Linear(weight.shape[1], 4 * self.size)
            self.inside.weight.copy_(weight[order].float())
            self.inside.bias.copy_(bias[order].float())

    def forward(self, features: Tensor, limit: Tensor, *memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = features.mean(dim=(2, 3))
        gates, new = self.inside(torch.cat([pooled, memory[0]], 1) if memory else pooled).split(
            [3 * self.size, self.size], dim=1
        )
        taken, kept, shown = torch.sigmoid(gates).split(self.size, dim=1)
        cell = taken * torch.tanh(new)
        if memory:
            cell = cell + kept * memory[1]
        output = shown * torch.tanh(cell)
        return torch.sigmoid(self.out(output).squeeze(1)) >= limit, output, cell


class _Trailing(nn.Module):
    """The classifier behind a gate that decides nothing, whose answer is computed and read by nobody."""

    def __init__(self, network: GatedResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, *memory: Tensor) -> tuple[Tensor, Tensor]:
        before = torch.cat(memory, dim=1) if memory else features.new_zeros(features.shape[0], 0)
        return self.network.classifier(features), self.network.router(self.network.gates, features, before)[0]


class _Policy(nn.Module):
    """All gates from the image: one flag (B,) a gate."""

    def __init__(self, router: PolicyRouter) -> None:
        super().__init__()
        self.router = router

    def forward(self, images: Tensor, limit: Tensor) -> tuple[Tensor, ...]:
        limits = limit.unsqueeze(1) if limit.dim() == 1 else limit
        runs = torch.sigmoid(self.router.begin(images)) >= limits
        return tuple(runs.unbind(1))


class _Limits(nn.Module):
    """What P(run) must reach at each gate: (B,) a gate from draws (B, G), or the threshold where nothing is drawn."""

    def forward(self, noise: Tensor, threshold: Tensor, shift: Tensor, drawn: Tensor) -> tuple[Tensor, ...]:
        limits = torch.sigmoid(torch.logit(noise, eps=1e-7) + shift)
        return tuple(torch.where(drawn, limits, threshold).unbind(1))


class _Dropped(nn.Module):
    """Which blocks run (B,) each: those whose draw (B, G) reaches the rate (G,)."""

    def forward(self, noise: Tensor, rates: Tensor) -> tuple[Tensor, ...]:
        return tuple((noise >= rates).unbind(1))


class _Relu(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return F.relu(features)


def program_of(network: GatedResNet, curve: Iterable[Knobs]) -> Program:
    """The program of a gated network; draws are in it where some knobs of the `curve` ask for them."""
    sdv = isinstance(network, StochasticDepthResNet)
    draws = not sdv and any(knobs.get("sampling", "none") == "bernoulli" for knobs in curve)
    steps: list[Step | Draw] = []
    examples: dict[str, Tensor] = {}
    if sdv and not network.original:
        steps += [Draw("noise", network.gates)]
        flags = tuple(f"run-{k}" for k in network.gated)
        steps += [Step(Part("dropped", _Dropped(), ("noise", "rates"), flags))]
        examples["rates"] = torch.zeros(network.gates)
    elif not sdv:
        examples["threshold"] = torch.tensor(0.5)
    limits = ["threshold"] * network.gates
    if draws:
        limits = [f"limit-{k}" for k in network.gated]
        examples |= {"shift": torch.tensor(0.0), "drawn": torch.tensor(True)}
        steps += [Draw("noise", network.gates)]
        steps += [Step(Part("limits", _Limits(), ("noise", "threshold", "shift", "drawn"), tuple(limits)))]
    _body(network, steps, limits, asks=not sdv)
    settings = _sdv_settings(network) if sdv else settings_of(draws=draws)
    return Program("gated", SDV_RULE if sdv else RULE, joined(steps), settings, examples)


def _body(network: GatedResNet, steps: list[Step | Draw], limits: list[str], *, asks: bool) -> None:
    """The steps from the stem to the classifier."""
    units = {unit.name for unit in network.units}
    steps.append(Step(Part("stem", _Enter(network), (IMAGES,), ("x-0",))))
    policy = isinstance(network.router, PolicyRouter)
    if policy:
        assert isinstance(network.router, PolicyRouter)
        limit = limits[0]
        if limit != "threshold":
            raise ValueError("policy networks do not draw")
        flags = tuple(f"run-{k}" for k in network.gated)
        steps.append(Step(Part("policy", _Policy(network.router), (IMAGES, limit), flags), charges=("policy",)))
    state, remembers = "x-0", hasattr(network.router, "lstm")
    always = not asks and isinstance(network, StochasticDepthResNet) and network.original
    for gate, k in enumerate(network.gated):
        if asks and not policy:
            module = _RecurrentGate(network, gate) if remembers else _Gate(network, gate)
            memory = _MEMORY if remembers and gate else ()
            writes = (f"run-{k}", *(_MEMORY if remembers else ()))
            part = Part(f"router-{k}", module, (state, limits[gate], *memory), writes)
            steps.append(Step(part, charges=(f"router-{k}",) if f"router-{k}" in units else ()))
        state = _gated(network, gate, state, steps, flag="" if always else f"run-{k}", units=units)
        if not network.follows[gate]:
            after = f"{state}-on"
            steps.append(Step(Part(f"blocks-{k + 1}", _Blocks(network, k + 1), (state,), (after,))))
            state = after
    if network.trailing:
        memory = _MEMORY if remembers else ()
        name = f"router-{len(network.blocks)}"
        part = Part("classifier", _Trailing(network), (state, *memory), (LOGITS, UNREAD))
        steps.append(Step(part, charges=(name,) if name in units else ()))
    else:
        steps.append(Step(Part("classifier", network.classifier, (state,), (LOGITS,))))


def _gated(network: GatedResNet, gate: int, state: str, steps: list[Step | Draw], *, flag: str, units: set[str]) -> str:
    """The steps of one gated block and of what goes around it; the register that holds the features behind it."""
    k = network.gated[gate]
    block, skip, name = network.block(k), network.skips[gate], f"block-{k}"
    if network.stays[gate]:
        steps.append(Step(Part(name, _Block(block), (state,), (state,)), when=flag, charges=(name,)))
        return state
    shared = network.skip == "shortcut"
    around = block.shortcut if shared else skip
    identity = isinstance(around, nn.Identity)
    after = state if identity else f"x-{k + 1}"
    if not shared:
        charges = (f"skip-{k}",) if f"skip-{k}" in units else ()
        steps.append(Step(Part(name, _Block(block), (state,), (after,)), when=flag, charges=(name,)))
        steps.append(Step(Part(f"skip-{k}", skip, (state,), (after,)), unless=flag, charges=charges))
        return after
    if identity:  # mixing by branch: what is left of a dropped block is the ReLU
        steps.append(Step(Part(name, _Block(block), (state,), (state,)), when=flag, charges=(name,)))
        if flag:
            steps.append(Step(Part(f"around-{k}", _Relu(), (state,), (state,)), unless=flag))
        return state
    if network.mixing != "branch":  # the shortcut is what remains where the block does not run
        steps.append(Step(Part(f"short-{k}", block.shortcut, (state,), (after,))))
        steps.append(Step(Part(name, _Block(block), (state, after), (after,)), when=flag, charges=(name,)))
        return after
    steps.append(Step(Part(f"short-{k}", block.shortcut, (state,), (f"short-{k}",))))
    steps.append(Step(Part(name, _Block(block), (state, f"short-{k}"), (after,)), when=flag, charges=(name,)))
    if flag:
        steps.append(Step(Part(f"around-{k}", _Relu(), (f"short-{k}",), (after,)), unless=flag))
    return after


def settings_of(*, draws: bool) -> Any:
    """What turns knobs of gated networks into settings; with `draws` those that draw, too."""

    def settings(knobs: Knobs) -> dict[str, Any]:
        limits_of(torch.zeros(1, 1, 1, 1), knobs, 1)  # raises for knobs that are not possible
        value = float(knobs.get("threshold", 0.5))
        found: dict[str, Any] = {"threshold": value}
        if draws:
            drawn = knobs.get("sampling", "none") == "bernoulli" and 0 < value < 1
            shift = math.log(value / (1 - value)) if drawn else 0.0
            found |= {"drawn": drawn, "shift": shift, "seed": int(knobs.get("seed", 0))}
        elif knobs.get("sampling", "none") != "none":
            raise ValueError("sampling: no setting of the curve draws")
        return found

    return settings


def _sdv_settings(network: StochasticDepthResNet) -> Any:
    def settings(knobs: Knobs) -> dict[str, Any]:
        network.limits(torch.zeros(1, *network.task.image), knobs)  # raises for knobs that are not possible
        if network.original:
            return {}
        rates = network.config.rates(network.gates, float(knobs.get("drop", network.config.drop)))
        return {"rates": list(rates), "seed": int(knobs.get("seed", 0))}

    return settings
