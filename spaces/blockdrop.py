"""The search space of BlockDrop: the policy's exploration and rewards, in its two stages behind the trained network."""

from __future__ import annotations

from spaces.space import Choice, LogRange, Range
from spaces.training import with_training

SPACE = with_training(
    {
        "network": Choice(("resnet-8", "resnet-14", "resnet-20", "resnet-32")),
        "policy_width": Choice((0.5, 1.0)),  # untrained in stage 1, but its weights are in the checkpoint
        "curriculum_share": Range(0.2, 0.9, stage=2),
        "release": Range(0.05, 0.9, stage=2),
        "alpha": Range(0.6, 0.95, stage=2),
        "entropy": LogRange(0.01, 1.0, stage=2),
        "curriculum_gamma": LogRange(1.0, 30.0, stage=2),
        "policy_lr": LogRange(1e-4, 1e-2, stage=2),
        "gamma": LogRange(1.0, 30.0, stage=3),
        "finetune_lr": LogRange(1e-5, 3e-3, stage=3),
    }
)

# Wu et al. (2018), section 4, and the authors' code: 5,000 epochs of curriculum in batches of 2,048, of which
# epoch e (from 0) frees the last e + 1 of 54 blocks; 2,000 of joint finetuning in batches of 256, divided by 10
# at 1,600. The paper starts from a trained ResNet: the recipe of its first stage is He et al.'s (2016), and the
# half of the epochs that it gets here is ours. The code's CIFAR networks take pixels in [0, 1], but for the 32
# layers on CIFAR-10 ("blockdrop-32").
PAPER = {
    "network": "resnet-110",
    "shortcut": "pool",
    "policy_width": 1.0,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 128,
    "schedule": "step",
    "lr_decay_at": (0.5, 0.75),
    "lr_decay": 0.1,
    "pretrain_share": 0.5,
    "curriculum_share": 5 / 7,
    "curriculum_batch_size": 2048,
    "release": 54 / 5000,
    "alpha": 0.8,
    "entropy": 0.1,
    "curriculum_gamma": 1.0,
    "policy_lr": 1e-3,
    "finetune_batch_size": 256,
    "gamma": 10.0,
    "finetune_lr": 1e-4,
    "finetune_decay_at": 0.8,
    "normalise": "none",
}
