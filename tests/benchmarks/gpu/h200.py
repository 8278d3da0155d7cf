"""One prepared run of eight minutes on one GPU: is everything right there, what does a step cost, what would help.

    python3 tests/benchmarks/gpu/h200.py [--device cuda] [--tiny] [--only env,right,...] [--seconds 440] [--out FOLDER]

Needs Python 3.11, torch, numpy, pillow and safetensors; no Ray, Optuna or MLflow. Changes nothing of the card. With
``--device cpu --tiny`` it runs to its end without a GPU, on small networks and without limits of time: a rehearsal,
whose timings say nothing. Parts, each with its share of the seconds and guarded on its own:

===== ==========================================================================================================
env   constants of the card: microseconds of a launch, of a copy, of reading a value, of a kernel in a CUDA graph
right every kind of network: all phases, curve, diagnostics, save, restore; again with the same seed; waits by line
step  milliseconds of a training step, as it is and without its copies from the host; how much of it is the host
graph the whole step, augmentation and optimiser included, as one CUDA graph
hard  curves by size of batch; the hard pass against the dense one; what TF32 changes
pack  trials that share the card: graphs on streams of one process, then processes
fuse  the convolutions of K trials as one grouped convolution
comp  compiled regions inside the captured step
===== ==========================================================================================================

Prints a line of JSON a result as it comes (``--out``: also into ``h200.jsonl`` there), and what was timed again last.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.support.noise import noise
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Batch
from trainables.data.augment import augment, normalise
from trainables.inference.evaluation import curve, exit_logits
from trainables.inference.prepare import prepared
from trainables.registry import get_method
from trainables.training.training import Training

ROOT = Path(__file__).resolve().parents[3]
Case = tuple[str, dict[str, Any], int]
"""(method, values of its configuration, images of a batch)."""

NETWORKS: dict[str, Case] = {
    "codinet-110 M4 b256": ("codinet", {"network": "resnet-110", "views": 4}, 256),
    "skipnet-110 rnn b256": ("skipnet", {"network": "resnet-110", "gate": "rnn"}, 256),
    "skipnet-110 linear b256": ("skipnet", {"network": "resnet-110", "gate": "linear"}, 256),
    "msdnet-7 b64": ("imta", {"network": "msdnet-7", "variant": "ge"}, 64),
    "codinet-20 M4 b256": ("codinet", {"network": "resnet-20", "views": 4}, 256),
    "skipnet-20 rnn b128": ("skipnet", {"network": "resnet-20", "gate": "rnn"}, 128),
    "static-110 b256": ("static", {"network": "resnet-110"}, 256),
    "sact-32 b128": ("sact", {"network": "preact-resnet-32"}, 128),
    "decide tree b128": ("decide", {"network": "pyramid-tree"}, 128),
    "multipath resnet-20-3-cc b128": ("multipath", {"network": "resnet-20-3-cc"}, 128),
}
SMALLER = {
    "resnet-110": "resnet-14",
    "msdnet-7": "msdnet-3",
    "preact-resnet-32": "preact-resnet-14",
    "pyramid-tree": "pyramid-3",
    "resnet-20-3-cc": "resnet-8-2-cc",
}
"""Networks of a tiny run by the names of those that they stand for."""
PACKED, EXITS = "codinet-20 M4 b256", "msdnet-7 b64"

_EXITS = {"network": "msdnet-3", "growth": 4, "curve_points": 4, "variant": "all"}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("static", {"network": "resnet-8"}),
    ("skipnet", {"network": "resnet-14", "variant": "hrl_sp"}),
    ("skipnet", {"network": "resnet-14", "variant": "rl", "gate": "linear"}),
    ("codinet", {"network": "resnet-14"}),
    ("codinet", {"network": "resnet-14", "impl": "official", "gate": "rnn"}),
    ("aig", {"network": "resnet-14"}),
    ("blockdrop", {"network": "resnet-14"}),
    ("sdv", {"network": "resnet-14"}),
    ("sdv", {"network": "resnet-14", "variant": "original"}),
    ("imta", _EXITS),
    ("imta", {**_EXITS, "cached_views": 2}),
    ("decide", {"network": "pyramid-tree-4"}),
    ("decide", {"network": "pyramid-3", "variant": "optimistic", "dynamic_k_cpt": True}),
    ("act", {"network": "preact-resnet-14"}),
    ("sact", {"network": "preact-resnet-14"}),
    ("multipath", {"network": "resnet-8-2-cc", "width": 0.5}),
    ("ensemble", {"network": "resnet-8", "members": 2}),
]
TIMED = ("step", "graph", "compiled graph", "hard", "curve", "streams", "processes", "tf32")


@dataclass(slots=True)
class Run:
    """Where results go, and how much time is left."""

    device: torch.device
    tiny: bool
    seconds: float
    out: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    until: float = 0.0

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def over(self) -> bool:
        """Whether the part that runs has used its time; never of a tiny run."""
        return not self.tiny and self.spent >= self.until

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.began

    def say(self, **row: Any) -> None:
        """Print a result and keep it."""
        row |= {"tiny": True} if self.tiny else {}  # networks are not those that their labels say
        row["t"] = round(self.spent, 1)
        self.rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if self.out is not None:
            with (self.out / "h200.jsonl").open("a") as file:
                file.write(line + "\n")

    def wait(self) -> None:
        """For the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give back the memory of what ran before."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """The most GB that were allocated since `free`."""
        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.cuda else 0.0

    def network(self, label: str) -> Case:
        """One of `NETWORKS`, or what stands for it in a tiny run."""
        method, values, size = NETWORKS[label]
        if self.tiny:
            values, size = {**values, "network": SMALLER.get(values["network"], values["network"])}, 16
        return method, values, size

    def timed(self, call: Callable[[], Any], repeats: int, warm: int = 3) -> tuple[float, float]:
        """(ms a call with the device behind it, ms until the host has issued it): medians of three, of one if tiny."""
        rounds, repeats, warm = (1, min(repeats, 2), 1) if self.tiny else (3, repeats, warm)
        for _ in range(warm):
            call()
        whole, issued = [], []
        for _ in range(rounds):
            self.wait()
            began = time.perf_counter()
            for _ in range(repeats):
                call()
            given = time.perf_counter()
            self.wait()
            whole.append((time.perf_counter() - began) / repeats * 1e3)
            issued.append((given - began) / repeats * 1e3)
        return round(statistics.median(whole), 3), round(statistics.median(issued), 3)

    def kernels(self, call: Callable[[], Any], steps: int = 2) -> dict[str, Any]:
        """Kernels a call, milliseconds of the device busy in it, and its five dearest kernels; empty on CPUs."""
        if not self.cuda:
            return {}
        from torch.profiler import ProfilerActivity, profile

        call()
        self.wait()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(steps):
                call()
            self.wait()
        rows = [row for row in seen.key_averages() if row.device_type == torch.autograd.DeviceType.CUDA]
        rows.sort(key=lambda row: -row.self_device_time_total)
        return {
            "kernels": sum(row.count for row in rows) / steps,
            "busy_ms": round(sum(row.self_device_time_total for row in rows) / steps / 1e3, 3),
            "top": [
                [row.key[:60], round(row.self_device_time_total / steps / 1e3, 3), row.count / steps]
                for row in rows[:5]
            ],
        }


def error_line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error)[:300]}"


class Step:
    """A whole training step over static indices, as `trainables.training.training` makes it.

    Gather, augmentation, normalisation, objective, backward, optimiser. `tensor_lr`: the learning rate is a scalar on
    the device, as a captured step needs it.
    """

    def __init__(
        self, run: Run, label: str, precision: str = "float32", *, compiled: bool = False, tensor_lr: bool = False
    ) -> None:
        name, values, size = run.network(label)
        self.method = get_method(name)
        config = self.method.configure({**values, "batch_size": size, "precision": precision})
        self.views, self.device, self.capturing = self.method.views(config), run.device, False
        data = noise(256 if run.tiny else 4096, validation=16)
        self.training = Training(self.method, config, data, epochs=10, device=run.device)
        self.phase, *_ = self.training._enter(1)
        if compiled:
            from torch import _dynamo as compiler

            compiler.reset()
            compiler.config.recompile_limit = 64
            for region in self.training.network.regions():
                region.compile(dynamic=False)
        self.bfloat16 = precision == "bfloat16"
        assert self.training.optimiser is not None
        self.optimiser = self.training.optimiser
        for group in self.optimiser.param_groups:
            group["lr"] = torch.tensor(0.01, device=run.device) if tensor_lr else 0.01
        count = max(1, size // self.views)
        self.index = torch.randint(len(self.training.labels), (count,), device=run.device)
        self.loss: Tensor | None = None

    def __call__(self) -> Tensor:
        training, data = self.training, self.training.data
        at = self.index.repeat_interleave(self.views)
        truth, images = training.labels[at], training.images
        assert isinstance(images, Tensor)
        pixels = augment(images[at], data.training_augment, training.generator, truth)
        inputs = normalise(pixels, data).contiguous(memory_format=torch.channels_last)
        batch = Batch(inputs, truth, self.views, training.generator, 0.3, 100)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=not self.capturing):
            terms = self.method.objective(training.network, batch, self.phase)
        self.optimiser.zero_grad(set_to_none=True)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        if self.method.adjust_gradients is not None:
            self.method.adjust_gradients(training.network, batch)
        self.optimiser.step()
        return loss.detach()

    def capture(self) -> torch.cuda.CUDAGraph:
        """The step as one CUDA graph; `loss` holds that of the last replay."""
        self.capturing = True
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.training.generator)
        with torch.cuda.graph(graph):
            self.loss = self()
        return graph


# -- parts ------------------------------------------------------------------------------------------------------------


def env(run: Run) -> None:
    """Constants of the card."""
    row: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0], "cpus": os.cpu_count()}
    if run.cuda:
        row |= {"gpu": torch.cuda.get_device_name(), "cudnn": torch.backends.cudnn.version()}
        row["cudnn_tf32"] = torch.backends.cudnn.allow_tf32
        few = torch.zeros(64, device=run.device)
        square = torch.randn(64, 64, device=run.device, requires_grad=True)
        row["us_launch"] = round(run.timed(lambda: few.add_(1), 5000)[1] * 1e3, 2)  # the host's cost of the cheapest
        row["us_autograd_op"] = round(run.timed(lambda: (square * 2).sum(), 2000)[1] * 1e3 / 2, 2)
        copied = run.timed(lambda: torch.tensor([1.0, 2.0, 3.0], device=run.device), 500)[0]
        row["us_tensor_to_device"] = round(copied * 1e3, 2)
        row["us_item"] = round(run.timed(lambda: few.sum().item(), 500)[0] * 1e3, 2)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                few.add_(1)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(1000):
                few.add_(1)
        row["us_kernel_in_graph"] = round(run.timed(graph.replay, 20)[0], 3)  # ms a thousand are us a kernel
        large = torch.empty(1 << 29, dtype=torch.uint8, device=run.device)
        other = torch.empty_like(large)
        row["copy_TBs"] = round(2 * large.numel() / run.timed(lambda: other.copy_(large), 20)[0] / 1e9, 2)
    run.say(part="env", **row)


def right(run: Run) -> None:
    """Every kind of network through everything, in float32 and bfloat16."""
    for extra in ({}, {"precision": "bfloat16"}):
        for name, values in KINDS:
            if run.over:
                return
            case = f"{name} {json.dumps({**values, **extra})}"
            try:
                run.say(part="right", case=case, ok=True, **right_once(run, name, {**values, **extra}))
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                ours = [frame for frame in frames if frame.filename.startswith(f"{ROOT}/trainables")]
                at = [f"{frame.filename.removeprefix(f'{ROOT}/')}:{frame.lineno}" for frame in ours[-2:]]
                run.say(part="right", case=case, ok=False, error=error_line(error), at=at)


def right_once(run: Run, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """One configuration, trained twice: how far the weights are apart; where the host waited, in float32."""
    method = get_method(name)
    config = method.configure({"batch_size": 32, **values})
    data, plain = noise(32 if run.tiny else 128, 16, 5, 32 if run.tiny else 64), "precision" not in values
    given: dict[str, Any] = {"epochs": len(method.phases(config)), "seed": 1, "device": run.device}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if run.cuda and plain:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            training = Training(method, config, data, diagnostics=plain, **given)
            while not training.done:
                training.step()
        finally:
            if run.cuda:
                torch.cuda.set_sync_debug_mode("default")
    lines = Counter(
        f"{each.filename.removeprefix(f'{ROOT}/')}:{each.lineno}" for each in seen if "synchroniz" in str(each.message)
    )
    with tempfile.TemporaryDirectory() as folder:
        training.save(Path(folder) / "checkpoint")
        Training(method, config, data, **given).restore(Path(folder) / "checkpoint")
    again = Training(method, config, data, **given)
    while not again.done:
        again.step()
    both = zip(training.network.parameters(), again.network.parameters(), strict=True)
    far = max(float((one - other).detach().abs().max()) for one, other in both)
    return {"again_max_difference": far, "waits": dict(lines.most_common(8))}


def step(run: Run) -> None:
    """Eager steps, as they are and without the copies from the host."""
    for label in NETWORKS:
        for precision in ("float32", "bfloat16"):
            if run.over:
                return
            try:
                run.free()
                one, repeats = Step(run, label, precision), 2 if run.tiny else 8
                ms, issue = run.timed(one, repeats, 4)
                wanted = precision == "bfloat16" or label.startswith("codinet-110")
                more = run.kernels(one) if wanted else {}
                ms_kept, issue_kept = run.timed(one, repeats)
                times = {
                    "ms": ms,
                    "issue_ms": issue,
                    "no_host_copies_ms": ms_kept,
                    "no_host_copies_issue_ms": issue_kept,
                }
                run.say(part="step", net=label, precision=precision, **times, **more, peak_GB=run.peak())
            except Exception as error:
                run.say(part="step", net=label, precision=precision, error=error_line(error))


def graph(run: Run) -> None:
    """The whole step as one CUDA graph."""
    captured(run, "graph", list(NETWORKS), ("bfloat16", "float32"))


def comp(run: Run) -> None:
    """Compiled regions inside the captured step."""
    captured(run, "compiled graph", ["codinet-110 M4 b256", EXITS, PACKED], ("bfloat16",))


def captured(run: Run, part: str, labels: list[str], precisions: tuple[str, ...]) -> None:
    """Milliseconds of captured steps, what is ready when, and that the loss moves."""
    if not run.cuda:
        return
    for label in labels:
        for precision in precisions:
            if run.over:
                return
            try:
                run.free()
                began = time.perf_counter()
                one = Step(run, label, precision, compiled=part != "graph", tensor_lr=True)
                one()
                whole = one.capture()
                ready = round(time.perf_counter() - began, 1)
                ms, issue = run.timed(whole.replay, 10)
                assert one.loss is not None
                before = float(one.loss)
                for _ in range(20):
                    whole.replay()
                losses = [round(before, 4), round(float(one.loss), 4)]
                reserved = round(torch.cuda.memory_reserved() / 1e9, 2)
                times = {"ms": ms, "issue_ms": issue, "ready_s": ready, "losses": losses, "reserved_GB": reserved}
                run.say(part=part, net=label, precision=precision, **times, **run.kernels(whole.replay))
                del whole, one
            except Exception as error:
                run.say(part=part, net=label, precision=precision, error=error_line(error))


def pack(run: Run) -> None:
    """Trials that share the card."""
    if not run.cuda:
        return
    for label in (PACKED, EXITS):
        streams(run, label)
        run.free()
    for way, count in (("eager", 4), ("graph", 4), ("graph", 8)):
        if run.over:
            return
        begin = str(time.time() + 12)
        command = [sys.executable, __file__, "--device", str(run.device), "--child", f"{way}|{begin}"]
        command += ["--tiny"] if run.tiny else []
        children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        rates = [float(child.communicate()[0].strip().splitlines()[-1]) for child in children]
        run.say(part="processes", net=PACKED, way=way, trials=count, steps_a_second=round(sum(rates), 1))


def streams(run: Run, label: str) -> None:
    """Captured steps of several trials on streams of one process."""
    trials: list[tuple[Any, Any, Step]] = []

    def all_of_them() -> None:
        for whole, stream, _ in trials:
            with torch.cuda.stream(stream):
                whole.replay()

    for count in (1, 2, 4, 8):
        if run.over:
            return
        try:
            while len(trials) < count:
                one = Step(run, label, "bfloat16", tensor_lr=True)
                trials.append((one.capture(), torch.cuda.Stream(), one))
            ms, _ = run.timed(all_of_them, 20)
            run.say(part="streams", net=label, trials=count, ms=ms, ms_a_trial=round(ms / count, 3))
        except Exception as error:
            run.say(part="streams", net=label, trials=count, error=error_line(error))
            return


def child(run: Run, way: str, begin: float) -> None:
    """One of several processes: prints its steps a second, counted for four seconds from a common moment."""
    one = Step(run, PACKED, "bfloat16", tensor_lr=True)
    call = one.capture().replay if way == "graph" else one
    for _ in range(3):
        call()
    run.wait()
    time.sleep(max(0.0, begin - time.time()))
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < 4:
        call()
        count += 1
        if count % 8 == 0:
            run.wait()
    run.wait()
    print(count / (time.perf_counter() - began))


def hard(run: Run) -> None:
    """Curves by size of batch; the hard pass against the dense one; TF32."""
    for name, network in (("codinet", "resnet-110"), ("imta", "msdnet-7")):
        run.free()
        method = get_method(name)
        config = method.configure({"network": SMALLER[network] if run.tiny else network})
        torch.manual_seed(0)
        plain = method.build(config, Task()).eval()
        for part, parameter in plain.named_parameters():  # routers that decide by the image, not all alike
            if part.startswith("router"):
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 1.0)
        plain = plain.to(memory_format=torch.channels_last).to(run.device)  # type: ignore[call-overload]
        data = noise(16, validation=128 if run.tiny else 5000).for_config(config)
        images = normalise(torch.from_numpy(data.validation.decoded()).to(run.device), data)
        labels = torch.from_numpy(data.validation.labels).to(run.device)
        for size in (128, 512, 2048):
            if run.over:
                return
            try:
                taken = []
                for _ in range(2):
                    run.wait()
                    began = time.perf_counter()
                    curve(method, plain, images, labels, batch_size=size)
                    run.wait()
                    taken.append(round(time.perf_counter() - began, 3))
                run.say(part="curve", net=name, batch=size, first_s=taken[0], again_s=taken[1], peak_GB=run.peak())
            except Exception as error:
                run.say(part="curve", net=name, batch=size, error=error_line(error))
        fast, knobs = prepared(plain), {"threshold": 0.5}
        if method.calibrate is not None:
            knobs = method.calibrate({"q": 1.0}, exit_logits(fast, images[:1024]))
        for size in (1, 64, 256, 1024, 4096):
            if size > len(images) or run.over:
                break
            row = hard_and_dense(run, fast, images, size, knobs)
            run.say(part="hard", net=name, batch=size, **row)
        if run.cuda and name == "codinet" and not run.over:
            tf32(run, plain, fast, images[:2048], knobs)


@torch.inference_mode()
def hard_and_dense(run: Run, fast: RoutedNetwork, images: Tensor, size: int, knobs: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a batch in the hard and in the dense pass, the latter captured, too."""
    batch = images[:size].contiguous(memory_format=torch.channels_last)
    row: dict[str, Any] = {}
    row["hard_ms"], row["hard_issue_ms"] = run.timed(lambda: fast.infer(batch, knobs), 3)
    row["dense_ms"], row["dense_issue_ms"] = run.timed(lambda: fast(batch), 3)
    if 2 * size <= len(images):  # others have other numbers of rows: does cuDNN plan every new shape anew?
        other = images[-size:].contiguous(memory_format=torch.channels_last)
        for column in ("new_images_ms", "same_again_ms"):
            run.wait()
            began = time.perf_counter()
            fast.infer(other, knobs)
            run.wait()
            row[column] = round((time.perf_counter() - began) * 1e3, 2)
    row["macs"] = round(float(fast.infer(batch, knobs).macs.mean()) / fast.macs_full, 3)
    if run.cuda:
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                fast(batch)
            torch.cuda.current_stream().wait_stream(side)
            whole = torch.cuda.CUDAGraph()
            with torch.cuda.graph(whole):
                fast(batch)
            row["dense_graph_ms"] = run.timed(whole.replay, 5)[0]
        except Exception as error:
            row["graph_error"] = error_line(error)
    return row


@torch.inference_mode()
def tf32(run: Run, plain: RoutedNetwork, fast: RoutedNetwork, images: Tensor, knobs: dict[str, Any]) -> None:
    """How far TF32 convolutions and the prepared network are from float32."""
    found, usual = {}, torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            torch.backends.cudnn.allow_tf32 = allowed
            found[allowed] = plain.infer(images, knobs), fast.infer(images, knobs)
    finally:
        torch.backends.cudnn.allow_tf32 = usual
    exact = found[False][0]

    def off(result: Any) -> list[float]:
        error = (result.logits - exact.logits).abs().max() / exact.logits.abs().max()
        paths = (result.decisions != exact.decisions).any(1).sum()
        answers = (result.logits.argmax(1) != exact.logits.argmax(1)).sum()
        return [round(float(error), 6), int(paths), int(answers)]

    run.say(
        part="tf32",
        of=len(images),
        what="[largest error of logits, images on another path, other labels] against float32",
        plain_tf32=off(found[True][0]),
        prepared_tf32=off(found[True][1]),
        prepared_float32=off(found[False][1]),
    )


def fuse(run: Run) -> None:
    """K trials' convolutions as one grouped one, forward and backward, against K separate ones."""
    count, dtype = (8, torch.float32) if run.tiny else (128, torch.bfloat16)

    def draw(*shape: int) -> Tensor:
        made = torch.randn(*shape, device=run.device, dtype=dtype)
        return made.contiguous(memory_format=torch.channels_last).requires_grad_()

    for trials in (1, 4, 8):
        for channels, size in ((16, 32), (64, 8)):
            if run.over:
                return
            images, weights = draw(count, trials * channels, size, size), draw(trials * channels, channels, 3, 3)
            each = [(draw(count, channels, size, size), draw(channels, channels, 3, 3)) for _ in range(trials)]

            def grouped(images: Tensor = images, weights: Tensor = weights, trials: int = trials) -> Any:
                return torch.autograd.grad(F.conv2d(images, weights, padding=1, groups=trials).sum(), (images, weights))

            def separate(each: list[tuple[Tensor, Tensor]] = each) -> Any:
                return [torch.autograd.grad(F.conv2d(*pair, padding=1).sum(), pair) for pair in each]

            row = {"grouped_ms": run.timed(grouped, 10)[0], "separate_ms": run.timed(separate, 10)[0]}
            busy = {f"{call.__name__}_busy_ms": run.kernels(call).get("busy_ms") for call in (grouped, separate)}
            run.say(part="fuse", trials=trials, channels=channels, size=size, **row, **(busy if run.cuda else {}))


PARTS: dict[str, tuple[Callable[[Run], None], float]] = {
    "env": (env, 10),
    "right": (right, 75),
    "step": (step, 70),
    "graph": (graph, 70),
    "hard": (hard, 55),
    "pack": (pack, 75),
    "fuse": (fuse, 15),
    "comp": (comp, 60),
}
"""By name what is done, and its part of the seconds beside the others'; what one leaves the next ones share."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small networks, no limits of time: a rehearsal")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--seconds", type=float, default=440)
    parser.add_argument("--out", type=Path, help="an existing folder for h200.jsonl")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--only {unknown[0]!r}: the parts are {', '.join(PARTS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no GPU that PyTorch sees; take --device cpu --tiny")
    if arguments.out is not None and not arguments.out.is_dir():
        parser.error(f"--out {str(arguments.out)!r}: is not a folder")
    run = Run(torch.device(arguments.device), arguments.tiny, arguments.seconds, arguments.out)
    if arguments.child:
        way, begin = arguments.child.split("|")
        child(run, way, float(begin))
        return 0
    failed = 0
    for number, name in enumerate(names):
        call, weight = PARTS[name]
        left, began = run.seconds - run.spent, time.perf_counter()
        run.until = run.spent + left * weight / sum(PARTS[later][1] for later in names[number:])
        try:
            call(run)
        except Exception:
            failed += 1
            run.say(part=name, error=traceback.format_exc()[-500:])
        run.say(part=name, took=round(time.perf_counter() - began, 1), left=round(run.seconds - run.spent, 1))
    print("\n".join(json.dumps(row) for row in run.rows if row["part"] in TIMED and "took" not in row))
    return 1 if failed or any("error" in row for row in run.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
