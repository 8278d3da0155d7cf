"""A registered model as a folder that runs without torch, behind a gate of its own.

What is written is compared with what the registry serves before anybody sees it: the folder is built beside its place
and takes its name only when logits, paths and MACs agree (`compared`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search.errors import InputError, RunError
from search.pareto.confidence import wilson
from search.promotion.compare import paired
from search.promotion.gates import Gate, failed
from search.promotion.models import Registered, load, own_data
from search.units import show_count, show_share
from trainables.checkpoints import CheckpointError
from trainables.contracts.network import RoutedNetwork
from trainables.export.cascade import Member, write_cascade
from trainables.export.families import program_of
from trainables.export.folder import ONNX, PT2, write
from trainables.export.graphs import OPSET, OPSETS, tool
from trainables.export.int8 import INT8, add_int8, measured
from trainables.export.program import ExportError
from trainables.export.pt2 import Pt2Runner
from trainables.export.routefront_runner import CascadeRunner, Runner, Single, read_manifest
from trainables.inference.cascade import Cascade, Step
from trainables.inference.prepare import prepared
from trainables.normalisation import Normalisation
from trainables.serving import load_network, trust_source

FORMS = (ONNX, PT2)
IMAGES = 1000
"""Validation images that the promoted setting is compared on, where nothing else is asked."""
_FEW = 64  # images that every other setting of the curve is compared on
_ALONE = 4  # images that every other setting of the file for single images is compared on
_BATCH = 128  # as the served model's
LOST = 0.01
"""The accuracy on validation that eight bits may cost."""
CLOSE = 1e-5
"""How far logits may be off, as a share of the largest."""
HALF = 2e-3
"""How far probabilities of a cascade may be off: they are rounded to half precision, where one may be turned."""
PATHS = 0.999
"""The share of images whose path must be the same: of two equal decisions rounding may turn one."""


def export_model(
    model: str,
    folder: Path,
    *,
    uri: str,
    to: str = "onnx",
    root: Path | None = None,
    limit: int | None = None,
    opset: int = OPSET,
    int8: bool = False,
) -> dict[str, Any]:
    """Write ``NAME@ALIAS`` or ``NAME/VERSION`` into a new folder; its record with the gates it passed.

    `root`: where data sets lie; `limit`: validation images to compare on (`IMAGES`); `int8`: with the parts in eight
    bits beside those in float32, a curve of their own, and a gate on their accuracy. Raises `InputError` for a model
    that cannot be exported, a folder that exists, another form or opset, and `RunError` where what was written does not
    do what the registry's model does; then nothing is left.
    """
    if to not in FORMS:
        raise InputError(f"--to {to!r}: it takes {' or '.join(FORMS)}")
    if int8 and to != ONNX:
        raise InputError(f"--int8: onnxruntime quantises ONNX graphs, not {to}")
    if opset not in OPSETS:
        raise InputError(f"--opset {opset}: it takes {OPSETS[0]} to {OPSETS[-1]}")
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder} exists already; name a folder that does not")
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: at least one image has to be compared")
    try:
        for name in ("onnx", "onnxruntime") if to == ONNX else ():
            tool(name)
        registered = load(model, uri)
        cascade = "cascade" in registered.serving
        if cascade and (int8 or to != ONNX):
            asked = "--int8" if int8 else f"--to {to}"
            raise InputError(f"{asked}: {registered.shown} is a cascade, which leaves as ONNX graphs in float32")
        split = own_data(registered, root).validation
        images, labels = split.images[: limit or IMAGES], split.labels[: limit or IMAGES]
        with _beside(folder) as scratch:
            if cascade:
                gates = _cascade(registered, scratch, images, labels, opset)
            else:
                network = network_of(registered)
                _written(registered, network, scratch, opset, to)
                gates = compared(scratch, registered, network, images)
            if int8 and failed(gates) is None:
                gates.append(in_eight_bits(scratch, images, labels))
            if (wrong := failed(gates)) is not None:
                raise RunError(f"{registered.shown} was not exported: gate {wrong.name} fails: {wrong.says}")
            os.rename(scratch, folder)
    except (ExportError, CheckpointError) as error:
        raise InputError(f"{model} cannot be exported: {error}") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from None
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    parts = len(list(folder.rglob(f"*.{to}")))
    opset_of = opset if to == ONNX else None
    record = {"model": registered.shown, "folder": str(folder), "to": to, "opset": opset_of, "parts": parts}
    record["bytes"] = size
    if int8:
        record["int8"] = read_manifest(folder)["precisions"][INT8]["settings"]
    return {**record, "gates": [gate.record() for gate in gates]}


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """An empty folder on the same disk, gone afterwards unless it was renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        scratch.chmod(0o755)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def network_of(registered: Registered, member: str = "") -> RoutedNetwork:
    """The network of a loaded model, or of a `member` of a cascade, in eval mode, from the files that were checked."""
    assert registered.files is not None
    folder = Path(registered.files.name) / "model" / "artifacts" / "model" / member
    trust_source(folder)  # as when it is served
    return load_network(folder)[1]


def _written(registered: Registered, network: RoutedNetwork, scratch: Path, opset: int, form: str) -> None:
    serving = registered.serving
    curve = [dict(each["knobs"]) for each in serving["curve"]]
    write(
        scratch,
        network,
        program_of(network, [*curve, serving["knobs"]]),
        normalisation=Normalisation.of(serving["normalisation"]),
        form=form,
        opset=opset,
        **_told(registered),
    )


def _told(registered: Registered) -> dict[str, Any]:
    """What a manifest says of a registered model, network or cascade."""
    serving, names = registered.serving, ("study", "point_id", "method", "network", "code_version")
    return {
        "settings": [{name: each[name] for name in ("knobs", "accuracy", "macs")} for each in serving["curve"]],
        "promoted": serving["knobs"],
        "classes": serving["classes"],
        "model": {"name": registered.name, "registered": registered.version, **{n: serving.get(n) for n in names}},
        "reference": serving.get("reference"),
    }


def _cascade(registered: Registered, scratch: Path, images: np.ndarray, labels: np.ndarray, opset: int) -> list[Gate]:
    """Write the members of a cascade with their rule; the gates of every member alone, and of the whole."""
    record = registered.serving["cascade"]
    networks = {told["folder"]: network_of(registered, told["folder"]) for told in record["members"]}
    members, theirs = [], []
    for told in record["members"]:
        normalisation = Normalisation.of(told["normalisation"])
        network = networks[told["folder"]]
        theirs.append(reference(prepared(network), normalisation.apply, images, told["knobs"]))
        accuracy = float((theirs[-1]["logits"].argmax(axis=1) == labels).mean())
        kept = {name: told[name] for name in ("temperature", "point_id", "method") if name in told}
        macs = float(theirs[-1]["macs"].mean())
        members.append(Member(told["folder"], network, normalisation, told["knobs"], accuracy, macs, kept))
    steps = [Step(m.network, m.normalisation, m.knobs, m.told["temperature"]) for m in members]
    runs = Cascade(steps, record["kind"], record["answer"]).runs
    rule = {"kind": record["kind"], "answer": record["answer"]}
    manifest = write_cascade(scratch, members, runs, opset=opset, **rule, **_told(registered))
    found = _Differences()
    for told, answers in zip(manifest["cascade"]["members"], theirs, strict=True):
        found.add(Runner(scratch / told["folder"]).predict(images, values=told["values"]), answers)
    gates = found.gates()
    runner, whole = CascadeRunner(scratch), _Differences()
    answered = 0.0
    for number, setting in enumerate([manifest["promoted"], *manifest["settings"]]):
        some = images if not number else images[:_FEW]
        params = {"knobs": json.dumps(setting["knobs"])}
        served = registered.model.predict(some, params=params)
        mine = runner.predict(some, values=setting["values"])
        same = {"path": np.array(served["path"].tolist()).reshape(len(some), -1), "macs": served["macs"].to_numpy()}
        same["probabilities"] = np.array(served["probabilities"].tolist())
        alike = np.abs(mine["path"] - same["path"]).max(axis=1) < 1e-9
        off = np.abs(mine["probabilities"] - same["probabilities"])[alike]
        answered = max(answered, float(off.max(initial=0.0)))
        whole.add({**mine, "logits": mine["path"]}, {**same, "logits": same["path"]})
    _, path, macs = whole.gates()
    says = f"differ by {answered:.1g} at most (at most {HALF:g}: they are rounded to half precision)"
    gates += [
        Gate("answers", answered <= HALF, says, {"difference": answered, "limit": HALF}),
        Gate("cascade path", path.passed, path.says, path.evidence),
        Gate("cascade macs", macs.passed, macs.says, macs.evidence),
    ]
    return gates


# -- the gate ----------------------------------------------------------------------------------------


def compared(folder: Path, registered: Registered, network: RoutedNetwork, images: np.ndarray) -> list[Gate]:
    """Gates ``logits``, ``path`` and ``macs`` of a written folder against the registry's model.

    Paths, MACs and probabilities are those that the served model answers at the promoted knobs on all `images` (n, c,
    h, h), uint8; logits those of its network, which the served answers do not have. Every other setting of the curve is
    compared on the first images, by the network alone; the file for single images with the runner.
    """
    runner, fast = runner_of(folder), prepared(network)
    normalise = Normalisation.of(registered.serving["normalisation"]).apply
    single = Single(folder) if runner.manifest["single"] else None
    found = _Differences()
    mine = runner.predict(images)
    theirs = reference(fast, normalise, images, registered.serving["knobs"])
    served = registered.model.predict(images)
    theirs["path"] = np.array(served["path"].tolist()).reshape(len(images), -1)
    theirs["macs"] = served["macs"].to_numpy()
    found.add(mine, theirs)
    for setting, record in zip(runner.manifest["settings"], registered.serving["curve"], strict=True):
        few = images[:_FEW]
        found.add(runner.predict(few, values=setting["values"]), reference(fast, normalise, few, record["knobs"]))
        if runner.manifest["single"]:
            few = images[: _ALONE if setting["knobs"] != runner.manifest["promoted"]["knobs"] else _FEW]
            found.add(_one_by_one(single, few, setting["values"]), runner.predict(few, values=setting["values"]))
    return found.gates()


def in_eight_bits(folder: Path, images: np.ndarray, labels: np.ndarray) -> Gate:
    """Quantise the parts of a folder, measure every setting of the curve; the gate ``int8``.

    It passes where the promoted setting loses at most `LOST` of its accuracy on validation, or no more than what the
    paired interval of these images (`search.promotion.compare.paired`) takes for nothing.
    """
    manifest = add_int8(folder, images)
    runner, whole = Runner(folder, precision=INT8), Runner(folder)
    settings = []
    for each in manifest["settings"]:
        found = runner.predict(images, values=each["values"])
        right = int((found["label"] == labels).sum())
        low, high = wilson(right, len(labels))
        point = {"accuracy": right / len(labels), "macs": float(found["macs"].mean()), "interval": [low, high]}
        settings.append({**each, **point, "images": len(labels)})
    measured(folder, settings)
    promoted = manifest["promoted"]["values"]
    both = [each.predict(images, values=promoted) for each in (whole, runner)]
    sides = [{"right": found["label"] == labels, "macs": found["macs"]} for found in both]
    told = paired(sides[0], sides[1], LOST)["accuracy_difference"]
    accuracy = float(sides[1]["right"].mean())
    low, high = wilson(int(sides[1]["right"].sum()), len(labels))
    return Gate(
        INT8,
        told["mean"] >= -LOST or told["high"] >= 0,
        f"{show_share(accuracy)} ({show_share(low)} to {show_share(high)}) in eight bits on {len(labels)} validation"
        f" images, {100 * told['mean']:+.2f} points against float32 ({100 * told['low']:+.2f} to"
        f" {100 * told['high']:+.2f}; at least {-100 * LOST:g}, or no difference that can be told)",
        {"accuracy": accuracy, "interval": [low, high], "difference": told, "limit": -LOST},
    )


def runner_of(folder: Path) -> Runner:
    """What runs a folder that was written here: torch runs ``.pt2`` parts."""
    return (Pt2Runner if read_manifest(folder)["form"] == PT2 else Runner)(folder)


def _one_by_one(single: Single | None, images: np.ndarray, values: dict[str, Any]) -> dict[str, np.ndarray]:
    """The answers of the file with ``If`` nodes, which takes one image at a time."""
    assert single is not None
    each = [single.predict(image, values) for image in images]
    return {name: np.concatenate([one[name] for one in each]) for name in ("logits", "path", "macs")}


@torch.inference_mode()
def reference(network: RoutedNetwork, normalise: Any, images: np.ndarray, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Logits (n, C), path (n, U) and MACs (n,) of our own execution."""
    parts: list[tuple[np.ndarray, ...]] = []
    for start in range(0, len(images), _BATCH):
        pixels = torch.from_numpy(np.array(images[start : start + _BATCH]))
        result = network.infer(normalise(pixels), knobs)
        parts.append((result.logits.numpy(), result.path.double().numpy(), result.macs.double().numpy()))
    logits, path, macs = (np.concatenate(each) for each in zip(*parts, strict=True))
    return {"logits": logits, "path": path, "macs": macs}


class _Differences:
    """What two executions of the same images differ by, over several settings."""

    def __init__(self) -> None:
        self.images = self.same = self.wrong = 0
        self.logits = self.macs = 0.0
        self.settings = 0

    def add(self, mine: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> None:
        same = np.less(np.abs(mine["path"] - theirs["path"]), 1e-9).min(axis=1)
        self.settings += 1
        self.images, self.same = self.images + len(same), self.same + int(same.sum())
        largest = max(float(np.abs(theirs["logits"]).max()), 1e-30)
        off = np.abs(mine["logits"] - theirs["logits"])[same]
        self.logits = max(self.logits, float(off.max()) / largest if off.size else 0.0)
        if not np.isfinite(mine["logits"]).all():
            self.logits = float("inf")
        apart = np.abs(mine["macs"] - theirs["macs"])[same] > 0.5
        self.wrong += int(apart.sum())
        self.macs = float(mine["macs"].mean())

    def gates(self) -> list[Gate]:
        where = f"{self.images} answers of {self.settings} settings"
        share = self.same / max(self.images, 1)
        logits = Gate(
            "logits",
            self.logits <= CLOSE,
            f"differ by {self.logits:.1g} of the largest (at most {CLOSE:g}) where the path is the same",
            {"difference": self.logits, "limit": CLOSE},
        )
        path = Gate(
            "path",
            share >= PATHS,
            f"{show_share(share)} of {where} take the same path (at least {show_share(PATHS)})",
            {"same": self.same, "answers": self.images, "limit": PATHS},
        )
        macs = Gate(
            "macs",
            self.wrong == 0,
            f"{self.wrong or 'none'} of the answers with the same path charge other MACs",
            {"wrong": self.wrong, "macs": self.macs},
        )
        return [logits, path, macs]


def lines_of(record: Mapping[str, Any]) -> Sequence[str]:
    """What a person reads of an export."""
    parts, size = record["parts"], show_count(record["bytes"])
    form = "torch.export" if record["opset"] is None else f"opset {record['opset']}"
    lines = [f"{record['model']} is in {record['folder']}: {parts} graphs, {size} bytes, {form}"]
    for each in record.get(INT8, ()):
        low, high = (show_share(end) for end in each["interval"])
        knobs = ", ".join(f"{name} {value:.4g}" for name, value in each["knobs"].items()) or "no knobs"
        point = f"{show_share(each['accuracy'])} ({low} to {high}) at {show_count(each['macs'])} MACs"
        lines.append(f"  int8, {knobs}: {point}")
    return lines
