"""Whether every family learns at its paper's rate, without a warm-up: the loss of 200 steps on real images.

    python tests/benchmarks/training/bench_learning.py DATA [--steps 200] [--seeds 0] [--rows ROW ...] [--warmup SHARE]
        [--set KEY=VALUE ...] [--json FILE]

DATA is a data set's name or path. Every row trains its first phase with the paper's optimiser at its paper's rate and
batch size, the rate constant (a training of a thousand times as many steps is assumed, so that no schedule acts).
Prints the first loss, the mean cross entropy of each fifth of the steps (averaged over members and exits), the largest
gradient norm, and whether the last fifth is below log(classes) - 0.3, what is asked of every family.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from trainables.contracts.recipe import plan
from trainables.data.augment import batches, to_device
from trainables.data.datasets import default_root, load
from trainables.data.splits import Data
from trainables.registry import get_method

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "static resnet-8": ("static", {"network": "resnet-8"}),
    "static resnet-20": ("static", {"network": "resnet-20"}),
    "static densenet-bc-40": ("static", {"network": "densenet-bc-40"}),
    "codinet": ("codinet", {"network": "resnet-20", "views": 2}),
    "codinet, init published": ("codinet", {"network": "resnet-20", "views": 2, "init": "published"}),
    "skipnet sp": ("skipnet", {"network": "resnet-20", "variant": "sp"}),
    "aig": ("aig", {"network": "resnet-20"}),
    "blockdrop pretrain": ("blockdrop", {"network": "resnet-20"}),
    "sdv": ("sdv", {"network": "resnet-20"}),
    "act": ("act", {"network": "preact-resnet-20"}),
    "act, init published": ("act", {"network": "preact-resnet-20", "init": "published"}),
    "sact": ("sact", {"network": "preact-resnet-20"}),
    "imta": ("imta", {"network": "msdnet-3", "variant": "none"}),
    "decide actor": ("decide", {"network": "pyramid", "variant": "actor"}),
    "decide pragmatic": ("decide", {"network": "pyramid", "variant": "pragmatic"}),
    "decide static-4": ("decide", {"network": "pyramid-static-4"}),
    "decide static-8": ("decide", {"network": "pyramid-static-8"}),
    "multipath BaseCNN": ("multipath", {"network": "basecnn"}),
    "multipath BaseCNN-3-CC": ("multipath", {"network": "basecnn-3-cc"}),
    "multipath BaseCNN-2-CP": ("multipath", {"network": "basecnn-2-cp"}),
    "multipath ResNet20-2-CC": ("multipath", {"network": "resnet-20-2-cc"}),
    "ensemble of 2 BaseCNN": ("ensemble", {"network": "basecnn", "members": 2}),
}
RECIPE = ("lr", "momentum", "nesterov", "weight_decay", "batch_size", "decayed")
FIFTHS = 5


def learnt(name: str, data: Data, steps: int, seed: int, changes: dict[str, Any], warmup: float) -> dict[str, Any]:
    """Train one row: see the module."""
    method = get_method(ROWS[name][0])
    published = {key: method.published[key] for key in RECIPE if key in method.published}
    config = method.configure({**published, "warmup": 0.0, **ROWS[name][1], **changes})
    torch.manual_seed(seed)
    network = method.build(config, data.task).to(memory_format=torch.channels_last).train()
    phase = plan(method.phases(config), 100)[0][0]
    network.relaxation = phase.relaxation
    named = list(network.named_parameters())
    for each, parameter in named:
        parameter.requires_grad_(phase.trains(each))
    optimiser = phase.optimiser.over([parameter for each, parameter in named if phase.trains(each)])
    generator = torch.Generator().manual_seed(seed + 1)
    images, labels = to_device(data.train, "cpu")
    data = data.for_config(config)
    losses: list[float] = []
    largest, views = 0.0, method.views(config)
    started = time.perf_counter()
    while len(losses) < steps:
        for batch in batches(images, labels, data, batch_size=config.batch_size, views=views, generator=generator):
            rate = phase.optimiser.lr * min(1.0, (len(losses) + 1) / max(1.0, warmup * steps))
            for group in optimiser.param_groups:
                group["lr"] = rate
            batch.share, batch.steps = len(losses) / (1000 * steps), 1000 * steps
            batch.images = batch.images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
                terms = method.objective(network, batch, phase)
            optimiser.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            if method.adjust_gradients is not None:
                method.adjust_gradients(network, batch)
            largest = max(largest, *(float(p.grad.norm()) for _, p in named if p.grad is not None))
            optimiser.step()
            losses.append(cross_entropy(terms))
            if len(losses) == steps:
                break
    size = steps // FIFTHS
    fifths = [sum(losses[k * size : (k + 1) * size]) / size for k in range(FIFTHS)]
    return {
        "row": name,
        "seed": seed,
        "steps": steps,
        "lr": phase.optimiser.lr,
        "warmup": warmup,
        "first": losses[0],
        "fifths": fifths,
        "gradient": largest,
        "learns": fifths[-1] < math.log(data.task.classes) - 0.3,
        "seconds": time.perf_counter() - started,
    }


def cross_entropy(terms: dict[str, Tensor]) -> float:
    """The cross entropy among an objective's terms; of several exits or members their mean."""
    if "cross_entropy" in terms:
        return terms["cross_entropy"].item()
    each = [value.item() for name, value in terms.items() if name.startswith(("exit_", "member_"))]
    return sum(each) / len(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW")
    parser.add_argument("--warmup", type=float, default=0.0, help="share of the steps over which the rate rises")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of all rows, as JSON")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load(arguments.data, root=default_root())
    changes = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in arguments.set)}
    print(f"guessing: {math.log(data.task.classes):.2f}; asked for: below {math.log(data.task.classes) - 0.3:.2f}")
    print("| row | rate | seed | first loss | mean of each fifth of the steps | largest gradient | learns | seconds |")
    print("|--|--|--|--|--|--|--|--|")
    found = []
    for name in arguments.rows:
        for seed in arguments.seeds:
            each = learnt(name, data, arguments.steps, seed, changes, arguments.warmup)
            found.append(each)
            fifths = ", ".join(f"{loss:.2f}" for loss in each["fifths"])
            print(
                f"| {name} | {each['lr']:g} | {seed} | {each['first']:.2f} | {fifths} | {each['gradient']:.3g} "
                f"| {'yes' if each['learns'] else 'NO'} | {each['seconds']:.0f} |",
                flush=True,
            )
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
