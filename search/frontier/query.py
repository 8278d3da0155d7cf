"""Questions to the operating points of one study or several: fronts, budgets, layers, filters.

What is asked for decides which points take part (methods, variants, networks, knobs, parameters) and
which members of their front are told (MACs, accuracy): a budget of MACs or a floor of accuracy cuts a
front off and cannot change the rest of it. Accuracy is that of the validation split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from search.errors import InputError
from search.frontier.point import FrontPoint, point_of
from search.frontier.pool import StudyPoints, joint_reference
from search.pareto import front as pareto
from search.units import AxesText, parsed, show_count, show_share
from spaces.space import nearest
from trainables.contracts.objective import Objective

_MOST_LAYERS = 100
_NAMES = ("method", "variant", "network")
TOLD = (
    "point_id", "study", "trial", "config_id", "method", "variant", "network", "epoch", "setting", "knobs", "accuracy",
    "correct", "count", "macs", "macs_std", "macs_full", "params", "seed", "checkpoint", "config",
    "merit", "cost", "counted_macs", "machine",
)  # fmt: skip
"""The columns that a member of a front is made of (`search.frontier.point.point_of`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked for; None and empty do not restrict.

    `max_macs` MACs per image, `max_params` parameters, `min_accuracy` in [0, 1]. `cost` and `merit`: at least as cheap
    and as good as that, in the study's own figures (`on_axes`). `counted_macs`: of points whose cost is a measured
    latency, those of at most so many MACs take part; `on_axes` makes it of `max_macs`. `methods`, `variants`,
    `networks`: names. `knobs`: the value of a knob, or (low, high). `layers`: how many fronts, the
    second being that of what the first leaves, and so on.
    """

    max_macs: float | None = None
    max_params: float | None = None
    min_accuracy: float | None = None
    cost: float | None = None
    merit: float | None = None
    counted_macs: float | None = None
    methods: Sequence[str] = ()
    variants: Sequence[str] = ()
    networks: Sequence[str] = ()
    knobs: Mapping[str, Any] = field(default_factory=dict)
    layers: int = 1

    def __post_init__(self) -> None:
        if self.min_accuracy is not None and not 0 <= self.min_accuracy <= 1:
            raise InputError(f"min_accuracy {self.min_accuracy}: accuracies lie in [0, 1], for example 0.95")
        if not 1 <= self.layers <= _MOST_LAYERS:
            raise InputError(f"layers {self.layers}: ask for 1 (the front alone) to {_MOST_LAYERS}")

    def on_axes(self, objective: Objective) -> Query:
        """The question with `cost` and `merit` as what stands for them on a study's axes.

        Raises `InputError` for MACs or an accuracy where the axes are others, and for impossible figures.
        """
        if objective.timing is not None and self.max_macs is not None:
            return replace(self, max_macs=None, counted_macs=self.max_macs).on_axes(objective)
        for name, value in (("max_macs", self.max_macs), ("min_accuracy", self.min_accuracy)):
            if objective.timing is None and value is not None and not objective.usual:
                raise InputError(
                    f"{name}: the axes of this study are {objective.merit.title} and {objective.cost.title}; ask for"
                    " merit and cost (--merit, --cost)"
                )
        try:
            most = self.max_macs if self.cost is None else objective.macs_of(self.cost)
            least = self.min_accuracy if self.merit is None else objective.accuracy_of(self.merit)
        except ValueError as error:
            raise InputError(str(error)) from None
        return replace(self, cost=None, merit=None, max_macs=most, min_accuracy=least)

    def taking_part(self) -> pc.Expression | None:
        """The filter of the points that take part, but for their knobs."""
        named = zip(_NAMES, (self.methods, self.variants, self.networks), strict=True)
        parts = [pc.field(name).isin(list(wanted)) for name, wanted in named if wanted]
        if self.max_params is not None:
            parts.append(pc.field("params") <= int(self.max_params))
        if self.counted_macs is not None:
            parts.append(pc.field("counted_macs") <= float(self.counted_macs))
        return _all(parts)


def _all(parts: Iterable[pc.Expression | None]) -> pc.Expression | None:
    found: pc.Expression | None = None
    for part in parts:
        if part is not None:
            found = part if found is None else found & part
    return found


@dataclass(slots=True)
class Pool:
    """The light columns of all points that take part; `table` has the index of its study as `source`."""

    sources: list[StudyPoints]
    query: Query
    table: pa.Table
    error: np.ndarray
    macs: np.ndarray

    @property
    def axes(self) -> AxesText:
        """The axes of the studies."""
        return AxesText.of(self.sources[0].created)

    @property
    def reference(self) -> tuple[float, float]:
        """The reference of the hypervolume; of several studies the one that holds all of theirs."""
        return joint_reference(self.sources)


def pool_of(sources: list[StudyPoints], query: Query, *, columns: Sequence[str] = ()) -> Pool:
    """The points of studies that take part, with `columns` beside accuracy and MACs.

    Raises `InputError` where a name that was asked for is nowhere, or nothing fits the parameters or the knobs.
    """
    more = ["knobs"] if query.knobs else []
    wanted: list[str] = list(dict.fromkeys(["accuracy", "macs", *columns, *more]))
    parts = []
    for number, source in enumerate(sources):
        # a point that is there twice is on a front once: no need to compare a million identities
        found = source.read(wanted, query.taking_part(), unique=False)
        if query.knobs:
            found = found.filter(_knobs_match(found["knobs"], query.knobs))
        parts.append(found.append_column("source", pa.repeat(pa.scalar(number, pa.int32()), len(found))))
    table = pa.concat_tables(parts)
    if not len(table):
        _explain_empty(sources, query)
    return Pool(sources, query, table, 1.0 - table["accuracy"].to_numpy(), table["macs"].to_numpy())


def _knobs_match(column: pa.ChunkedArray, wanted: Mapping[str, Any]) -> pa.Array:
    """Mask of the rows whose knobs have the wanted values; every distinct text is parsed once."""
    codes = column.combine_chunks().dictionary_encode()
    fits = np.array([_fits(parsed(text or "{}"), wanted) for text in codes.dictionary.to_pylist()], dtype=bool)
    return pa.array(fits[codes.indices.to_numpy()] if len(codes) else np.zeros(0, dtype=bool))


def _fits(knobs: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(name in knobs and _is(knobs[name], value) for name, value in wanted.items())


def _is(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple):
        return isinstance(value, int | float) and wanted[0] <= value <= wanted[1]
    if isinstance(value, float) and isinstance(wanted, int | float):
        return bool(np.isclose(value, wanted, rtol=1e-6))
    return value == wanted or str(value) == str(wanted)


def _explain_empty(sources: list[StudyPoints], query: Query) -> None:
    """Raise where a name that was asked for is nowhere, or nothing fits the parameters or the knobs."""
    what = "this study" if len(sources) == 1 else "these studies"
    for name, wanted in zip(_NAMES, (query.methods, query.variants, query.networks), strict=True):
        known = sorted({v for source in sources for v in source.read([name])[name].unique().to_pylist() if v})
        for value in wanted:
            if value not in known:
                raise InputError(f"no trial of {name} {value!r} in {what}{nearest(value, known) if known else ''}")
    if query.max_params is not None:
        without = pool_of(sources, replace(query, max_params=None), columns=["params"])
        if len(without.table):
            least = min(without.table["params"].unique().to_pylist())
            raise InputError(
                f"no operating point has at most {show_count(query.max_params)} parameters;"
                f" the smallest network has {show_count(least)}"
            )
    if query.counted_macs is not None:
        without = pool_of(sources, replace(query, counted_macs=None), columns=["counted_macs"])
        if len(without.table):
            least = show_count(min(without.table["counted_macs"].unique().to_pylist()))
            raise InputError(
                f"no operating point costs at most {show_count(query.counted_macs)} MACs; the cheapest costs {least}"
            )
    if query.knobs:
        seen = {name for source in sources for text in source.read(["knobs"])["knobs"].unique().to_pylist()
                for name in parsed(text or "{}")}  # fmt: skip
        names = ", ".join(f"{name} {value}" for name, value in query.knobs.items())
        raise InputError(
            f"no operating point of {what} has the knobs {names}; knobs there are {', '.join(seen) or '-'}"
        )


# -- rows ------------------------------------------------------------------------------------------


def front_rows(error: np.ndarray, macs: np.ndarray, layers: int = 1) -> list[np.ndarray]:
    """Rows of the first `layers` fronts, each by rising MACs; of equal points the first one only."""
    found: list[np.ndarray] = []
    left = np.arange(len(error))
    for _ in range(layers):
        rows = left[pareto.non_dominated(error[left], macs[left])]
        if not len(rows):
            break
        found.append(rows[np.argsort(macs[rows])])
        if layers > 1:
            # equals of members would be told again as the next layer
            order = np.searchsorted(macs[found[-1]], macs[left])
            mate = found[-1][np.minimum(order, len(found[-1]) - 1)]
            equal = (macs[mate] == macs[left]) & (error[mate] == error[left])
            left = left[~equal]
    return found


def in_budget(pool: Pool, rows: np.ndarray) -> np.ndarray:
    """Those of the rows that meet the budget of MACs and the floor of accuracy."""
    query = pool.query
    keep = np.ones(len(rows), dtype=bool)
    if query.max_macs is not None:
        keep &= pool.macs[rows] <= query.max_macs
    if query.min_accuracy is not None:
        keep &= 1.0 - pool.error[rows] >= query.min_accuracy - 1e-12
    return rows[keep]


def best_rows(pool: Pool, rows: np.ndarray, *, cheapest: bool) -> np.ndarray:
    """Some rows, the most accurate first, of equals the cheapest; or the cheapest, of equals the most accurate."""
    error, macs = pool.error[rows], pool.macs[rows]
    return rows[np.lexsort((error, macs) if cheapest else (macs, error))]


def details(pool: Pool, rows: np.ndarray) -> pa.Table:
    """What is told of all points that equal one of the rows in accuracy and MACs, with their `source`."""
    owner = pool.table["source"].to_numpy()[rows]
    parts = []
    for number, source in enumerate(pool.sources):
        mine = rows[owner == number]
        if not len(mine):
            continue
        pairs = set(zip(pool.table["accuracy"].to_numpy()[mine].tolist(), pool.macs[mine].tolist(), strict=True))
        macs = pa.array(sorted({m for _, m in pairs}), pa.float64())
        found = source.read(TOLD, _all([pool.query.taking_part(), pc.field("macs").isin(macs)]))
        if pool.query.knobs:
            found = found.filter(_knobs_match(found["knobs"], pool.query.knobs))
        both = zip(found["accuracy"].to_pylist(), found["macs"].to_pylist(), strict=True)
        found = found.filter(pa.array([pair in pairs for pair in both], pa.bool_()))
        parts.append(found.append_column("source", pa.repeat(pa.scalar(number, pa.int32()), len(found))))
    if not parts:
        nothing = pool.sources[0].read(TOLD, pc.scalar(False))
        return nothing.append_column("source", pa.array([], pa.int32()))
    return pa.concat_tables(parts)


def points_of(pool: Pool, layers: Sequence[np.ndarray]) -> list[FrontPoint]:
    """The points of rows, layer by layer, cheapest first."""
    rows = np.concatenate([*layers, np.zeros(0, dtype=np.intp)]).astype(np.intp)
    table = details(pool, rows)
    first: dict[tuple[int, float, float], dict[str, Any]] = {}
    for row in table.to_pylist():
        first.setdefault((row["source"], row["accuracy"], row["macs"]), row)
    owner, accuracy = pool.table["source"].to_numpy(), pool.table["accuracy"].to_numpy()
    return [
        point_of(first[int(owner[row]), float(accuracy[row]), float(pool.macs[row])], layer)
        for layer, rows in enumerate(layers)
        for row in rows.tolist()
    ]


def unmet(pool: Pool) -> str:
    """Why no point of the front meets the budget: the nearest there is."""
    rows = front_rows(pool.error, pool.macs)
    if not rows:
        return "there is no operating point yet"
    query, front, axes = pool.query, rows[0], pool.axes
    cheapest, best = front[0], front[-1]
    wishes = []
    if query.max_macs is not None:
        most = "least" if axes.objective.cost.maximise else "most"
        wishes.append(f"at {most} {axes.cost(query.max_macs)} {axes.cost_title}")
    if query.min_accuracy is not None:
        least = "least" if axes.objective.merit.maximise else "most"
        wishes.append(f"{axes.merit_title} of at {least} {axes.merit(query.min_accuracy)}")
    ends = [(float(pool.macs[row]), float(1 - pool.error[row])) for row in (cheapest, best)]
    if not axes.usual:
        cheap, good = (axes.point(accuracy, macs) for macs, accuracy in ends)
        return f"no operating point has {' and '.join(wishes)}; the cheapest has {cheap}, the best {good}"
    told = [(show_count(macs), show_share(accuracy)) for macs, accuracy in ends]
    return (
        f"no operating point has {' and '.join(wishes)}; the cheapest costs {told[0][0]} MACs ({told[0][1]}),"
        f" the most accurate has {told[1][1]} ({told[1][0]} MACs)"
    )


def most_accurate(points: Sequence[FrontPoint]) -> FrontPoint:
    """The most accurate of some points; of equals the cheapest."""
    return min(points, key=lambda p: (-p.accuracy, p.macs))


def cheapest(points: Sequence[FrontPoint]) -> FrontPoint:
    """The cheapest of some points; of equals the most accurate."""
    return min(points, key=lambda p: (p.macs, -p.accuracy))


def knee_of(points: Sequence[FrontPoint]) -> FrontPoint:
    """The point of a front after which accuracy costs more than it did before."""
    index = pareto.knee(np.array([1 - p.accuracy for p in points]), np.array([p.macs for p in points]))
    assert index is not None, "a front with points has a knee"
    return points[index]
