"""The policy network as a router of any gated method: sizes, costs paid once and in advance, training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.execution.macs import counted
from trainables.networks.gated.network import GatedResNet
from trainables.networks.gated.policy import PolicyRouter, policy_of
from trainables.networks.resnet.cifar import cifar_resnet
from trainables.registry import METHODS

torch.set_num_threads(1)
TINY = Task(classes=5, size=16, channels=1)


@pytest.mark.parametrize("gates,value,count,heads", [(15, True, 75_680, 1_024), (54, True, 78_215, 3_520)])
def test_the_published_sizes(gates: int, value: bool, count: int, heads: int) -> None:
    policy = policy_of(gates, (3, 32, 32), value=value)
    assert sum(p.numel() for p in policy.parameters()) == count
    assert policy.macs_ahead() == (12_238_848 + heads, 12_238_848)
    plain = policy_of(gates, (3, 32, 32))
    assert sum(p.numel() for p in plain.parameters()) == count - 65
    assert plain.macs_ahead() == (12_238_848 + heads - 64, 12_238_848)
    assert [plain.macs(gate) for gate in range(2)] == [(0, 0)] * 2 and plain.outputs() == [plain.head]


def test_width_and_images_of_other_sizes() -> None:
    narrow = policy_of(3, (1, 17, 17), width=0.25).eval()
    assert narrow.head.in_features == 16
    assert narrow.begin(torch.randn(2, 1, 17, 17)).shape == (2, 3)
    with pytest.raises(ValueError, match="size = 7"):
        policy_of(3, (1, 7, 7))


def test_a_body_of_ones_own_on_smaller_images() -> None:
    """What ImageNet needs: another body, behind an average pool."""
    body = cifar_resnet("resnet-14", Task(size=16), shortcut="B")
    policy = PolicyRouter(body, (3, 32, 32), 4, shrink=2).eval()
    images = torch.randn(2, 3, 32, 32)
    with counted(policy) as tally:
        logits = policy.begin(images)
    assert sum(tally.values()) == 2 * policy.macs_ahead()[0]
    pooled = nn.functional.avg_pool2d(images, 2)
    whole = PolicyRouter(body, (3, 16, 16), 4).eval()
    whole.head.load_state_dict(policy.head.state_dict())  # the body's layers are the same
    assert torch.allclose(whole.begin(pooled), logits, atol=1e-6)


@pytest.mark.parametrize("method", ["skipnet", "codinet"])
def test_other_methods_take_it(method: str) -> None:
    record = METHODS[method]
    config = record.configure({"network": "resnet-14", "gate": "policy", "batch_size": 8})
    network = record.build(config, TINY)
    assert isinstance(network, GatedResNet) and isinstance(network.router, PolicyRouter)
    assert [unit.name for unit in network.units if unit.kind == "router"] == ["policy"]
    phase = record.phases(config)[0]
    network.train().relaxation = phase.relaxation
    before = network.router.head.weight.detach().clone()
    batch = Batch(torch.randn(8, 1, 16, 16), torch.arange(8) // 4, record.views(config), torch.Generator())
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    torch.stack(list(record.objective(network, batch, phase).values())).sum().backward()
    optimiser.step()
    assert not torch.equal(network.router.head.weight, before)
    network.eval()
    with torch.no_grad():  # gates that disagree about images
        nn.init.normal_(network.router.head.weight)
    images = torch.randn(6, 1, 16, 16) * torch.logspace(-1, 1, 6)[:, None, None, None]
    knobs = [{"threshold": t} for t in (0.0, 0.3, 0.5, 0.7, 1.01)]
    with counted(network) as tally:
        swept = network.sweep(images, knobs)
    policy = sum(count for name, count in tally.items() if name.startswith("router"))
    assert policy == len(images) * network.router.macs_ahead()[0]  # asked once for all settings
    for knob, expected in zip(knobs, swept, strict=True):
        with counted(network) as tally:
            result = network.infer(images, knob)
        assert sum(tally.values()) == float(result.macs.sum()) == float(expected.macs.sum())
        assert torch.equal(result.decisions, expected.decisions)
    assert 0 < float(swept[2].decisions.mean()) < 1
