"""The simulated CUDA device sees what a real one refuses, and what makes the host wait."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.simcuda import TO_DEVICE, TO_HOST, sim

Call = Callable[[Tensor, Tensor], object]  # of a tensor on the device and one on the host, three numbers each


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda there, here: there + here, "add: expected all tensors on one device"),
        (lambda there, here: there[None] @ here[:, None], "mm: expected all tensors on one device"),
        (lambda there, here: torch.cat([there, here]), "cat: expected all tensors on one device"),
        (lambda there, here: here[there.long()], "index: indices on cuda"),
        (lambda there, here: there.numpy(), "numpy(): cannot convert"),
        (lambda there, here: there.uniform_(generator=torch.Generator()), "uniform_: expected a generator of cuda"),
        (lambda there, here: torch.rand(1, generator=torch.Generator("cuda")), "rand: expected a generator of the cpu"),
        (
            lambda there, here: torch.nn.Linear(3, 2)(there.requires_grad_()),
            "addmm: expected all tensors on one device",
        ),
    ],
)
def test_what_a_device_refuses_is_a_fault(call: Call, fault: str) -> None:
    with sim() as log:
        call(torch.zeros(3, device="cuda"), torch.zeros(3))
    assert [what[: len(fault)] for what, _ in log.faults] == [fault]


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        (lambda there, here: there.cpu(), {TO_HOST: 1}),
        (lambda there, here: here.to("cuda"), {TO_DEVICE: 1}),
        (lambda there, here: there.sum().item(), {"item": 1}),
        (lambda there, here: there[there > 0], {"boolean mask (nonzero)": 1}),
        (lambda there, here: there[torch.tensor([0, 1])], {f"{TO_DEVICE} of an index": 1}),
        (lambda there, here: torch.tensor([1.0], device="cuda"), {"torch.tensor(list, device=cuda)": 1}),
        (lambda there, here: (there * 2).sum(), {}),
        (lambda there, here: copy.deepcopy(torch.nn.Parameter(there)), {}),
        (lambda there, here: copy.deepcopy(there), {}),
        (lambda there, here: there * torch.tensor(2.0), {}),  # a number of the host goes along with the launch
    ],
)
def test_what_the_host_waits_for(call: Call, waits: dict[str, int]) -> None:
    with sim() as log:
        call(torch.zeros(3, device="cuda"), torch.zeros(3))
    assert {kind: count for (kind, _), count in log.waits.items()} == waits
    assert not log.faults


def test_gradients_views_and_copies_stay_on_the_device() -> None:
    with sim() as log:
        layer = torch.nn.Linear(3, 2).to("cuda")
        layer(torch.ones(4, 3, device="cuda")).square().sum().backward()
        weight = layer.weight
        assert weight.grad is not None
        found = weight, weight.grad, weight.data, weight[0], weight.clone(), torch.zeros_like(weight), weight.double()
        found += (copy.deepcopy(weight), copy.deepcopy(layer).bias)
        assert all(tensor.is_cuda and tensor.device.type == "cuda" for tensor in found)
        assert not weight.cpu().is_cuda
        assert torch.equal(weight.cpu(), weight.to("cpu"))
    assert not log.faults
    assert log.launches.total() > 5


def test_behind_it_pytorch_is_as_it_was() -> None:
    before = torch.tensor, torch.Generator, torch.cuda.is_available(), torch.cuda.is_available
    with pytest.raises(ZeroDivisionError), sim():
        assert torch.zeros(1, device="cuda").is_cuda
        raise ZeroDivisionError
    assert before == (torch.tensor, torch.Generator, torch.cuda.is_available(), torch.cuda.is_available)
    assert "device" not in vars(torch.Tensor)
    assert not torch.zeros(1).is_cuda
