"""The search space of actor and critic networks: the price of computation, how routers learn, how far they explore."""

from __future__ import annotations

from spaces.space import Choice, LogRange, When
from spaces.training import with_training

_NETWORKS = ("pyramid", "pyramid-tree")
_CRITICS = ("pragmatic", "optimistic", "classification_error")
_ROUTED = When("network", _NETWORKS)  # static networks have no routers
_HALVED = When("schedule", ("exponential",))
_LEARNT = When("variant", ("actor", *_CRITICS))

SPACE = with_training(
    {
        "network": Choice((*_NETWORKS, "pyramid-static-1", "pyramid-static-2", "pyramid-static-3", "pyramid-static-4")),
        "variant": Choice(("actor", *_CRITICS), when=_ROUTED),
        "dynamic_k_cpt": Choice((False, True), when=_ROUTED),
        "k_cpt": LogRange(1e-10, 1e-6, or_zero=True, when=When("dynamic_k_cpt", (False,))),
        "k_cpt_scale": LogRange(1e7, 3e9, when=When("dynamic_k_cpt", (True,))),
        "k_dec": LogRange(0.01 / 30, 0.01 * 30, when=When("variant", ("actor",))),
        "k_cre": LogRange(0.001 / 30, 0.001 * 30, when=When("variant", _CRITICS)),
        "tau": LogRange(0.03, 3.0, when=_LEARNT),
        # a share of the training; 0: in steps; both 0: the default of the training's length
        "tau_half_life": LogRange(1 / 16, 2.0, or_zero=True, when=_LEARNT),
        "tau_half_life_steps": LogRange(5_000, 40_000, integer=True, or_zero=True, when=When("tau_half_life", (0,))),
        "talr": Choice((True, False), when=_LEARNT),
        "router_width": Choice((8, 16, 32), when=_LEARNT),
        "alpha_rtr": LogRange(0.1, 10.0, when=_LEARNT),
        "weight_decay": LogRange(2e-4 / 30, 2e-4 * 30),  # 2 k_L2
        "lr": LogRange(0.01, 0.5),
        "warmup": Choice((0.05, 0.0)),  # the paper's is none
        "schedule": Choice(("exponential", "cosine")),
        "lr_half_life": LogRange(1 / 16, 1.0, or_zero=True, when=_HALVED),  # as that of the temperature
        "lr_half_life_steps": LogRange(5_000, 40_000, integer=True, or_zero=True, when=When("lr_half_life", (0,))),
    }
)

# McGill and Perona (2017), section 4.7: 80,000 iterations of 128 images; rate and temperature halve every 10,000.
# k_cpt is swept there; 4e-9 is in the middle. k_L2 = 1e-4 is a weight decay of 2e-4.
PAPER = {
    "network": "pyramid",
    "variant": "actor",
    "dynamic_k_cpt": False,
    "k_cpt": 4e-9,
    "k_cpt_scale": 1e7,
    "k_dec": 0.01,
    "k_cre": 0.001,
    "tau": 1.0,
    "tau_half_life": 1 / 8,
    "epsilon": 1e-6,
    "talr": True,
    "reg_policy": False,
    "router_width": 16,
    "router_depth": 2,
    "alpha_rtr": 1.0,
    "lr": 0.1,
    "schedule": "exponential",
    "lr_half_life": 1 / 8,
    "warmup": 0.0,
    "momentum": 0.9,
    "weight_decay": 2e-4,
    "batch_size": 128,
}
