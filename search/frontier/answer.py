"""Answers a query: the front, how sure each of its points is, and on demand the front of every method.

>>> from search import Study
>>> from search.frontier.answer import ask
>>> front = ask([Study.load("night")], max_macs=20e6)   # doctest: +SKIP
>>> front.points[0].membership                          # doctest: +SKIP
0.93
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from search.frontier.point import FrontPoint
from search.frontier.pool import StudyPoints, opened
from search.frontier.published import Published, published_for
from search.frontier.query import Pool, Query, details, front_rows, in_budget, points_of, pool_of, unmet
from search.frontier.stored_bits import bits_of, stored_bits
from search.pareto import confidence
from search.pareto import front as pareto
from search.points.canonical import canonical_text
from search.units import AxesText

if TYPE_CHECKING:
    from search.studies.stored import StoredStudy

_WIDE = (
    "point_id", "trial", "checkpoint", "accuracy", "macs", "correct", "count", "seed", "config_id", "epoch", "setting",
)  # fmt: skip


_MOST_EXPECTED = 400  # candidates of the front by expected accuracy, those nearest to the front


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """A front and what it is measured against.

    `points`: the members that were asked for, layer by layer, cheapest first. `whole`: the points of
    the first layer before any budget. `methods`: the fronts of single methods, where they were asked
    for. `expected`: the front by expected accuracy (`search.frontier.expected`), where it was asked for.
    `reference`: (error, MACs); `hypervolume` in error times decades of MACs, `hypervolumes` by
    method. `published`: what papers printed for this data set; no member of any front. `axes`: what its accuracies and
    MACs stand for. `machines`: where they are latencies, what measured all points, by how many each.
    """

    studies: Sequence[str]
    dataset: str
    data_hash: str
    reference: tuple[float, float]
    hypervolume: float
    points: Sequence[FrontPoint]
    methods: Mapping[str, Sequence[FrontPoint]] = field(default_factory=dict)
    hypervolumes: Mapping[str, float] = field(default_factory=dict)
    expected: Sequence[FrontPoint] = ()
    published: Sequence[Published] = ()
    empty: str = ""
    machines: Mapping[str, int] = field(default_factory=dict)
    axes: AxesText = field(default_factory=AxesText)

    def _repr_html_(self) -> str:
        """The front in a notebook."""
        from search.frontier.notebook import front_html

        title = f"frontier of {', '.join(self.studies)}"
        return front_html(self.points, self.dataset, title, empty=self.empty, axes=self.axes)

    def record(self) -> dict[str, Any]:
        """Plain values, as `routefront frontier --json` prints them."""
        found: dict[str, Any] = {
            "study": self.studies[0] if len(self.studies) == 1 else None,
            "studies": list(self.studies),
            "dataset": self.dataset,
            "data_hash": self.data_hash,
            "objectives": self._objectives(),
            "reference": {"error": self.reference[0], "macs": self.reference[1]},
            "hypervolume": self.hypervolume,
            "points": [point.record() for point in self.points],
        }
        if self.expected:
            found["expected"] = [point.record() for point in self.expected]
        if not self.axes.usual or self.axes.objective.balanced:
            found["objective"] = self.axes.objective.record()
        if self.machines:
            found["machines"] = dict(self.machines)
        if self.methods:
            found["methods"] = {
                name: {"hypervolume": self.hypervolumes[name], "points": [p.record() for p in points]}
                for name, points in self.methods.items()
            }
        return found

    def _objectives(self) -> dict[str, str]:
        """What the two columns that are minimised are, in words."""
        if self.axes.usual:
            return {"error": f"1 - validation {self.axes.merit_title}, in [0, 1]", "macs": "MACs per image, mean"}
        if self.axes.of_methods:
            return {"error": "1 - validation accuracy, in [0, 1]", "macs": "measured milliseconds per image"}
        return {
            "error": f"where {self.axes.merit_title} lies between its best (0) and its worst (1)",
            "macs": f"what stands for {self.axes.cost_title}, the less the cheaper",
        }


def ask(
    studies: Sequence[StoredStudy],
    *,
    by_method: bool = False,
    sure: bool = False,
    expected: bool = False,
    draws: int = confidence.DRAWS,
    seed: int = 0,
    **wishes: Any,
) -> Front:
    """The front of some studies together; `wishes` are those of `search.frontier.query.Query`.

    `by_method` adds the fronts of single methods, `sure` the probability of every member to be on the
    front (`search.pareto.confidence`, with `draws` and `seed`), `expected` what every member should show on other
    images, and the front by that (`search.frontier.expected`). Raises `InputError` where studies have
    different images, a name is unknown, or files are damaged or of another version; where nothing
    meets a budget the front is empty and `Front.empty` says what there is.
    """
    return answer(
        opened(studies), Query(**wishes), by_method=by_method, sure=sure, expected=expected, draws=draws, seed=seed
    )


def answer(
    sources: list[StudyPoints],
    query: Query,
    *,
    by_method: bool = False,
    sure: bool = False,
    expected: bool = False,
    draws: int = confidence.DRAWS,
    seed: int = 0,
) -> Front:
    """`ask` of studies whose points were opened before."""
    axes = AxesText.of(sources[0].created)
    query = query.on_axes(axes.objective)
    timed = axes.objective.timing is not None
    columns = [*(["method"] if by_method else []), *(["count"] if sure or expected else [])]
    columns += ["machine"] if timed else []
    pool = pool_of(sources, query, columns=columns)
    by_expected: Sequence[FrontPoint] = ()
    fronts = front_rows(pool.error, pool.macs, query.layers)
    first = fronts[0] if fronts else np.zeros(0, dtype=np.intp)
    layers = [in_budget(pool, rows) for rows in fronts]
    points = points_of(pool, layers)
    empty = ""
    if not points:
        empty = unmet(pool) if len(pool.table) else ""
    elif sure:
        points = with_confidence(pool, points, draws=draws, seed=seed)
    if points and expected:
        from search.frontier import neighbours  # scipy takes a second, which a plain front saves

        points = neighbours.expected(sources, points)
        by_expected = neighbours.front_by_expected(neighbours.expected(sources, candidates(pool, first)))
    methods = _by_method(pool) if by_method else {}
    data = sources[0].created["data"]
    return Front(
        studies=[source.name for source in sources],
        dataset=data["name"],
        data_hash=data["hash"],
        reference=pool.reference,
        hypervolume=pareto.hypervolume(pool.error[first], pool.macs[first], pool.reference),
        points=points,
        methods={name: found for name, (found, _) in methods.items()},
        hypervolumes={name: volume for name, (_, volume) in methods.items()},
        expected=by_expected,
        published=() if timed else published_for(data["name"]),
        empty=empty,
        machines=_counted(pool.table["machine"]) if timed else {},
        axes=axes,
    )


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each text stands in a column, the most frequent first."""
    counts = {str(each["values"]): int(each["counts"]) for each in column.value_counts().to_pylist() if each["values"]}
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def _by_method(pool: Pool) -> dict[str, tuple[list[FrontPoint], float]]:
    codes = pool.table["method"].combine_chunks().dictionary_encode()
    found = {}
    for code, name in enumerate(codes.dictionary.to_pylist()):
        mine = np.flatnonzero(codes.indices.to_numpy() == code)
        rows = front_rows(pool.error[mine], pool.macs[mine])
        points = points_of(pool, [in_budget(pool, mine[rows[0]])]) if rows else []
        front = mine[rows[0]] if rows else mine[:0]
        volume = pareto.hypervolume(pool.error[front], pool.macs[front], pool.reference)
        # a point of another method may have the same figures and have come first
        found[name] = ([replace(p, layer=0) for p in points if p.method == name], volume)
    return dict(sorted(found.items(), key=lambda entry: -entry[1][1]))


def candidates(pool: Pool, first: np.ndarray) -> list[FrontPoint]:
    """Who may be on the front by expected accuracy: its members (rows `first`) and what is near, within the budget."""
    count = np.nan_to_num(pool.table["count"].to_numpy().astype(float), nan=1.0)
    near = in_budget(pool, confidence.near_front(pool.error, pool.macs, count, first))
    if len(near) > _MOST_EXPECTED:
        stairs = np.clip(np.searchsorted(pool.macs[first], pool.macs[near], side="right") - 1, 0, None)
        near = near[np.argsort(pool.error[near] - pool.error[first][stairs], kind="stable")[:_MOST_EXPECTED]]
    return points_of(pool, [np.sort(near)])


# -- confidence ------------------------------------------------------------------------------------


def with_confidence(
    pool: Pool, points: Sequence[FrontPoint], *, draws: int = confidence.DRAWS, seed: int = 0
) -> list[FrontPoint]:
    """The points with `membership`, `evidence` and `seeds`; the pool needs the column `count`."""
    rows = front_rows(pool.error, pool.macs)[0]
    count = np.nan_to_num(pool.table["count"].to_numpy().astype(float), nan=1.0)
    near = confidence.near_front(pool.error, pool.macs, count, rows)
    table = _with_siblings(pool, details(pool, near))
    table = table.filter(pc.field("count") > 0)
    bits = _bits(pool, table)
    owner = table["source"].to_pylist()
    names = _siblings(table)
    groups = {key: number for number, key in enumerate(dict.fromkeys(names))}
    codes = np.array([groups[key] for key in names], dtype=np.intp)
    share = confidence.membership(
        table["correct"].to_numpy(), table["count"].to_numpy(), table["macs"].to_numpy(),
        groups=codes, bits=bits, shift=_rounded(table), draws=draws, seed=seed,
    )  # fmt: skip
    seeds: dict[int, set[int]] = {}
    for code, trained in zip(codes.tolist(), table["seed"].to_pylist(), strict=True):
        seeds.setdefault(code, set()).add(trained)
    ids = zip(owner, table["point_id"].to_pylist(), strict=True)
    place = {(pool.sources[source].name, name): row for row, (source, name) in enumerate(ids)}
    found = []
    for point in points:
        row = place.get((point.study, point.point_id))
        if row is None:  # far from the front, in a later layer: in none of the draws
            known = {"membership": 0.0 if point.layer and point.count else None}
        else:
            how = "counts" if bits[row] is None else "images"
            known = {"membership": float(share[row]), "evidence": how, "seeds": len(seeds[int(codes[row])])}
        found.append(replace(point, **known))
    return found


def _siblings(table: pa.Table) -> list[tuple[str, int, str]]:
    """What points that differ in their seed alone share, a row each: configuration, epoch and setting."""
    texts = table["setting"].to_pylist()
    settings = {text: canonical_text(text) for text in set(texts)}  # few of many rows
    names = zip(table["config_id"].to_pylist(), table["epoch"].to_pylist(), texts, strict=True)
    return [(config, epoch, settings[text]) for config, epoch, text in names]


def _with_siblings(pool: Pool, near: pa.Table) -> pa.Table:
    """The points near the front, and what their configurations reached under other seeds, however bad."""
    parts = []
    for number in range(len(pool.sources)):
        mine = near.filter(pc.field("source") == number).select([*_WIDE, "source"])
        parts.append(mine)
    # repeats may lie in another study than the point that they repeat
    configs = pa.array(sorted(set(near["config_id"].to_pylist())), pa.string())
    wanted = set(_siblings(near))
    known = set(zip(near["source"].to_pylist(), near["point_id"].to_pylist(), strict=True))
    for number, source in enumerate(pool.sources):
        found = source.read(list(_WIDE), pc.field("config_id").isin(configs))
        keep = [
            key in wanted and (number, name) not in known
            for key, name in zip(_siblings(found), found["point_id"].to_pylist(), strict=True)
        ]
        found = found.filter(pa.array(keep, pa.bool_()))
        parts.append(found.append_column("source", pa.repeat(pa.scalar(number, pa.int32()), len(found))))
    return pa.concat_tables(parts)


def _rounded(table: pa.Table) -> np.ndarray | None:
    """What the whole numbers of a balanced accuracy are off by; None where accuracies are shares of images."""
    right = table["correct"].to_numpy() / table["count"].to_numpy()
    off = table["accuracy"].to_numpy() - right
    return off if (np.abs(off) > 1e-9).any() else None


def _bits(pool: Pool, table: pa.Table) -> list[np.ndarray | None]:
    """Per row which images were right, where the checkpoint of its epoch is there and says so."""
    cache: dict[tuple[int, str], np.ndarray | None] = {}
    names = ("source", "checkpoint", "point_id", "correct", "count")
    found: list[np.ndarray | None] = []
    for source, checkpoint, point, correct, count in zip(*(table[name].to_pylist() for name in names), strict=True):
        key, study = (source, checkpoint or ""), pool.sources[source].study
        if key not in cache:
            cache[key] = stored_bits(study, checkpoint or "")
        packed, index = cache[key], int(point.rsplit("-", 1)[1])
        found.append(None if packed is None else bits_of(study, checkpoint, index, correct, count, packed))
    return found
