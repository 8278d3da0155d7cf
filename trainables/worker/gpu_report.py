"""What a GPU is worth to routefront, as one file that somebody sends: `routefront doctor --gpu-report F.json`.

    python -m trainables.worker.gpu_report --child DEVICE SECONDS [tiny]    # one of several trials on a card

Parts, in this order, each with the share of the seconds that `SHARES` gives it; what one leaves the next ones have:

========= ============================================================================================================
constants microseconds of a launch, of a copy from a list, of reading a value, of a kernel in a CUDA graph; GB a second
          of a copy; TFLOP a second of a product in float32, TF32 and bfloat16
networks  every kind of network, float32 and bfloat16: steps as written and captured, hard and dense pass, agreement
          with the CPU, memory (`trainables.worker.gpus.measured`)
compiled  the same with `compiled = true`
repeats   whether two trainings of one seed under `deterministic` end with the same bits
batches   the hard pass against the dense one at 1 to 4,096 images, and what TF32 would change
shared    steps a second of 1, 2, 4 and 8 processes that train at once, as trials that share a GPU do
========= ============================================================================================================

It runs on a CPU as well (``device="cpu"``, `tiny`), where its times say nothing and what needs CUDA is left out.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trainables.contracts.network import RoutedNetwork, Task
from trainables.data.augment import normalise
from trainables.execution.arithmetic import ieee_float32
from trainables.inference.evaluation import exit_logits
from trainables.inference.prepare import prepared
from trainables.registry import get_method
from trainables.training.training import Training
from trainables.worker.gpus import facts, measured, random_images, settle, surroundings

Row = dict[str, Any]
Rows = Iterator[Row]
NETWORKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("static", {"network": "resnet-20", "batch_size": 128}),
    ("codinet", {"network": "resnet-20", "batch_size": 256, "views": 4}),
    ("skipnet", {"network": "resnet-38", "batch_size": 128, "gate": "rnn"}),
    ("imta", {"network": "msdnet-5", "variant": "none", "batch_size": 64}),
    ("act", {"network": "preact-resnet-32", "batch_size": 128}),
    ("sact", {"network": "preact-resnet-32", "batch_size": 128}),
    ("decide", {"network": "pyramid-4", "batch_size": 128}),
    ("multipath", {"network": "resnet-20-2", "batch_size": 128}),
    ("aig", {"network": "resnet-20", "batch_size": 128}),
    ("blockdrop", {"network": "resnet-20", "batch_size": 128}),
    ("sdv", {"network": "resnet-20", "batch_size": 128}),
    ("ensemble", {"network": "resnet-20", "members": 3, "batch_size": 128}),
    ("codinet", {"network": "resnet-110", "batch_size": 256, "views": 4}),
)
PRECISIONS = ("float32", "bfloat16")
COMPILED = (0, 1)
"""Which of `NETWORKS` are measured compiled, too: a compilation takes a minute."""
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
TRIALS = (1, 2, 4, 8)
SHARES = {"constants": 1, "networks": 6, "compiled": 3, "repeats": 1, "batches": 2, "shared": 3}
"""By part what it gets of the time that is left, beside the later ones."""
_PATIENCE = 120.0
_EPOCH = 50_000
"""Images of an epoch of CIFAR-10, for which the time is told."""
_TINY: Mapping[str, dict[str, Any]] = {
    "resnet-20": {"network": "resnet-8", "width": 0.25},
    "resnet-38": {"network": "resnet-8", "width": 0.25},
    "resnet-110": {"network": "resnet-14", "width": 0.25},
    "msdnet-5": {"network": "msdnet-2", "width": 0.25},
    "preact-resnet-32": {"network": "preact-resnet-14", "width": 0.25},
    "pyramid-4": {"network": "pyramid-3", "width": 0.25},
    "resnet-20-2": {"network": "resnet-8-2", "width": 0.25},
}


def report(seconds: float = 480.0, device: str = "cuda", *, tiny: bool = False) -> dict[str, Any]:
    """Plain values for a file: the machine, the rows of every part, what was left out for lack of time.

    No row is begun behind `seconds`. What failed has a row that says why under ``error``. `tiny`: small networks on
    small images, to see that it ends.
    """
    began, found, left_out = time.monotonic(), dict[str, list[Row]](), list[str]()
    run = _Run(device, tiny)
    for part, rows in run.parts().items():
        left = seconds - (time.monotonic() - began)
        share = SHARES[part] / sum(list(SHARES.values())[list(SHARES).index(part) :])
        until = time.monotonic() + left * share
        found[part] = []
        for name, measure in rows:
            if time.monotonic() > until:
                left_out.append(f"{part}: {name}")
                continue
            found[part].append(_guarded(name, measure))
            run.free()
    return {
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "gpus": facts() if device == "cuda" else [],
        "machine": surroundings(),
        "parts": found,
        "left_out": left_out,
        "seconds": round(time.monotonic() - began, 1),
    }


def _guarded(name: str, measure: Callable[[], Row]) -> Row:
    try:
        return {"case": name, **measure()}
    except Exception as error:  # whatever fails on a card that nobody has seen is what the file is for
        return {"case": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}


class _Run:
    """Where it is measured; `tiny`: on what."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny = device, tiny
        self.cuda = device == "cuda"
        self.size = 8 if tiny else 32

    def parts(self) -> dict[str, list[tuple[str, Callable[[], Row]]]]:
        """By part of `SHARES` what is measured, by name."""
        cases = [self.case(*each) for each in NETWORKS]
        parts: dict[str, list[tuple[str, Callable[[], Row]]]] = {part: [] for part in SHARES}
        parts["constants"] = [("constants", self.constants)] if self.cuda else []
        for name, values in cases:
            for precision in PRECISIONS:
                parts["networks"].append(self._network(name, {**values, "precision": precision}))
        if self.cuda:
            for name, values in (cases[index] for index in COMPILED):
                parts["compiled"].append(self._network(name, {**values, "precision": "bfloat16", "compiled": True}))
        for name, values in (cases[1], cases[3]):
            parts["repeats"].append((f"{name} {values['network']}", lambda n=name, v=values: self.repeats(n, v)))
        for name, values in (cases[1], cases[3]):
            parts["batches"].append((f"{name} {values['network']}", lambda n=name, v=values: self.batches(n, v)))
        for count in TRIALS[:2] if self.tiny else TRIALS:
            parts["shared"].append((f"{count} trials at once", lambda n=count: self.shared(n)))
        return parts

    def case(self, name: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """One of `NETWORKS`, or what stands for it in a tiny run."""
        if not self.tiny:
            return name, dict(values)
        batch = {"batch_size": 4, **({"views": 2} if "views" in values else {})}
        small = {"policy_width": 0.25, "curriculum_batch_size": 4, "finetune_batch_size": 4}
        return name, {**values, **batch, **_TINY[values["network"]], **(small if name == "blockdrop" else {})}

    def free(self) -> None:
        """Give back the memory of what ran before."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def timed(self, call: Callable[[], Any], times: int) -> tuple[float, float]:
        """(milliseconds a call with the device behind it, until the host has handed it out), behind one call."""
        call()
        settle(self.device)
        began = time.perf_counter()
        for _ in range(times):
            call()
        issued = time.perf_counter() - began
        settle(self.device)
        return 1000 * (time.perf_counter() - began) / times, 1000 * issued / times

    def constants(self) -> Row:
        """What the card and its host take for the least there is, and for large copies and products."""
        few = torch.zeros(64, device=self.device)
        row: Row = {"launch_us": 1000 * self.timed(lambda: few.add_(1), 5000)[1]}
        row["list_to_device_us"] = 1000 * self.timed(lambda: torch.tensor([1.0, 2.0], device=self.device), 500)[0]
        row["read_us"] = 1000 * self.timed(lambda: few.sum().item(), 500)[0]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(1000):
                few.add_(1)
        row["kernel_in_graph_us"] = self.timed(graph.replay, 20)[0]  # ms of a thousand
        large = torch.empty(1 << 28, dtype=torch.uint8, device=self.device)
        other = torch.empty_like(large)
        row["copy_GB_s"] = 2 * large.numel() / self.timed(lambda: other.copy_(large), 20)[0] / 1e6
        for name, kind, tf32 in (
            ("float32", torch.float32, False),
            ("tf32", torch.float32, True),
            ("bfloat16", torch.bfloat16, False),
        ):
            square, allowed = (
                torch.ones(4096, 4096, device=self.device, dtype=kind),
                torch.backends.cuda.matmul.allow_tf32,
            )
            torch.backends.cuda.matmul.allow_tf32 = tf32
            try:
                row[f"{name}_TFLOP_s"] = 2 * 4096**3 / self.timed(lambda square=square: square @ square, 20)[0] / 1e9
            finally:
                torch.backends.cuda.matmul.allow_tf32 = allowed
        return {name: round(value, 3) for name, value in row.items()}

    def _network(self, name: str, values: dict[str, Any]) -> tuple[str, Callable[[], Row]]:
        def measure() -> Row:
            steps, images = (2, 6) if self.tiny else (12, 64)
            row = measured(name, values, device=self.device, size=self.size, steps=steps, images=images)
            each = row["batch"] // get_method(name).views(get_method(name).configure(values))
            best = row["written_ms"] if row["captured_ms"] is None else row["captured_ms"]
            return {**row, "epoch_of_50000_s": best / 1000 * -(-_EPOCH // each)}

        more = " compiled" if values.get("compiled") else ""
        return f"{name} {values['network']} {values['precision']}{more}", measure

    def repeats(self, name: str, values: Mapping[str, Any]) -> Row:
        """How far the weights of two trainings of one seed are apart: as usual, and under `deterministic`."""
        method = get_method(name)
        config = method.configure(values)
        data = random_images(max(64, 4 * config.batch_size) if not self.tiny else 16, self.size)
        row: Row = {}
        for how, deterministic in (("usual", False), ("deterministic", True)):
            ends: list[list[Tensor]] = []
            for _ in range(2):
                training = Training(
                    method, config, data, epochs=4, device=self.device, seed=1, deterministic=deterministic
                )
                training.evaluate_at = set()
                training.step()
                ends.append([each.detach().clone() for each in training.network.parameters()])
            row[how] = max(float((one - other).abs().max()) for one, other in zip(*ends, strict=True))
        return row

    @torch.inference_mode()
    @ieee_float32()
    def batches(self, name: str, values: Mapping[str, Any]) -> Row:
        """Milliseconds by size of batch, at about the middle of the curve; which share of the MACs was run."""
        method = get_method(name)
        config = method.configure(values)
        torch.manual_seed(0)
        plain = method.build(config, Task(size=self.size)).eval()
        for part, parameter in plain.named_parameters():  # routers that decide by the image, not all alike
            if part.startswith("router"):
                std = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 1.0
                torch.nn.init.normal_(parameter, std=std)
        plain = plain.to(memory_format=torch.channels_last).to(self.device)  # type: ignore[call-overload]
        most = 8 if self.tiny else max(BATCHES)
        data = random_images(most, self.size).for_config(config)
        images = normalise(torch.from_numpy(data.validation.decoded()).to(self.device), data)
        fast, knobs = prepared(plain), {"threshold": 0.5}
        if method.calibrate is not None:
            knobs = method.calibrate({"q": 1.0}, exit_logits(fast, images[:1024]))
        row: Row = {"macs": float(fast.infer(images, knobs).macs.mean()) / fast.macs_full}
        for size in (size for size in BATCHES if size <= most):
            batch = images[:size].contiguous(memory_format=torch.channels_last)
            row[f"hard_{size}_ms"] = self.timed(lambda batch=batch: fast.infer(batch, knobs), 3)[0]
            row[f"dense_{size}_ms"] = self.timed(lambda batch=batch: fast(batch), 3)[0]
        return {**row, "tf32_off": self._tf32(plain, images[:2048], knobs)} if self.cuda else row

    def _tf32(self, plain: RoutedNetwork, images: Tensor, knobs: Mapping[str, Any]) -> float:
        """How far the logits are with TF32 convolutions, as a share of the largest."""
        exact = plain.infer(images, dict(knobs)).logits
        torch.backends.cudnn.allow_tf32 = True  # `ieee_float32` puts it back
        found = plain.infer(images, dict(knobs)).logits
        torch.backends.cudnn.allow_tf32 = False
        return float((found - exact).abs().max() / exact.abs().max())

    def shared(self, count: int) -> Row:
        """Steps a second of so many processes together, which begin to count when all of them are ready."""
        seconds = 0.2 if self.tiny else 4.0
        words = [sys.executable, "-m", "trainables.worker.gpu_report", "--child", self.device, str(seconds)]
        words += ["tiny"] if self.tiny else []
        pipe = subprocess.PIPE
        children = [subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(count)]
        ends = threading.Timer(_PATIENCE, lambda: [child.kill() for child in children])
        ends.start()
        try:
            for child in children:
                assert child.stdout is not None
                if child.stdout.readline().strip() != "ready":
                    why = child.communicate()[1].strip().splitlines()
                    raise RuntimeError(why[-1] if why else f"a process was not ready within {_PATIENCE:.0f} s")
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            rates = [float(child.communicate()[0]) for child in children]
        finally:
            ends.cancel()
            for child in children:
                child.kill()
                child.communicate()
        return {"trials": count, "steps_s": sum(rates), "slowest_steps_s": min(rates)}


def _child(device: str, seconds: float, tiny: bool) -> float:
    """Steps a second of one training, captured where the device can; says ``ready`` and waits for a line first."""
    name, values = _Run(device, tiny).case(*NETWORKS[1])
    method = get_method(name)
    config = method.configure({**values, "precision": "float32" if device == "cpu" else "bfloat16"})
    each = config.batch_size // method.views(config)
    data = random_images((4 if tiny else 64) * each, 8 if tiny else 32)
    training = Training(method, config, data, epochs=10**6, device=device, seed=1)
    training.evaluate_at = set()
    training.step()
    settle(device)
    print("ready", flush=True)
    sys.stdin.readline()
    epochs, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        training.step()
        epochs += 1
    settle(device)
    return epochs * -(-len(training.labels) // each) / (time.perf_counter() - began)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(_child(sys.argv[2], float(sys.argv[3]), "tiny" in sys.argv[4:]))
