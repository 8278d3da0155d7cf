"""The ImageNet bodies: sizes to the digit, torchvision's outputs with torchvision's weights, bad files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from search.catalogue.describe import network_description
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import TrainingConfig
from trainables.networks.gated.network import GatedResNet
from trainables.networks.resnet.imagenet import check_residual, load_pretrained
from trainables.registry import get_method

torch.set_num_threads(1)
SMALL = Task(classes=7, size=64)


def build(method: str, network: str, task: Task = SMALL, **values: Any) -> RoutedNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        record = get_method(method)
        return record.build(record.configure({"network": network, **values}), task).eval()


def total(description: dict[str, Any], kind: str) -> int:
    return sum(kinds.get(kind, 0) for kinds in description["macs_by_part"].values())


@pytest.mark.parametrize(
    "depth,params,conv,linear",
    [
        (18, 11_689_512, 1_813_561_344, 512_000),
        (34, 21_797_672, 3_663_249_408, 512_000),
        (50, 25_557_032, 4_087_136_256, 2_048_000),
    ],
)
def test_static_bodies_to_the_digit(depth: int, params: int, conv: int, linear: int) -> None:
    network = f"resnet-{depth}-imagenet"
    found = network_description("static", {"network": network}, classes=1000, image_size=224)
    assert (found["params"], total(found, "conv"), total(found, "linear")) == (params, conv, linear)
    assert found["macs_full"] == conv + linear


def test_the_deepest_body_has_the_published_parameters() -> None:
    with torch.device("meta"):
        config = get_method("static").configure({"network": "resnet-101-imagenet"})
        network = get_method("static").build(config, Task(classes=1000, size=32))
    assert sum(p.numel() for p in network.parameters()) == 44_549_160


def test_codinet_on_resnet_50_to_the_digit() -> None:
    found = network_description("codinet", {"network": "resnet-50-imagenet"}, classes=1000, image_size=224)
    assert found["params"] == 44_302_344
    assert found["params_by_part"]["router"] == 15_968_736 and found["params_by_part"]["skips"] == 2_776_576
    assert found["macs_by_part"]["skips"] == {"conv": 359_661_568}
    assert found["macs_by_part"]["router"] == {"linear": 15_955_584}
    assert total(found, "conv") == 4_446_797_824
    assert sum(unit["kind"] == "block" for unit in found["units"]) == 16


@pytest.mark.parametrize("depth,gates,twice", [(34, 15, 19_267_584), (50, 15, 308_281_344), (101, 32, 308_281_344)])
def test_skipnet_has_a_gate_less_than_blocks_and_its_transitions_are_fixed(depth: int, gates: int, twice: int) -> None:
    size = 64
    network = build("skipnet", f"resnet-{depth}-imagenet", Task(classes=10, size=size), width=0.25)
    assert isinstance(network, GatedResNet) and network.gates == gates
    shared = sum(network.part_macs(network.block(k).shortcut, k) for k in network.gated)
    assert shared * 16 * 49 == twice * 4  # a quarter of the width, 64 of 224 pixels: 2 of 7 positions a side
    first = network.part_macs(network.block(0).shortcut, 0)
    ungated = network.stem_macs + network.classifier_macs + network.block_macs[0]
    assert network.fixed_macs == ungated + shared and (first > 0) is (depth != 34)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_weights_give_torchvisions_outputs(depth: int, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=7).eval()
    for module in theirs.modules():  # statistics that do something
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(theirs.state_dict(), file)
    else:
        save_file(theirs.state_dict(), file)
    images = torch.randn(2, 3, 64, 64)
    expected = theirs(images).detach()
    static = build("static", f"resnet-{depth}-imagenet")
    assert load_pretrained(static, str(file))
    assert torch.allclose(static(images).output, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    skipnet = build("skipnet", f"resnet-{depth}-imagenet")
    assert load_pretrained(skipnet, str(file))
    everything = skipnet.infer(images, {"threshold": 0.0}).logits
    assert torch.allclose(everything, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_another_number_of_classes_keeps_its_classifier(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    network = build("static", "resnet-18-imagenet")
    before = network.get_parameter("classifier.fc.weight").detach().clone()
    stem = network.get_parameter("stem.0.weight").detach().clone()
    assert load_pretrained(network, str(file)) is False
    assert torch.equal(network.get_parameter("classifier.fc.weight"), before)
    assert not torch.equal(network.get_parameter("stem.0.weight"), stem)


class _Spy:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("unpickled",))


def test_files_that_are_no_such_weights_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = build("static", "resnet-18-imagenet")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    good = torchvision.models.resnet18(weights=None).state_dict()
    save_file(good, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:5000])
    torch.save(good, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    torch.save({"fc.weight": _Spy()}, tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "deeper.pth")
    torch.save({k: v for k, v in good.items() if k != "layer2.0.conv1.weight"}, tmp_path / "less.pth")
    for name, message in {
        "nowhere.pth": "no such file",
        "cut.safetensors": "no weights could be read",
        "cut.pth": "no weights could be read",
        "code.pth": "no weights could be read",
        "list.pth": "holds no table of tensors",
        "deeper.pth": "is of another network than resnet-18-imagenet; layer1.2.conv1.weight does not exist here",
        "less.pth": "it lacks blocks.2.conv1.weight",
    }.items():
        with pytest.raises(ValueError, match="pretrained = ") as caught:
            load_pretrained(network, str(tmp_path / name))
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(ValueError, match="take weights, not resnet-8"):
        load_pretrained(build("static", "resnet-8"), str(tmp_path / "whole.pth"))


@pytest.mark.parametrize("method", ["static", "skipnet", "codinet"])
@pytest.mark.parametrize("size", [32, 45])
def test_small_and_odd_images_pass(method: str, size: int) -> None:
    network = build(method, "resnet-18-imagenet", Task(classes=3, size=size), width=0.125)
    knobs = {} if method == "static" else {"threshold": 0.5}
    assert network.infer(torch.randn(2, 3, size, size), knobs).logits.shape == (2, 3)


def test_wrong_names_and_sizes_are_said() -> None:
    with pytest.raises(ValueError, match=r"size = 16: resnet-18-imagenet halves images five times.*at least 32"):
        build("static", "resnet-18-imagenet", Task(size=16))
    with pytest.raises(ValueError, match=r"network = 'resnet-34-imagnet'.*did you mean 'resnet-34-imagenet'"):
        check_residual("resnet-34-imagnet")
    with pytest.raises(ValueError, match="nearest is resnet-98"):
        check_residual("resnet-100")
    assert TrainingConfig(network="resnet-50-imagenet").network in get_method("codinet").networks


def test_aig_on_resnet_50_to_the_digit() -> None:
    values = {"network": "resnet-50-imagenet"}
    found = network_description("aig", values, classes=1000, image_size=224)
    assert found["params"] == 25_768_264 and total(found, "conv") == 4_087_346_688
    spared = network_description("aig", {**values, "profile": "imagenet"}, classes=1000, image_size=32)
    assert sum(unit["kind"] == "block" for unit in spared["units"]) == 16 - 6  # the rates of 1 have no gate


def test_aig_on_resnet_101_has_the_published_parameters() -> None:
    with torch.device("meta"):
        method = get_method("aig")
        network = method.build(method.configure({"network": "resnet-101-imagenet"}), Task(classes=1000, size=32))
    assert sum(p.numel() for p in network.parameters()) == 45_040_314


def test_blockdrops_policy_for_imagenet_to_the_digit() -> None:
    with torch.device("meta"):
        method = get_method("blockdrop")
        config = method.configure({"network": "resnet-101-imagenet", "impl": "official"})
        network = method.build(config, Task(classes=1000, size=224))
    parts = network.params_by_part()
    assert parts["router"] == 4_923_234 and sum(parts.values()) - parts["router"] == 44_549_160
    assert isinstance(network, GatedResNet) and network.router_conv_macs == 235_941_888 and network.gates == 33
