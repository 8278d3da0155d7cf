"""Networks of columns with junctions: an image is classified or goes on, as the scores of its router say.

M. McGill, P. Perona, "Deciding how to decide", ICML 2017, arXiv 1703.06217, sections 3 and 4.1.

In the hard pass an image is computed as far as its routers send it (`alone`, `together`, `swept`).

Shape legend: B images, C classes, N columns, E classifiers (exits), D sinks of all junctions, U units,
S settings, R images that reached a column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainables.constants import constant
from trainables.contracts.network import Exit, Inference, Knobs, Routed, RoutedNetwork, Task, Unit
from trainables.execution.macs import macs_of
from trainables.execution.rows import take
from trainables.networks.columns.layers import Router
from trainables.networks.columns.tree import Node, Pyramid, columns_for, exits_at, exits_from, sinks_at, way_to


class ColumnNetwork(RoutedNetwork):
    r"""Columns joined by junctions into a chain or a tree; without a junction, a static network.

    A junction's sinks are its column's classifier and then the next columns. Decisions are the shares
    (B, D) of all sinks of all junctions, junction by junction, that a column which is reached gives to
    each: hard ones are one-hot, and zero at junctions that were not reached. Units are, column by
    column, the column, its router and its classifier; the router is executed wherever its column is.

    In the relaxed pass all columns are computed, and an image takes sink i of junction j with

    .. math:: p(child_i) = (p(j) - \epsilon_j)\, \mathrm{softmax}(s_j / \tau)_i + \epsilon_{child_i}

    (eq. 4, mixed so that every part keeps a share), s the scores, :math:`\tau` `temperature` and
    :math:`\epsilon_x` `epsilon` times the share of all classifiers that lie in x.

    With a `price_scale` above 0 routers read the price of computation, k_cpt times that scale (1e7 in the
    paper, section 4.6). `reference` is the number of MACs that k_cpt
    prices: ``price = k_cpt * reference`` multiplies macs / macs_full (0: the network's own macs_full,
    k_cpt being a price per MAC).

    Knobs: ``margin`` is added to the score of classifying; ``k_cpt`` is the price that routers are
    told, where they read one (the configuration's where it is not given).
    """

    routing = ("routers.", "classifiers.")

    def __init__(
        self,
        config: Any,
        task: Task,
        nodes: Sequence[Node],
        pyramid: Pyramid,
        *,
        router_width: int = 16,
        router_depth: int = 2,
        price_scale: float = 0.0,
        reference: int = 0,
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__(config, task)
        self.nodes, self.epsilon = tuple(nodes), epsilon
        self.temperature: float | Tensor = 1.0
        self.price_scale, self.priced = price_scale, price_scale > 0
        self.throughput: Tensor | None = None  # (U,) of the last training step, for the method
        self.exits_at, self.sinks_at = exits_at(nodes), sinks_at(nodes)
        self.pyramid = pyramid
        columns = columns_for(nodes, task.channels, len(pyramid.sizes), config.width)
        features = [column.channels * math.prod(pyramid.sizes[-1]) for column in columns]
        routers, classifiers = {}, {}
        for n, node in enumerate(nodes):
            if node.sinks > 1:
                shape = {"width": router_width, "depth": router_depth}
                routers[str(n)] = Router(features[n], node.sinks, **shape, priced=self.priced)
            if node.answers:
                classifiers[str(n)] = nn.Linear(features[n], task.classes)
        self.columns = nn.ModuleList(columns)
        self.scales_of = [column.count for column in columns]
        self.routers, self.classifiers = nn.ModuleDict(routers), nn.ModuleDict(classifiers)
        self._describe(features)
        self.reference = reference or self.macs_full

    def _describe(self, features: list[int]) -> None:
        """Units, exits and the tables that say what an image which left at an exit has executed and decided."""
        units, self.unit_of, groups = [], [], []
        shapes: dict[int, Any] = {}
        by_depth: dict[int, int] = {}
        image = self.task.image
        _, pyramid = macs_of(self.pyramid, image)
        for n, node in enumerate(self.nodes):
            if node.depth not in by_depth:
                read = shapes[node.depth - 1] if node.depth else pyramid
                by_depth[node.depth], shapes[node.depth] = macs_of(self.columns[n], *read)
            costs = {"column": by_depth[node.depth]}
            if node.sinks > 1:
                costs["router"] = macs_of(self.routers[str(n)], (features[n],), *[(1,)] * self.priced)[0]
            if node.answers:
                costs["exit"] = macs_of(self.classifiers[str(n)], (features[n],))[0]
            self.unit_of.append({kind: len(units) + k for k, kind in enumerate(costs)})
            units += [Unit(f"{kind}-{node.name}", kind, macs) for kind, macs in costs.items()]
            groups += [node.depth // 2] * len(costs)
        self._groups = tuple(groups)
        paths, sinks, exits = [], [], []
        for leaf, node in enumerate(self.nodes):
            if not node.answers:
                continue
            way = way_to(self.nodes, leaf)
            path = {u for n, _ in way for kind, u in self.unit_of[n].items() if kind != "exit" or n == leaf}
            paths.append(path)
            sinks.append({self.sinks_at[n].start + sink for n, sink in way if self.nodes[n].sinks > 1})
            exits.append(Exit(f"exit-{node.name}", sum(units[u].macs for u in path)))
        macs = [each.macs for each in exits]
        self.describe_units(units, fixed=0, full=max(macs), least=min(macs), exits=exits)
        for name, columns, ones in (
            ("exit_paths", len(units), paths),
            ("exit_decisions", self.sinks_at[-1].stop, sinks),
        ):
            table = [[int(k in row) for k in range(columns)] for row in ones]
            self.register_buffer(name, torch.tensor(table, dtype=torch.uint8), persistent=False)
        # a unit has its column's share, a classifier its exit's, which stand behind those of the columns
        share = [
            len(self.nodes) + self.exits_at[n] if kind == "exit" else n
            for n, units_of in enumerate(self.unit_of)
            for kind in units_of
        ]
        column = [n for n, sinks in enumerate(self.sinks_at) for _ in range(sinks.start, sinks.stop)]
        self.register_buffer("share_of_unit", torch.tensor(share), persistent=False)
        self.register_buffer("column_of_sink", torch.tensor(column, dtype=torch.long), persistent=False)

    @torch.no_grad()
    def begin_open(self, probability: float) -> None:
        """See `RoutedNetwork`: every junction goes on with this probability, to all of its children alike.

        The last layers of routers are 0 as they are (`networks.columns.layers.initialise`); scores are divided by the
        method's temperature, 1 of an actor.
        """
        for n, node in enumerate(self.nodes):
            if node.sinks > 1 and node.answers:
                scores = self.routers[str(n)].scores
                assert isinstance(scores, nn.Linear)
                scores.bias.zero_()
                scores.bias[1:] = math.log(probability / (1 - probability) / len(node.children))

    def parts(self) -> list[nn.Module]:
        """The modules of the units, in their order."""
        kinds = {"column": self.columns, "router": self.routers, "exit": self.classifiers}
        return [kinds[kind][n if kind == "column" else str(n)] for n, of in enumerate(self.unit_of) for kind in of]  # pyright: ignore

    def unit_groups(self) -> tuple[int, ...]:
        """See `RoutedNetwork`: two columns work on the same scales."""
        return self._groups

    def price_read(self, k_cpt: Tensor, features: Tensor) -> Tensor:
        """What routers read of k_cpt (R,): (R, 1)."""
        return (k_cpt * self.price_scale).to(features.device, features.dtype)[:, None]

    def exit_parents(self) -> tuple[int, ...]:
        """The classifier of the nearest column before each that has one, -1 where there is none."""
        parents: list[int] = []
        for node in self.nodes:
            before = node.parent
            while before >= 0 and self.exits_at[before] < 0:
                before = self.nodes[before].parent
            if node.answers:
                parents.append(self.exits_at[before] if before >= 0 else -1)
        return tuple(parents)

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """All columns and all classifiers; the output weighs their logits by the decisions.

        `price` (B,) is read by routers that take one. `aux`: scores (B, D); reached (B, N) and
        answered (B, E), the shares of an image that reach a column and are classified at an exit; path
        (B, U), the same by unit; probabilities (B, D), softmax(s / tau) of every junction.
        """
        told = None
        if self.priced:
            k_cpt = torch.full((len(inputs),), self.config.k_cpt) if price is None else price / self.reference
            told = self.price_read(k_cpt, inputs)
        features: list[list[Tensor]] = []
        logits, scores = [], []
        pyramid = self.pyramid(inputs)
        for n, node in enumerate(self.nodes):
            features.append(self.columns[n](*(features[node.parent] if node.depth else pyramid)))
            flat = features[n][-1].flatten(1)
            if node.answers:
                logits.append(self.classifiers[str(n)](flat))
            if node.sinks > 1:
                found = self.routers[str(n)](flat, told)
                scores.append(found.to(torch.promote_types(found.dtype, torch.float32)))
        wide = torch.promote_types(logits[0].dtype, torch.float32)
        every = torch.cat(scores, dim=1) if scores else inputs.new_zeros(len(inputs), 0, dtype=wide)
        chances = [(each / self.temperature).softmax(dim=1) for each in scores]
        probabilities = torch.cat(chances, dim=1) if chances else every
        start = torch.ones(len(inputs), dtype=wide, device=inputs.device)
        if decisions is None:
            reached, answered, taken = self._spread(start, self._relaxed(probabilities))
            decisions = taken / reached.index_select(1, self.get_buffer("column_of_sink"))
        else:
            given = decisions.to(wide)
            reached, answered, _ = self._spread(start, lambda n, p: p[:, None] * given[:, self.sinks_at[n]])
        path = torch.cat([reached, answered], dim=1).index_select(1, self.get_buffer("share_of_unit"))
        output = torch.einsum("be,ebc->bc", answered.to(logits[0].dtype), torch.stack(logits))
        aux = {"scores": every, "reached": reached, "answered": answered, "path": path, "probabilities": probabilities}
        return Routed(tuple(logits), output, decisions, self.path_macs(path), aux)

    def _relaxed(self, probabilities: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Column n and its share p (B,) to the shares of its sinks (B, sinks): the equation of the class."""
        count, below = len(self.exits), exits_from(self.nodes)

        def share(n: int, p: Tensor) -> Tensor:
            least = [1] * self.nodes[n].answers + [below[child] for child in self.nodes[n].children]
            floors = constant(tuple(least), p.dtype, p.device) * (self.epsilon / count)
            free = (p - self.epsilon * below[n] / count)[:, None]
            return free * probabilities[:, self.sinks_at[n]] + floors

        return share

    def _spread(self, start: Tensor, share: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Shares of columns (B, N), of exits (B, E) and of sinks (B, D) from that of the first column (B,)."""
        reached = {0: start}
        answered, sinks = [], []
        for n, node in enumerate(self.nodes):
            shares = reached[n][:, None]
            if node.sinks > 1:
                shares = share(n, reached[n])
                sinks.append(shares)
            if node.answers:
                answered.append(shares[:, 0])
            for k, child in enumerate(node.children, start=int(node.answers)):
                reached[child] = shares[:, k]
        columns = torch.stack([reached[n] for n in range(len(self.nodes))], dim=1)
        return (
            columns,
            torch.stack(answered, dim=1),
            torch.cat(sinks, dim=1) if sinks else start.new_zeros(len(start), 0),
        )

    def asked(self, knobs: Knobs) -> tuple[float, float]:
        """(k_cpt, margin) of knobs.

        Raises `ValueError` for another knob, or a value that is impossible.
        """
        for name in knobs:
            if name not in ("margin", "k_cpt", "seed"):  # a seed may be stored with any knobs; nothing is drawn here
                raise ValueError(f"unknown knob {name!r}; networks of columns take margin and k_cpt")
        margin, k_cpt = knobs.get("margin", 0.0), knobs.get("k_cpt")
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
            raise ValueError(f"margin = {margin!r}: must be a number; above 0 images are classified earlier")
        if k_cpt is None:
            return self.config.k_cpt, float(margin)
        if not self.priced:
            raise ValueError(f"k_cpt = {k_cpt!r}: only routers trained with dynamic_k_cpt read a price at inference")
        if isinstance(k_cpt, bool) or not isinstance(k_cpt, int | float) or not 0 <= k_cpt < math.inf:
            raise ValueError(f"k_cpt = {k_cpt!r}: the price of computation must be a number of at least 0")
        return float(k_cpt), float(margin)

    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """The hard pass: images that are classified leave the batch, and at a fork it is divided."""
        k_cpt, margin = self.asked(knobs)
        if len(inputs) == 1:
            return self.result(*alone(self, inputs, k_cpt, margin))
        return self.result(*together(self, inputs, k_cpt, margin))

    def sweep(
        self, inputs: Tensor, knobs: Sequence[Knobs], *, generator: torch.Generator | None = None
    ) -> list[Inference]:
        """The hard pass under several knobs: a column sees an image once, however many settings bring it there."""
        logits, exits = swept(self, inputs, [self.asked(k) for k in knobs])
        return [self.result(*each) for each in zip(logits, exits, strict=True)]

    def result(self, logits: Tensor, exits: Tensor) -> Inference:
        """What images executed and decided follows from the exits (B,) that they left at."""
        path = self.get_buffer("exit_paths")[exits].to(torch.promote_types(logits.dtype, torch.float32))
        decisions = self.get_buffer("exit_decisions")[exits].to(logits.dtype)
        return Inference(logits, path, self.path_macs(path), decisions, exits)


@torch.no_grad()
def alone(network: ColumnNetwork, image: Tensor, k_cpt: float, margin: float) -> tuple[Tensor, Tensor]:
    """Logits (1, C) and exit (1,) of one image (1, c, h, h), which needs no gathering."""
    told = network.price_read(torch.tensor([k_cpt]), image) if network.priced else None
    features, n = network.pyramid(image), 0
    while True:
        node = network.nodes[n]
        features = network.columns[n](*features)
        flat, sink = features[-1].flatten(1), 0
        if node.sinks > 1:
            router = network.routers[str(n)]
            assert isinstance(router, Router)
            scores = router.tell(flat, told)
            scores[0] += margin
            sink = scores.index(max(scores))  # the first of equal ones
        if sink == 0 and node.answers:
            logits = network.classifiers[str(n)](flat).to(image.dtype)
            return logits, torch.tensor([network.exits_at[n]], device=image.device)
        n = node.children[sink - node.answers]
        features = features[-network.scales_of[n] :]


@torch.no_grad()
def together(network: ColumnNetwork, inputs: Tensor, k_cpt: float, margin: float) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and exits (B,) under one setting: `swept` with little to do beside the columns.

    Who goes where is kept in lists: the device is waited for once a junction.
    """
    told = network.price_read(torch.tensor([k_cpt]), inputs) if network.priced else None
    device, exits = inputs.device, [0] * len(inputs)
    logits = inputs.new_empty(len(inputs), network.task.classes)
    waiting = [(0, list(range(len(inputs))), network.pyramid(inputs))]
    while waiting:
        n, rows, features = waiting.pop()
        node = network.nodes[n]
        features = network.columns[n](*features)
        flat = features[-1].flatten(1)
        places: list[list[int]] = [[] for _ in range(node.sinks)]
        if node.sinks > 1:
            scores = network.routers[str(n)](flat, told)
            scores[:, 0] += margin
            for place, sink in enumerate(scores.argmax(dim=1).tolist()):
                places[sink].append(place)
        else:
            places[0] = list(range(len(rows)))
        for sink, some in enumerate(places):
            if not some:
                continue
            whole = len(some) == len(rows)
            left = rows if whole else [rows[place] for place in some]
            at = None if whole else torch.tensor(some, device=device)
            if sink == 0 and node.answers:
                answers = network.classifiers[str(n)](flat if at is None else flat.index_select(0, at))
                logits.index_copy_(0, torch.tensor(left, device=device), answers.to(logits.dtype))
                for row in left:
                    exits[row] = network.exits_at[n]
                continue
            child = node.children[sink - node.answers]
            read = features[-network.scales_of[child] :]
            waiting.append((child, left, read if at is None else [take(each, at) for each in read]))
    return logits, torch.tensor(exits, dtype=torch.long, device=device)


@torch.no_grad()
def swept(network: ColumnNetwork, inputs: Tensor, asked: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Logits (S, B, C) and exits (S, B) under settings of (k_cpt, margin).

    A column sees an image once, however many settings bring it there, and only the rows that some
    setting sends on are gathered.
    """
    k_cpts, margins = torch.tensor(asked, device=inputs.device).T
    count, settings = len(inputs), len(asked)
    logits = inputs.new_zeros(settings, count, network.task.classes)
    exits = torch.zeros(settings, count, dtype=torch.long, device=inputs.device)
    rows = torch.arange(count, device=inputs.device)
    here = torch.ones(settings, count, dtype=torch.bool, device=inputs.device)
    waiting = [(0, rows, here, network.pyramid(inputs))]
    while waiting:
        n, rows, here, features = waiting.pop()
        node = network.nodes[n]
        features = network.columns[n](*features)
        flat = features[-1].flatten(1)
        chosen = _choose(network, n, flat, here, k_cpts, margins) if node.sinks > 1 else None
        for sink in range(node.sinks):
            goes = here if chosen is None else here & (chosen == sink)
            some = (goes[0] if settings == 1 else goes.any(dim=0)).nonzero().squeeze(1)
            if not len(some):
                continue
            whole = len(some) == len(rows)
            left, going = (rows, goes) if whole else (rows.index_select(0, some), goes.index_select(1, some))
            if sink == 0 and node.answers:
                answers = network.classifiers[str(n)](flat if whole else flat.index_select(0, some))
                s, r = going.nonzero(as_tuple=True)
                logits[s, left[r]] = answers[r].to(logits.dtype)
                exits[s, left[r]] = network.exits_at[n]
                continue
            child = node.children[sink - node.answers]
            read = features[-network.scales_of[child] :]
            waiting.append((child, left, going, read if whole else [take(each, some) for each in read]))
    return logits, exits


def _choose(network: ColumnNetwork, n: int, flat: Tensor, here: Tensor, k_cpts: Tensor, margins: Tensor) -> Tensor:
    """The sink of column n (S, R) that every setting chooses for every image; the first of equal scores."""
    router = network.routers[str(n)]
    assert isinstance(router, Router)
    sums = router.read(flat)
    if network.priced:
        s, r = here.nonzero(as_tuple=True)
        found = router.score(sums.index_select(0, r), network.price_read(k_cpts[s], flat))
        scores = found.new_zeros(*here.shape, found.shape[1])
        scores[s, r] = found
    else:
        scores = router.score(sums).expand(len(here), -1, -1).clone()
    scores[..., 0] += margins[:, None].to(scores.dtype)
    return scores.argmax(dim=-1)
