"""Routed execution: modules are computed on the images that need them and on no others.

Shape legend: R rows (distinct activations), S settings, B images, k chosen rows.

A sweep over settings keeps one row per *distinct* activation and a map (setting, image) -> row.
Rows are split only where settings disagree about an image, so that settings which agree share
all their work; a single setting never splits and the rows are simply the images.

A gate waits for its device once: where the rows that run are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def overwriting(module: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The form of a module that may return its output in the memory of its last argument, where it has one."""
    return getattr(module, "overwrite", module)


def take(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor, in its own memory format.

    Indexing the first dimension of a channels-last tensor would return a channels-first one and
    every layer behind it would silently run slower.
    """
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        # `index_select` copies whole rows of a matrix, several times faster than general indexing
        last = tensor.permute(0, 2, 3, 1)
        return last.flatten(1).index_select(0, rows).unflatten(1, last.shape[1:]).permute(0, 3, 1, 2)
    return tensor.index_select(0, rows)


def thinned(tensors: Sequence[Tensor], stays: Tensor) -> list[Tensor]:
    """Tensors (R, ...) with only the rows that stay (R,) bool, in an order of their own, the same for all.

    The first k rows are kept where they are; those of them that left are overwritten by rows that
    stay behind them, so that few rows are copied where few leave. The tensors are overwritten.
    """
    place = stays.nonzero().squeeze(1)
    count = len(place)
    movers = place[place >= count]
    if 2 * len(movers) > count:  # moving costs two copies a row
        return [take(each, place) for each in tensors]
    holes = (~stays[:count]).nonzero().squeeze(1)
    return [_filled(each, holes, movers)[:count] for each in tensors]


def _filled(tensor: Tensor, holes: Tensor, movers: Tensor) -> Tensor:
    if not len(holes):
        return tensor
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    rows = tensor.permute(0, 2, 3, 1) if last else tensor
    rows = rows.flatten(1) if rows.dim() > 2 and rows.is_contiguous() else rows
    rows.index_copy_(0, holes, rows.index_select(0, movers))
    return tensor


def put(rows: Tensor, values: Tensor, into: Tensor) -> Tensor:
    """`into` with some rows overwritten, whatever the memory format."""
    return into.index_copy_(0, rows, values.to(into.dtype))


def sums_of(features: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Sums over positions (R, c) of features (R, c, h, h); in float32 at least, or in `dtype`."""
    dtype = dtype or torch.promote_types(features.dtype, torch.float32)
    # the channels of channels-last features lie side by side and are added as they are read
    return features.permute(0, 2, 3, 1).flatten(1, 2).sum(1, dtype=dtype)


class Sums:
    """`sums_of` the features, computed when asked for and renewed for the rows that changed."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def of(self, features: Tensor) -> Tensor:
        """The sums (R, c) of the features as they are now."""
        if self._kept is None:
            self._kept = sums_of(features)
        return self._kept

    def forget(self) -> None:
        """All rows have changed."""
        self._kept = None

    def renew(self, rows: Tensor, features: Tensor) -> None:
        """Rows (k,) have become `features` (k, c, h, h)."""
        if self._kept is not None:
            self._kept.index_copy_(0, rows, sums_of(features))


def run_rows(
    module: Callable[..., Tensor], rows: Tensor, *inputs: Tensor, into: Tensor, sums: Sums | None = None
) -> Tensor:
    """`into` with its rows (k,) replaced by the module's output on those rows of `inputs`.

    `into` (R, ...) has the shape of the output and is overwritten. Where no row is chosen nothing is
    computed; where all are, nothing is copied. A module with an ``overwrite`` gets the rows to keep.
    `sums` are told what changed.
    """
    if not len(rows):
        return into
    module = overwriting(module)
    if len(rows) == len(into):
        if sums is not None:
            sums.forget()
        return module(*inputs)
    outputs = module(*(take(each, rows) for each in inputs))
    if sums is not None:
        sums.renew(rows, outputs)  # while they are in the cache
    return put(rows, outputs, into)


def others(rows: Tensor, count: int) -> Tensor:
    """The rows 0 ... count - 1 that are not among `rows` (k,), ascending, without waiting for the device."""
    chosen = torch.zeros(count, dtype=torch.uint8, device=rows.device).index_fill_(0, rows, 1)
    return chosen.argsort(stable=True)[: count - len(rows)]


def run_either(module: Callable[..., Tensor], otherwise: Callable[..., Tensor], rows: Tensor, inputs: Tensor) -> Tensor:
    """`module` on rows (k,) of `inputs` (R, ...), `otherwise` on the others, each row computed once."""
    if len(rows) == len(inputs):
        return module(inputs)
    if not len(rows):
        return otherwise(inputs)
    rest = others(rows, len(inputs))
    outputs = torch.cat([module(take(inputs, rows)), otherwise(take(inputs, rest))])
    return take(outputs, torch.cat([rows, rest]).argsort())


def split_rows(wanted: Tensor, row_of: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give every row one decision: rows on which settings disagree are doubled.

    `wanted` (S, B) bool and `row_of` (S, B) are what each setting decides for each image and the
    row that holds it; `count` is the number of rows. Returns `doubled`, the rows to append copies
    of; the new `row_of`; and `rows`, those that run, ascending. A doubled row stays behind for the
    settings that skip, its copy goes to those that run.
    """
    held = row_of.flatten()
    run = torch.zeros(count, dtype=torch.uint8, device=wanted.device)
    skip = run.scatter_reduce(0, held, (~wanted).flatten().byte(), "amax")
    run = run.scatter_reduce(0, held, wanted.flatten().byte(), "amax")
    kind = run + (run & skip)  # 0 skips, 1 runs, 2 is disputed
    order = kind.argsort(stable=True)
    # (`bincount` would wait for its largest value besides)
    skips, runs = torch.stack([(kind == 0).sum(), (kind == 1).sum()]).tolist()
    disputes = count - skips - runs
    doubled, rows = order[skips + runs :], order[skips : skips + runs]
    if not disputes:
        return doubled, row_of, rows
    fresh = torch.arange(count, count + disputes, device=wanted.device)
    copies = torch.arange(count, device=wanted.device).index_copy_(0, doubled, fresh)
    return doubled, torch.where(wanted, copies[row_of], row_of), torch.cat([rows, fresh])
