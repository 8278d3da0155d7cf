"""What the commands about promoted models print for people."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.table import Table
from rich.text import Text

from search.commands.terminal import out
from search.units import AxesText, show_count, show_share

_SIGNS = {True: ("passes", "green"), False: ("fails", "red"), None: ("-", "dim")}


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, padding=(0, 2), pad_edge=False)


def print_promotion(record: dict[str, Any], dry_run: bool) -> None:
    """The point, its gates, and what became of the alias."""
    _gates(record)
    name, alias = record["model"], record["alias"]
    if dry_run:
        verdict = f"{name}@{alias} would stay: {record['why']}" if record["why"] else f"{name}@{alias} would move to it"
        out.print(Text(f"{verdict}; nothing was written"), soft_wrap=True)
        return
    before = f" (before: version {record['previous']})" if record.get("previous") else ""
    again = ", which it was already" if record["why"] else ""
    out.print(Text(f"promoted: {name}@{alias} is version {record['version']}{again}{before}"), soft_wrap=True)


def _gates(record: dict[str, Any]) -> None:
    validation, axes = record["validation"], AxesText.of(record)
    named = " ".join(word for word in (record["method"], record["network"]) if word)
    says = f"{record['point_id']}: {named}, {record['knobs_text']}: "
    says += axes.point(validation["accuracy"], validation["macs"])
    if axes.usual:
        says += " MACs"
    if record["macs_full"]:
        says += f", {show_share(validation['macs'] / record['macs_full'])} of the full network"
    out.print(Text(says), soft_wrap=True)
    if record["calibration"]:
        own = record["calibration"]
        labels = f"labelled, {show_share(own['accuracy'])}" if own["labelled"] else "unlabelled"
        says = f"thresholds for {own['images']} images of {own['folder']} ({labels}), {show_count(own['macs'])} MACs"
        out.print(Text(says), soft_wrap=True)
    print_gates(record["gates"])


def print_gates(gates: list[dict[str, Any]]) -> None:
    """A row a gate."""
    table = _table("gate", "", "measured here")
    for gate in gates:
        sign, style = _SIGNS[gate["passed"]]
        table.add_row(gate["name"], Text(sign, style=style), Text(gate["says"]))
    out.print(table)


def print_family(records: list[dict[str, Any]], dry_run: bool) -> None:
    """One line for every budget's alias."""
    axes = AxesText.of(records[0])
    table = _table("alias", "version", "point", axes.merit_title, axes.cost_title, "test", "")
    for record in records:
        moved = record["promoted"] or (dry_run and not record["why"])
        verdict = (record["why"] or ("would move" if dry_run else "moved")) if moved else f"stays: {record['why']}"
        test, validation = record["test"], record["validation"]
        table.add_row(
            Text(record["alias"]), record["version"] or "", Text(record["point_id"]),
            axes.merit(validation["accuracy"]), axes.cost(validation["macs"]),
            axes.merit(test["accuracy"]) if test else "", Text(verdict),
        )  # fmt: skip
    out.print(table)
    if dry_run:
        out.print("nothing was written; `--json` tells every gate")


def print_history(versions: list[dict[str, Any]]) -> None:
    """Versions, newest first, and below them every move of an alias."""
    axes = AxesText.of_tags(versions[0])
    titles = f"test {axes.merit_title}", axes.cost_title
    table = _table("version", "aliases", "registered", "study", "point", *titles, "gates")
    for entry in versions:
        gates = [gate for said in entry["promotions"].values() for gate in said.get("gates", [])]
        passed = [gate["passed"] for gate in gates]
        table.add_row(
            entry["version"], ", ".join(entry["aliases"]), _when(entry["time"]), Text(entry.get("study", "")),
            Text(entry.get("point_id", "")), _figure(entry, "test_accuracy", AxesText.of_tags(entry).merit),
            _figure(entry, "macs", AxesText.of_tags(entry).cost),
            f"{passed.count(True)} passed, {passed.count(None)} open" if passed else "",
        )  # fmt: skip
    out.print(table)
    moves = sorted((move for entry in versions for move in entry["moves"]), key=lambda move: -move["time"])
    if moves:
        out.print()
        table = _table("when", "alias", "version", "before", "why", "study")
        for move in moves:
            why = "being moved" if move.get("moving") else move["why"]
            previous = move["previous"] or "-"
            table.add_row(
                _when(move["time"]), move["alias"], move["version"], previous, why, Text(move.get("study", ""))
            )
        out.print(table)


def _figure(entry: dict[str, Any], name: str, show: Callable[[float], str]) -> str:
    try:
        return show(float(entry[name]))
    except (KeyError, ValueError):
        return ""  # not promoted by routefront


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def print_predictions(record: dict[str, Any], rows: int = 10) -> None:
    """The first predictions, and what all of them cost."""
    table = Table("image", "class", "confidence", "MACs", "truth", box=None, padding=(0, 2))
    for row in record["predictions"][:rows]:
        truth = "" if row.get("truth") is None else str(row["truth"])
        table.add_row(
            Text(row["image"]), Text(row["class"]), show_share(row["confidence"]), show_count(row["macs"]), Text(truth)
        )
    out.print(table)
    hidden = len(record["predictions"]) - rows
    if hidden > 0:
        out.print(f"  and {hidden} more (--json prints all)")
    says = f"{record['model']}: {record['count']} images, {show_count(record['macs'])} MACs per image on average"
    if record["macs_full"]:
        says += f" ({show_share(record['macs'] / record['macs_full'])} of the full network)"
    if record.get("accuracy") is not None:
        says += f", accuracy {show_share(record['accuracy'])}"
    out.print(Text(says), soft_wrap=True)


def print_drift(record: dict[str, Any]) -> None:
    """A row a window, the newest last, and the verdict."""
    table = _table("until", "images", "MACs", "p", "", "most by")
    for window in record["windows"][-20:]:
        ended = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(window["ended"]))
        sign = Text("alarm", style="red") if window["alarm"] else Text("-", style="dim")
        why = window["unit"] if window["why"] == "units" else window["why"]
        table.add_row(ended, str(window["images"]), show_count(window["macs"]), f"{window['p']:.2g}", sign, Text(why))
    out.print(table)
    reference = record["reference"]
    against = f"{show_count(reference['macs'])} MACs on {reference['images']} validation images"
    if record["alarm"]:
        verdict = f"{record['model']} sees other images than on validation, since {record['since_utc']} ({against})"
    else:
        verdict = f"{record['model']}: the newest window is as on validation ({against})"
    out.print(Text(verdict), soft_wrap=True)
