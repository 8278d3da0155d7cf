"""Pre-activation networks: sizes of ImageNet's bodies, weights from files, strides, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainables.contracts.network import Task
from trainables.methods.act import METHOD, SPATIAL
from trainables.networks.halting.heads import NEVER
from trainables.networks.halting.preact import PREACT_NETWORKS, PoolShortcut, units_per_group
from trainables.networks.resnet.imagenet import load_pretrained

torch.set_num_threads(1)


def build(task: Task, **values: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return METHOD.build(METHOD.configure({"network": "preact-resnet-14", **values}), task).eval()


def images_of(count: int, task: Task) -> Tensor:
    return torch.randn(count, task.channels, task.size, task.size, generator=torch.Generator().manual_seed(1))


def test_names_and_groups() -> None:
    assert units_per_group("preact-resnet-110") == (18, 18, 18)
    assert units_per_group("preact-resnet-101-imagenet") == (3, 4, 23, 3)
    assert all(units_per_group(name) for name in PREACT_NETWORKS)


def test_channels_of_zeros_stand_on_both_sides() -> None:
    features = torch.randn(2, 4, 5, 6)
    widened = PoolShortcut(8, 2)(features)
    assert widened.shape == (2, 8, 3, 3) and not widened[:, :2].any() and not widened[:, 6:].any()
    assert torch.allclose(widened[:, 2:6, 0, 0], features[:, :, :2, :2].mean(dim=(2, 3)))


def test_the_first_shortcut_is_taken_behind_its_activation() -> None:
    network = build(Task(size=8))
    features = torch.randn(2, 16, 8, 8)
    for k, entered in ((0, network.block(0).norm1(features)), (1, features)):
        unit = network.block(k)
        assert torch.allclose(unit(features), entered + unit.branch(features))


def test_resnet_101_has_the_operations_of_the_public_code() -> None:
    values, task = {"network": "preact-resnet-101-imagenet"}, Task(classes=1001, size=224)
    vanilla = METHOD.build(METHOD.configure({**values, "variant": "vanilla"}), task)
    sact = SPATIAL.build(SPATIAL.configure(values), task)
    assert 2 * vanilla.macs_full == 15_602_814_976
    heads = [(2, 256, 56), (3, 512, 28), (22, 1024, 14), (2, 2048, 7)]
    assert sact.macs_full - vanilla.macs_full == sum(count * c * (1 + 9 * size**2) for count, c, size in heads)
    params = [sum(p.numel() for p in network.parameters()) for network in (vanilla, sact)]
    assert params[0] == 44_579_945 and params[1] - params[0] == sum(count * (14 * c + 1) for count, c, _ in heads)


def test_weights_of_a_network_without_halting(tmp_path: Path) -> None:
    task, values = Task(classes=4, size=32), {"network": "preact-resnet-50-imagenet", "width": 0.125}
    donor = build(task, **values, variant="vanilla")
    file = tmp_path / "network.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in donor.state_dict().items()}, file)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = SPATIAL.build(SPATIAL.configure(values), task).eval()
    heads = {name: tensor.clone() for name, tensor in network.router.state_dict().items()}
    assert load_pretrained(network, str(file))
    assert all(torch.equal(tensor, heads[name]) for name, tensor in network.router.state_dict().items())
    images = images_of(2, task)
    never = network.infer(images, {"threshold": NEVER}).logits
    assert torch.allclose(never, donor(images).output, rtol=1e-4, atol=1e-4)
    other = build(Task(classes=7, size=32), **values)
    assert load_pretrained(other, str(file)) is False  # another number of classes
    with pytest.raises(ValueError, match="is of another network than preact-resnet-50-imagenet"):
        load_pretrained(build(task, network="preact-resnet-50-imagenet"), str(file))


def test_images_that_are_too_small_are_refused() -> None:
    assert build(Task(), network="preact-resnet-8", variant="vanilla").macs_full > 0
    with pytest.raises(ValueError, match=r"size = 7: preact-resnet-14 halves images 2 times.*at least 8"):
        build(Task(size=7))
    with pytest.raises(ValueError, match=r"size = 16: preact-resnet-50-imagenet halves images 5 times.*at least 32"):
        build(Task(size=16), network="preact-resnet-50-imagenet")
