"""Pretrained weights: files, the cache, what does not fit; nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from tests.support.noise import noise
from trainables.contracts.network import Task
from trainables.methods import exits, static
from trainables.normalisation import CONSTANTS
from trainables.training.training import Training

NAME = "torchvision:mobilenet_v3_small"
TASK = Task(classes=10, size=32)


def network_of(pretrained: str = "", network: str = NAME):
    values = {"network": network, "pretrained": pretrained}
    return static.build(static.METHOD.configure(values), TASK).eval()


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    torch.manual_seed(5)
    return models.mobilenet_v3_small(num_classes=10).eval()


def test_files_give_what_the_library_computes(tmp_path: Path, theirs: torch.nn.Module) -> None:
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    save_file(dict(theirs.state_dict()), tmp_path / "b.safetensors")
    torch.save({"state_dict": {f"module.{n}": t for n, t in theirs.state_dict().items()}}, tmp_path / "c.pth")
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = theirs(images)
    for file in ("a.pth", "b.safetensors", "c.pth"):
        network = network_of()
        assert network.take_weights(str(tmp_path / file))
        assert torch.allclose(network(images).output, expected, atol=1e-5)
    leaving = exits.build(exits.METHOD.configure({"network": NAME, "exits": 3}), TASK).eval()
    leaving.take_weights(str(tmp_path / "a.pth"))
    assert torch.allclose(leaving(images).output, expected, atol=1e-5)


def test_a_classifier_of_other_classes_keeps_its_own(tmp_path: Path) -> None:
    thousand = models.mobilenet_v3_small()
    torch.save(thousand.state_dict(), tmp_path / "w.pth")
    network = network_of()
    before = network.part.body.get_parameter("classifier.3.weight").clone()
    assert not network.take_weights(str(tmp_path / "w.pth"))
    assert torch.equal(network.part.body.get_parameter("classifier.3.weight"), before)
    first = network.part.body.get_parameter("features.0.0.weight")
    assert torch.equal(first, thousand.features[0][0].weight)


def test_what_does_not_fit_is_named(tmp_path: Path, theirs: torch.nn.Module) -> None:
    state = dict(theirs.state_dict())
    torch.save(models.mobilenet_v3_small(num_classes=10, width_mult=0.5).state_dict(), tmp_path / "narrow.pth")
    torch.save({n: t for n, t in state.items() if n != "features.0.0.weight"}, tmp_path / "lacks.pth")
    torch.save({**state, "other.weight": torch.zeros(2)}, tmp_path / "more.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for file, says in {
        "narrow.pth": r"does not fit torchvision:mobilenet_v3_small: .* has shape .* and must have .*, and \d+ more",
        "lacks.pth": "features.0.0.weight is missing in the file",
        "more.pth": "other.weight does not exist here",
        "list.pth": "holds no table of tensors",
        "text.pth": "no weights could be read",
        "nowhere.pth": "no such file",
    }.items():
        network = network_of()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with pytest.raises(ValueError, match=says) as caught:
            network.take_weights(str(tmp_path / file))
        assert "\n" not in str(caught.value)
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-run"),)

    torch.save({"features.0.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="no weights could be read"):
        network_of().take_weights(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "was-run").exists()


def test_the_cache_is_read_and_never_filled(
    tmp_path: Path, theirs: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="is not there, and nothing is downloaded; get https://"):
        network_of("cache").take_weights("cache")
    assert not list(tmp_path.rglob("*.pth"))
    name = os.path.basename(models.MobileNet_V3_Small_Weights.DEFAULT.url)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    assert network_of("cache").take_weights("cache:IMAGENET1K_V1")


def test_normalisation_is_that_of_the_weights() -> None:
    assert network_of("w.pth").config.normalise == "imagenet"
    assert network_of().config.normalise == "data"
    config = static.METHOD.configure({"network": NAME, "pretrained": "w.pth", "normalise": "image"})
    assert config.normalise == "image"
    half = static.METHOD.configure({"network": "torchvision:efficientnet_v2_l", "pretrained": "w.pth"})
    assert half.normalise == "half"


def test_position_embeddings_are_interpolated(tmp_path: Path) -> None:
    small = models.vit_b_32(image_size=64, num_classes=10)
    torch.save(small.state_dict(), tmp_path / "vit.pth")
    network = network_of(network="torchvision:vit_b_32")
    assert network.take_weights(str(tmp_path / "vit.pth"))  # 64 pixels have five positions, 32 have two


def test_a_training_begins_with_them(tmp_path: Path, theirs: torch.nn.Module) -> None:
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    values = {"network": NAME, "pretrained": str(tmp_path / "w.pth"), "lr": 1e-6, "batch_size": 8}
    training = Training(static.METHOD, static.METHOD.configure(values), noise(16, 16, 10, 8), epochs=1)
    training.step()
    first = training.network.get_parameter("part.body.features.0.0.weight")
    assert torch.allclose(first, theirs.get_parameter("features.0.0.weight"), atol=1e-3)
    assert training.data.normalisation == CONSTANTS["imagenet"]
