"""Routed execution: who is computed, who is copied, and that every row gets what it decided."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from trainables.execution.rows import others, run_either, run_rows, split_rows, take, thinned

torch.set_num_threads(1)


class Recorder:
    """Adds a constant and remembers what it was called with."""

    def __init__(self, constant: float) -> None:
        self.constant = constant
        self.calls: list[Tensor] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        self.calls.append(inputs)
        return inputs + self.constant


def mask(text: str) -> Tensor:
    return torch.tensor([c == "1" for c in text])


def rows(text: str) -> Tensor:
    return mask(text).nonzero().squeeze(1)


def test_no_chosen_row_computes_nothing() -> None:
    module, inputs = Recorder(1), torch.randn(3, 2)
    assert run_rows(module, rows("000"), inputs, into=inputs) is inputs
    assert module.calls == []


def test_all_chosen_rows_copy_nothing() -> None:
    module, inputs = Recorder(1), torch.randn(3, 2)
    run_rows(module, rows("111"), inputs, into=inputs)
    assert module.calls[0] is inputs


def test_only_chosen_rows_are_computed() -> None:
    module, inputs = Recorder(1), torch.randn(4, 2)
    expected = inputs + torch.tensor([1.0, 0, 0, 1])[:, None]
    assert torch.equal(run_rows(module, rows("1001"), inputs, into=inputs.clone()), expected)
    assert len(module.calls[0]) == 2


@pytest.mark.parametrize("chosen", ["0000", "1111", "0110", "1000"])
def test_either_module_runs_on_its_own_rows(chosen: str) -> None:
    one, other, inputs = Recorder(1), Recorder(-1), torch.randn(4, 2, 3, 3)
    sign = torch.where(mask(chosen), 1.0, -1.0)[:, None, None, None]
    assert torch.equal(run_either(one, other, rows(chosen), inputs), inputs + sign)
    assert sum(len(c) for c in one.calls) == chosen.count("1")
    assert sum(len(c) for c in other.calls) == chosen.count("0")
    if chosen in ("0000", "1111"):
        assert (one.calls + other.calls)[0] is inputs


def test_rows_keep_their_memory_format() -> None:
    tensor = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    some = torch.tensor([2, 0])
    assert torch.equal(take(tensor, some), tensor[some])
    assert take(tensor, some).is_contiguous(memory_format=torch.channels_last)
    assert take(tensor.contiguous(), some).is_contiguous()
    assert take(torch.randn(4, 0), some).shape == (2, 0)


def test_the_other_rows_are_those_that_were_not_chosen() -> None:
    for text in ("0000", "1111", "0101"):
        assert others(rows(text), 4).tolist() == (~mask(text)).nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_splitting_gives_every_row_one_decision(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    settings, images, count = 4, 6, 7
    row_of = torch.randint(count, (settings, images), generator=generator)
    row_of[0], row_of[1, 0] = torch.arange(images), count - 1  # every row is somebody's
    wanted = torch.rand(settings, images, generator=generator) < 0.5
    doubled, new_row_of, running = split_rows(wanted, row_of, count)
    chosen = torch.zeros(count + len(doubled), dtype=torch.bool).index_fill(0, running, True)
    assert running.tolist() == sorted(set(running.tolist()))
    origin = torch.cat([torch.arange(count), doubled])
    assert torch.equal(chosen[new_row_of], wanted)
    assert torch.equal(origin[new_row_of], row_of)
    assert len(chosen) == count + len(doubled) <= settings * images + 1


def test_one_setting_never_splits() -> None:
    doubled, row_of, running = split_rows(mask("0110")[None], torch.arange(4)[None], 4)
    assert len(doubled) == 0 and row_of.tolist() == [[0, 1, 2, 3]] and torch.equal(running, rows("0110"))


def test_agreeing_settings_share_their_rows() -> None:
    wanted = mask("0110")[None].expand(3, -1)
    doubled, row_of, _ = split_rows(wanted, torch.arange(4).expand(3, -1), 4)
    assert len(doubled) == 0 and len(row_of.unique()) == 4


@pytest.mark.parametrize("left", [0, 1, 3, 9, 11])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_thinned_rows_are_those_that_stay(left: int, layout: torch.memory_format) -> None:
    draw = torch.Generator().manual_seed(left)
    images = torch.randn(12, 3, 2, 2, generator=draw).contiguous(memory_format=layout)
    number, pairs = torch.arange(12), torch.arange(24).view(12, 2)
    stays = torch.ones(12, dtype=torch.bool)
    stays[torch.randperm(12, generator=draw)[:left]] = False
    kept, rows, both = thinned(
        [images.clone(memory_format=torch.preserve_format), number.clone(), pairs.clone()], stays
    )
    assert sorted(rows.tolist()) == stays.nonzero().squeeze(1).tolist()
    assert torch.equal(kept, images[rows]) and torch.equal(both, pairs[rows])
    assert kept.is_contiguous(memory_format=layout)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of PyTorch has no oneDNN")
def test_kernels_of_more_shapes_are_kept_than_the_library_keeps_by_itself() -> None:
    code = """
import torch
import trainables
torch.set_num_threads(1)
weight = torch.randn(8, 8, 1, 1)
last = torch.channels_last
images = [torch.randn(1, 8, h, w).contiguous(memory_format=last) for h in range(1, 34) for w in range(1, 34)]
for _ in range(2):
    print("again", flush=True)
    for image in images:
        torch.ops.aten.mkldnn_convolution(image, weight, None, [0, 0], [1, 1], [1, 1], 1)
"""
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    env = {**{k: v for k, v in os.environ.items() if k != name}, "ONEDNN_VERBOSE": "profile_create"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    _, first, second = done.stdout.split("again\n")
    assert first.count("cache_miss") > 1024 and "cache_hit" in second and "cache_miss" not in second
