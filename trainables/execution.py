"""Routed execution: modules are computed on the images that need them and on no others.

Shape legend: R rows (distinct activations), S settings, B images.

A sweep over settings keeps one row per *distinct* activation and a map (setting, image) -> row.
Rows are split only where settings disagree about an image, so that settings which agree share
all their work; a single setting never splits and the rows are simply the images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def take(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor, in its own memory format.

    Indexing the first dimension of a channels-last tensor would return a channels-first one and
    every layer behind it would silently run slower.
    """
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)
    return tensor[rows]


def run_rows(module: Callable[..., Tensor], chosen: Tensor, *inputs: Tensor, into: Tensor) -> Tensor:
    """`into` with its chosen rows replaced by the module's output on those rows of `inputs`.

    `chosen` (R,) bool; `into` (R, ...) has the shape of the output and is overwritten. Where no
    row is chosen nothing is computed; where all are, nothing is copied.
    """
    rows = chosen.nonzero().squeeze(1)
    if len(rows) == 0:
        return into
    if len(rows) == len(chosen):
        return module(*inputs)
    return into.index_copy_(0, rows, module(*(take(each, rows) for each in inputs)))


def run_either(
    module: Callable[..., Tensor], otherwise: Callable[..., Tensor], chosen: Tensor, inputs: Tensor
) -> Tensor:
    """`module` on the chosen rows (R,) of `inputs`, `otherwise` on the others, each row computed once."""
    yes, no = chosen.nonzero().squeeze(1), (~chosen).nonzero().squeeze(1)
    if len(no) == 0:
        return module(inputs)
    if len(yes) == 0:
        return otherwise(inputs)
    outputs = torch.cat([module(take(inputs, yes)), otherwise(take(inputs, no))])
    return take(outputs, torch.cat([yes, no]).argsort())


def split_rows(wanted: Tensor, row_of: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give every row one decision: rows on which settings disagree are doubled.

    `wanted` (S, B) bool and `row_of` (S, B) are what each setting decides for each image and the
    row that holds it; `count` is the number of rows. Returns `doubled`, the rows to append copies
    of; the new `row_of`; and `chosen` (R + doubled,) bool, the decision of each row. A doubled
    row stays behind for the settings that skip, its copy goes to those that run.
    """
    run = torch.zeros(count, dtype=torch.bool, device=wanted.device)
    skip = run.clone()
    run[row_of[wanted]] = True
    skip[row_of[~wanted]] = True
    disputed = run & skip
    doubled = disputed.nonzero().squeeze(1)
    if len(doubled) == 0:
        return doubled, row_of, run
    copies = torch.zeros_like(run, dtype=row_of.dtype)
    copies[doubled] = count + torch.arange(len(doubled), device=wanted.device)
    row_of = torch.where(wanted & disputed[row_of], copies[row_of], row_of)
    return doubled, row_of, torch.cat([run & ~disputed, run.new_ones(len(doubled))])
