"""What the papers printed: reference points by data set, never part of a front.

`published.csv` holds the tables of the papers that routefront implements and of their published code.
Accuracies are of the papers' *test* splits, trained in full by their recipes; nothing was run here.
`macs` is MACs per image: as printed, converted from the unit that `cost` names, or those of the
architecture; empty where the printed unit cannot be converted, and such a point is listed, not drawn.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("published.csv")


@dataclass(frozen=True, slots=True)
class Published:
    """One printed result: accuracy in [0, 1] on the test split of `dataset`, MACs per image, parameters.

    `method` is a method here, or empty; `cost` says where the MACs come from; `source` and `table` who
    printed it.
    """

    dataset: str
    method: str
    name: str
    accuracy: float
    macs: float | None
    params: int | None
    cost: str
    source: str
    table: str

    @property
    def cited(self) -> str:
        """Where it stands: ``CoDiNet, table 7``."""
        return f"{self.source}, {self.table if self.table == 'README' else f'table {self.table}'}"


@cache
def published() -> tuple[Published, ...]:
    """All of them, in the order of the file."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return tuple(
            Published(
                dataset=row["dataset"],
                method=row["method"],
                name=row["name"],
                accuracy=float(row["accuracy"]),
                macs=float(row["macs"]) if row["macs"] else None,
                params=int(row["params"]) if row["params"] else None,
                cost=row["cost"],
                source=row["source"],
                table=row["table"],
            )
            for row in csv.DictReader(file)
        )


def published_for(dataset: str) -> list[Published]:
    """Those of a study's data set (``cifar10``, or ``cifar10:/path``), cheapest first; of no other one."""
    name = dataset.partition(":")[0]
    found = [point for point in published() if point.dataset == name]
    return sorted(found, key=lambda p: (p.macs is None, p.macs or 0.0, -p.accuracy))
