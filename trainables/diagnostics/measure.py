"""Diagnostics of a trained network on its images: paths, skipped blocks, consistency, exits.

Measured once, at the end of a training, by the hard pass over the validation split (never the test
split) at one setting: the papers' rule, P(run) >= 1/2, where the method sweeps a threshold, else the
middle setting of its curve (`usual_setting`). The definitions are those of the papers:

- K, skip ratio per block, skipped blocks per class: SkipNet (arXiv 1711.09485, figures 9 and 10a) and
  CoDiNet (arXiv 2005.14439, tables 5 and 6);
- consistency, the images whose path is that of an augmented copy: CoDiNet, section 4.4.1;
- KL between the predictions for an image and its copy: CoDiNet, figure 10.

Shape legend: n images, B of them in a batch, C classes, D decisions, U units, N routed blocks, K exits.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.contracts.method import Method
from trainables.contracts.network import Inference, Knobs, Routed, RoutedNetwork
from trainables.data.augment import normalise, to_device
from trainables.data.encoded import Images
from trainables.data.splits import Data
from trainables.diagnostics.copies import AUGMENTATIONS, agreement, copy_of, divergence
from trainables.diagnostics.gates import measuring, routes
from trainables.diagnostics.samples import log_odds, of_some
from trainables.execution.arithmetic import ieee_float32
from trainables.inference.evaluation import exit_logits

ROUTED = ("block", "column", "path")
"""Kinds of units that a path consists of; routers, paths around a block and classifiers do not count."""
MOST_IMAGES = 10_000
"""As many as the papers' test sets have; of larger splits so many are drawn, by the seed."""


@dataclass(slots=True)
class Diagnostics:
    """`record`: plain values for reports. `arrays`: per image, for pictures, on the CPU (see `_arrays`)."""

    record: dict[str, Any]
    arrays: dict[str, Tensor]


def usual_setting(method: Method, config: Any) -> dict[str, Any]:
    """The setting that diagnostics are taken at: the method's own, else threshold 1/2 or the curve's middle."""
    settings = list(method.settings(config))
    if method.usual is not None and dict(method.usual) in settings:
        return dict(method.usual)
    papers = [setting for setting in settings if setting.get("threshold") == 0.5]
    return dict(papers[0] if papers else settings[len(settings) // 2])


def routed_blocks(network: RoutedNetwork) -> list[int]:
    """Indices into the units of those that a path consists of."""
    return [i for i, unit in enumerate(network.units) if unit.kind in ROUTED]


@dataclass(slots=True)
class _Seen:
    """What is kept of the images seen so far, on the device."""

    parts: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add(self, network: RoutedNetwork, hard: Inference, soft: Routed, labels: Tensor) -> None:
        keep = {
            "label": labels,
            "predicted": hard.logits.argmax(dim=1),
            "macs": hard.macs,
            "path": hard.path,
            "relaxed": soft.aux.get("probabilities", soft.decisions),
        }
        keep |= {name: soft.aux[name] for name in ("ponder", "ponder_std", "strengths") if name in soft.aux}
        if hard.exits is not None:
            keep["exit"] = hard.exits
        if network.exits:
            answers = torch.stack(soft.logits, dim=1)
            keep["exit_right"] = answers.argmax(dim=2).eq(labels[:, None])
            keep["confidence"] = log_odds(answers)
        if "ponder_map" in soft.aux:
            keep["ponder_map"] = soft.aux["ponder_map"].half()
        for name, tensor in keep.items():
            self.parts[name].append(tensor)

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts).cpu() for name, parts in self.parts.items()}


@torch.inference_mode()
@ieee_float32()
def diagnose(
    method: Method,
    network: RoutedNetwork,
    data: Data,
    *,
    setting: Mapping[str, Any] | None = None,
    knobs: Knobs | None = None,
    seed: int = 0,
    batch_size: int = 128,
) -> Diagnostics:
    """Diagnostics of a network on the validation split; its mode is left as it was.

    `setting` defaults to the usual one; `knobs` to what the method finds for it on these images (so
    that the accuracy here is not cross-fitted, as a curve's is). Costs one dense and five hard
    passes over at most `MOST_IMAGES` images. The same seed gives the same copies.
    """
    started = time.perf_counter()
    data = data.for_config(network.config)
    setting = usual_setting(method, network.config) if setting is None else setting
    device = network.unit_macs.device
    images, labels = to_device(data.validation, device)
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:MOST_IMAGES]
    index = drawn.sort().values.to(device)
    images, labels = images[index], labels[index]
    mode = network.training
    network.eval()
    try:
        if knobs is None:
            knobs = setting
            if method.calibrate is not None:
                knobs = method.calibrate(setting, exit_logits(network, normalise(images, data), batch_size))
        with measuring(network):
            tensors = _look(network, data, images, labels, knobs, seed, batch_size)
    finally:
        network.train(mode)
    record = {
        "setting": dict(setting),
        "knobs": dict(knobs),
        "images": len(labels),
        "params": sum(p.numel() for p in network.parameters()),
        **_paths(network, tensors),
        **_classes(network, tensors),
        **agreement(tensors),
        **routes(network, tensors),
        **(_exits(network, tensors) if network.exits and "exit" in tensors else {}),
        **(_ponder(tensors) if "ponder" in tensors else {}),
        "seconds": time.perf_counter() - started,
    }
    return Diagnostics(record, _arrays(network, tensors, index.cpu()))


def _look(
    network: RoutedNetwork, data: Data, images: Images, labels: Tensor, knobs: Knobs, seed: int, batch_size: int
) -> dict[str, Tensor]:
    """Every image and its copies through the network; `kl` and `same` are (copies, n), the mixture last."""
    draws = torch.Generator(images.device).manual_seed(seed)
    noise = torch.Generator(images.device).manual_seed(int(knobs.get("seed", seed)))
    seen, kl, same = _Seen(), [], []

    def prepared(batch: Tensor) -> Tensor:
        return normalise(batch, data).contiguous(memory_format=torch.channels_last)

    for batch, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        inputs = prepared(batch)
        hard = network.infer(inputs, knobs, generator=noise)
        seen.add(network, hard, network(inputs, decisions=hard.decisions), truth)
        copies = [
            network.infer(prepared(copy_of(batch, how, data, draws)), knobs, generator=noise) for how in AUGMENTATIONS
        ]
        kl.append(torch.stack([divergence(hard.logits, copy.logits) for copy in copies]))
        same.append(torch.stack([copy.path.eq(hard.path).all(dim=1) for copy in copies]))
    tensors = seen.tensors()
    drawn = torch.randint(len(AUGMENTATIONS), (1, len(labels)), generator=torch.Generator().manual_seed(seed))
    for name, parts in (("kl", kl), ("same", same)):
        each = torch.cat(parts, dim=1).cpu()
        tensors[name] = torch.cat([each, each.gather(0, drawn)])
    return tensors


def _run(network: RoutedNetwork, tensors: Mapping[str, Tensor]) -> Tensor:
    """Executed shares of the routed blocks, (n, N) float64."""
    return tensors["path"][:, routed_blocks(network)].double()


def _paths(network: RoutedNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    run, blocks = _run(network, tensors), routed_blocks(network)
    right = tensors["predicted"].eq(tensors["label"]).double().mean().item()
    length = run.sum(dim=1).mean().item()
    groups = network.unit_groups()
    return {
        "decisions": tensors["relaxed"].shape[1],
        "blocks": [network.units[i].name for i in blocks],
        "groups": [groups[i] for i in blocks],
        "acc": right,
        "err": 1 - right,
        "macs": tensors["macs"].mean().item(),
        "K": length,
        "n_paths": len(torch.unique(tensors["path"], dim=0)),
        # SkipNet's: blocks run, the one that always does among them, of all
        "compute_pct": 100 * (1 + length) / (1 + len(blocks)),
        "skip_ratio": [round(1 - share, 6) for share in run.mean(dim=0).tolist()],
    }


def _classes(network: RoutedNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Per class: images, accuracy, median of skipped blocks, and how many images skipped `least`, `least` + 1, ..."""
    run = _run(network, tensors)
    skipped = run.shape[1] - run.sum(dim=1)
    right = tensors["predicted"].eq(tensors["label"]).double()
    classes: list[dict[str, Any]] = []
    for label in range(network.task.classes):
        mine = tensors["label"] == label
        if not mine.any():
            classes.append({"images": 0})
            continue
        counts = torch.bincount(skipped[mine].round().long())
        least = int(counts.nonzero()[0])
        classes.append(
            {
                "images": int(mine.sum()),
                "acc": round(right[mine].mean().item(), 6),
                "median": round(skipped[mine].quantile(0.5).item(), 6),
                "least": least,
                "histogram": counts[least:].tolist(),
            }
        )
    return {"skip_by_class": classes}


def _exits(network: RoutedNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of every exit: its accuracy on all images, the share that leaves there, the accuracy on those.

    By class how many images left there, and how many of them it classified right.
    """
    taken = F.one_hot(tensors["exit"].long(), len(network.exits)).double()
    left = taken.sum(dim=0)
    right = (tensors["exit_right"].double() * taken).sum(dim=0)
    labels = F.one_hot(tensors["label"], network.task.classes).double().T
    return {
        "exit_names": [each.name for each in network.exits],
        "exit_macs": [each.macs for each in network.exits],
        "exit_parents": list(network.exit_parents()),
        "exit_acc": [round(share, 6) for share in tensors["exit_right"].double().mean(dim=0).tolist()],
        "exit_frac": [round(share, 6) for share in (left / len(taken)).tolist()],
        "exit_acc_given_exit": [
            round(r / count, 6) if count else None for r, count in zip(right.tolist(), left.tolist(), strict=True)
        ],
        "class_by_exit": (labels @ taken).long().tolist(),
        "right_by_exit": (labels @ (taken * tensors["exit_right"])).long().tolist(),
    }


def _ponder(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What each group costs, units and remainder (SACT, arXiv 1612.02297): mean over images and positions,
    deviation over images, mean deviation over the positions of an image.
    """
    cost, map_std = tensors["ponder"].double(), tensors["ponder_std"].double()
    figures = {
        "ponder": cost.mean(dim=0),
        "ponder_std": cost.std(dim=0, unbiased=False),
        "ponder_map_std": map_std.mean(dim=0),
    }
    return {name: [round(value, 6) for value in values.tolist()] for name, values in figures.items()}


def _arrays(network: RoutedNetwork, tensors: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """What pictures need: index into the validation split, label, predicted, macs, exit (n,); relaxed (n, D);
    kl and same (copies, n); with soft routing strengths (n, T); path_bits (n, ceil(N / 8)), or path (n, N)
    where blocks may run in part. Of some images also what `of_some` keeps.
    """
    run = _run(network, tensors)
    arrays = {
        "index": index.int(),
        "label": tensors["label"].int(),
        "predicted": tensors["predicted"].int(),
        "macs": tensors["macs"].float(),
        "relaxed": tensors["relaxed"].half(),
        "kl": tensors["kl"].float(),
        "same": tensors["same"],
    }
    if "strengths" in tensors:
        arrays["strengths"] = tensors["strengths"].half()
    if "exit" in tensors:
        arrays["exit"] = tensors["exit"].short()
    arrays |= of_some(tensors)
    if bool(((run == 0) | (run == 1)).all()):
        arrays["path_bits"] = _packed(run)
    else:
        arrays["path"] = run.float()
    return arrays


def _packed(run: Tensor) -> Tensor:
    """Bits (n, N) as bytes (n, ceil(N / 8)), the first block in the highest bit, as `numpy.packbits` has it."""
    wide = F.pad(run, (0, 8 * math.ceil(run.shape[1] / 8) - run.shape[1])).view(len(run), -1, 8)
    return (wide * torch.tensor([2.0**bit for bit in range(7, -1, -1)], dtype=wide.dtype)).sum(dim=2).byte()


def unpacked(arrays: Mapping[str, Tensor], blocks: int) -> Tensor:
    """Executed shares of the routed blocks, (n, blocks) float32, from arrays that were stored."""
    if "path" in arrays:
        return arrays["path"]
    bits = torch.tensor([1 << bit for bit in range(7, -1, -1)], dtype=torch.uint8)
    return (arrays["path_bits"][:, :, None] & bits).ne(0).flatten(1)[:, :blocks].float()
