r"""Whether what a served model answers still looks as it did on validation: windows of counts against a reference.

Nothing of this needs labels. A window of n images is compared with the N validation images that the model was promoted
on, both as samples of one distribution; the tests know both sizes:

- MACs: the difference of the means over its standard error, :math:`z = (\bar m - \bar M) / \sqrt{s^2 (1/n + 1/N)}`;
- exits and confidence: the two-sample chi-squared test of their counts, cells that expect fewer than five joined;
- units (gates, paths): for each the two-sample z of its executed share.

A window alarms where the smallest of the p-values, times their number (Bonferroni), is below `ALPHA`: without a cause
at most one window in a thousand does, if images come independently. Images of one scene do not; widen windows then.

Reference: K. Pearson 1900 for chi-squared; the survival function is the regularised incomplete gamma function.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from search.errors import InputError
from search.promotion.models import checked, client_at, resolve, split_name
from trainables.export.routefront_runner import macs_deviations

ALPHA = 0.001
LEAST = 50
"""Images below which a window says nothing."""
_EXPECTED = 5.0


def drift(model: str, log: Path, *, uri: str, alpha: float = ALPHA) -> dict[str, Any]:
    """What the windows of a log folder say about ``NAME@ALIAS``: a record with ``alarm`` and ``since``.

    Raises `InputError` where there is no such model, it has no reference, or the folder has no windows of it.
    """
    if not 0 < alpha < 0.5:
        raise InputError(f"--alpha {alpha}: the share of windows that may alarm without a cause lies in (0, 0.5)")
    windows = read_log(log)
    serving = serving_of(model, uri)
    reference = serving.get("reference")
    if not reference:
        raise InputError(f"{model} was promoted without reference figures; promote it again")
    units, exits = serving["units"], serving["exits"]
    for window in windows:
        counted = len(window["units"]), len(window.get("exits", []))
        if counted != (len(units), len(exits)):
            raise InputError(
                f"{log} holds counts of another model than {model}: of {counted[0]} units and {counted[1]} exits,"
                f" not {len(units)} and {len(exits)}"
            )
    judged = [judge(window, reference, units, exits, alpha) for window in windows if window["images"] >= LEAST]
    if not judged:
        raise InputError(f"{log} has no window of at least {LEAST} images yet")
    run = 0
    while run < len(judged) and judged[-1 - run]["alarm"]:
        run += 1
    since = judged[-run]["begun"] if run else None
    return {
        "model": model,
        "windows": judged,
        "alpha": alpha,
        "alarm": run > 0,
        "since": since,
        "since_utc": None if since is None else _shown(since),
        "alarms": sum(each["alarm"] for each in judged),
        "reference": {"images": reference["images"], "macs": reference["macs"] / reference["images"]},
    }


def _shown(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def serving_of(model: str, uri: str) -> dict[str, Any]:
    """``serving.json`` of a registered model whose files are those promoted; nothing of it is run."""
    import tempfile

    from search.promotion.ledger import answering
    from search.tracking.server import using

    name, version, alias = split_name(model)
    client = client_at(uri)
    with answering(uri, asked=True):
        found = resolve(client, name, version=version, alias=alias)
    with using(uri) as mlflow, tempfile.TemporaryDirectory(prefix="routefront-") as scratch:
        folder = checked(mlflow, name, found, Path(scratch))
        return json.loads((folder / "artifacts" / "model" / "serving.json").read_text())


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The windows of all files of a log folder, by when they ended; `InputError` names a line that is none."""
    if not folder.is_dir():
        raise InputError(f"--log {folder}: no such folder")
    windows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            try:
                window = json.loads(line)
                if not _is_window(window):
                    raise ValueError("a number is missing, negative or none")
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise InputError(f"{path} line {number} is no window of counts") from None
            windows.append(window)
    if not windows:
        raise InputError(f"--log {folder}: no window was written there yet")
    return sorted(windows, key=lambda window: window["ended"])


def _is_window(window: Any) -> bool:
    numbers = [window[name] for name in ("begun", "ended", "images", "macs", "macs_squared")]
    numbers += [*window["units"], *window["confidence"], *window.get("exits", [])]
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers)
    return plain and all(math.isfinite(value) and value >= 0 for value in numbers) and isinstance(window["images"], int)


def judge(
    window: Mapping[str, Any], reference: Mapping[str, Any], units: Sequence[str], exits: Sequence[str], alpha: float
) -> dict[str, Any]:
    """One window: its figures, the p-values of the tests, and whether it alarms."""
    n, m = window["images"], reference["images"]
    tests = {"macs": _two_sided(macs_deviations(dict(window), dict(reference)))}
    if exits:
        tests["exits"] = homogeneity(window["exits"], reference["exits"])
    tests["confidence"] = homogeneity(window["confidence"], reference["confidence"])
    moved = {}
    for name, here, there in zip(units, window["units"], reference["units"], strict=True):
        pooled = (here + there) / (n + m)
        error = math.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / n + 1 / m))
        if error > 1e-12:
            moved[name] = (here / n - there / m) / error
    if moved:
        most = max(abs(z) for z in moved.values())
        tests["units"] = min(1.0, len(moved) * _two_sided(most))
    name, smallest = min(tests.items(), key=lambda each: each[1])
    corrected = min(1.0, smallest * len(tests))
    return {
        "begun": window["begun"],
        "ended": window["ended"],
        "images": n,
        "macs": window["macs"] / n,
        "exits": [count / n for count in window.get("exits", [])],
        "tests": tests,
        "why": name,
        "unit": max(moved, key=lambda unit: abs(moved[unit])) if moved else None,
        "p": corrected,
        "alarm": corrected < alpha,
    }


def _two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


def homogeneity(one: Sequence[float], other: Sequence[float]) -> float:
    """The p-value of the chi-squared test that two lists of counts are of one distribution.

    Neighbouring cells are joined until each expects at least five of both samples; 1 where one cell is left.
    """
    totals = sum(one), sum(other)
    if not all(totals):
        return 1.0
    cells: list[list[float]] = []
    present = [0.0, 0.0]
    for pair in zip(one, other, strict=True):
        present = [a + b for a, b in zip(present, pair, strict=True)]
        if _least_expected(present, totals) >= _EXPECTED:
            cells.append(present)
            present = [0.0, 0.0]
    if cells:
        cells[-1] = [a + b for a, b in zip(cells[-1], present, strict=True)]
    if len(cells) < 2:
        return 1.0
    statistic = 0.0
    for cell in cells:
        for count, total in zip(cell, totals, strict=True):
            expected = total * sum(cell) / sum(totals)
            statistic += (count - expected) ** 2 / expected
    half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def _least_expected(cell: Sequence[float], totals: Sequence[float]) -> float:
    return min(totals) * sum(cell) / sum(totals)
