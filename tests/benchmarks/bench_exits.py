"""Do exits save time? MSDNet-7 whose images leave, its training steps, cached trunks, and what a curve costs.

    python tests/benchmarks/bench_exits.py [--quick] [--wall] [--parts efficiency,training,cache,curve] [--json FILE]

``efficiency``: a pool of images whose exits are uniform over 7 (thresholds calibrated on the pool with
q = 1), executed in batches by the prepared network, the confidence test included.

Exit efficiency = (MACs with exits / MACs without) / (time with exits / time without), where "without" is
the same prepared network with the last exit alone: no other classifier runs, nobody leaves. Beside it
the eager network with all exits, channels first and last, and frozen TorchScript of the last exit alone.

``training``: a step of MSDNet-7 with gradient equilibrium, and of phase II with ISC and OFA, against
a plain eager implementation (channels first, default SGD, gradient-scaling functions, the frozen
trunk as it is) of the same mathematics; gradients are compared in float64 and float32.
``cache``: the same phase II step where the trunk's outputs are cached. ``curve``: 40 values of q and
7 exits from one pass over a validation split, in units of that pass.

One thread, contenders interleaved, medians and the median of the ratios of neighbours. Times are
those that the thread got to run (boxes are shared), or with ``--wall`` those of the clock.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainables.cached import FeatureCache, trunk_features
from trainables.evaluation import curve, exit_logits
from trainables.fused import prepared
from trainables.method import Batch
from trainables.methods.imta import METHOD, PHASE2
from trainables.network import Task
from trainables.networks.budgets import calibrate
from trainables.networks.collaboration import CollaborativeMSDNet
from trainables.networks.exits import ExitNetwork
from trainables.networks.msdnet import MSDNet
from trainables.splits import Augment, Data, Split

BODY, CLASSES = "msdnet-7", 100
POOL = 448
PARTS = ("efficiency", "training", "cache", "curve")


def interleaved(
    contenders: dict[str, Callable[[], Any]], repeats: int, now: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds of every contender, one of each in turn; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, call in contenders.items():
            started = now()
            call()
            if repeat:
                taken[name].append(1e3 * (now() - started))
    return taken


def ratio(taken: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))


def build(**values: Any) -> Any:
    torch.manual_seed(0)
    network = METHOD.build(METHOD.configure({"network": BODY, **values}), Task(classes=CLASSES))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def images_of(count: int) -> Tensor:
    noise = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return noise.contiguous(memory_format=torch.channels_last)


class LastAlone(nn.Module):
    """The static network: every stage and the last classifier."""

    def __init__(self, network: ExitNetwork) -> None:
        super().__init__()
        self.stages, self.classifier = network.stages, network.classifiers[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        features = [inputs]
        for stage in self.stages:
            features = stage(*features)
        return self.classifier(features[-1])


def efficiency(batch: int, repeats: int, now: Callable[[], float]) -> dict[str, Any]:
    network: MSDNet = build().eval()
    fast = prepared(network)
    assert isinstance(fast, MSDNet)
    pool = images_of(POOL)
    knobs = calibrate({"q": 1.0}, exit_logits(fast, pool, 64))
    exits = torch.cat([fast.infer(part, knobs).exits for part in pool.split(64)])  # type: ignore[misc]
    if batch == 1:  # two images of every exit
        chosen = torch.cat([(exits == i).nonzero()[:2, 0] for i in range(7)])
    else:
        chosen = torch.randperm(POOL, generator=torch.Generator().manual_seed(2))[: max(batch, 256)]
    batches = [part.contiguous(memory_format=torch.channels_last) for part in pool[chosen].split(batch)]
    first = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    alone = LastAlone(fast)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still a contender
        traced = torch.jit.freeze(torch.jit.trace(LastAlone(network).eval(), batches[0]))
    most = fast.at_once(pool)
    contenders: dict[str, Callable[[], Any]] = {
        "exits": lambda: [fast.infer(x, knobs) for x in batches],
        "last alone": lambda: [alone(part) for x in batches for part in x.split(most)],
        "all exits, prepared": lambda: [fast.infer(x, {}) for x in batches],
        "exits, not prepared": lambda: [network.infer(x, knobs) for x in batches],
        "eager all exits, channels first": lambda: [first(x.contiguous()) for x in batches],
        "eager all exits, channels last": lambda: [network(x) for x in batches],
        "last alone, jit frozen": lambda: [traced(x) for x in batches],
    }
    done = [fast.infer(x, knobs) for x in batches]
    macs = torch.cat([each.macs for each in done]).mean()
    without = network.macs_full - sum(unit.macs for unit in network.units[1:-1:2])
    taken = interleaved(contenders, repeats, now)
    median = {name: statistics.median(times) / len(chosen) for name, times in taken.items()}
    dense = min(("last alone", "last alone, jit frozen"), key=lambda name: median[name])
    return {
        "batch": batch,
        "MACs ratio": float(macs) / without,
        "time ratio": ratio(taken, "exits", "last alone"),
        "efficiency": float(macs) / without / ratio(taken, "exits", "last alone"),
        "efficiency, not prepared": float(macs) / without / ratio(taken, "exits, not prepared", "last alone"),
        "eager all exits / exits": ratio(taken, "eager all exits, channels first", "exits"),
        "fastest dense": dense,
        "fastest dense / exits": ratio(taken, dense, "exits"),
        "ms": median,
    }


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
    data = data_of(4 * batch)
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


def one_curve(count: int, repeats: int, now: Callable[[], float]) -> dict[str, Any]:
    network = build(curve_points=40).eval()
    images, labels = images_of(count), torch.arange(count) % CLASSES
    fast = prepared(network)
    contenders = {
        "pass": lambda: exit_logits(fast, images, 128),
        "curve": lambda: curve(METHOD, network, images, labels),
    }
    taken = interleaved(contenders, repeats, now)
    settings = len(METHOD.settings(network.config))
    return {
        "images": count,
        "settings": settings,
        "pass ms": statistics.median(taken["pass"]),
        "curve ms": statistics.median(taken["curve"]),
        "passes": ratio(taken, "curve", "pass"),
    }


def table(rows: list[dict[str, Any]]) -> None:
    names = [name for name in rows[0] if name != "ms"]
    print("\n| " + " | ".join(names) + " |\n|" + "--|" * len(names))
    for row in rows:
        cells = [f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in names]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats and small batches")
    parser.add_argument("--wall", action="store_true", help="times of the clock")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    a = parser.parse_args()
    torch.set_num_threads(1)
    parts = a.parts.split(",")
    if set(parts) - set(PARTS):
        parser.error(f"--parts takes some of {', '.join(PARTS)}")
    now = time.perf_counter if a.wall else time.thread_time
    kind = "clock" if a.wall else "thread"
    where = platform.processor() or platform.machine()
    print(f"{BODY}, {CLASSES} classes, {where}, torch {torch.__version__}, one thread, {kind} time")
    found: dict[str, Any] = {}
    if "efficiency" in parts:
        repeats = {1: 4, 16: 2} if a.quick else {1: 15, 16: 3, 64: 3, 256: 3}
        with torch.inference_mode():
            found["efficiency"] = [efficiency(batch, times, now) for batch, times in repeats.items()]
        table(found["efficiency"])
        rows = found["efficiency"]
        table([{"ms an image": n, **{str(r["batch"]): r["ms"][n] for r in rows}} for n in rows[0]["ms"]])
    if "training" in parts:
        found["training"] = training(16 if a.quick else 64, 2 if a.quick else 5, now)
        table(found["training"])
    if "cache" in parts:
        found["cache"] = cached(16 if a.quick else 64, 2 if a.quick else 5, now)
        table([found["cache"]])
    if "curve" in parts:
        found["curve"] = one_curve(256 if a.quick else 1000, 2 if a.quick else 3, now)
        table([found["curve"]])
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
