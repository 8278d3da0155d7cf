r"""Deciding how to decide: networks of columns whose routers are trained as actors or as critics.

M. McGill, P. Perona, "Deciding how to decide: dynamic routing in artificial neural networks",
ICML 2017, arXiv 1703.06217; public code: TensorFlow 1, which was read, not run.

Inference costs :math:`c_{inf} = c_{err} + k_{cpt} n_{ops}` (eq. 1, 2). Variants, by the paper's names:

- ``actor``: the expectation of this cost over the relaxed decisions is minimised (eq. 3).
- ``pragmatic``: a critic; scores regress the negative cost of each sink under the routers' own hard
  decisions further on (eq. 5 to 7); decisions carry no gradient.
- ``optimistic``: the same under the best decisions further on (eq. 8).
- ``classification_error``: pragmatic, with 0 or 1 for a right or wrong class in what is regressed.

Networks pyramid-static-N, the first N columns and one classifier, decide nothing and have no variant.

Layers are regularised by the share of images that they see, and their gradients divided by its root
mean square (`talr`: throughput-adjusted learning rates, section 4.5).

Shape legend: B images, C classes, N columns, E classifiers (exits), D sinks of all junctions, U units.

Deviations and choices:

- **The price's unit.** Prices multiply macs / macs_full everywhere here, so that a small network, or
  small images, mean the same as the published one. `k_cpt` keeps the paper's numbers: it is a price
  per MAC of the published chain (`REFERENCE_MACS`), and k_cpt * REFERENCE_MACS multiplies
  macs / macs_full. On that chain this *is* the paper's price; for widths 2 and 3 it is within 3 % of
  the paper's k_cpt / 4 and / 9. ``k_cpt_per="mac"`` takes it literally, per MAC of this network.
- `k_cpt` of a network with `dynamic_k_cpt` is drawn for every example (section 5.5); the
  configuration's is then what routers are told where nobody says. With ``k_cpt_per="mac"`` the values
  to draw from are divided by width squared. Routers read it times `k_cpt_scale`: the paper's 1e7 makes
  0 to 0.64, which routers that read hundreds of features do not learn to heed in short trainings; 3e8 they do.
- TALR is 1 / RMS(p), the variance condition solved and the public code; the printed 1 / ||p|| lacks
  the constant root of the batch size. It acts on the whole gradient, regularisation included.
- k_L2 is half of `weight_decay`, so that the number means what it means elsewhere. It acts on weights
  only, as a term of the loss.
- `alpha_rtr` multiplies the routers' gradients, decay included: a learning rate alpha_rtr times as large.
- The rate rises over the first 0.05 of the steps; the paper, which takes 80,000, says nothing. At its rate
  from the first step the ReLUs of deep columns die in short trainings, and routers learn to stay above them.
- Temperature and rate halve every 10,000 steps in the paper (the code's temperature: 20,000), 1/8 of its 80,000.
  In a short training 1/8 hardens the policy before it has learnt, and digits pay as much as photographs. The
  default therefore depends on the number of steps: 10,000 steps, of at least 1/8 of the training (from 80,000
  steps on) and at most 1/2 of it for the temperature (up to 20,000 steps), 1/5 for the rate (up to 50,000).
- Weights are drawn with variance 1 / fan_in as in the code; ``init="xavier"`` is the paper's text.
- Networks that read no price get a curve from a `margin` on the score of classifying: an extension,
  0 being the paper's rule.
- ``reg_policy`` (regularisation may change decisions, section 5.2), ``k_dec=0`` and ``talr=False`` are the
  paper's ablations; 0 `forks` its subtree with 2-way junctions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spaces.decide import PAPER, SPACE
from trainables.constants import constant
from trainables.contracts.method import Method, scheduled
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Batch, DonorConfig, HalfLife, Optimiser, Phase, require
from trainables.networks.columns.costs import classification_costs, squared_weights, targets, throughput
from trainables.networks.columns.layers import initialise
from trainables.networks.columns.network import ColumnNetwork
from trainables.networks.columns.tree import (
    FORKS,
    NETWORKS,
    PYRAMIDS,
    Pyramid,
    kind_and_length,
    length_for,
    nodes_of,
    scales_of,
)

CRITICS = ("pragmatic", "optimistic", "classification_error")
VARIANTS = ("actor", *CRITICS, "")
"""The last is that of static networks; of others it stands for the actor."""
REFERENCE_MACS = 20_643_552
"""macs_full of the published network: pyramid at 32 pixels, 10 classes, width 1."""
K_CPTS = tuple(k * 1e-9 for k in (0, 1, 2, 4, 8, 16, 32, 64))
"""The paper's prices (figure 5)."""
SWEPT_K_CPTS = tuple(k * 1e-9 for k in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64))
_STEPS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
MARGINS = (*(-step for step in reversed(_STEPS)), 0.0, *_STEPS)
"""From all images at the last column to all at the first; scores differ by hundredths early in a training."""
HALF_LIFE = 10_000
"""Steps in which the paper's temperature and rate halve."""
SHORTEST, LONGEST_TAU, LONGEST_LR = 1 / 8, 1 / 2, 1 / 5
"""The shares of a training that half-lives by default stay between."""
INITS = ("fan_in", "xavier")
UNITS = ("macs_full", "mac")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(DonorConfig):
    """The method's own choices; `weight_decay` is 2 k_L2.

    `variant`, left empty, is the actor, and none of a static network. `k_cpt`: the price of
    computation, in the unit of `k_cpt_per` (see the module); `dynamic_k_cpt`: routers read it, times
    `k_cpt_scale`. `k_dec`: weight of the actor's scores squared; `k_cre`: of the critics' regression.
    `tau`: temperature at the beginning, 0 being the paper's (1 for the actor, 0.1 for critics). The half-life of
    the temperature is a share of the training, `tau_half_life`, or a number of steps, `tau_half_life_steps`; so is
    that of the learning rate, `lr_half_life` and `lr_half_life_steps`, in the exponential schedule. Where both are
    0, it follows from the number of steps (see the module). `epsilon`: the least share of an image that the
    network keeps everywhere. `talr`, `reg_policy`, `alpha_rtr`, `init`: see the module. `router_width`,
    `router_depth`: hidden layers of routers. `pyramid`: subsample or bilinear. `forks`: columns of a tree behind
    which it forks.
    """

    network: str = "pyramid"
    variant: str = ""
    schedule: str = "exponential"
    weight_decay: float = 2e-4
    warmup: float = 0.05
    lr_half_life: float = 0.0
    lr_half_life_steps: int = 0
    k_cpt: float = 4e-9
    k_cpt_per: str = "macs_full"
    dynamic_k_cpt: bool = False
    k_cpt_scale: float = 1e7
    k_dec: float = 0.01
    k_cre: float = 0.001
    tau: float = 0.0
    tau_half_life: float = 0.0
    tau_half_life_steps: int = 0
    epsilon: float = 1e-6
    talr: bool = True
    reg_policy: bool = False
    alpha_rtr: float = 1.0
    router_width: int = 16
    router_depth: int = 2
    pyramid: str = "subsample"
    forks: int = FORKS
    init: str = "fan_in"

    def __post_init__(self) -> None:
        DonorConfig.__post_init__(self)
        rule = "decide learns by rewards, which have no weights of classes; take sampled"
        require(self.balance != "loss", "balance", self.balance, rule)
        static = kind_and_length(self.network)[0] == "static"
        if not self.variant and not static:
            object.__setattr__(self, "variant", "actor")
        for name, allowed in (("pyramid", PYRAMIDS), ("init", INITS), ("k_cpt_per", UNITS), ("variant", VARIANTS)):
            value = getattr(self, name)
            if name == "variant" and static:
                require(value == "", name, value, f"{self.network} decides nothing and has no variant")
                continue
            require(value in allowed, name, value, f"decide takes one of {', '.join(filter(None, allowed))}")
        given = static and self.donor
        require(not given, "donor", self.donor, f"{self.network} decides nothing: it is a donor itself")
        require(not (static and self.dynamic_k_cpt), "dynamic_k_cpt", True, "a static network reads no price")
        for name in ("k_cpt", "k_dec", "k_cre", "tau"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "must be a number of at least 0")
        for name in ("k_cpt_scale", "alpha_rtr"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "must be a positive number")
        for name in ("tau_half_life", "lr_half_life"):
            value, steps = getattr(self, name), f"{name}_steps"
            require(0 <= value <= 100, name, value, f"must be a share of the training, 0 to 100; {steps} takes steps")
            free = value == 0 or getattr(self, steps) == 0
            require(free, steps, getattr(self, steps), f"{name} = {value!r} is given too; one of them must be 0")
        require(0 < self.epsilon < 0.1, "epsilon", self.epsilon, "must be a small share in (0, 0.1)")
        counts = {"router_width": 1, "router_depth": 1, "forks": 0, "tau_half_life_steps": 0, "lr_half_life_steps": 0}
        for name, least in counts.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole and value >= least, name, value, f"must be a whole number of at least {least}")


def build(config: Config, task: Task) -> ColumnNetwork:
    """The network, initialised. Raises `ValueError` where images are too small for its columns."""
    length = length_for(config.network, task.edge)
    network = ColumnNetwork(
        config,
        task,
        nodes_of(kind_and_length(config.network)[0], length, config.forks),
        Pyramid(task.size, config.pyramid, len(scales_of(task.edge))),
        router_width=config.router_width,
        router_depth=config.router_depth,
        price_scale=config.k_cpt_scale if config.dynamic_k_cpt else 0.0,
        reference=REFERENCE_MACS if config.k_cpt_per == "macs_full" else 0,
        epsilon=config.epsilon,
    )
    initialise(network, config.init)
    return network


def static_chain(config: Config, task: Task) -> dict[str, Any]:
    """See `Method.donor`: the static network of as many columns. Raises `ValueError` for a tree, which has no such."""
    kind, _ = kind_and_length(config.network)
    require(kind != "tree", "donor", config.donor, f"{config.network} forks, where no static network does")
    network = f"pyramid-static-{length_for(config.network, task.edge)}"
    return {"method": "decide", "network": network, "width": config.width, "pyramid": config.pyramid}


def phases(config: Config) -> tuple[Phase, ...]:
    """Everything together; the decay of weights is a term of the loss."""
    return (
        Phase(
            name="train",
            optimiser=Optimiser.of(config, weight_decay=0.0, half_life=lr_half_life(config)),
            capturable=True,
        ),
    )


def lr_half_life(config: Config) -> HalfLife:
    """In how many steps the learning rate halves."""
    return _half_life(config.lr_half_life, config.lr_half_life_steps, LONGEST_LR)


def tau_half_life(config: Config) -> HalfLife:
    """In how many steps the temperature halves."""
    return _half_life(config.tau_half_life, config.tau_half_life_steps, LONGEST_TAU)


def _half_life(share: float, steps: int, longest: float) -> HalfLife:
    """The given share, the given steps, or the default of the training's length."""
    if share:
        return HalfLife(least=share, most=share)
    return HalfLife(steps=steps) if steps else HalfLife(steps=HALF_LIFE, least=SHORTEST, most=longest)


def temperature(config: Config, share: float, steps: int) -> float:
    r"""Temperature after a share of a training of `steps` steps: :math:`\tau_0\, 2^{-share / half\ life}`.

    At least 1e-30: a few steps of half-life would have scores divided by 0 in a long training.
    """
    start = config.tau or (0.1 if config.variant in CRITICS else 1.0)
    return max(start * tau_half_life(config).left(share, steps), 1e-30)


def k_cpts(config: Config, values: Sequence[float] = K_CPTS) -> tuple[float, ...]:
    """Prices in the configuration's unit: per MAC of a network of another width they are divided by its square."""
    return tuple(k / (config.width**2 if config.k_cpt_per == "mac" else 1.0) for k in values)


def prices_of(network: ColumnNetwork, batch: Batch) -> Tensor:
    """What macs / macs_full cost each image of a batch, (B,); drawn where prices are dynamic."""
    config: Config = network.config
    count, device = len(batch.labels), batch.images.device
    if not config.dynamic_k_cpt:
        return torch.full((count,), config.k_cpt * network.reference, device=device)
    values = constant(k_cpts(config), torch.get_default_dtype(), device) * network.reference
    at = batch.generator.device if batch.generator is not None else device
    return values[torch.randint(len(values), (count,), generator=batch.generator, device=at).to(device)]


def objective(network: RoutedNetwork, batch: Batch, phase: Phase) -> dict[str, Tensor]:
    r"""The terms of the variant.

    With sg the stop of the gradient, p the share of an image that reaches a part, u `targets`:

    .. math:: actor: \quad & E[\sum_\ell p_\ell (c_{err} + k_{cpt} n_{ops})]
        + \sum_\ell sg[p_\ell] \frac{decay}{2} \lVert W_\ell \rVert^2
        + \sum_j sg[p_j] k_{dec} \lVert s_j \rVert^2 \\
        critics: \quad & E[\sum_\ell sg[p_\ell] (c_{err} + k_{cpt} n_{ops})]
        + \sum_\ell sg[p_\ell] \frac{decay}{2} \lVert W_\ell \rVert^2
        + \sum_j sg[p_j] k_{cre} \lVert s_j - u_j \rVert^2

    (eq. 3, 5, 6, 9, 10). The price of computation is a constant for critics and is reported only.
    """
    assert isinstance(network, ColumnNetwork)
    config: Config = network.config
    acts = config.variant == "actor"
    price = prices_of(network, batch)
    routed = network(batch.images, price=price if network.priced else None, generator=batch.generator)
    smoothing = config.label_smoothing
    each = [classification_costs(z, batch.labels, config.epsilon, smoothing) for z in routed.logits]
    errors = torch.stack(each, dim=1)
    answered, path, scores = (routed.aux[name] for name in ("answered", "path", "scores"))
    constant = path.detach()
    network.throughput = throughput(path)
    decayed = path if config.reg_policy else constant
    terms = {
        "cross_entropy": ((answered if acts else answered.detach()) * errors).sum(dim=1).mean(),
        "l2": config.weight_decay / 2 * (decayed.mean(dim=0) * squared_weights(network)).sum(),
    }
    if not config.variant:
        return terms
    computation = (price * routed.macs / network.macs_full).mean().to(errors.dtype)
    terms["computation"] = computation if acts else computation.detach()
    reached = routed.aux["reached"].index_select(1, network.get_buffer("column_of_sink"))
    if acts:
        explored = reached if config.reg_policy else reached.detach()
        terms["decisiveness"] = config.k_dec * (explored * scores.square()).sum(dim=1).mean()
        return terms
    if config.variant == "classification_error":
        errors = torch.stack([z.argmax(dim=1).ne(batch.labels) for z in routed.logits], dim=1).to(errors.dtype)
    ruled = None if config.variant == "optimistic" else scores.detach()
    wanted = targets(network, errors.detach(), price, ruled)
    terms["regression"] = config.k_cre * (reached.detach() * (scores - wanted).square()).sum(dim=1).mean()
    return terms


def anneal(network: RoutedNetwork, share: float, steps: int) -> None:
    """The temperature of the next step."""
    assert isinstance(network, ColumnNetwork)
    value = temperature(network.config, share, steps)
    network.temperature = scheduled(network.temperature, value, network.unit_macs.device)


def adjust_gradients(network: RoutedNetwork, batch: Batch) -> None:
    r"""TALR and the routers' rate: gradients times :math:`1 / RMS_B(p_\ell)` (section 4.5) and alpha_rtr.

    Idle batch norms (`Column`) get gradients of zeros.
    """
    assert isinstance(network, ColumnNetwork)
    for parameter in network.columns.parameters():
        if parameter.grad is None and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    config: Config = network.config
    if not config.variant or not (config.talr or config.alpha_rtr != 1):
        return
    assert network.throughput is not None, "a training step leaves the throughput of its batch"
    for unit, part, share in zip(network.units, network.parts(), network.throughput, strict=True):
        factor = share.reciprocal() if config.talr else torch.ones_like(share)
        if unit.kind == "router":
            factor = factor * config.alpha_rtr
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))


def settings(config: Config) -> tuple[dict[str, Any], ...]:
    """What a curve asks for: prices where routers read one, else margins; nothing of a static network."""
    if not config.variant:
        return ({},)
    if config.dynamic_k_cpt:
        return tuple({"k_cpt": k} for k in k_cpts(config, SWEPT_K_CPTS))
    return tuple({"margin": margin} for margin in MARGINS)


def paper_cost(network: RoutedNetwork) -> dict[str, Any]:
    """The paper's operations: MACs of an image classified at each exit, routers and that classifier included."""
    return {"unit": "operations = MACs, routers and classifiers included", "ops": [e.macs for e in network.exits]}


METHOD = Method(
    name="decide",
    title="Deciding how to decide (actor and critic routing)",
    paper="arXiv:1703.06217",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    networks=NETWORKS,
    variants=VARIANTS,
    knobs={
        "margin": "added to the score of classifying at every junction: above 0 images leave earlier; the paper's is 0",
        "k_cpt": "price of computation that routers trained with dynamic_k_cpt are told, at least 0",
    },
    phases=phases,
    objective=objective,
    donor=static_chain,
    settings=settings,
    adjust_gradients=adjust_gradients,
    anneal=anneal,
    paper_cost=paper_cost,
)
