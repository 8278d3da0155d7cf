"""Runs an exported model of routefront: numpy and onnxruntime, nothing else.

    from routefront_runner import Runner
    answers = Runner("folder").predict(images)            # uint8 (n, channels, size, size)
    answers = Runner("folder").predict(images, max_macs=5e6)

or ``python routefront_runner.py predict FOLDER IMAGES.npy``. The folder's ``manifest.json`` says what is in it;
``docs/export.md`` of routefront describes its format, of which this file is the reference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FORMAT, VERSION = "routefront-export", 1
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
        place = np.searchsorted(self.rows, asked)
        place[place == len(self.rows)] = 0
        if len(self.rows) and (known := self.rows[place] == asked).all():
            return self.values[place]
        found = np.zeros((len(asked), *self.values.shape[1:]), self.values.dtype)
        if len(self.rows):
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
        place = np.searchsorted(self.rows, rows)
        place[place == len(self.rows)] = 0
        known = self.rows[place] == rows if len(self.rows) else np.zeros(len(rows), bool)
        self.values[place[known]] = values[known]
        if known.all():
            return
        joined = np.concatenate([self.rows, rows[~known]])
        order = joined.argsort()
        self.values = np.concatenate([self.values, values[~known]])[order]
        self.rows = None if len(joined) == count else joined[order]


class Runner:
    """An exported model.

    `manifest`: the folder's ``manifest.json``. Raises `Refused` for a folder that is none, of another format, or of
    which a file is not what the manifest says. `threads` are those of onnxruntime, for one part.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1, precision: str = "") -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        files = self.manifest["parts"]
        if precision:
            if precision not in self.manifest.get("precisions", {}):
                known = ", ".join(["float32", *self.manifest.get("precisions", {})])
                raise Refused(f"precision {precision!r}: this folder has {known}")
            files = {**files, **self.manifest["precisions"][precision]["parts"]}
        self.image = self.manifest["image"]
        self.units = [unit["name"] for unit in self.manifest["units"]]
        self.unit_macs = np.array([unit["macs"] for unit in self.manifest["units"]], np.float64)
        self.classes = list(self.manifest["classes"])
        self._place = {name: k for k, name in enumerate(self.units)}
        self._parts = {name: _Part(self.folder, part, threads) for name, part in files.items()}
        self._steps = [self._prepared(step) for step in self.manifest["program"]]
        self._last = self._last_reads()

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
        settings = self.manifest["settings"]
        fitting = [each for each in settings if each["macs"] <= max_macs]
        if not fitting:
            least = min(each["macs"] for each in settings)
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
        chosen = dict(self.setting(max_macs)["values"])
        for name, value in (values or {}).items():
            if name not in chosen:
                raise Refused(f"unknown value {name!r}; this model has {', '.join(sorted(chosen)) or 'none'}")
            chosen[name] = value
        found = [self._batch(images[i : i + BATCH], chosen) for i in range(0, len(images), BATCH)]
        if not found:
            found = [self._nothing()]
        answers = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        answers["probabilities"] = softmax(answers["logits"].astype(np.float64))
        answers["label"] = answers["probabilities"].argmax(axis=1)
        answers["class"] = np.array(self.classes, dtype=object)[answers["label"]]
        return answers

    def _nothing(self) -> dict[str, np.ndarray]:
        empty = np.zeros((0, len(self.units)))
        found = {"logits": np.zeros((0, len(self.classes)), np.float32), "path": empty, "macs": empty.sum(1)}
        return {**found, "exit": np.zeros(0, np.int64)} if self.manifest["exits"] else found

    def _batch(self, images: np.ndarray, values: dict[str, Any]) -> dict[str, np.ndarray]:
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
        # MACs are whole numbers, of which shares may lose the last digit
        macs = np.rint(self.manifest["fixed_macs"] + path @ self.unit_macs)
        found = {"logits": registers["logits"].at(None, count), "path": path, "macs": macs}
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
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        content = checked_file(folder, record)
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.inputs = [each["name"] for each in record["inputs"]]
        self.types = [_TYPES[each["type"]] for each in record["inputs"]]
        self.shapes = [each["shape"] for each in record["inputs"]]

    def run(self, given: list[np.ndarray]) -> list[np.ndarray]:
        return self.session.run(None, dict(zip(self.inputs, given, strict=True)))


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
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
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
    if Path(name).name != name and Path(name).parts[0] != "int8":
        raise Refused(f"file {name!r} lies outside the folder")
    try:
        content = (folder / name).read_bytes()
    except OSError:
        raise Refused(f"{folder} lacks {name}") from None
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise Refused(f"{name} in {folder} was changed: its digest is not that of the manifest")
    return content


# -- images and numbers ----------------------------------------------------------------------------


def checked_images(images: np.ndarray, image: dict[str, Any]) -> np.ndarray:
    """Images as the model takes them; `Refused` for another shape or type."""
    shape = (image["channels"], image["size"], image["size"])
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


# -- the command line ------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> int:
    """The exit code: 0, or 2 with one line for bad input."""
    parser = argparse.ArgumentParser(prog="routefront_runner.py", description="Run an exported model of routefront.")
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help="classify images of an .npy file, uint8 (n, channels, size, size)")
    predict.add_argument("folder")
    predict.add_argument("images")
    predict.add_argument("--max-macs", type=float)
    given = parser.parse_args(words)
    try:
        answers = Runner(given.folder).predict(_array(given.images), max_macs=given.max_macs)
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
