"""One page a method: its paper, where we differ, its integers, its results.

Text comes from the method's docstring, the space from its records, the integers from networks; what papers print
is XX

    python docs/tools/methods.py --write
"""

from __future__ import annotations

import ast
import csv
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pieces import code, prose, table

ROOT = Path(__file__).resolve().parents[2]
_RESULTS = ROOT / "tests" / "benchmarks" / "results"
_SIZES = Path(__file__).with_name("sizes.json")
_TOGETHER = {"sact": "act"}
"""Methods that another one's module holds."""
_SECTION = re.compile(r"^(Deviations[^\n:]*):", re.MULTILINE)


def names() -> list[str]:
    """The methods, in the order of the registry."""
    return [record["name"] for record in _records()]


def pages() -> dict[str, str]:
    """Every method's page by its file, and the page that lists them."""
    records = _records()
    return {"methods/index.md": _index(records)} | {f"methods/{each['name']}.md": _page(each) for each in records}


def _records() -> list[dict[str, Any]]:
    from search.catalogue.records import written

    return written()


def _docstring(name: str) -> str:
    place = ROOT / "trainables" / "methods" / f"{_TOGETHER.get(name, name)}.py"
    return ast.get_docstring(ast.parse(place.read_text())) or ""


def _index(records: list[dict[str, Any]]) -> str:
    networks = _networks()
    rows = [
        (
            f"[{each['name']}]({each['name']}.md)",
            each["title"],
            _link(each["paper"]),
            networks[each["name"]]["network"],
            f"{networks[each['name']]['params']:,}",
            f"{networks[each['name']]['macs_min'] / 1e6:.1f} to {networks[each['name']]['macs_full'] / 1e6:.1f}",
        )
        for each in records
    ]
    head = ("method", "", "paper", "default network", "parameters", "million MACs an image")
    return (
        f"# The {len(records)} methods\n\nSizes are for 10 classes of 32 x 32 pixels in colour.\n\n{table(head, rows)}"
    )


def _networks() -> dict[str, dict[str, Any]]:
    from search.catalogue.records import networks_written

    return networks_written()


def _link(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    return f"[{paper}](https://arxiv.org/abs/{number})" if number != paper else paper


def _page(record: dict[str, Any]) -> str:
    name, docstring = record["name"], _docstring(record["name"])
    said, deviations = _divided(docstring)
    first, _, rest = said.partition("\n")
    parts = [f"# {name}: {record['title']}", f"*{first.strip()}*", "## The paper", _linked(prose(rest.strip()))]
    if deviations:
        parts += ["## What is done differently here", _linked(prose(deviations))]
    parts += ["## What the search varies", _space(record)]
    if record["knobs"]:
        rows = [(code(knob), prose(text)) for knob, text in record["knobs"].items()]
        parts += [
            "## What is set at inference",
            "One training gives an operating point for each.",
            table(("knob", "what it decides"), rows),
        ]
    parts += ["## Its integers", _integers(name), "## Results here", _results(name)]
    return "\n\n".join(parts) + "\n"


def _divided(docstring: str) -> tuple[str, str]:
    """What a docstring says of the paper, and its list of deviations; legends of shapes are for readers of the code."""
    text = re.sub(r"\n\nShape legend:[^\n]*(\n[^\n]+)*", "", docstring)
    found = _SECTION.search(text)
    if found is None:
        single = re.search(r"\n\n(Deviations?[^\n]*: .*)", text, re.DOTALL)
        return (text[: single.start()], single[1]) if single else (text, "")
    return text[: found.start()].rstrip(), text[found.end() :].strip()


def _linked(text: str) -> str:
    text = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"(?<![\w/(])(github\.com/[\w./-]+\w)", r"[\1](https://\1)", text)


def _space(record: dict[str, Any]) -> str:
    published = record["published"]
    rows = []
    for name, parameter in record["space"].items():
        when = parameter.get("when")
        only = " and ".join(f"{key} = {', '.join(map(str, values))}" for key, values in (when or {}).items())
        rows.append((code(name), parameter["takes"], code(published.get(name, "")), only))
    others = ", ".join(f"`{key} = {value}`" for key, value in published.items() if key not in record["space"])
    beside = f"\n\nThe published setting, which runs first, has besides: {others}." if others else ""
    return table(("parameter", "takes", "published", "only where"), rows) + beside


def _integers(name: str) -> str:
    """Sizes of networks built here, beside what the paper or its authors' code has."""
    usual = _networks()[name]
    rows = [_sizes({"network": usual["network"]}, usual, "the default")]
    known = json.loads(_SIZES.read_text())
    for values, _, printed in cases(name):
        rows.append(_sizes(values, known[key(name, values)], printed))
    kinds = sorted({unit["kind"] for unit in usual["units"]})
    units = [f"{sum(unit['kind'] == kind for unit in usual['units'])} of kind `{kind}`" for kind in kinds]
    head = ("network", "parameters", "MACs, everything executed", "MACs, least", "the paper or its code")
    more = f"\n\nThe default network decides about {len(usual['units'])} units: {', '.join(units)}." if units else ""
    note = (
        "Counted by the code, for 10 classes of 32 x 32 pixels in colour where nothing else is said;"
        " routers and exits are included, and MACs are those of one image."
    )
    return f"{note}\n\n{table(head, rows)}{more}"


def cases(name: str) -> Iterator[tuple[dict[str, Any], dict[str, int], str]]:
    """Networks of a method at sizes that were published: (configuration, task, what is printed)."""
    for case in tomllib.loads(Path(__file__).with_name("printed.toml").read_text()).get(name, []):
        printed, task = case.pop("printed"), case.pop("task", {})
        yield case, task, printed


def key(name: str, values: dict[str, Any]) -> str:
    """By what ``sizes.json`` knows a network."""
    return f"{name} {json.dumps(values, sort_keys=True)}"


def counted(name: str, values: dict[str, Any], task: dict[str, int]) -> dict[str, int]:
    """The sizes of one network, which is built for it."""
    from search.catalogue.describe import network_description

    found = network_description(name, values, **task)
    return {each: found[each] for each in ("params", "macs_full", "macs_min")}


def _sizes(values: dict[str, Any], found: dict[str, Any], printed: str) -> tuple[str, ...]:
    named = ", ".join(str(v) if k == "network" else f"{k} = {v}" for k, v in values.items())
    return named, f"{found['params']:,}", f"{found['macs_full']:,}", f"{found['macs_min']:,}", printed


def _results(name: str) -> str:
    parts = []
    trained = [json.loads(file.read_text()) for file in sorted(_RESULTS.glob("*/*-*.json"))]
    rows = []
    for row in trained:
        method = "static" if row["row"] == "donor" else row["row"].split()[0]
        if method != name:
            continue
        best = max(row["points"], key=lambda point: (point["correct"], -point["macs"]))
        least = min(row["points"], key=lambda point: point["macs"])
        rows.append((row["row"], row["recipe"]["network"], row["epochs"], row["seed"], _share(best), _share(least)))
    if rows:
        parts.append(
            "Trained by `tests/benchmarks/training/check_methods.py` on 9,000 images of CIFAR-10, measured on 5,000 of"
            " its test images. `donor` is the static network that others begin with."
        )
        parts.append(table(("row", "network", "epochs", "seed", "most accurate point", "cheapest point"), rows))
    learnt = [row for row in json.loads((_RESULTS / "learning.json").read_text()) if row["row"].split()[0] == name]
    if learnt:
        parts.append(
            "Does it learn at its published rate? The loss of 200 steps on CIFAR-10, by fifths of the steps"
            " (`tests/benchmarks/training/bench_learning.py`):"
        )
        shown = [(r["row"], r["lr"], f"{r['first']:.2f}", ", ".join(f"{f:.2f}" for f in r["fifths"])) for r in learnt]
        parts.append(table(("row", "learning rate", "first step", "means of the fifths"), shown))
    with open(ROOT / "search" / "frontier" / "published.csv", newline="") as file:
        printed = [row for row in csv.DictReader(file) if row["method"] == name]
    if printed:
        parts.append("What papers print (test split, their recipes), which `routefront frontier STUDY --papers` lists:")
        head = ("data set", "", "accuracy", "cost as printed", "where")
        parts.append(table(head, [_printed(row) for row in printed]))
    if not rows and not learnt:
        parts.insert(0, "No training of this method is among the results that are kept with the code.")
    return "\n\n".join(parts)


def _printed(row: dict[str, str]) -> tuple[str, ...]:
    where = f"{row['source']}, {'table ' * row['table'].isdigit()}{row['table']}"
    return row["dataset"], row["name"], f"{float(row['accuracy']):.2%}", row["cost"], where


def _share(point: dict[str, Any]) -> str:
    return f"{point['correct'] / point['count']:.1%} at {point['macs'] / 1e6:.2f}M MACs"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python docs/tools/methods.py --write")
    sys.path.insert(0, str(ROOT))
    sizes = {key(name, values): counted(name, values, task) for name in names() for values, task, _ in cases(name)}
    _SIZES.write_text(json.dumps(sizes, indent=1) + "\n")
