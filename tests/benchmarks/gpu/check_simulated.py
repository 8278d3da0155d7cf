"""Every method under the rules of a simulated CUDA device: all phases, curve, diagnostics, latency, save, restore.

    python tests/benchmarks/gpu/check_simulated.py [--methods NAME ...] [--set precision='"float32"' ...] [--waits 8]

Needs no GPU (`tests/support/simcuda.py`); some ten minutes on one thread. Prints a line a configuration (``ok`` or what
raised, and where), then the device's faults: calls that a real device would refuse, by line of this project, in the
order in which they came up (a real device raises at the first one of a configuration; later ones may follow from it).
Then, for every configuration, how often the host waited for the device and how many kernels were launched, in all and a
training step, with the lines that wait most (`--waits` of them). Exits with 1 where a configuration failed or a fault
was found.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.support.noise import noise
from tests.support.simcuda import ROOT, Log, sim
from trainables.data.splits import Data
from trainables.registry import METHODS, get_method
from trainables.training import training as loop

_EXITS = {"network": "msdnet-3", "growth": 4, "curve_points": 4}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("static", {"network": "resnet-8"}),
    ("static", {"network": "densenet-bc-40", "width": 0.5}),
    ("skipnet", {"network": "resnet-14", "variant": "sp"}),
    ("skipnet", {"network": "resnet-14", "variant": "hrl_sp", "gate": "ff1"}),
    ("skipnet", {"network": "resnet-14", "variant": "rl", "gate": "linear"}),
    ("skipnet", {"network": "resnet-14", "gate": "policy"}),
    ("codinet", {"network": "resnet-14"}),
    ("codinet", {"network": "resnet-14", "impl": "official", "gate": "rnn"}),
    ("aig", {"network": "resnet-14"}),
    ("aig", {"network": "resnet-14", "impl": "official"}),
    ("blockdrop", {"network": "resnet-14"}),
    ("blockdrop", {"network": "resnet-14", "impl": "official"}),
    ("sdv", {"network": "resnet-14"}),
    ("sdv", {"network": "resnet-14", "variant": "original"}),
    ("imta", {**_EXITS, "variant": "none"}),
    ("imta", {**_EXITS, "variant": "all"}),
    ("imta", {**_EXITS, "variant": "all", "cached_views": 2}),
    ("decide", {"network": "pyramid-3"}),
    ("decide", {"network": "pyramid-tree-4", "variant": "pragmatic"}),
    ("decide", {"network": "pyramid-3", "variant": "optimistic", "dynamic_k_cpt": True}),
    ("decide", {"network": "pyramid-static-3"}),
    ("act", {"network": "preact-resnet-14"}),
    ("sact", {"network": "preact-resnet-14"}),
    ("multipath", {"network": "resnet-8-2", "width": 0.5}),
    ("multipath", {"network": "basecnn-3"}),
    ("ensemble", {"network": "resnet-8", "members": 2}),
]
IMAGES, BATCH = 64, 16
PARTS = {"train": "train_epoch", "curve": "curve", "latency": "milliseconds", "diagnostics": "diagnose"}
"""Parts of a training that are counted apart, by the function of the training loop that does them."""


class Counts:
    """Waits by line and launches of one configuration, by part of the training."""

    def __init__(self, log: Log) -> None:
        self.log, self.steps = log, 0
        self.waits: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        self.launches: Counter[str] = Counter()

    def book(self, part: str) -> None:
        """What was seen since the last booking belongs to a part."""
        self.waits[part].update(self.log.waits)
        self.launches[part] += self.log.launches.total()
        self.log.reset()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Book the `PARTS` of trainings inside the block apart from what surrounds them."""

        def counted(real: Callable[..., Any], part: str) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                self.book("other")
                try:
                    return real(*args, **kwargs)
                finally:
                    self.book(part)

            return call

        with ExitStack() as stack:
            for part, name in PARTS.items():
                stack.enter_context(patch.object(loop, name, counted(getattr(loop, name), part)))
            yield

    def lines(self, most: int) -> Iterator[str]:
        """What is printed of them."""
        for part, waits in self.waits.items():
            total, launches = waits.total(), self.launches[part]
            yield f"  {part}: {total} waits, {launches:,} launches" + (
                f"; a step {total / self.steps:.1f} and {launches / self.steps:,.0f}"
                if part == "train" and self.steps
                else ""
            )
            for (kind, line), count in waits.most_common(most):
                yield f"    {count:6d}  {kind}  {line}"


def check(name: str, values: Mapping[str, Any], data: Data, counts: Counts) -> None:
    """One configuration through every phase, an epoch each, saved and restored; raises where something is wrong."""
    method = get_method(name)
    config = method.configure({"batch_size": BATCH, **values})
    given: dict[str, Any] = {"epochs": len(method.phases(config)), "seed": 1, "device": "cuda", "capture": "off"}
    counts.log.reset()
    with counts.apart(), tempfile.TemporaryDirectory() as folder:
        training = loop.Training(method, config, data, evaluate_at=(1,), diagnostics=True, latency=True, **given)
        counts.book("build")
        while not training.done:
            training.step()
            counts.steps += -(-IMAGES // max(1, BATCH // method.views(config)))
        counts.book("other")
        training.save(Path(folder) / "checkpoint")
        counts.book("save")
        other = loop.Training(method, config, data, **given)
        other.restore(Path(folder) / "checkpoint")
        counts.book("restore")
        for (part, kept), again in zip(training.network.named_parameters(), other.network.parameters(), strict=True):
            if not again.is_cuda:
                raise AssertionError(f"{part} is not on the device behind restore")
            if not torch.equal(kept, again):
                raise AssertionError(f"{part} differs behind restore")


def place_of(error: Exception) -> str:
    """The innermost line of this project that an error passed."""
    frames = [frame.filename.removeprefix(f"{ROOT}/") for frame in traceback.extract_tb(error.__traceback__)]
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)]
    ours = [f"{name}:{line}" for name, line in zip(frames, lines, strict=True) if name.startswith("trainables/")]
    return ours[-1] if ours else "outside"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=JSON", help="for all configurations")
    parser.add_argument("--waits", type=int, default=8, help="so many lines that wait are shown of every part")
    arguments = parser.parse_args()
    try:
        changes = {name: json.loads(value) for name, _, value in (each.partition("=") for each in arguments.set)}
    except ValueError:
        parser.error(f"--set {' '.join(arguments.set)}: takes NAME=JSON, for example precision='\"float32\"'")
    torch.set_num_threads(1)
    seen: dict[str, Counts] = {}
    failed = 0
    with sim() as log:
        data = noise(IMAGES, 16, 5, 32)
        for name, values in CASES:
            if name not in arguments.methods:
                continue
            case, started = f"{name} {json.dumps(values)}", time.perf_counter()
            seen[case] = Counts(log)
            before = log.faults.total()
            try:
                check(name, {**values, **changes}, data, seen[case])
                status = "ok"
            except Exception as error:
                failed += 1
                status = f"FAILED {type(error).__name__}: {str(error)[:300]} at {place_of(error)}"
            faults = log.faults.total() - before
            status += f", {faults} faults of the device" if faults else ""
            print(f"{case}: {status} ({time.perf_counter() - started:.1f} s)", flush=True)
        print(f"\n{failed} of {len(seen)} configurations failed; faults of the device: {log.faults.total()}")
        for (what, line), count in log.faults.items():
            print(f"  {line}  {what}  {count} times")
        for case, counts in seen.items():
            print(f"\n{case}, {counts.steps} steps")
            print("\n".join(counts.lines(arguments.waits)))
    return 1 if failed or log.faults else 0


if __name__ == "__main__":
    sys.exit(main())
