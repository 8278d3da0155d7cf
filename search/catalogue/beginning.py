"""`routefront init`: a study file with comments, from four answers."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from search.errors import InputError
from search.spec.study import StudySpec
from search.spec.toml import read_toml
from search.units import parse_count, parse_seconds
from spaces.space import nearest

_LOOKED_AT = 100
_USUAL = {"time": "1h", "max_macs": "none", "network": "none"}
_SIZES = (16, 32, 64, 128, 224)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What was asked: images (a folder or a known data set), a network (``none``: ours), a time, MACs (or ``none``)."""

    data: str
    network: str = _USUAL["network"]
    time: str = _USUAL["time"]
    max_macs: str = _USUAL["max_macs"]


def checked_data(text: str) -> str:
    """The name of a known data set, or a folder of images that is here; `InputError` with the nearest name."""
    from trainables.data.datasets import NAMES

    if text not in NAMES and not Path(text).expanduser().exists():
        raise InputError(f"data {text!r}: there is no such folder here, and no known data set{nearest(text, NAMES)}")
    return text


def checked_network(text: str) -> str:
    """A network that others wrote, or ``none``; `InputError` where there is no such one."""
    from spaces.own_networks import trust_network
    from trainables.networks.backbones.source import is_backbone, named

    if text == "none":
        return text
    try:
        named(text)
        trust_network(text)  # reads the file and finds the function in it; nothing is run
    except ValueError as error:
        raise InputError(str(error)) from None
    if not is_backbone(text):
        raise InputError(f"network {text!r}: {text} is one of ours, which is what none means; name one of others")
    return text


def checked_time(text: str) -> str:
    """A time such as ``1h``."""
    if parse_seconds(text) <= 0:
        raise InputError(f"time {text!r}: a time must be longer than nothing, for example 1h")
    return text


def checked_macs(text: str) -> str:
    """A number of MACs such as ``20M``, or ``none``."""
    if text != "none" and not parse_count(text) > 0:
        raise InputError(f"MACs {text!r}: a limit must be above 0, for example 20M, or none")
    return text


def study_file(answers: Answers) -> str:
    """The text of a study file; it has been read back as one."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(answers.data).name or "study").strip("-._") or "study"
    known = _known(answers.data)
    size, about = (None, "") if known else _image_size(Path(answers.data).expanduser())
    resized = (
        f"image_size = {size}            # {about}; smaller is faster"
        if size
        else "# image_size = 32            # resize every image to so many pixels"
    )
    macs = (
        f'max_macs = "{answers.max_macs}"          # per image; points above it do not count'
        if answers.max_macs != "none"
        else '# max_macs = "20M"           # per image; points above it do not count'
    )
    return f"""# A study: which network, trained and asked how, is the most accurate for every amount of computation?
# Every key is in docs/study-file.md. What would run, and what it may cost: routefront search FILE --dry-run
name = "{name}"

[data]
name = {_quoted(answers.data)}
{resized}
# balance = "sampled"        # where classes differ much in size (routefront data FOLDER tells)

[budget]
trials = 40                  # networks to train at most
epochs = 15                  # of one full training; bad trials stop earlier
time = "{answers.time}"      # the search ends then, whatever is left

[constraints]
{macs}

{_methods(answers.network)}"""


def write_study_file(answers: Answers, path: Path) -> None:
    """Write the study file, once it was found to be one; what is there stays. Raises `InputError`."""
    if path.exists():
        raise InputError(f"{path} is there already; give another file")
    text = study_file(answers)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    try:
        StudySpec.parse(read_toml(path), str(path))
    except InputError:
        path.unlink()
        raise


def _known(data: str) -> bool:
    from trainables.data.datasets import NAMES

    return data in NAMES


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _image_size(folder: Path) -> tuple[int | None, str]:
    """An image size by the first images of a folder, and why."""
    from trainables.data import layout
    from trainables.data.decoding import opened
    from trainables.data.errors import DataError, DataMissing

    if not folder.is_dir():
        return 32, "a size to begin with"
    shorter = []
    for name, _ in islice(layout.walk(str(folder)), _LOOKED_AT):
        try:
            shorter.append(min(opened(folder / name, name).size))
        except (DataError, DataMissing):
            continue
    if not shorter:
        return 32, "a size to begin with"
    middle = statistics.median(shorter)
    size = max((each for each in _SIZES if each <= middle), default=_SIZES[0])
    return size, f"the shorter edges have {middle:g} pixels in the median"


def _methods(network: str) -> str:
    if network == "none":
        return """# Methods to compare; without any table all are searched. `routefront methods` lists them.
[methods.static]             # nothing is routed: what the others must beat
network = ["resnet-8", "resnet-14", "resnet-20"]

[methods.aig]                # gates skip blocks
network = ["resnet-8", "resnet-14", "resnet-20"]

[methods.exits]              # an image leaves at the first exit that is sure enough
network = ["resnet-14", "resnet-20", "resnet-32"]

[methods.imta]               # the same on a network made for exits
network = ["msdnet-3", "msdnet-5"]
"""
    named = _quoted(network)
    return f"""# Your network, as it is and routed (docs/backbones.md). A table may begin with weights:
# pretrained = "weights.pth"
# lr = {{ low = 0.001, high = 0.03, log = true }}   # behind weights; the usual rates forget them
[methods.static]             # nothing is routed: what the others must beat
network = {named}
resolution = [0.75, 1.0]     # images are resized before the network reads them

[methods.exits]              # an image leaves at the first exit that is sure enough
network = {named}
exits = [3, 4]

# [methods.blocks]           # gates skip residual blocks, where the network has some
# network = {named}
"""
