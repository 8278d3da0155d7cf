"""Runs an exported model of routefront: numpy and onnxruntime, nothing else.

    from routefront_runner import Runner
    answers = Runner("folder").predict(images)            # uint8 (n, channels, size, size)
    answers = Runner("folder").predict(images, max_macs=5e6)

or ``python routefront_runner.py predict FOLDER IMAGES.npy``, and ``python routefront_runner.py serve FOLDER``. The
folder's ``manifest.json`` says what is in it; ``docs/export.md`` of routefront describes its format, of which this file
is the reference.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

FORMAT, VERSION = "routefront-export", 1
CASCADE = "routefront-cascade"
"""The format of a folder whose members are folders of `FORMAT`; its version is the same."""
BATCH = 128
"""Images that are computed together at most."""
_TYPES = {"float": np.float32, "double": np.float64, "bool": np.bool_, "int64": np.int64}


class Refused(ValueError):
    """What was asked for cannot be; the message is one line."""


class Register:
    """One value an image: `values` (k, ...) of the images `rows` (k,) ascending, or of all where that is None."""

    __slots__ = ("rows", "values")

    def __init__(self, values: np.ndarray, rows: np.ndarray | None) -> None:
        self.values, self.rows = values, rows

    def at(self, rows: np.ndarray | None, count: int) -> np.ndarray:
        """The values of some images (None: of all `count`); zeros of those that have none."""
        if rows is self.rows:
            return self.values
        if self.rows is None:
            assert rows is not None
            return self.values[rows]
        asked = np.arange(count) if rows is None else rows
        place, known = _places(asked, self.rows)
        if known.all():
            return self.values[place]
        found = np.zeros((len(asked), *self.values.shape[1:]), self.values.dtype)
        found[known] = self.values[place[known]]
        return found

    def put(self, values: np.ndarray, rows: np.ndarray | None, count: int) -> None:
        """Take the values of some images over."""
        if rows is None or rows is self.rows:
            self.values, self.rows = values, rows
            return
        if self.rows is None:
            self.values[rows] = values
            return
        place, known = _places(rows, self.rows)
        self.values[place[known]] = values[known]
        if known.all():
            return
        joined = np.concatenate([self.rows, rows[~known]])
        if len(joined) == count:  # two branches together have all of them
            whole = np.empty((count, *self.values.shape[1:]), self.values.dtype)
            whole[self.rows], whole[rows] = self.values, values
            self.values, self.rows = whole, None
            return
        order = joined.argsort()
        self.values = np.concatenate([self.values, values[~known]])[order]
        self.rows = joined[order]


def _places(asked: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where numbers lie among others, ascending, and which of them do at all."""
    if not len(among):
        return np.zeros(len(asked), np.intp), np.zeros(len(asked), bool)
    place = np.minimum(np.searchsorted(among, asked), len(among) - 1)
    return place, among[place] == asked


class Runner:
    """An exported model.

    `manifest`: the folder's ``manifest.json``. Raises `Refused` for a folder that is none, of another format, or of
    which a file is not what the manifest says. `threads` are those of onnxruntime, for one part. `precision`: float32
    where it is empty, or one of the manifest's ``precisions``, whose curve is its own.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1, precision: str = "") -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if self.manifest["format"] == CASCADE:
            raise Refused(f"{folder} holds a cascade, which CascadeRunner runs; load(folder) takes either")
        files = self.manifest["parts"]
        self.settings = self.manifest["settings"]
        if precision and precision != "float32":
            if precision not in self.manifest.get("precisions", {}):
                known = ", ".join(["float32", *self.manifest.get("precisions", {})])
                raise Refused(f"precision {precision!r}: this folder has {known}")
            files = {**files, **self.manifest["precisions"][precision]["parts"]}
            self.settings = self.manifest["precisions"][precision]["settings"]
        self.image = self.manifest["image"]
        self.units = [unit["name"] for unit in self.manifest["units"]]
        self.unit_macs = np.array([unit["macs"] for unit in self.manifest["units"]], np.float64)
        self.classes = list(self.manifest["classes"])
        self._place = {name: k for k, name in enumerate(self.units)}
        self._parts = {name: self.part(part, threads) for name, part in files.items()}
        self._steps = [self._prepared(step) for step in self.manifest["program"]]
        self._last = self._last_reads()

    def part(self, record: dict[str, Any], threads: int) -> Any:
        """What runs a part, by its record in the manifest."""
        return _Part(self.folder, record, threads)

    def _prepared(self, step: dict[str, Any]) -> dict[str, Any]:
        charges = np.array([self._place[name] for name in step.get("charges", ())], np.intp)
        shares = [(self._place[name], register) for name, register in step.get("shares", {}).items()]
        return {**step, "charges": charges, "shares": shares}

    def _last_reads(self) -> list[list[str]]:
        """The registers that nobody reads behind each step."""
        seen, ends = {"logits"}, []
        for step in reversed(self._steps):
            names = {*step.get("reads", ()), *step["writes"], step.get("when", ""), step.get("unless", "")}
            names |= {register for _, register in step["shares"]}
            ends.append(sorted(names - seen))
            seen |= names
        return ends[::-1]

    def setting(self, max_macs: float | None = None) -> dict[str, Any]:
        """The promoted setting, or the most accurate one on validation of at most `max_macs` an image on average.

        Of equally accurate ones it is the cheapest. Raises `Refused` where none is that cheap.
        """
        if max_macs is None:
            return self.manifest["promoted"]
        fitting = [each for each in self.settings if each["macs"] <= max_macs]
        if not fitting:
            least = min(each["macs"] for each in self.settings)
            raise Refused(f"max_macs {max_macs:g}: the cheapest setting costs {least:.0f} MACs an image on average")
        return max(fitting, key=lambda each: (each["accuracy"], -each["macs"]))

    def predict(
        self, images: np.ndarray, *, max_macs: float | None = None, values: dict[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """Classify images, uint8 (n, channels, size, size).

        Returns ``label`` (n,), ``class`` (n,), ``probabilities`` and ``logits`` (n, C), ``macs`` (n,), ``path``
        (n, U), the executed share of every unit, and ``exit`` (n,) where the model has exits. `max_macs`: see
        `setting`; `values`: replaces single values of that setting. Raises `Refused` for images of another shape or
        type, and for values that the setting does not have.
        """
        images = checked_images(images, self.image)
        chosen = self._chosen(max_macs, values)
        found = [self._batch(images[i : i + BATCH], chosen) for i in range(0, len(images), BATCH)]
        if not found:
            found = [self._nothing()]
        answers = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        answers["probabilities"] = softmax(answers["logits"].astype(np.float64))
        answers["label"] = answers["probabilities"].argmax(axis=1)
        answers["class"] = np.array(self.classes, dtype=object)[answers["label"]]
        return answers

    def _chosen(self, max_macs: float | None, values: dict[str, Any] | None) -> dict[str, Any]:
        """The values of a setting, some of them replaced."""
        chosen = dict(self.setting(max_macs)["values"])
        for name, value in (values or {}).items():
            if name not in chosen:
                raise Refused(f"unknown value {name!r}; this model has {', '.join(sorted(chosen)) or 'none'}")
            chosen[name] = value
        return chosen

    def _nothing(self) -> dict[str, np.ndarray]:
        empty = np.zeros((0, len(self.units)))
        found = {"logits": np.zeros((0, len(self.classes)), np.float32), "path": empty, "macs": empty.sum(1)}
        return {**found, "exit": np.zeros(0, np.int64)} if self.manifest["exits"] else found

    def _batch(self, images: np.ndarray, values: dict[str, Any]) -> dict[str, np.ndarray]:
        if len(images) == 1:
            return self._one(images, values)
        inputs = normalised(images, self.image["normalisation"])
        count = len(inputs)
        registers = {"images": Register(inputs, None)}
        path = np.zeros((count, len(self.units)))
        exits = np.zeros(count, np.int64)
        for step, ends in zip(self._steps, self._last, strict=True):
            if "draw" in step:
                drawn = draws(inputs, int(values.get("seed", 0)), step["draw"])
                registers[step["writes"][0]] = Register(drawn, None)
                continue
            rows, some = self._rows(step, registers, values, count)
            if some:
                self._run(step, registers, values, rows, count)
                here = slice(None) if rows is None else rows
                for unit in step["charges"]:
                    path[here, unit] = 1
                for unit, name in step["shares"]:
                    path[here, unit] = registers[name].at(rows, count)
                if "exit" in step:
                    exits[here] = step["exit"]
            for name in ends:
                registers.pop(name, None)
        return self._finished(registers["logits"].at(None, count), path, exits)

    def _one(self, images: np.ndarray, values: dict[str, Any]) -> dict[str, np.ndarray]:
        """As `_batch`, for a single image: nothing is gathered or put back, which costs as much as a small part."""
        registers = {"images": normalised(images, self.image["normalisation"])}
        path, exits = np.zeros((1, len(self.units))), np.zeros(1, np.int64)
        for step in self._steps:
            if "draw" in step:
                registers[step["writes"][0]] = draws(registers["images"], int(values.get("seed", 0)), step["draw"])
                continue
            name = step.get("when") or step.get("unless")
            if name:
                flag = values[name] if name in values else registers[name][0] if name in registers else False
                if bool(flag) != ("when" in step):
                    continue
            part = self._parts[step["part"]]
            given = [
                np.asarray(values[name], kind)
                if name in values
                else registers[name]
                if name in registers
                else np.zeros((1, *shape[1:]), kind)
                for name, kind, shape in zip(step["reads"], part.types, part.shapes, strict=True)
            ]
            registers.update(zip(step["writes"], part.run(given), strict=True))
            path[0, step["charges"]] = 1
            for unit, name in step["shares"]:
                path[0, unit] = registers[name][0]
            exits[0] = step.get("exit", exits[0])
        return self._finished(registers["logits"], path, exits)

    def _finished(self, logits: np.ndarray, path: np.ndarray, exits: np.ndarray) -> dict[str, np.ndarray]:
        """The answers of a batch; MACs are whole numbers, of which shares may lose the last digit."""
        macs = np.rint(self.manifest["fixed_macs"] + path @ self.unit_macs)
        found = {"logits": logits, "path": path, "macs": macs}
        return {**found, "exit": exits} if self.manifest["exits"] else found

    def _rows(
        self, step: dict[str, Any], registers: dict[str, Register], values: dict[str, Any], count: int
    ) -> tuple[np.ndarray | None, bool]:
        """The images that a step runs for (None: all), and whether there are any."""
        name = step.get("when") or step.get("unless")
        if not name:
            return None, count > 0
        wanted = "when" in step
        if name in values:
            return None, count > 0 and bool(values[name]) == wanted
        if name not in registers:  # nobody came there
            return None, not wanted
        flag = registers[name]
        true = flag.values if flag.rows is None or wanted else flag.at(None, count)
        true = true if wanted else ~true
        if true.all():
            rows = flag.rows if wanted else None
        else:
            rows = np.flatnonzero(true)
            rows = flag.rows[rows] if wanted and flag.rows is not None else rows
        return rows, rows is None or len(rows) > 0

    def _run(
        self,
        step: dict[str, Any],
        registers: dict[str, Register],
        values: dict[str, Any],
        rows: np.ndarray | None,
        count: int,
    ) -> None:
        part = self._parts[step["part"]]
        given = []
        some = count if rows is None else len(rows)
        for name, kind, shape in zip(step["reads"], part.types, part.shapes, strict=True):
            if name in values:
                given.append(np.asarray(values[name], kind))
            elif name in registers:
                given.append(registers[name].at(rows, count))
            else:  # no image came to what writes it
                given.append(np.zeros((some, *shape[1:]), kind))
        for name, result in zip(step["writes"], part.run(given), strict=True):
            if name in registers:
                registers[name].put(result, rows, count)
            else:
                registers[name] = Register(result, rows)


class _Part:
    """A graph under onnxruntime."""

    def __init__(self, folder: Path, record: dict[str, Any], threads: int) -> None:
        if not record["file"].endswith(".onnx"):
            raise Refused(f"{record['file']} is no ONNX graph: {folder} holds parts of torch.export, which torch runs")
        self.session = _session(checked_file(folder, record), threads)
        self.inputs = [each["name"] for each in record["inputs"]]
        self.types = [_TYPES[each["type"]] for each in record["inputs"]]
        self.shapes = [each["shape"] for each in record["inputs"]]

    def run(self, given: list[np.ndarray]) -> list[np.ndarray]:
        return self.session.run(None, dict(zip(self.inputs, given, strict=True)))


class CascadeRunner(Runner):
    """An exported cascade: networks behind each other, of which each answers what those before it were unsure of.

    As `Runner`; ``exit`` is the last member that was executed for an image, ``logits`` are the logarithms of what is
    answered, and the value of a setting is ``thresholds``, one behind every member but the last. Members are the
    folders that the manifest names.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1, precision: str = "") -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if self.manifest["format"] != CASCADE:
            raise Refused(f"{folder} holds no cascade; Runner runs it")
        if precision not in ("", "float32"):
            raise Refused(f"precision {precision!r}: a cascade has float32")
        rule = self.manifest["cascade"]
        self.kind, self.answer, self.members = rule["kind"], rule["answer"], rule["members"]
        self.settings, self.image = self.manifest["settings"], self.manifest["image"]
        self.units = [unit["name"] for unit in self.manifest["units"]]
        self.classes = list(self.manifest["classes"])
        networks: dict[str, Runner] = {}
        for member in self.members:
            name = member["folder"]
            if Path(name).name != name:
                raise Refused(f"member {name!r} lies outside the folder")
            if name not in networks:
                networks[name] = Runner(self.folder / name, threads=threads)
            if digest_of(networks[name].manifest) != member["digest"]:
                raise Refused(f"member {name} in {folder} was changed: its digest is not that of the manifest")
        # members of one run are settings of one network with exits: the next goes on where the last stopped
        self.runs = [(run, networks[self.members[run[0]]["folder"]]) for run in rule["runs"]]

    def _chosen(self, max_macs: float | None, values: dict[str, Any] | None) -> dict[str, Any]:
        chosen = super()._chosen(max_macs, values)
        given, count = np.asarray(chosen["thresholds"]), len(self.members) - 1
        if given.shape != (count,) or given.dtype.kind not in "iuf":
            raise Refused(f"thresholds of this cascade are {count} numbers, one behind every member but the last")
        return chosen

    def _batch(self, images: np.ndarray, values: dict[str, Any]) -> dict[str, np.ndarray]:
        count, classes, thresholds = len(images), len(self.classes), values["thresholds"]
        macs, reached = np.zeros(count), np.zeros(count, np.int64)
        path, start = np.zeros((count, len(self.units))), 0
        total = np.zeros((count, classes), np.int64 if self.answer == "mean" else np.float64)
        here = np.arange(count)
        for run, network in self.runs:
            end = start + len(network.units)
            if len(here):
                done, came = self._run_members(run, network, images[here], thresholds)
                macs[here] += done["macs"]
                path[here, start:end] = done["path"]
                going = np.zeros(len(here), bool)
                for place, (rows, found) in zip(run, came, strict=True):
                    reached[here[rows]] = place
                    if self.answer == "mean":
                        total[here[rows]] += scores(found, self.members[place].get("weight", 1))
                    else:
                        total[here[rows]] = found
                    if place == run[-1] and place < len(thresholds):
                        going[rows] = doubt(found, self.kind) > thresholds[place]
                here = here[going]
            start = end
        answered = total / np.maximum(total.sum(axis=1, keepdims=True), 1e-300) if self.answer == "mean" else total
        with np.errstate(divide="ignore"):
            return {"logits": np.log(answered), "path": path, "macs": macs, "exit": reached}

    def _run_members(
        self, run: list[int], network: Runner, images: np.ndarray, thresholds: list[float]
    ) -> tuple[dict[str, np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
        """What a network executed for the members of a run, and by member its images and their probabilities."""
        members = [self.members[place] for place in run]
        if len(run) == 1:
            done = network._batch(images, members[0]["values"])
            return done, [(np.arange(len(images)), answered(done["logits"], members[0]["temperature"]))]
        every = np.arange(len(images))
        inputs = normalised(images, network.image["normalisation"])
        logits = np.zeros((len(network._steps), len(images), len(self.classes)), np.float32)
        taken = np.zeros((len(run), len(images)), np.int64)  # the exit that an image takes under every member's knobs
        staying, at = np.ones(taken.shape, bool), np.zeros(len(images), np.int64)
        path, rows = np.zeros((len(images), len(network.units))), every
        registers = {"images": inputs}
        for number, step in enumerate(network._steps):
            part, values = network._parts[step["part"]], members[0]["values"]
            given = [
                np.asarray(values[name], kind) if name in values else registers[name]
                for name, kind in zip(step["reads"], part.types, strict=True)
            ]
            registers = dict(zip(step["writes"], part.run(given), strict=True))
            logits[number, rows] = registers["logits"]
            path[np.ix_(rows, step["charges"])] = 1
            bars = [member["values"][name] for member in members for name in step["reads"] if name in values]
            sure = softmax(registers["logits"].astype(np.float64)).max(axis=1)
            sure = np.where(np.isnan(sure), 0, sure)
            staying[:, rows] &= sure < np.array(bars)[:, None] if bars else False
            taken[:, rows] += staying[:, rows]
            over = np.zeros(len(rows), bool)
            for m, member in enumerate(members):
                left = np.flatnonzero((at[rows] == m) & ~staying[m, rows] & ~over)
                if m == len(members) - 1 or not len(left):
                    over[left] = True
                    continue
                found = answered(logits[taken[m, rows[left]], rows[left]], member["temperature"])
                further = doubt(found, self.kind) > thresholds[run[m]]
                at[rows[left[further]]] += 1
                over[left[~further]] = True
            if over.all():
                break
            registers = {name: values[~over] for name, values in registers.items()}
            rows = rows[~over]
        came = [np.flatnonzero(at >= m) for m in range(len(run))]
        macs = np.rint(network.manifest["fixed_macs"] + path @ network.unit_macs)
        told = [
            (mine, answered(logits[taken[m, mine], mine], members[m]["temperature"])) for m, mine in enumerate(came)
        ]
        return {"path": path, "macs": macs}, told


def load(folder: str | Path, *, threads: int = 1, precision: str = "") -> Runner:
    """The runner of a folder, whether it holds one network or a cascade."""
    cascade = read_manifest(Path(folder))["format"] == CASCADE
    return (CascadeRunner if cascade else Runner)(folder, threads=threads, precision=precision)


class Single:
    """The one file of a folder that takes one image at a time; parts that are not needed lie behind ``If`` nodes.

    Raises `Refused` as `Runner` does, and where the folder has no such file.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1) -> None:
        self.manifest = read_manifest(Path(folder))
        if not self.manifest.get("single"):
            raise Refused(
                f"{folder} has no file for single images: {self.manifest.get('single_missing', 'not written')}"
            )
        self.session = _session(checked_file(Path(folder), self.manifest["single"]), threads)
        self.types = {each.name: each.type for each in self.session.get_overridable_initializers()}

    def predict(self, image: np.ndarray, values: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Classify one image, uint8 (c, h, h) or (1, c, h, h); `values` replace those of the promoted setting."""
        image = np.asarray(image)
        image = checked_images(image[None] if image.ndim == 3 else image, self.manifest["image"])
        if len(image) != 1:
            raise Refused(f"{len(image)} images; this file takes one at a time")
        feed = {"pixels": image}
        for name, value in (values or {}).items():
            if name not in self.types:
                raise Refused(f"unknown value {name!r}; this model has {', '.join(sorted(self.types)) or 'none'}")
            feed[name] = np.asarray(value, _TYPES[self.types[name][7:-1]])
        return dict(zip([each.name for each in self.session.get_outputs()], self.session.run(None, feed), strict=True))


def _session(content: bytes, threads: int) -> Any:
    """A graph under onnxruntime, on the processor."""
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Refused(f"onnxruntime cannot be imported ({error}): pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


# -- the folder ------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; `Refused` where there is none, or it was changed or is of another format."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        digest = manifest.pop("digest")
    except FileNotFoundError:
        raise Refused(f"{folder} is no exported model: it has no manifest.json") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise Refused(f"{path} cannot be read: {type(error).__name__}") from None
    if manifest.get("format") not in (FORMAT, CASCADE) or manifest.get("version") != VERSION:
        named = f"{manifest.get('format')!r} version {manifest.get('version')!r}"
        raise Refused(f"{path} is of format {named}; this runner reads {FORMAT!r} version {VERSION}")
    if digest_of(manifest) != digest:
        raise Refused(f"{path} was changed: its digest is {digest_of(manifest)[:12]}, it says {str(digest)[:12]}")
    return manifest


def digest_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its ``digest``: keys sorted, no spaces, in ASCII."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def checked_file(folder: Path, record: dict[str, Any]) -> bytes:
    """The content of a file of the folder; `Refused` where it is not what the manifest says."""
    name = record["file"]
    if Path(name).name != name:
        raise Refused(f"file {name!r} lies outside the folder")
    try:
        content = (folder / name).read_bytes()
    except OSError:
        raise Refused(f"{folder} lacks {name}") from None
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise Refused(f"{name} in {folder} was changed: its digest is not that of the manifest")
    return content


# -- images and numbers ----------------------------------------------------------------------------


def edges_of(image: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a model's images, of which `size` is one number where they are square."""
    size = image["size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def checked_images(images: np.ndarray, image: dict[str, Any]) -> np.ndarray:
    """Images as the model takes them; `Refused` for another shape or type."""
    shape = (image["channels"], *edges_of(image))
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise Refused(f"images are {images.dtype} of shape {images.shape}; this model takes uint8 (n, {wanted})")
    return images


def normalised(images: np.ndarray, record: dict[str, Any]) -> np.ndarray:
    """Inputs (n, c, h, h), float32, from pixels: by constants of the channels, or each image by its own."""
    pixels = images.astype(np.float32)
    if record["per_image"]:
        size = pixels[0].size if len(pixels) else 1
        mean = pixels.sum(axis=(1, 2, 3), keepdims=True, dtype=np.float64) / size
        squares = np.square(pixels).sum(axis=(1, 2, 3), keepdims=True, dtype=np.float64) / size
        std = np.sqrt(np.maximum(squares - np.square(mean), 1 / size)).astype(np.float32)
        return (pixels - mean.astype(np.float32)) / std
    mean, std = (
        (np.array(record[name], np.float32) * np.float32(255)).reshape(1, -1, 1, 1) for name in ("mean", "std")
    )
    return (pixels - mean) / std


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (n, C)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
    return powers / powers.sum(axis=1, keepdims=True)


FEW, TOP = 16, 5
"""Cascades keep the probabilities of so many classes; where there are more, the largest ones and what is left."""


def answered(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (n, C) float32 as a cascade decides by them: rounded to half precision, then with a temperature."""
    exact = softmax(logits.astype(np.float32))
    if exact.shape[1] > FEW:
        classes = np.argsort(-exact, axis=1, kind="stable")[:, :TOP]
        largest = np.take_along_axis(exact, classes, axis=1)
        rest = np.maximum(1.0 - largest.sum(axis=1, dtype=np.float64), 0.0).astype(np.float16).astype(np.float32)
        found = np.repeat((rest / (exact.shape[1] - TOP))[:, None], exact.shape[1], axis=1).astype(np.float32)
        np.put_along_axis(found, classes, largest.astype(np.float16).astype(np.float32), axis=1)
    else:
        found = exact.astype(np.float16).astype(np.float32)
    if temperature == 1.0:
        return found
    raised = np.power(found.astype(np.float64), 1.0 / temperature)
    return (raised / np.maximum(raised.sum(axis=1, keepdims=True), 1e-300)).astype(np.float32)


def doubt(probabilities: np.ndarray, kind: str) -> np.ndarray:
    """How unsure answers (n, C) are (n,), float32: 1 - p1 (probability), 1 - p1 + p2 (margin), or the entropy."""
    others = probabilities.astype(np.float64)
    others[np.arange(len(others)), others.argmax(axis=1)] = 0.0
    rest = others.sum(axis=1)
    if kind == "margin":
        rest = rest + others.max(axis=1)
    elif kind == "entropy":
        logs = np.log(others, out=np.zeros_like(others), where=others > 0)
        largest = np.clip(1.0 - rest, 1e-12, 1.0)
        rest = -(others * logs).sum(axis=1) - largest * np.log(largest)
    return rest.astype(np.float32)


def scores(probabilities: np.ndarray, weight: int) -> np.ndarray:
    """Whole numbers (n, C) whose sums over members rank classes as the weighted mean; of equal ones the first wins."""
    whole = np.rint(probabilities.astype(np.float64) * (1 << 14)).astype(np.int64)
    return weight * (whole << 12) + np.arange(probabilities.shape[1] - 1, -1, -1)


def draws(inputs: np.ndarray, seed: int, count: int) -> np.ndarray:
    """Uniform draws (n, count), float32 in [0, 1), that follow from each image's inputs and the seed alone.

    With 64-bit arithmetic modulo 2**64: the bits of the float32 inputs of an image, in order, are multiplied by odd
    numbers and added; SplitMix64 of this sum, the seed and the position gives 24 bits a draw.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(inputs).reshape(len(inputs), -1).view(np.int32).astype(np.int64).view(np.uint64)
        odd = np.arange(bits.shape[1], dtype=np.uint64) * golden | np.uint64(1)
        key = (bits * _mixed(odd)).sum(axis=1, dtype=np.uint64)
        start = np.array(seed * 2 + 1 & (1 << 64) - 1, np.uint64)
        position = np.arange(1, count + 1, dtype=np.uint64) * golden
        mixed = _mixed(_mixed(key + start)[:, None] + position)
    return ((mixed >> np.uint64(40)) & np.uint64(0xFFFFFF)).astype(np.float32) / np.float32(1 << 24)


def _mixed(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


# -- watched in use --------------------------------------------------------------------------------

BINS = 10
"""Equal bins of confidences in [0, 1]."""
WINDOW = 1000
"""Images that are summed up in one line of a log, where nothing else is asked."""


def figures_of(answers: dict[str, np.ndarray], exits: int) -> dict[str, Any]:
    """What is counted of answers, without a single image: sums that windows add up.

    ``images``; ``macs`` and ``macs_squared``, sums; ``units``, the sum of every unit's executed share; ``exits``,
    images that left at each; ``confidence``, images by `BINS` of the largest probability; ``paths``, images of the
    most frequent `BINS` paths by a digest of the path.
    """
    macs, path, sure = answers["macs"], answers["path"], answers["probabilities"].max(axis=1, initial=0.0)
    bins = np.bincount(np.minimum((sure * BINS).astype(int), BINS - 1), minlength=BINS)
    digests = [hashlib.sha256(np.ascontiguousarray(row > 0).tobytes()).hexdigest()[:12] for row in path]
    names, counts = np.unique(np.array(digests, dtype="U12"), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:BINS]
    found: dict[str, Any] = {
        "images": len(macs),
        "macs": float(macs.sum()),
        "macs_squared": float(np.square(macs).sum()),
        "units": [float(share) for share in path.sum(axis=0)],
        "confidence": bins.tolist(),
        "paths": {str(names[k]): int(counts[k]) for k in order},
    }
    if exits:
        found["exits"] = np.bincount(answers["exit"], minlength=exits).tolist()
    return found


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The sums of two records of `figures_of`."""
    joined: dict[str, Any] = {}
    for name, value in one.items():
        theirs = other[name]
        if isinstance(value, list):
            joined[name] = [a + b for a, b in zip(value, theirs, strict=True)]
        elif isinstance(value, dict):
            both = {key: value.get(key, 0) + theirs.get(key, 0) for key in {**value, **theirs}}
            joined[name] = dict(sorted(both.items(), key=lambda each: -each[1])[: 10 * BINS])
        else:
            joined[name] = value + theirs
    return joined


class Watch:
    """Counts what a model answers, by windows of `window` images, from several threads.

    With a `folder` a line of JSON is added for every full window, and at the end for what is left, to a file of this
    process; images are kept nowhere. `total`: the sums of all windows.
    """

    def __init__(self, exits: int, *, folder: str | Path | None = None, window: int = WINDOW) -> None:
        self.exits, self.window = exits, window
        self.lock = threading.Lock()
        self.total: dict[str, Any] | None = None
        self.present: dict[str, Any] | None = None
        self.last: dict[str, Any] | None = None
        self.requests = self.refused = 0
        self.seconds = 0.0
        self._begun = time.time()
        self._requests, self._latency = 0, 0.0
        self.file: Path | None = None
        if folder is not None:
            self.file = Path(folder) / f"{time.time_ns():020d}-{os.getpid()}.jsonl"
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.file.touch(exist_ok=False)
            except OSError as error:
                raise Refused(f"log folder {folder} cannot be written: {error.strerror or error}") from None
            atexit.register(self.close)

    def add(self, answers: dict[str, np.ndarray], seconds: float, *, promoted: bool = True) -> None:
        """Count the answers of one request, which took so long; windows hold those of the `promoted` setting alone."""
        figures = figures_of(answers, self.exits) if len(answers["macs"]) else None
        with self.lock:
            self.requests, self.seconds = self.requests + 1, self.seconds + seconds
            self._requests, self._latency = self._requests + 1, self._latency + seconds
            if figures is None:
                return
            self.total = figures if self.total is None else added(self.total, figures)
            if not promoted:
                return
            self.present = figures if self.present is None else added(self.present, figures)
            if self.present["images"] >= self.window:
                self._write()

    def refuse(self) -> None:
        """Count a request that was refused."""
        with self.lock:
            self.refused += 1

    def close(self) -> None:
        """Write what is left of the present window."""
        with self.lock:
            if self.present is not None:
                self._write()

    def _write(self) -> None:
        assert self.present is not None
        now = time.time()
        line = {
            "begun": self._begun,
            "ended": now,
            "requests": self._requests,
            "seconds": self._latency,
            **self.present,
        }
        self.last, self.present, self._begun = line, None, now
        self._requests, self._latency = 0, 0.0
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def metrics(self, manifest: dict[str, Any]) -> str:
        """Everything counted so far in Prometheus' text format."""
        with self.lock:
            total, last = self.total, self.last
            lines = [*_metric("requests_total", "counter", "requests that were answered", [("", self.requests)])]
            lines += _metric("refused_total", "counter", "requests that were refused", [("", self.refused)])
            lines += _metric("seconds_total", "counter", "seconds that requests took", [("", self.seconds)])
        if total is None:
            return "\n".join(lines) + "\n"
        lines += _metric("images_total", "counter", "images that were classified", [("", total["images"])])
        lines += _metric("macs_total", "counter", "multiply-accumulates of all images", [("", total["macs"])])
        units = [(f'{{unit="{unit["name"]}"}}', n) for unit, n in zip(manifest["units"], total["units"], strict=True)]
        lines += _metric("unit_images_total", "counter", "images for which a unit was executed", units)
        if "exits" in total:
            taken = [(f'{{exit="{name}"}}', n) for name, n in zip(manifest["exits"], total["exits"], strict=True)]
            lines += _metric("exit_images_total", "counter", "images that left at an exit", taken)
        below = np.cumsum(total["confidence"]).tolist()
        sure = [(f'_bucket{{le="{(k + 1) / BINS:g}"}}', n) for k, n in enumerate(below)]
        sure += [('_bucket{le="+Inf"}', below[-1]), ("_count", below[-1])]
        lines += _metric("confidence", "histogram", "the largest probability of an image", sure)
        reference = manifest.get("reference")
        if last is not None and reference:
            off = [("", macs_deviations(last, reference))]
            lines += _metric("macs_deviations", "gauge", "standard errors of the last window's mean MACs", off)
        return "\n".join(lines) + "\n"


def macs_deviations(window: dict[str, Any], reference: dict[str, Any]) -> float:
    """By how many standard errors the mean MACs of a window lie above those of the reference; both are samples."""
    n, m = window["images"], reference["images"]
    mean, theirs = window["macs"] / n, reference["macs"] / m
    variance = max(reference["macs_squared"] / m - theirs**2, 0.0)
    error = math.sqrt(variance * (1 / n + 1 / m))
    if error < 1e-6 * max(theirs, 1.0):  # MACs that never vary
        return 0.0 if abs(mean - theirs) < 1e-6 * max(theirs, 1.0) else math.copysign(1e6, mean - theirs)
    return (mean - theirs) / error


def _metric(name: str, kind: str, says: str, values: list[tuple[str, float]]) -> list[str]:
    whole = f"routefront_{name}"
    return [
        f"# HELP {whole} {says}",
        f"# TYPE {whole} {kind}",
        *(f"{whole}{label} {value:.17g}" for label, value in values),
    ]


# -- the server ------------------------------------------------------------------------------------

MOST_IMAGES, MOST_WAITING = 256, 4096
"""Images of one request, and images that may wait before others are sent away."""


class Batcher:
    """Answers requests of several threads together: what has come while a batch ran is the next one.

    The thread whose turn it is computes, for itself and for those who wait: alone it waits for no other thread.
    """

    def __init__(self, runner: Runner, batch: int = BATCH) -> None:
        self.runner, self.batch = runner, batch
        self.waiting: list[tuple[np.ndarray, float | None, Future]] = []
        self.changing, self.turn = threading.Lock(), threading.Lock()

    def answer(self, images: np.ndarray, max_macs: float | None) -> dict[str, np.ndarray]:
        """What `Runner.predict` returns; `Busy` where too much is waiting."""
        self.runner.setting(max_macs)  # what cannot be is refused before it waits
        images, future = checked_images(images, self.runner.image), Future()
        with self.changing:
            if sum(len(each) for each, _, _ in self.waiting) + len(images) > MOST_WAITING:
                raise Busy(f"{MOST_WAITING} images are waiting; ask again later")
            self.waiting.append((images, max_macs, future))
        while not future.done():
            with self.turn:
                if not future.done():  # then it waits still, maybe behind others
                    self._compute(self._take())
        return future.result()

    def _take(self) -> list[tuple[np.ndarray, float | None, Future]]:
        """The first requests of one setting, up to a batch."""
        with self.changing:
            budget, taken, rest, count = self.waiting[0][1], [], [], 0
            for each in self.waiting:
                fits = not taken or (each[1] == budget and count + len(each[0]) <= self.batch)
                (taken if fits else rest).append(each)
                count += len(each[0]) if fits else 0
            self.waiting = rest
            return taken

    def _compute(self, taken: list[tuple[np.ndarray, float | None, Future]]) -> None:
        try:
            found = self.runner.predict(np.concatenate([images for images, _, _ in taken]), max_macs=taken[0][1])
        except BaseException as error:
            for _, _, future in taken:
                future.set_exception(error)
            return
        start = 0
        for images, _, future in taken:
            end = start + len(images)
            future.set_result({name: values[start:end] for name, values in found.items()})
            start = end


class Busy(RuntimeError):
    """Too much is waiting."""


class Handler(BaseHTTPRequestHandler):
    """``POST /predict``, ``GET /metrics``, ``GET /health``, ``GET /manifest``."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "routefront", ""
    timeout = 30
    wbufsize, disable_nagle_algorithm = -1, True  # an answer in one piece: two would wait for each other for 40 ms
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is written for every request."""

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status >= 400:  # what was not read of the request would be taken for the next one
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, line: str) -> None:
        self.server.watch.refuse()
        self._send(status, json.dumps({"error": line}).encode() + b"\n")

    def do_GET(self) -> None:
        """See the class."""
        manifest = self.server.batcher.runner.manifest
        if self.path == "/metrics":
            self._send(200, self.server.watch.metrics(manifest).encode(), "text/plain; version=0.0.4; charset=utf-8")
        elif self.path == "/health":
            self._send(200, b'{"status": "ok"}\n')
        elif self.path == "/manifest":
            self._send(200, json.dumps(manifest).encode())
        else:
            self._refuse(404, f"nothing is at {self.path[:80]!r}; there are /predict, /metrics, /health and /manifest")

    def do_POST(self) -> None:
        """Classify the images of a request: see `images_of`."""
        started = time.perf_counter()
        address = urlsplit(self.path)
        if address.path != "/predict":
            self._refuse(404, f"nothing is at {self.path[:80]!r}; POST to /predict")
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            self._refuse(411, "a request needs its Content-Length")
            return
        if not 0 <= length <= self.server.most:
            if length > 0:  # who sends a little too much should hear the answer; who sends far too much is cut off
                self.rfile.read(min(length, 2 * self.server.most))
            self._refuse(413, f"{length} bytes; a request has at most {self.server.most}")
            return
        try:
            body = self.rfile.read(length)
            images = images_of(body, self.headers.get("Content-Type", ""), self.server.batcher.runner.image)
            if len(images) > MOST_IMAGES:
                raise Refused(f"{len(images)} images; a request has at most {MOST_IMAGES}")
            budget = _budget(address.query)
            answers = self.server.batcher.answer(images, budget)
        except Refused as error:
            self._refuse(400, str(error))
        except Busy as error:
            self._refuse(503, str(error))
        else:
            self.server.watch.add(answers, time.perf_counter() - started, promoted=budget is None)
            self._send(200, json.dumps({"predictions": rows_of(answers)}).encode())


def _budget(query: str) -> float | None:
    given = parse_qs(query, keep_blank_values=True)
    unknown = sorted(set(given) - {"max_macs"})
    if unknown:
        raise Refused(f"unknown parameter {unknown[0]!r}; /predict takes max_macs")
    if not given:
        return None
    text = given["max_macs"][-1]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise Refused(f"max_macs {text[:40]!r} is no number above 0")
    return value


def images_of(body: bytes, kind: str, image: dict[str, Any]) -> np.ndarray:
    """The images of a request, uint8 (n, c, h, h).

    ``application/octet-stream``: their bytes, one image after the other; else JSON, ``{"images": [[[[...]]]]}`` of
    whole numbers from 0 to 255. Raises `Refused`.
    """
    shape = (image["channels"], *edges_of(image))
    size = math.prod(shape)
    if kind.partition(";")[0].strip() == "application/octet-stream":
        if len(body) % size:
            raise Refused(f"{len(body)} bytes are no whole number of images of {size} bytes")
        return np.frombuffer(body, np.uint8).reshape(-1, *shape)
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused('the body is not JSON; send {"images": [...]}, or bytes as application/octet-stream') from None
    if not isinstance(said, dict) or set(said) != {"images"}:
        raise Refused("the body is no object with images alone")
    try:
        array = np.array(said["images"])
    except ValueError:
        raise Refused("images are of different shapes") from None
    if array.dtype.kind not in "iu" or array.ndim != 4 or array.min(initial=0) < 0 or array.max(initial=0) > 255:
        raise Refused(f"images are to be whole numbers from 0 to 255 of shape (n, {', '.join(map(str, shape))})")
    return array.astype(np.uint8)


class Server(ThreadingHTTPServer):
    """A model behind HTTP; `batcher` answers, `watch` counts. `most`: bytes of a request."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], runner: Runner, watch: Watch) -> None:
        self.batcher, self.watch = Batcher(runner), watch
        image = runner.image
        self.most = (
            MOST_IMAGES * image["channels"] * math.prod(edges_of(image)) * 6 + 4096
        )  # JSON takes up to five a pixel
        super().__init__(address, Handler)


def serve(folder: str, host: str, port: int, *, threads: int, log: str | None, window: int, precision: str = "") -> int:
    """Serve a folder until the process is told to end."""
    runner = load(folder, threads=threads, precision=precision)
    watch = Watch(len(runner.manifest["exits"]), folder=log, window=window)
    try:
        server = Server((host, port), runner, watch)
    except OSError as error:
        raise Refused(f"{host}:{port} cannot be served: {error.strerror or error}") from None
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start())
    print(f"serving {folder} at http://{host}:{server.server_address[1]}", flush=True)
    try:
        server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        watch.close()
    return 0


# -- the command line ------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> int:
    """The exit code: 0, or 2 with one line for bad input."""
    parser = argparse.ArgumentParser(prog="routefront_runner.py", description="Run an exported model of routefront.")
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help="classify images of an .npy file, uint8 (n, channels, size, size)")
    predict.add_argument("folder")
    predict.add_argument("images")
    predict.add_argument("--max-macs", type=float)
    predict.add_argument("--precision", default="", help="float32, or another that the folder has")
    served = commands.add_parser("serve", help="answer over HTTP: POST /predict, GET /metrics")
    served.add_argument("folder")
    served.add_argument("--port", type=int, default=8000)
    served.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at; others than this machine's: 0.0.0.0"
    )
    served.add_argument("--threads", type=int, default=1, help="threads of onnxruntime")
    served.add_argument("--precision", default="", help="float32, or another that the folder has")
    served.add_argument("--log", help="a folder for one line of counts a window")
    served.add_argument("--window", type=int, default=WINDOW, help="images of a window")
    given = parser.parse_args(words)
    try:
        if given.command == "serve":
            if not 0 <= given.port < 65536 or given.threads < 1 or given.window < 1:
                raise Refused("--port takes 0 to 65535, --threads and --window whole numbers of at least 1")
            how = {"threads": given.threads, "log": given.log, "window": given.window, "precision": given.precision}
            return serve(given.folder, given.host, given.port, **how)
        runner = load(given.folder, precision=given.precision)
        answers = runner.predict(_array(given.images), max_macs=given.max_macs)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    for row in rows_of(answers):
        print(json.dumps(row))
    return 0


def rows_of(answers: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One plain record an image: what `Runner.predict` returns but for logits."""
    names = [name for name in ("label", "class", "probabilities", "macs", "path", "exit") if name in answers]
    columns = [answers[name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _array(path: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Refused(f"{path} holds no array of numpy: {str(error).splitlines()[0]}") from None


if __name__ == "__main__":
    sys.exit(main())
