"""Ensembles: sizes, members that do not know of each other, averages, how many answer, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.execution.macs import counted
from trainables.methods import multipath
from trainables.methods.ensemble import ALL, METHOD, Ensemble, names_of

torch.set_num_threads(1)
TINY = Task(classes=5, size=8, channels=1)


def build(task: Task = TINY, **values: Any) -> Ensemble:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = METHOD.build(METHOD.configure({"network": "basecnn", "width": 0.125, **values}), task)
    assert isinstance(network, Ensemble)
    return network


def images_of(count: int = 6) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "values,count,macs",
    [
        ({"network": "basecnn", "members": 3}, 3 * 551_466, 3 * 38_896_960),
        ({"network": ALL}, 551_466 + 1_672_906 + 2_045_098, 38_896_960 + 153_290_048 + 71_796_032),
    ],
)
def test_published_sizes(values: dict[str, Any], count: int, macs: int) -> None:
    network = METHOD.build(METHOD.configure(values), Task())
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.macs_full == macs and network.macs_min == 38_896_960 and len(network.units) == 3


def test_members_train_as_if_alone() -> None:
    together = build(members=2)
    alone = [
        multipath.METHOD.build(multipath.METHOD.configure({"network": "basecnn", "width": 0.125}), TINY) for _ in "ab"
    ]
    for mine, other in zip(together.members, alone, strict=True):
        other.load_state_dict(mine.state_dict())
    batch = Batch(images_of(), torch.arange(6) % 5)
    (phase,) = METHOD.phases(together.config)
    torch.stack(list(METHOD.objective(together.train(), batch, phase).values())).sum().backward()
    for mine, other in zip(together.members, alone, strict=True):
        nn.functional.cross_entropy(other.train()(batch.images).output, batch.labels).backward()
        for p, q in zip(mine.parameters(), other.parameters(), strict=True):
            assert p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad)
    first, second = (next(m.parameters()) for m in together.members)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_answers_are_averaged(average: str) -> None:
    network, images = build(members=3, average=average).eval(), images_of()
    each = torch.stack([member(images).output for member in network.members])
    expected = each.mean(dim=0) if average == "logits" else each.softmax(dim=2).mean(dim=0).log()
    assert torch.allclose(network(images).output, expected, atol=1e-6)
    for count in (1, 2, 3):
        with counted(network) as tally:
            result = network.infer(images, {"members": count})
        mine = each[:count]
        expected = mine.mean(dim=0) if average == "logits" else mine.softmax(dim=2).mean(dim=0).log()
        assert torch.allclose(result.logits, expected, atol=1e-6)
        assert sum(tally.values()) == float(result.macs.sum()) == 6 * count * network.macs_min
    assert [s["members"] for s in METHOD.settings(network.config)] == [1, 2, 3]


def test_residual_members() -> None:
    network = build(network="resnet-8", width=0.25, members=2).eval()
    result = network.infer(images_of(), {})
    assert result.logits.shape == (6, 5) and result.macs.eq(network.macs_full).all()


@pytest.mark.parametrize(
    "values,message",
    [
        ({"members": 1}, "members = 1: must be a whole number from 2 to 100"),
        ({"members": -1}, "members = -1"),
        ({"network": ALL, "members": 2}, "names its 3 members"),
        ({"network": "basecnn-2"}, "members have one path"),
        ({"network": "alexnet"}, "network = 'alexnet'"),
        ({"network": "resnet-21"}, "nearest is resnet-20"),
        ({"average": "votes"}, "average = 'votes'"),
        ({"variant": "x"}, "ensembles have no variants"),
    ],
)
def test_ensembles_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHOD.configure({"network": "basecnn", **values})


def test_counts_that_make_no_sense() -> None:
    network = build(members=2).eval()
    for knobs, message in (({"members": 3}, "from 1 to 2"), ({"members": 0}, "from 1 to 2"), ({"keep": 1}, "members")):
        with pytest.raises(ValueError, match=message):
            network.infer(images_of(1), knobs)
    assert names_of(ALL, 0) == ("basecnn", "widecnn", "deepcnn")
