"""BlockDrop: a policy network looks at the image once and decides which residual blocks run.

Z. Wu, T. Nagarajan, A. Kumar, S. Rennie, L. S. Davis, K. Grauman, R. Feris, "BlockDrop: dynamic
inference paths in residual networks", CVPR 2018, arXiv 1711.08393; public code: github.com/Tushar-N/blockdrop.

Every block has a gate; an image that drops a block takes the block's shortcut. Three phases:

- ``pretrain``: the residual network alone, all blocks on (the paper takes a trained one);
- ``curriculum``: the policy alone learns from rewards, the residual network is frozen in eval mode;
  the policy decides about the last block first, then about one more after the other;
- ``finetune``: both together, the layers on cross entropy along the sampled paths.

Shape legend: B images, N gates, C classes, S sets of decisions.

Deviations and choices:

- Schedules are shares: pretraining gets `pretrain_share` of the epochs, the curriculum
  `curriculum_share` of the others. The code frees one more block each epoch (all 54 after 54 of
  5,000 epochs); here all are free after the share `release` of the curriculum.
- One batch size for all phases unless `curriculum_batch_size` and `finetune_batch_size` say
  otherwise: the paper's 2,048 leave a short training on a small set hardly a step.
- The greedy pass that gives the baseline runs in eval mode and leaves the batch-norm statistics
  alone. It depends on no sample, so that the gradient stays unbiased.
- The policy's term is a mean over the batch in both phases.
- Passes without a gradient compute only the blocks that run, and what two of them share once. The
  sampled pass of the finetuning computes every block for every image, as the code does: its
  batch-norm statistics are those of all images.
- ``impl="official"``: the policy's second head (a value that nobody reads), and in finetuning a
  policy's term summed over the batch and a greedy pass that updates the batch-norm statistics.
- Images are normalised as the data set's are; the code's CIFAR networks take pixels in [0, 1]
  (``normalise="none"``), but for the 32 layers on CIFAR-10 (``"blockdrop-32"``).
- `policy_width` narrows the policy network, which costs as much as the body of resnet-8.
- The threshold on P(run), 1/2 in the paper, is swept at inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spaces.blockdrop import PAPER, SPACE
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork, Task, evaluating
from trainables.contracts.recipe import LEARNING_RATE, WIDTH, Batch, DonorConfig, Optimiser, Phase, require
from trainables.execution.eager import eagerly
from trainables.execution.rows import split_rows, take
from trainables.networks.gated.gates import hard_at
from trainables.networks.gated.network import THRESHOLD_KNOB, GatedResNet, thresholds
from trainables.networks.gated.policy import policy_of
from trainables.networks.initialisation import he_fan_out
from trainables.networks.resnet import imagenet
from trainables.networks.resnet.imagenet import residual_body, static_donor

IMPLEMENTATIONS = ("ours", "official")
PRETRAIN, CURRICULUM, FINETUNE = "pretrain", "curriculum", "finetune"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(DonorConfig):
    """BlockDrop's own choices.

    `alpha` bounds the probabilities that are sampled from to [1 - alpha, alpha]; `entropy` weighs
    the policy's entropy in the curriculum; `curriculum_gamma` and `gamma` (finetuning) are what a
    wrong label costs. `policy_lr` and `finetune_lr` are Adam's, the latter divided by 10 at
    `finetune_decay_at`. The shortcut auto is pool, B on ImageNet bodies, which may start from
    torchvision's weights (`pretrained`); with a `donor`, which takes the place of the pretraining, it is that of
    static networks, A or B. A batch size of 0 is `batch_size`. ``curriculum_share`` 0 or 1 leaves the curriculum or
    the finetuning out.
    """

    network: str = "resnet-32"
    shortcut: str = "auto"
    pretrained: str = ""
    policy_width: float = 1.0
    pretrain_share: float = 0.5
    curriculum_share: float = 0.5
    curriculum_batch_size: int = 0
    release: float = 0.5
    alpha: float = 0.8
    entropy: float = 0.1
    curriculum_gamma: float = 1.0
    policy_lr: float = 1e-3
    finetune_batch_size: int = 0
    gamma: float = 5.0
    finetune_lr: float = 1e-4
    finetune_decay_at: float = 0.8
    impl: str = "ours"

    def __post_init__(self) -> None:
        DonorConfig.__post_init__(self)
        rule = "blockdrop learns by rewards, which have no weights of classes; take sampled"
        require(self.balance != "loss", "balance", self.balance, rule)
        imagenet.check_residual(self.network)
        require(self.variant == "", "variant", self.variant, "blockdrop has no variants")
        for name, allowed in (("shortcut", imagenet.RESIDUAL_SHORTCUTS), ("impl", IMPLEMENTATIONS)):
            value = getattr(self, name)
            require(value in allowed, name, value, f"blockdrop takes one of {', '.join(allowed)}")
        require(0 < self.policy_width <= 100, "policy_width", self.policy_width, WIDTH)
        for name in ("pretrain_share", "finetune_decay_at"):
            require(0 < getattr(self, name) < 1, name, getattr(self, name), "must be a share in (0, 1)")
        require(0 <= self.curriculum_share <= 1, "curriculum_share", self.curriculum_share, "must be in [0, 1]")
        require(0 < self.release <= 1, "release", self.release, "must be a share in (0, 1]")
        for name in ("curriculum_batch_size", "finetune_batch_size"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 0, name, value, "a whole number; 0 is batch_size")
        require(0.5 < self.alpha <= 1, "alpha", self.alpha, "must be in (0.5, 1]; at 0.5 the policy would have no say")
        require(self.entropy >= 0, "entropy", self.entropy, "must not be negative")
        for name in ("curriculum_gamma", "gamma"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "the price of an error must not be negative")
        for name in ("policy_lr", "finetune_lr"):
            require(0 < getattr(self, name) < 100, name, getattr(self, name), LEARNING_RATE)


class BlockDropNetwork(GatedResNet):
    """A gated residual network that can follow given decisions without asking its policy."""

    def follow(self, images: Tensor, decisions: Tensor | None = None) -> Tensor:
        """Logits (B, C) under decisions (B, N), every block computed for every image; None runs all blocks."""
        features = self.stem(images)
        for k in range(len(self.blocks)):
            features = self.block(k)(features) if decisions is None else self._mix(k, features, decisions[:, k])
        return self.classifier(features)

    @torch.no_grad()
    def outcomes(self, images: Tensor, choices: Tensor) -> Tensor:
        """Logits (S, B, C) under several sets of hard decisions (S, B, N).

        Dropped blocks are not computed, and sets share their work up to where they differ.
        """
        row_of = torch.arange(len(images), device=images.device).expand(len(choices), -1)
        with eagerly():  # the rows of every block are of another number
            features = self.stem(images)
            for k, wanted in enumerate(choices.bool().unbind(dim=2)):
                doubled, row_of, rows = split_rows(wanted, row_of, len(features))
                if len(doubled):
                    features = torch.cat([features, take(features, doubled)])
                features = self.execute(k, features, rows)
            return self.classifier(features)[row_of]


def build(config: Config, task: Task) -> BlockDropNetwork:
    """The network, initialised: every block has a gate, all of them are answered by the policy network."""
    small = config.network not in imagenet.IMAGENET_NETWORKS
    own = small and config.shortcut == "auto" and not config.donor  # a donor's are what static networks have
    shortcut = "pool" if own else config.shortcut
    body = residual_body(config.network, task, width=config.width, shortcut=shortcut)
    router = policy_of(len(body.blocks), task.image, width=config.policy_width, value=config.impl == "official")
    network = BlockDropNetwork(
        config, task, body, router, gated=range(len(body.blocks)), skip="shortcut", relaxation="bernoulli"
    )
    he_fan_out(network)
    return network


def phases(config: Config) -> tuple[Phase, ...]:
    """The residual network by the shared recipe, the policy by Adam, both by Adam at a smaller rate.

    The first phase knows no policy: its curves are not compared with later ones. A donor takes its place.
    """
    layers = ("stem", "blocks", "classifier")
    first = 0.0 if config.donor else config.pretrain_share
    left = 1 - first
    pretrain = Phase(
        name=PRETRAIN, optimiser=Optimiser.of(config), share=first, trained=layers, comparable=False, capturable=True
    )
    curriculum = Phase(
        name=CURRICULUM,
        optimiser=Optimiser(lr=config.policy_lr, kind="adam"),
        share=left * config.curriculum_share,
        trained=("router",),
        eval_mode=layers,
        batch_size=config.curriculum_batch_size,
        waits=0,
        waits_by_block=1,
    )
    finetune = Phase(
        name=FINETUNE,
        optimiser=Optimiser(lr=config.finetune_lr, kind="adam", decay_at=(config.finetune_decay_at,)),
        share=left * (1 - config.curriculum_share),
        batch_size=config.finetune_batch_size,
        capturable=config.impl == "official",  # else the baseline skips for real, which the host directs
        waits=0,
        waits_by_block=int(config.impl != "official"),
    )
    return tuple(phase for phase in (pretrain, curriculum, finetune) if phase.share > 0)


def bounded(probability: Tensor, alpha: float) -> Tensor:
    r"""The probability that is sampled from, :math:`p' = \alpha p + (1 - \alpha)(1 - p)`: never sure of anything."""
    return alpha * probability + (1 - alpha) * (1 - probability)


def free_blocks(share: float, release: float, count: int) -> int:
    """How many of `count` blocks, from the last, the policy decides about after `share` of the curriculum.

    One at first; all of them from `release` of it on.
    """
    return min(count, 1 + int(share / release * count + 1e-6))


def choose(
    logits: Tensor, alpha: float, free: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """P' and the sampled and the greedy decisions, all (B, N), from logits z (B, N).

    The greedy ones are those of P(run) at 1/2. But for the last `free` blocks, all run.
    """
    run = torch.sigmoid(logits.float())
    probability = bounded(run, alpha)
    choices = torch.stack([torch.bernoulli(probability.detach(), generator=generator), hard_at(run)])
    choices[:, :, : logits.shape[1] - free] = 1
    return probability, choices[0], choices[1]


def rewards(actions: Tensor, correct: Tensor, gamma: float) -> Tensor:
    r"""What a path earned, (B,): :math:`1 - (|u|_0 / N)^2` where the label is right, else :math:`-\gamma`.

    (Section 3.2.) u is `actions` (B, N) in {0, 1}, `correct` (B,) bool.
    """
    return torch.where(correct, 1 - actions.mean(dim=1).square(), -gamma)


def policy_loss(probability: Tensor, actions: Tensor, advantage: Tensor, free: int) -> Tensor:
    r"""The REINFORCE term of each image, (B,), whose gradient is that of the negative expected reward.

    .. math:: -(R(u) - R(\tilde u)) \sum_k \log p'(u_k)

    (section 3.3, self-critical: :math:`\tilde u` is greedy.) `probability` p' and `actions` u are
    (B, N), `advantage` (B,); the sum is over the last `free` blocks, the others had no choice.
    """
    chance = torch.where(actions == 1, probability, 1 - probability)[:, -free:]
    return -advantage.detach() * _log(chance).sum(dim=1)


def entropy(probability: Tensor) -> Tensor:
    r"""The public code's entropy, :math:`-\sum_k p'_k \log p'_k`, (B,): of running alone, over all blocks (B, N)."""
    return -(probability * _log(probability)).sum(dim=1)


def _log(chance: Tensor) -> Tensor:
    return chance.clamp(min=torch.finfo(chance.dtype).tiny).log()


def objective(network: RoutedNetwork, batch: Batch, phase: Phase) -> dict[str, Tensor]:
    """Pretraining: cross entropy. Curriculum: the policy's term and entropy. Finetuning: policy and cross entropy."""
    assert isinstance(network, BlockDropNetwork)
    config: Config = network.config
    images, labels = batch.images, batch.labels
    if phase.name == PRETRAIN:
        return {
            "cross_entropy": F.cross_entropy(network.follow(images), labels, label_smoothing=config.label_smoothing)
        }
    joint, count = phase.name == FINETUNE, network.gates
    free = count if joint else free_blocks(batch.share, config.release, count)
    probability, sampled, greedy = choose(network.router.begin(images), config.alpha, free, batch.generator)
    terms: dict[str, Tensor] = {}
    if joint:
        baseline = _baseline(network, images, greedy)
        output = network.follow(images, sampled)
        terms["cross_entropy"] = F.cross_entropy(output, labels, label_smoothing=config.label_smoothing)
        outcomes = torch.stack([output.detach(), baseline])
    else:
        with evaluating(network):
            outcomes = network.outcomes(images, torch.stack([sampled, greedy]))
        terms["entropy"] = -config.entropy * entropy(probability).mean()
    correct = outcomes.argmax(dim=2).eq(labels)
    gamma = config.gamma if joint else config.curriculum_gamma
    advantage = rewards(sampled, correct[0], gamma) - rewards(greedy, correct[1], gamma)
    losses = policy_loss(probability, sampled, advantage, free)
    return {**terms, "policy": losses.sum() if joint and config.impl == "official" else losses.mean()}


def _baseline(network: BlockDropNetwork, images: Tensor, greedy: Tensor) -> Tensor:
    """Logits (B, C) under the greedy decisions, without a trace in the network; the public code leaves one."""
    if network.config.impl == "official":
        with torch.no_grad():
            return network.follow(images, greedy)
    with evaluating(network):
        return network.outcomes(images, greedy[None])[0]


def paper_cost(network: RoutedNetwork) -> dict[str, Any]:
    """The paper's FLOPs: two per MAC, the policy network's among them, with all and no blocks run."""
    return {
        "unit": "FLOPs = 2 x MACs, policy network included",
        "flops": 2 * network.macs_full,
        "flops_min": 2 * network.macs_min,
    }


METHOD = Method(
    name="blockdrop",
    title="BlockDrop",
    paper="arXiv:1711.08393",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    networks=imagenet.RESIDUAL_NETWORKS,
    knobs=THRESHOLD_KNOB,
    phases=phases,
    objective=objective,
    settings=thresholds,
    paper_cost=paper_cost,
    donor=static_donor,
    donor_rate=False,
)
