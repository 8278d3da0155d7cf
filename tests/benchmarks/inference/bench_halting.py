"""Does halting save time? Prepared ACT and SACT networks against themselves with nothing halted, and a dense engine.

    python tests/benchmarks/inference/bench_halting.py [--quick] [--device cpu] [--wall] [--json FILE]

Halting is given: behind the first unit of every group all but a share of positions (SACT; a square per image,
as ponder maps are, or scattered at random) or of images (ACT) stop, the others never; halting heads run all the
same. SACT by three ways: active positions gathered, masked convolutions, and what the network chooses.

Efficiency = (MACs ratio halting / nothing halted) / (time ratio halting / nothing halted), same engine. One thread;
contenders are interleaved; medians, and the median of the ratios of neighbours. Times on CPUs are those that
the one thread got to run (boxes are shared), or with ``--wall`` those of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.benchmarks.inference.bench_skip import Clock, interleaved
from trainables.contracts.network import Task
from trainables.inference.prepare import prepared
from trainables.networks.halting.network import HaltingNetwork
from trainables.networks.halting.positions import Places
from trainables.registry import get_method

SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)


class Given(nn.Module):
    """A halting head that answers, after its work, what it was told: (B, h, w) scores."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.scores = torch.zeros(0)

    def forward(self, features: Tensor, *told: int) -> Tensor:
        self.head(features, *told)
        return self.scores if len(self.scores) == len(features) else features.new_zeros(len(features), 1, 1)

    def at(self, state: Tensor, pooled: Tensor, image: Tensor, active: Places, wide: Places) -> Tensor:
        self.head.at(state, pooled, image, active, wide)  # type: ignore[operator]
        return self.scores.flatten()[active.flat]


def square(share: float, batch: int, size: int, draw: torch.Generator) -> Tensor:
    """An active square of this share of the positions somewhere in every image, (B, size, size)."""
    edge = max(1, round(size * share**0.5))
    corners = torch.randint(size - edge + 1, (batch, 2), generator=draw)
    axis = torch.arange(size)
    inside = (axis >= corners[:, :, None]) & (axis < corners[:, :, None] + edge)
    return inside[:, 0, :, None] & inside[:, 1, None]


def scattered(share: float, batch: int, size: int, draw: torch.Generator) -> Tensor:
    """Active positions at random, at least one in every image, (B, size, size)."""
    noise = torch.rand(batch, size * size, generator=draw)
    return (noise.argsort(dim=1).argsort(dim=1) < max(1, round(share * size * size))).view(batch, size, size)


def images_that_stay(share: float, batch: int, size: int, draw: torch.Generator) -> Tensor:
    """The first images of a batch, (B, 1, 1)."""
    return (torch.arange(batch) < max(1, round(share * batch)))[:, None, None]


def build(name: str, body: str, device: str, **values: Any) -> Any:
    torch.manual_seed(0)
    method = get_method(name)
    network = method.build(method.configure({"network": body, **values}), Task())
    return prepared(network.to(device, memory_format=torch.channels_last).eval())  # type: ignore[call-overload]


def told(network: HaltingNetwork, mask: Callable[..., Tensor] | None, share: float, batch: int, device: str) -> Any:
    """A network whose heads stop all that is not in the mask behind the first unit; None: nothing."""
    draw = torch.Generator().manual_seed(2)
    for step in network.steps():
        if step.head is None:
            continue
        given = Given(step.head)
        size = network.grid(step.group)[0]
        stays = torch.ones(batch, size, size, dtype=torch.bool) if mask is None else mask(share, batch, size, draw)
        given.scores = (~stays).float().to(device) if step.place == 0 else torch.zeros(stays.shape, device=device)
        network.router[step.k] = given
    return network


def measure(
    name: str, body: str, batch: int, shares: tuple[float, ...], repeats: int, device: str, clock: Clock
) -> list:
    noise = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    images = noise.to(device).contiguous(memory_format=torch.channels_last)
    nothing = told(build(name, body, device), None, 1.0, batch, device)
    dense = build("act", body, device, variant="vanilla")
    layouts = {"square": square, "scattered": scattered} if name == "sact" else {"images": images_that_stay}
    rows = []
    for layout, mask in layouts.items():
        for share in shares:
            if name == "act" and round(share * batch) < 1:
                continue
            contenders: dict[str, Callable[[], Any]] = {
                "dense": lambda: dense.infer(images, {}),
                "nothing halted": lambda: nothing.infer(images, {"threshold": 1.0}),
            }
            for way in ("gathered", "masked", "chosen") if name == "sact" else ("halting",):
                network = told(build(name, body, device), mask, share, batch, device)
                if way in ("gathered", "masked"):
                    network.sparse_pays = lambda *_, pays=way == "gathered": pays
                contenders[way] = lambda network=network: network.infer(images, {"threshold": 1.0})
                macs = float(network.infer(images, {"threshold": 1.0}).macs.mean()) / nothing.macs_full
            taken = interleaved(contenders, repeats, clock)
            for way in list(contenders)[2:]:
                each = statistics.median(a / b for a, b in zip(taken[way], taken["nothing halted"], strict=True))
                rows.append(
                    {
                        "method": name,
                        "network": body,
                        "batch": batch,
                        "active": layout,
                        "share": share,
                        "way": way,
                        "ms": statistics.median(taken[way]),
                        "nothing_halted_ms": statistics.median(taken["nothing halted"]),
                        "dense_ms": statistics.median(taken["dense"]),
                        "macs_ratio": macs,
                        "time_ratio": each,
                        "efficiency": macs / each,
                    }
                )
                print(
                    "| {method} {network} | {batch} | {active} {share} | {way} | {ms:.2f} | {nothing_halted_ms:.2f} | "
                    "{dense_ms:.2f} | {macs_ratio:.3f} | {time_ratio:.3f} | {efficiency:.2f} |".format(**rows[-1]),
                    flush=True,
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ResNet-32 alone, two shares, few repeats")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--wall", action="store_true", help="time by the clock, not by the thread")
    parser.add_argument("--json", type=Path, help="write the rows to a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock(options.device, options.wall)
    named = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {named}, one thread, {'wall' if options.wall else 'thread'} time, ms\n")
    print("| network | batch | active behind unit 1 | way | ms | nothing halted | dense | MACs | time | efficiency |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for body in ("preact-resnet-32",) if options.quick else ("preact-resnet-32", "preact-resnet-110"):
            deep = body == "preact-resnet-110"
            shares = (0.05, 0.2) if options.quick else (0.05, 0.2, 0.5) if deep else SHARES
            for name in ("sact", "act"):
                for batch in (1, 16, 64):
                    repeats = 3 if options.quick else {1: 15, 16: 7, 64: 3 if deep else 5}[batch]
                    rows += measure(name, body, batch, shares, repeats, options.device, clock)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
