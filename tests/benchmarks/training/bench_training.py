"""A training step of SkipNet-110 and CoDiNet-110 against a plain eager implementation of the same mathematics.

    python tests/benchmarks/training/bench_training.py [--device cpu] [--batch 64] [--repeats 5] [--compiled] [--epoch]
        [--float32]

One thread. "plain" is what one would write first: channels first, the default SGD, one statement a
formula, losses by loops over images. Contenders are interleaved in one run; medians and the median
of the ratios. ``--compiled`` adds regional compilation (minutes), ``--epoch`` the seconds that an
epoch of 50,000 images of 32 x 32 would take. Memory is the peak of a fresh process over what it
held before its first step. ``--float32`` leaves bfloat16 out: a CPU without instructions for it takes ten times as
long. Before timing, gradients on ResNet-8 are compared in float64 (they must be equal)
and in float32 (distance of each from float64).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.networks.gated.gates import LinearGate, LocalRouter, RecurrentRouter
from trainables.networks.gated.network import GatedResNet
from trainables.networks.resnet.cifar import BasicBlock
from trainables.registry import get_method

VIEWS = 4
CONFIGS: dict[str, dict[str, Any]] = {
    "skipnet": {"gate": "rnn", "variant": "sp"},
    "codinet": {"views": VIEWS, "margin_consistency": 0.0, "margin_diversity": 2.0, "gamma": 0.02},
}


def plain_block(block: BasicBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    short = block.shortcut(x)
    inner = torch.relu(block.bn1(block.conv1(x)))
    return torch.relu(block.bn2(block.conv2(inner)) + short), short


def plain_skipnet(network: GatedResNet, batch: Batch) -> Tensor:
    router = network.router
    assert isinstance(router, RecurrentRouter)
    x, _ = plain_block(network.blocks[0], network.stem(batch.images))  # type: ignore[arg-type]
    size = router.lstm.hidden_size
    h, c = x.new_zeros(len(x), size), x.new_zeros(len(x), size)
    for gate, k in enumerate(network.gated):
        pooled = F.adaptive_avg_pool2d(x, 1)
        h, c = router.lstm(router.embed[gate](pooled).flatten(1), (h, c))
        soft = torch.sigmoid(router.out(h))
        decision = ((soft >= 0.5).to(soft.dtype) - soft.detach() + soft).view(-1, 1, 1, 1)
        through, short = plain_block(network.blocks[k], x)  # type: ignore[arg-type]
        x = decision * through + (1 - decision) * short
    return F.cross_entropy(network.classifier(x), batch.labels)


def plain_codinet(network: GatedResNet, batch: Batch) -> Tensor:
    config, router = network.config, network.router
    assert isinstance(router, LocalRouter)
    x = network.stem(batch.images)
    path = []
    for gate, k in enumerate(network.gated):
        layers = router.gates[gate]
        assert isinstance(layers, LinearGate)
        scores = layers.fc2(torch.relu(layers.fc1(F.adaptive_avg_pool2d(x, 1).flatten(1))))
        uniform = torch.rand(len(x), generator=batch.generator, device=x.device, dtype=x.dtype)
        noise = torch.log(uniform.clamp(min=torch.finfo(x.dtype).tiny)) - torch.log1p(-uniform)
        v = torch.sigmoid((scores[:, 1] - scores[:, 0] + noise) / config.temperature)
        through, _ = plain_block(network.blocks[k], x)  # type: ignore[arg-type]
        share = v.view(-1, 1, 1, 1)
        x = share * through + (1 - share) * network.skips[gate](x)
        path.append(v)
    paths = torch.stack(path, dim=1)
    groups = [paths[i : i + batch.views] for i in range(0, len(paths), batch.views)]
    centres = [group.mean(dim=0) for group in groups]
    consistency = paths.new_zeros(())
    for group, centre in zip(groups, centres, strict=True):
        for each in group:
            consistency = consistency + F.relu(torch.linalg.vector_norm(each - centre) - config.margin_consistency) ** 2
    diversity = paths.new_zeros(())
    for i, one in enumerate(centres):
        for j, other in enumerate(centres):
            if i != j:
                gap = torch.linalg.vector_norm(one - other)
                diversity = diversity + F.relu(config.margin_diversity - gap) ** 2
    macs = torch.tensor(network.gated_macs, dtype=paths.dtype, device=paths.device)
    cost = (paths * (macs / macs.mean())).sum(dim=1).mean()
    pairs = len(centres) * (len(centres) - 1)
    total = F.cross_entropy(network.classifier(x), batch.labels)
    total = total + config.alpha * consistency / len(paths) + config.beta * diversity / pairs
    return total + config.gamma * cost


PLAIN = {"skipnet": plain_skipnet, "codinet": plain_codinet}


def build(name: str, network: str) -> GatedResNet:
    torch.manual_seed(0)
    method = get_method(name)
    built = method.build(method.configure({"network": network, **CONFIGS[name]}), Task())
    assert isinstance(built, GatedResNet)
    return built.train()


def batch_of(name: str, count: int, device: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 32, 32, generator=draw).to(device, dtype)
    views = VIEWS if name == "codinet" else 1
    labels = (torch.arange(count) // views % 10).to(device)
    return Batch(images, labels, views, torch.Generator(device).manual_seed(seed))


class Contender:
    """One way to make a step: its own copy of the network, its own optimiser."""

    def __init__(self, way: str, name: str, network: GatedResNet, device: str) -> None:
        self.way, self.name, self.device = way, name, device
        self.method = get_method(name)
        self.network = copy.deepcopy(network).to(device)
        (self.phase, *_) = self.method.phases(network.config)
        self.network.relaxation = self.phase.relaxation
        if way == "plain":
            self.optimiser: torch.optim.Optimizer = torch.optim.SGD(
                self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4
            )
        else:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.optimiser = torch.optim.SGD(
                self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True
            )
        if "compiled" in way:
            torch._dynamo.config.recompile_limit = 64
            for region in self.network.regions():
                region.compile(dynamic=False)

    def loss(self, batch: Batch) -> Tensor:
        if self.way == "plain":
            return PLAIN[self.name](self.network, batch)
        batch.images = batch.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device, torch.bfloat16, enabled="bfloat16" in self.way):
            return torch.stack(list(self.method.objective(self.network, batch, self.phase).values())).sum()

    def step(self, batch: Batch) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        loss = self.loss(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def gradients(way: str, name: str, network: GatedResNet, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    contender = Contender(way, name, copy.deepcopy(network).to(dtype), device)
    contender.loss(batch_of(name, 16, device, dtype, seed)).backward()
    return torch.cat([p.grad.flatten().double() for p in contender.network.parameters() if p.grad is not None])


def compare_gradients(name: str, device: str) -> dict[str, float]:
    """Relative distances of the gradients, in float32 the median of 15 batches.

    CoDiNet's noise is drawn in the type of its logits, so that its float32 gradients are of another draw.
    """
    network = build(name, "resnet-8")
    exact = {way: gradients(way, name, network, torch.float64, device) for way in ("plain", "ours")}
    scale = float(exact["plain"].norm())
    result = {"float64 ours - plain": float((exact["ours"] - exact["plain"]).norm()) / scale}
    if name == "skipnet":  # no noise: float32 may be compared with float64
        far: dict[str, list[float]] = {"plain": [], "ours": []}
        for seed in range(15):
            double = gradients("plain", name, network, torch.float64, device, seed)
            for way, distances in far.items():
                single = gradients(way, name, network, torch.float32, device, seed)
                distances.append(float((single - double).norm() / double.norm()))
        for way, distances in far.items():
            words = f"float32 {way} - float64, median of 15 (largest {max(distances):.1e})"
            result[words] = statistics.median(distances)
    return result


def peak_memory(way: str, name: str, batch: int, device: str) -> float:
    """MiB at the peak of two steps in a fresh process (of the device's memory on GPUs)."""
    words = [sys.executable, __file__, "--child", way, name, "--batch", str(batch), "--device", device]
    return float(json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout))


def _resident(field: str) -> float:
    """MiB of this process, now (VmRSS) or at its peak (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def child(words: list[str], batch: int, device: str) -> None:
    way, name = words
    contender = Contender(way, name, build(name, "resnet-110"), device)
    before = _resident("VmRSS")
    for seed in range(2):
        contender.step(batch_of(name, batch, device, seed=seed))
    if device == "cpu":
        print(json.dumps(_resident("VmHWM") - before))
    else:
        print(json.dumps(torch.cuda.max_memory_allocated() / 2**20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--epoch", action="store_true")
    parser.add_argument("--float32", action="store_true", help="without bfloat16")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "METHOD"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.child:
        child(a.child, a.batch, a.device)
        return
    where = torch.cuda.get_device_name() if a.device != "cpu" else platform.processor() or platform.machine()
    print(f"batch {a.batch}, {where}, torch {torch.__version__}, one thread\n")
    ways = ["plain", "ours float32", "ours bfloat16"]
    ways += ["ours float32 compiled", "ours bfloat16 compiled"] if a.compiled else []
    ways = [way for way in ways if not (a.float32 and "bfloat16" in way)]
    for name in CONFIGS:
        for what, distance in compare_gradients(name, a.device).items():
            print(f"{name} resnet-8 gradients, {what}: {distance:.2e}")
        network = build(name, "resnet-110")
        contenders = [Contender(way, name, network, a.device) for way in ways]
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(a.repeats + 2):  # the first two warm up
            for contender in contenders:
                seconds = contender.step(batch_of(name, a.batch, a.device, seed=repeat))
                if repeat >= 2:
                    taken[contender.way].append(seconds)
        print(
            f"\n| {name} resnet-110 | ms a step | times faster than plain | peak MiB |"
            + (" s an epoch |" if a.epoch else "")
        )
        print("|--|--|--|--|" + ("--|" if a.epoch else ""))
        for way in ways:
            median = statistics.median(taken[way])
            ratio = statistics.median(p / t for p, t in zip(taken["plain"], taken[way], strict=True))
            epoch = f" {median * 50_000 / a.batch:.1f} |" if a.epoch else ""
            memory = peak_memory(way, name, a.batch, a.device)
            print(f"| {way} | {1e3 * median:.1f} | {ratio:.2f} | {memory:.0f} |{epoch}")
        print(flush=True)


if __name__ == "__main__":
    main()
