"""Training steps of MSDNet-7 against a plain eager implementation, and of phase II on cached features.

    python tests/benchmarks/training/bench_exit_training.py [--quick] [--wall] [--json FILE]

A step with gradient equilibrium, and one of phase II with ISC and OFA, against what one would write
first: channels first, default SGD, gradient-scaling functions, the frozen trunk as it is. Gradients are
compared in float64 and float32. Then the same phase II step where the trunk's outputs are cached.

One thread, contenders interleaved, medians and the median of the ratios of neighbours. Times are
those that the thread got to run (boxes are shared), or with ``--wall`` those of the clock.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.inference.bench_exits import BODY, CLASSES, build, interleaved, ratio, table
from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.data.splits import Augment, Data, Split
from trainables.methods.imta import METHOD, PHASE2
from trainables.networks.msdnet.collaboration import CollaborativeMSDNet
from trainables.networks.msdnet.network import MSDNet
from trainables.training.features import FeatureCache, trunk_features


class Scaled(torch.autograd.Function):
    """The public code's way of scaling gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * ctx.factor, None


def plain_ge(network: MSDNet, batch: Batch) -> Tensor:
    features, losses, count = [batch.images], [], len(network.stages)
    for i, (stage, classifier) in enumerate(zip(network.stages, network.classifiers, strict=True)):
        features, left = stage(*features), count - i
        read = Scaled.apply(features[-1], 1 / left)
        features = [Scaled.apply(each, (left - 1) / left) for each in features]
        losses.append(F.cross_entropy(classifier(read), batch.labels))
    return torch.stack(losses).sum()


def plain_imta(network: CollaborativeMSDNet, batch: Batch) -> Tensor:
    config = network.config
    features, logits, teacher = [batch.images], [], None
    for stage, classifier, head in zip(network.stages, network.classifiers, network.heads, strict=True):
        features = stage(*features)
        read = features[-1]
        for layer in list(classifier)[:-1]:  # type: ignore[arg-type]
            read = layer(read)
        teacher = classifier[-1](read)  # type: ignore[index, operator]
        if not logits:
            logits.append(head.fc(read))  # type: ignore[operator]
        else:
            known = torch.relu(head.norm(head.transfer(logits[-1].detach())))  # type: ignore[operator]
            logits.append(head.fc(torch.cat([read, known], dim=1)))  # type: ignore[operator]
    total = F.cross_entropy(logits[-1], batch.labels)
    assert teacher is not None
    for each in logits[:-1]:
        target = F.softmax(teacher.detach() / config.temperature, dim=1)
        learnt = F.log_softmax(each / config.temperature, dim=1)
        divergence = F.kl_div(learnt, target, reduction="batchmean") * config.temperature**2
        total = total + config.alpha * F.cross_entropy(each, batch.labels) + (1 - config.alpha) * divergence
    return total


STEPS: dict[str, tuple[dict[str, Any], Callable[..., Tensor]]] = {
    "GE": ({"variant": "ge"}, plain_ge),
    "phase II": ({"variant": "all", "temperature": 2.0}, plain_imta),
}


class Contender:
    """One way to make a step: its own copy of the network, its own optimiser."""

    def __init__(self, way: str, what: str, dtype: torch.dtype = torch.float32) -> None:
        values, self.plain = STEPS[what]
        self.way = way
        self.network = build(**values).to(dtype)
        self.phase = METHOD.phases(self.network.config)[-1]
        self.network.train()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self.phase.trains(name))
        for name, module in self.network.named_modules():
            if self.phase.eval_mode and name.startswith(self.phase.eval_mode):
                module.eval()
        if way == "plain":
            self.network.to(memory_format=torch.contiguous_format)
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.SGD(
            self.trained, lr=1e-3, momentum=0.9, weight_decay=1e-4, nesterov=True, fused=True if way == "ours" else None
        )

    def loss(self, batch: Batch) -> Tensor:
        if self.way == "plain":
            return self.plain(self.network, batch)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        terms = METHOD.objective(self.network, Batch(images, batch.labels), self.phase)
        return torch.stack(list(terms.values())).sum()

    def step(self, batch: Batch) -> None:
        loss = self.loss(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()

    def gradient(self, batch: Batch) -> Tensor:
        found = torch.autograd.grad(self.loss(batch), self.trained)
        return torch.cat([each.flatten().double() for each in found])


def batch_of(count: int, dtype: torch.dtype = torch.float32) -> Batch:
    draw = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 32, 32, generator=draw).to(dtype)
    return Batch(images, torch.randint(CLASSES, (count,), generator=draw))


def training(batch: int, repeats: int, now: Callable[[], float]) -> list[dict[str, Any]]:
    rows = []
    for what in STEPS:
        gradients = {
            (way, dtype): Contender(way, what, dtype).gradient(batch_of(8, dtype))
            for way in ("plain", "ours")
            for dtype in (torch.float64, torch.float32)
        }
        exact = gradients["plain", torch.float64]
        far = {key: float((value - exact).norm() / exact.norm()) for key, value in gradients.items()}
        contenders = {way: Contender(way, what) for way in ("plain", "ours")}
        data = batch_of(batch)
        steps = {way: lambda c=c, data=data: c.step(data) for way, c in contenders.items()}
        taken = interleaved(steps, repeats, now)
        rows.append(
            {
                "step": what,
                "plain ms": statistics.median(taken["plain"]),
                "ours ms": statistics.median(taken["ours"]),
                "times faster": ratio(taken, "plain", "ours"),
                "gradient, float64": f"{far['ours', torch.float64]:.1e}",
                "float32 plain": f"{far['plain', torch.float32]:.1e}",
                "float32 ours": f"{far['ours', torch.float32]:.1e}",
            }
        )
    return rows


def data_of(count: int) -> Data:
    draw = torch.Generator().manual_seed(4)
    pixels = torch.randint(256, (count, 3, 32, 32), generator=draw, dtype=torch.uint8).numpy()
    split = Split(pixels, torch.randint(CLASSES, (count,), generator=draw).numpy())
    names = tuple(map(str, range(CLASSES)))
    mean, std = (0.5,) * 3, (0.25,) * 3
    return Data(
        name="noise",
        task=Task(classes=CLASSES),
        classes=names,
        train=split,
        validation=split,
        test=split,
        mean=mean,
        std=std,
        augment=Augment.natural(32),
        hash="",
    )


def cached(batch: int, repeats: int, now: Callable[[], float]) -> dict[str, Any]:
    """An epoch's step of phase II on features that are kept against one that computes them."""
    own = Contender("ours", "phase II")
    data = data_of(4 * batch).for_config(own.network.config)
    images, labels = torch.from_numpy(data.train.images), torch.from_numpy(data.train.labels)
    cache = FeatureCache(lambda x: trunk_features(own.network, x), images, labels, data, views=2, seed=0)
    (_, phase) = METHOD.phases(METHOD.configure({"network": BODY, "variant": "all", "cached_views": 2}))
    assert phase.name == PHASE2
    generator, fresh = torch.Generator().manual_seed(0), batch_of(batch)

    def from_cache() -> None:
        read = next(cache.batches(batch, generator))
        own.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(METHOD.objective(own.network, read, phase).values())).sum().backward()
        own.optimiser.step()

    plain = Contender("plain", "phase II")
    contenders = {"plain": lambda: plain.step(fresh), "ours": lambda: own.step(fresh), "cached": from_cache}
    taken = interleaved(contenders, repeats, now)
    return {
        "batch": batch,
        "trunk ms": statistics.median(taken["ours"]),
        "cached ms": statistics.median(taken["cached"]),
        "trunk / cached": ratio(taken, "ours", "cached"),
        "plain / cached": ratio(taken, "plain", "cached"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats and small batches")
    parser.add_argument("--wall", action="store_true", help="times of the clock")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    a = parser.parse_args()
    torch.set_num_threads(1)
    now = time.perf_counter if a.wall else time.thread_time
    where = platform.processor() or platform.machine()
    print(f"{BODY}, {CLASSES} classes, {where}, torch {torch.__version__}, one thread")
    batch, repeats = (16, 2) if a.quick else (64, 5)
    found = {"training": training(batch, repeats, now), "cache": cached(batch, repeats, now)}
    table(found["training"])
    table([found["cache"]])
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
