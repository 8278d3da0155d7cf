"""The residual bodies: parameters and MACs to the digit, shortcuts, sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainables.contracts.network import Task
from trainables.execution.macs import counted
from trainables.methods.static import METHOD
from trainables.networks.resnet.cifar import StridedPointwise, ZeroPadShortcut, blocks_per_group, cifar_resnet

torch.set_num_threads(1)

# depth: (parameters A, convolution MACs A, parameters B, convolution MACs B), 10 classes
COUNTS = {
    20: (269_722, 40_550_400, 272_474, 40_812_544),
    32: (464_154, 68_861_952, 466_906, 69_124_096),
    38: (561_370, 83_017_728, 564_122, 83_279_872),
    44: (658_586, 97_173_504, 661_338, 97_435_648),
    56: (853_018, 125_485_056, 855_770, 125_747_200),
    74: (1_144_666, 167_952_384, 1_147_418, 168_214_528),
    110: (1_727_962, 252_887_040, 1_730_714, 253_149_184),
    152: (2_408_474, 351_977_472, 2_411_226, 352_239_616),
}


def build(task: Task | None = None, **values: object):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return METHOD.build(METHOD.configure(values), task or Task()).eval()


def params(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("depth", COUNTS)
def test_parameters_and_macs_are_those_of_the_published_networks(depth: int) -> None:
    params_a, macs_a, params_b, macs_b = COUNTS[depth]
    for shortcut, p, macs in (("A", params_a, macs_a), ("B", params_b, macs_b), ("pool", params_a, macs_a)):
        network = build(network=f"resnet-{depth}", shortcut=shortcut)
        assert (params(network), network.macs_full) == (p, macs + 640)
        assert network.macs_min == network.macs_full == network.fixed_macs + sum(u.macs for u in network.units)
        assert METHOD.paper_cost is not None and METHOD.paper_cost(network)["flops"] == macs
        hundred = build(Task(classes=100), network=f"resnet-{depth}", shortcut=shortcut)
        assert (params(hundred), hundred.macs_full) == (p + 5_850, macs + 6_400)


def test_blocks_cost_what_the_formula_says() -> None:
    units = build(network="resnet-20").units
    assert [u.macs for u in units] == [4_718_592] * 3 + [3_538_944, 4_718_592, 4_718_592] * 2
    projected = build(network="resnet-20", shortcut="B").units
    assert [b.macs - a.macs for a, b in zip(units, projected, strict=True)] == [0] * 3 + [131_072, 0, 0] * 2


@pytest.mark.parametrize("size,channels", [(32, 3), (16, 1), (9, 2), (8, 1), (33, 3)])
@pytest.mark.parametrize("shortcut", ["A", "B", "pool"])
def test_hooks_count_what_is_reported_at_any_size(size: int, channels: int, shortcut: str) -> None:
    network = build(Task(classes=7, size=size, channels=channels), network="resnet-8", shortcut=shortcut)
    images = torch.randn(3, channels, size, size)
    with counted(network) as tally:
        result = network.infer(images, {})
    assert result.macs.tolist() == [float(network.macs_full)] * 3
    assert sum(tally.values()) == int(result.macs.sum())
    assert torch.equal(network(images).output, result.logits)
    assert torch.allclose(network.infer(images[:1], {}).logits, result.logits[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name,nearest", [("resnet-21", "resnet-20"), ("resnet-2", "resnet-8"), ("resnet-111", "resnet-110")]
)
def test_a_depth_that_is_not_6n_plus_2_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*6n \+ 2.*{nearest}$"):
        METHOD.configure({"network": name})


@pytest.mark.parametrize("name", ["resnet", "resnet-", "resnet--8", "vgg-16", "resnet-8x", ""])
def test_names_of_another_kind_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"6n \+ 2"):
        blocks_per_group(name)


def test_images_too_small_for_the_strides_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"size = 7.*8 pixels") as error:
        cifar_resnet("resnet-8", Task(size=7))
    assert "\n" not in str(error.value)


def test_an_unknown_shortcut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shortcut = 'C'.*A, B, pool"):
        cifar_resnet("resnet-8", Task(), shortcut="C")
    with pytest.raises(ValueError, match=r"shortcut = 'C'.*A, B, pool"):
        METHOD.configure({"shortcut": "C"})


def test_shortcut_a_subsamples_and_pads_both_sides() -> None:
    images = torch.randn(2, 4, 5, 5)
    output = ZeroPadShortcut(8, 2, average=False)(images)
    assert torch.equal(output[:, 2:6], images[:, :, ::2, ::2])
    assert not output[:, :2].any() and not output[:, 6:].any()


def test_the_pooling_shortcut_averages_and_pads_behind() -> None:
    images = torch.randn(2, 4, 6, 6)
    output = ZeroPadShortcut(8, 2, average=True)(images)
    assert torch.allclose(output[:, :4, 0, 0], images[:, :, :2, :2].mean(dim=(2, 3)))
    assert output.shape == (2, 8, 3, 3) and not output[:, 4:].any()


def test_width_multiplies_the_channels() -> None:
    assert [s[0] for s in cifar_resnet("resnet-8", Task(), width=0.5).shapes] == [8, 8, 16, 32]
    assert [s[0] for s in cifar_resnet("resnet-8", Task(), width=1.5).shapes] == [24, 24, 48, 96]
    assert [s[0] for s in cifar_resnet("resnet-8", Task(), width=0.01).shapes] == [1, 1, 2, 4]


@pytest.mark.parametrize("channels", [4, 7, 8, 12])
def test_strided_pointwise_convolutions_are_those_of_pytorch(channels: int) -> None:
    torch.manual_seed(0)
    ours = StridedPointwise(channels, 2 * channels, 2).double()
    plain = nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False).double()
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(32, channels, 9, 9).contiguous(memory_format=torch.channels_last)
    wanted = plain(images.double())
    wanted.square().sum().backward()
    for _ in range(20):  # what writes past its memory is noticed sooner or later
        single = StridedPointwise(channels, 2 * channels, 2).to(memory_format=torch.channels_last)
        single.load_state_dict(ours.state_dict())
        output = single(images)
        output.square().sum().backward()
        assert output.shape == wanted.shape and torch.allclose(output.double(), wanted, atol=1e-5)
        assert single.weight.grad is not None and plain.weight.grad is not None
        assert torch.allclose(single.weight.grad.double(), plain.weight.grad, rtol=1e-4, atol=1e-3)
