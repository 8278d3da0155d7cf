"""A routing method as one record: its search space, network, training phases, objective and inference settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spaces.space import Space, nearest
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Batch, Optimiser, Phase


def one_phase(config: Any) -> tuple[Phase, ...]:
    """Everything trained together for all epochs by the shared recipe."""
    return (Phase(name="train", optimiser=Optimiser.of(config)),)


def one_captured_phase(config: Any) -> tuple[Phase, ...]:
    """`one_phase`, whose steps a GPU may repeat without Python (`Phase.capturable`)."""
    return tuple(dataclasses.replace(phase, capturable=True) for phase in one_phase(config))


def cross_entropy_of_exits(network: RoutedNetwork, batch: Batch, phase: Phase) -> dict[str, Tensor]:
    """Cross entropy summed over the exits (one for networks without early exits)."""
    routed = network(batch.images, generator=batch.generator)
    smoothing = network.config.label_smoothing
    losses = [batch.cross_entropy(logits, smoothing) for logits in routed.logits]
    return {"cross_entropy": torch.stack(losses).sum()}


def scheduled(before: float | Tensor, value: float, device: torch.device) -> float | Tensor:
    """A number that changes from step to step: itself on a CPU, on a GPU written into the tensor that stood for it."""
    if device.type == "cpu":
        return value
    if not isinstance(before, Tensor):
        before = torch.empty((), device=device)
    return before.fill_(value)


def single_setting(config: Any) -> tuple[dict[str, Any], ...]:
    """No knob: the curve has one point."""
    return ({},)


def one_view(config: Any) -> int:
    """Every image appears once in a batch."""
    return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One paper's way of routing.

    - `name`: of the command line and the study file; `title` and `paper`: for people. `variants`, `networks`: the words
      that a configuration's `variant` and `network` take. `knobs`: by name what each inference setting does.
    - `space`: the search space. `Config`: the dataclass of its values with their defaults. `published`: the paper's own
      setting as values of the space; it runs first in a search.
    - `build(config, task)`: the network. `phases(config)`: the phases of its training, in order.
      `objective(network, batch, phase)`: the terms of the loss by name, which are summed. `views(config)`: how many
      augmented copies of an image are in a batch.
    - `begin(network, phase)`: may change the network when a phase begins. `anneal(network, share, steps)`: sets what
      depends on how much of the phase's `steps` is done (`Batch.share`), before every step; on a GPU it writes into a
      tensor that stays (`scheduled`). `adjust_gradients(network, batch)`: may
      change gradients between backward and step. `features`: makes the `trainables.training.features.FeatureCache` of
      phases that train on features.
    - `settings(config)`: the settings of the curve. `calibrate(setting, logits)`: turns a setting into knobs by the
      logits (K, n, C) of all exits on the validation images; None: the settings are the knobs themselves. `usual`: the
      setting at which diagnostics are taken, where it is not threshold 1/2 or the middle of the curve.
    - `paper_cost(network)`: the cost in the paper's own unit, for `routefront describe`.
    - `donor(config, task)`: what the configuration of a trained network must say whose weights a trial may begin with
      (`trainables.training.donors`): values by field, several in a tuple, among them ``method``; None: no donors.
      `donor_rate`: whether such a trial takes its learning rate from `donor_lr`.
    - `mixes`: whether the objective takes batches whose images are mixed (`Batch.mixed`): all its uses of labels are
      `Batch.cross_entropy`.
    """

    name: str
    title: str
    paper: str
    space: Space
    published: Mapping[str, Any]
    Config: type[Any]
    build: Callable[[Any, Task], RoutedNetwork]
    networks: tuple[str, ...]
    variants: tuple[str, ...] = ("",)
    knobs: Mapping[str, str] = field(default_factory=dict)
    phases: Callable[[Any], tuple[Phase, ...]] = one_phase
    objective: Callable[[RoutedNetwork, Batch, Phase], dict[str, Tensor]] = cross_entropy_of_exits
    settings: Callable[[Any], Sequence[dict[str, Any]]] = single_setting
    calibrate: Callable[[Mapping[str, Any], Tensor], dict[str, Any]] | None = None
    views: Callable[[Any], int] = one_view
    begin: Callable[[RoutedNetwork, Phase], None] | None = None
    anneal: Callable[[RoutedNetwork, float, int], None] | None = None
    features: Callable[..., Any] | None = None
    adjust_gradients: Callable[[RoutedNetwork, Any], None] | None = None
    paper_cost: Callable[[RoutedNetwork], dict[str, Any]] | None = None
    usual: Mapping[str, Any] | None = None
    donor: Callable[[Any, Task], Mapping[str, Any]] | None = None
    donor_rate: bool = True
    mixes: bool = False

    def configure(self, values: Mapping[str, Any]) -> Any:
        """The method's `Config` from plain values; `ValueError` names an unknown key or bad value."""
        fields = {f.name: f for f in dataclasses.fields(self.Config)}
        clean: dict[str, Any] = {}
        for name, value in values.items():
            if name not in fields:
                raise ValueError(f"{self.name} has no parameter {name!r}{nearest(name, list(fields))}")
            default = fields[name].default
            clean[name] = _typed(self.name, name, value, default)
        config = self.Config(**clean)
        for word in ("mixup", "cutmix"):
            if not self.mixes and (alpha := getattr(config, word, 0.0)):
                raise ValueError(f"{word} = {alpha!r}: {self.name} learns from whole labels alone; leave it at 0")
        return config


def _typed(method: str, name: str, value: Any, default: Any) -> Any:
    """A value in the type of the field's default; `ValueError` where it cannot be."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        good = isinstance(value, bool)
    elif isinstance(default, int):
        good = number and value == int(value)
        value = int(value) if good else value
    elif isinstance(default, float):
        good = number and math.isfinite(value)
        value = float(value) if good else value
    elif isinstance(default, str):
        good = isinstance(value, str)
    else:
        good = default is None or isinstance(value, type(default))
    if not good:
        raise ValueError(f"{method}: {name} = {value!r} has the wrong type; it takes values such as {default!r}")
    return value


def config_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values, the inverse of `Method.configure`."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
