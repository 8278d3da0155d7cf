"""Random crops, torchvision's policies, mixup and cutmix: repeatable, resumable, and the same for every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.noise import noise
from trainables.contracts.recipe import Batch, Mixed, TrainingConfig
from trainables.data.augment import Place, area_crops, batches, by_policy, to_device
from trainables.data.splits import Data
from trainables.registry import METHODS
from trainables.training.training import Training

OPTIONS: dict[str, dict[str, Any]] = {
    "area": {"area": 0.3},
    "randaugment": {"augment": "randaugment"},
    "trivialaugment": {"augment": "trivialaugment"},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "both": {"mixup": 0.2, "cutmix": 1.0},
}


def made(values: dict[str, Any], count: int = 24) -> Data:
    return noise(count, 8, 5, 8).for_config(TrainingConfig(**values))


def epoch(data: Data, place: Place | None = None, began: torch.Tensor | None = None) -> list[Batch]:
    images, labels = to_device(data.train, "cpu")
    generator = torch.Generator().manual_seed(1)
    if began is not None:
        generator.set_state(began)
    return list(batches(images, labels, data, batch_size=8, generator=generator, place=place))


@pytest.mark.parametrize("name", OPTIONS)
def test_an_epoch_is_repeated_and_taken_up_where_it_was_left(name: str) -> None:
    data = made(OPTIONS[name])
    images, labels = to_device(data.train, "cpu")
    generator = torch.Generator().manual_seed(1)
    began, torch_state = generator.get_state(), torch.get_rng_state()
    going = batches(images, labels, data, batch_size=8, generator=generator)
    next(going)
    now = generator.get_state()
    whole = epoch(data)
    rest = epoch(data, Place(1, now), began)
    assert len(whole) == 3 and len(rest) == 2
    for one, other in zip(whole[1:], rest, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert (one.mixed is None) == (other.mixed is None) == ("mix" not in name and name != "both")
        if one.mixed is not None and other.mixed is not None:
            assert torch.equal(one.mixed.labels, other.mixed.labels) and one.mixed.share == other.mixed.share
    assert torch.equal(torch_state, torch.get_rng_state())  # nothing was drawn from the process's generator
    plain = epoch(made({}))
    assert any(not torch.equal(a.images, b.images) for a, b in zip(plain, whole, strict=True))
    assert torch.equal(to_device(data.train, "cpu")[0], images)  # the data set itself stays


@pytest.mark.parametrize("name", ["mixup", "cutmix", "both"])
def test_images_are_mixed_by_the_share_that_the_loss_is_told(name: str) -> None:
    shares = []
    for number in range(12):
        data = made(OPTIONS[name] | {"crop": 0})
        images, labels = to_device(data.train, "cpu")
        white = torch.where(labels[:, None, None, None] == 0, 255, 0).to(torch.uint8).expand_as(images).contiguous()
        draw = torch.Generator().manual_seed(number)
        batch = next(iter(batches(white, labels, data, batch_size=8, generator=draw)))
        assert batch.mixed is not None and 0 <= float(batch.mixed.share) <= 1
        shares.append(float(batch.mixed.share))
        low, high = (0 - 0.5) / 0.25, (1 - 0.5) / 0.25
        lit = ((batch.images - low) / (high - low)).mean(dim=(1, 2, 3))
        own, other = batch.labels.eq(0).float(), batch.mixed.labels.eq(0).float()
        assert torch.allclose(lit, batch.mixed.share * own + (1 - batch.mixed.share) * other, atol=1e-5)
        assert torch.equal(batch.mixed.labels, batch.labels.roll(1))
    assert len(set(shares)) > 5


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.mixes])
def test_every_method_that_mixes_weighs_both_labels(name: str) -> None:
    method = METHODS[name]
    usual = {"multipath": "resnet-8-2", "act": "preact-resnet-14", "sact": "preact-resnet-14", "imta": "msdnet-2"}
    config = method.configure({"network": usual.get(name, "resnet-8"), "mixup": 0.2})
    torch.manual_seed(0)
    network = method.build(config, noise(8, 8, 5, 8).task).eval()
    phase = method.phases(config)[0]
    images, draw = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.Generator()
    labels = torch.arange(8) % 5

    def loss(truth: torch.Tensor, mixed: Mixed | None = None) -> float:
        views = method.views(config)
        batch = Batch(images, truth, views, draw.manual_seed(2), mixed=mixed)
        terms = method.objective(network, batch, phase)
        return float(torch.stack(list(terms.values())).sum())

    other = labels.roll(1)
    both = loss(labels, Mixed(other, torch.tensor(0.3)))
    assert both == pytest.approx(0.3 * loss(labels) + 0.7 * loss(other), rel=1e-4)
    assert loss(labels) != pytest.approx(loss(other), rel=1e-4)


def test_what_cannot_be_mixed_or_augmented_is_refused_in_a_line() -> None:
    for name in ("skipnet", "blockdrop", "decide"):
        with pytest.raises(ValueError, match=rf"mixup = 0\.2: {name} learns from whole labels alone"):
            METHODS[name].configure({"mixup": 0.2})
    for values, line in (
        ({"mixup": -1.0}, "mixup = -1.0: the alpha of a Beta"),
        ({"area": 1.5}, "area = 1.5: must be a share"),
        ({"augment": "auto"}, "augment = 'auto': must be one of none, randaugment, trivialaugment"),
    ):
        with pytest.raises(ValueError, match=line):
            METHODS["static"].configure(values)
    with pytest.raises(ValueError, match="cached features are of images as they are"):
        METHODS["imta"].configure({"variant": "all", "cached_views": 2, "cutmix": 1.0})
    with pytest.raises(ValueError, match=r"crop = 2: .* are cropped by area"):
        made({"crop": 2, "area": 0.5})


def test_a_crop_of_the_whole_area_is_the_image_and_others_are_parts_of_it() -> None:
    ramp = torch.arange(12, dtype=torch.float32).mul(20).expand(64, 1, 9, 12).to(torch.uint8)
    draw = torch.Generator().manual_seed(0)
    found = area_crops(ramp, (0.2, 0.4), draw)
    assert found.shape == ramp.shape and found.dtype == torch.uint8
    steps = found[:, 0, 0].float().diff(dim=1)[:, 2:-2].mean(dim=1) / 20  # how much of the width a crop has
    down = 0.3 / steps.mean()
    assert 0.3 < float(steps.min()) and float(steps.max()) < 0.8 and 0.3 < float(down) < 0.8
    assert not torch.equal(found[0], found[1])


def test_policies_take_grey_images_and_say_what_a_seed_says() -> None:
    images = torch.randint(0, 256, (4, 1, 12, 10), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for policy in ("randaugment", "trivialaugment"):
        one, two, three = (by_policy(images, policy, (seed, 0)) for seed in (5, 5, 6))
        assert torch.equal(one, two) and not torch.equal(one, three) and one.shape == images.shape


def test_a_training_with_all_of_it_goes_on_bit_for_bit() -> None:
    method, data = METHODS["static"], noise(32, 8, 4, 8)
    config = method.configure(
        {"network": "resnet-8", "width": 0.25, "batch_size": 8, "augment": "trivialaugment", "mixup": 0.3, "area": 0.5}
    )
    ends = []
    for _ in range(2):
        training = Training(method, config, data, epochs=2, seed=3)
        training.step()
        training.step()
        ends.append(training.network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))
