"""Numbers, axes and names as people write and read them: 20M, 1.5G, 2h, 97.2 %; text that a terminal can show.

Names come from study files, plug-ins and folders that somebody else made: control characters never reach a terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search.errors import InputError
from trainables.contracts.objective import Objective

_COUNT = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BYTES = {"": 1.0, "mb": 1e6, "gb": 1e9, "tb": 1e12, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}
_TIME = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _parse(text: str | float | int, units: dict[str, float], what: str, example: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", str(text), re.IGNORECASE)
    if match is None or match[2].lower() not in units:
        raise InputError(f"{text!r} is not {what}; write {example}")
    return float(match[1]) * units[match[2].lower()]


def parse_count(text: str | float | int) -> float:
    """A count such as ``20M``, ``1.5G`` or ``350000``."""
    return _parse(text, _COUNT, "a number", "for example 350000, 20M or 1.5G")


def parse_seconds(text: str | float | int) -> float:
    """A time such as ``90``, ``90s``, ``20m`` or ``2h``, in seconds."""
    return _parse(text, _TIME, "a time", "for example 90s, 20m or 2h")


def parse_size(text: str | int) -> int | list[int]:
    """Pixels: ``64``, or height and width as ``48x64``. Raises ValueError."""
    parts = str(text).lower().replace(" ", "").split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"image size {text!r}: write pixels along an edge, for example 64, or height x width, 48x64")
    return int(parts[0]) if len(parts) == 1 else [int(part) for part in parts]


def parse_bytes(text: str | float | int) -> float:
    """An amount of memory such as ``4GB``, ``500MB`` or ``8Gi``, in bytes."""
    return _parse(text, _BYTES, "an amount of memory", "for example 4GB, 500MB or 8Gi")


def show_count(value: float) -> str:
    """``2350000`` as ``2.35M``."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # 999,900 rounds to 1M, not to 1000k
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def show_bytes(size: float) -> str:
    """``2350000`` as ``2.4 MB``."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.9995 * one:
            return f"{size / one:.3g} {unit}"
    return f"{size:.0f} bytes"


def show_seconds(seconds: float) -> str:
    """``3725`` as ``1h 02m``."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def show_share(value: float) -> str:
    """``0.9722`` as ``97.2 %``."""
    return f"{100 * value:.1f} %"


@dataclass(frozen=True, slots=True)
class AxesText:
    """The two axes of a study for people: accuracies and MACs as what they stand for (`Objective`)."""

    objective: Objective = field(default_factory=Objective)

    @classmethod
    def of(cls, created: Mapping[str, Any]) -> AxesText:
        """Those of a study, from the payload of its first event."""
        record = created.get("objective")
        return cls(Objective.of(record)) if record else cls()

    @classmethod
    def of_tags(cls, tags: Mapping[str, Any]) -> AxesText:
        """Those of a model version, from its tags: accuracy and MACs where they name none."""
        try:
            return cls.of({"objective": json.loads(tags.get("objective", "null"))})
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()  # somebody else's tag

    @property
    def usual(self) -> bool:
        """Whether the axes are accuracy and MACs."""
        return self.objective.usual

    @property
    def of_methods(self) -> bool:
        """Whether accuracy is a share of images, as that of methods is, whatever the cost."""
        return self.usual or self.objective.timing is not None

    @property
    def merit_title(self) -> str:
        """The figure of merit with its unit."""
        return "balanced accuracy" if self.objective.balanced else self.objective.merit.title

    @property
    def cost_title(self) -> str:
        """The cost with its unit."""
        return "MACs" if self.usual else self.objective.cost.title

    def merit(self, accuracy: float) -> str:
        """A figure of merit: ``97.2 %``, or ``0.0281``."""
        return show_share(accuracy) if self.of_methods else show_figure(self.objective.merit_at(accuracy))

    def cost(self, macs: float) -> str:
        """A cost: ``2.35M``, or ``12.5``."""
        return show_count(macs) if self.usual else show_figure(self.objective.cost_at(macs))

    def between(self, low: float, high: float, to: str = "-") -> str:
        """An interval of accuracies as figures of merit from the least up: ``96.1-98.0``, or ``0.0197-0.0391``."""
        if self.of_methods:
            return f"{100 * low:.1f}{to}{100 * high:.1f}"
        least, most = sorted((self.objective.merit_at(low), self.objective.merit_at(high)))
        return f"{least:.3g}{to}{most:.3g}"

    def point(self, accuracy: float, macs: float) -> str:
        """``97.2 % at 2.35M``, or ``error 0.0281 at 12 trees``."""
        if self.usual:
            return f"{self.merit(accuracy)} at {self.cost(macs)}"
        if self.of_methods:
            return f"{self.merit(accuracy)} at {self.cost(macs)} {self.objective.cost.unit}"
        merit, cost = self.objective.merit, self.objective.cost
        unit = f" {merit.unit}" if merit.unit else ""
        return f"{merit.name} {self.merit(accuracy)}{unit} at {self.cost(macs)} {cost.unit or cost.name}"


def machines_text(machines: Mapping[str, int]) -> str:
    """What measured the latencies of some points, by how many each; a warning where these are unlike machines."""
    if len(machines) == 1:
        return f"latency was measured on {printable(next(iter(machines)))}"
    told = ", ".join(f"{printable(name)} ({count})" for name, count in machines.items())
    return f"warning: latencies of unlike machines are on one axis, which compares nothing: {told}"


def show_figure(value: float) -> str:
    """``0.02813`` and ``150``, ``2350000`` as ``2.35M``."""
    return show_count(value) if abs(value) >= 1e5 else f"{value:.4g}"


def knobs_text(knobs: Mapping[str, Any] | str) -> str:
    """Knobs (mapping or JSON) in a few characters: ``threshold 0.5``."""
    found = parsed(knobs) if isinstance(knobs, str) else knobs

    def shown(value: Any) -> str:
        if isinstance(value, list | tuple):
            # A threshold that nothing reaches switches its exit off.
            return "/".join("off" if isinstance(v, float) and v >= 1e6 else shown(v) for v in value)
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name} {shown(value)}" for name, value in (found or {}).items()) or "-"


def parsed(text: str) -> Any:
    """A JSON text out of a file that anybody may have written; `InputError` in one line where it is damaged."""
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"{text[:40]!r}... is nested too deep") from None
    except (ValueError, TypeError):
        raise InputError(f"{str(text)[:80]!r} is no JSON: the study's operating points are damaged") from None


def printable(text: str) -> str:
    """The text without what moves a terminal's cursor or hides: control and format characters as `?`."""
    return "".join(c if c.isprintable() else "?" for c in text)


def dataset_name(name: str) -> str:
    """The name of a data set for people: of a path its last part, ``hybrid:/a/b`` becoming ``hybrid:b``."""
    kind, colon, where = name.rpartition(":")
    return f"{kind}{colon}{Path(where).name}"
