"""On the device: crops are shifted images, flips are mirrored, batches are complete and repeatable."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainables.contracts.network import Task
from trainables.contracts.recipe import TrainingConfig
from trainables.data.augment import augment, batches, in_order, normalise, to_device
from trainables.data.splits import Augment, Data, Split


def make(count: int = 23, channels: int = 3, size: int = 8, how: Augment = Augment(pad=2, flip=True)) -> Data:
    """Image i has the top left pixel i, other pixels at random."""
    images = np.random.default_rng(0).integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    images[:, :, 0, 0] = np.arange(count)[:, None]
    split = Split(images, np.arange(count) % 5)
    return Data(
        name="made",
        task=Task(classes=5, size=size, channels=channels),
        classes=tuple("abcde"),
        train=split,
        validation=split,
        test=split,
        mean=(0.5, 0.25, 0.1)[:channels],
        std=(0.2, 0.3, 0.4)[:channels],
        augment=how,
        hash="0",
    ).for_config(TrainingConfig())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def which(image: torch.Tensor, padded: torch.Tensor, size: int) -> list[tuple[int, int, bool]]:
    """Every (down, right, flipped) under which the image is a cut of a padded one."""
    found = []
    for down in range(padded.shape[1] - size + 1):
        for right in range(padded.shape[2] - size + 1):
            cut = padded[:, down : down + size, right : right + size]
            found += [(down, right, f) for f in (False, True) if torch.equal(cut.flip(2) if f else cut, image)]
    return found


def test_every_image_is_a_shifted_and_perhaps_flipped_cut_by_a_draw_of_its_own():
    data = make(count=400)
    images, _ = to_device(data.train, "cpu")
    result = augment(images, data.augment, seeded())
    assert result.dtype == torch.uint8 and result.shape == images.shape
    drawn = [which(r, p, 8) for r, p in zip(result, F.pad(images, (2,) * 4), strict=True)]
    assert all(len(d) == 1 for d in drawn)
    down, right, flipped = (np.array(column) for column in zip(*(d[0] for d in drawn), strict=True))
    for shifts in (down, right):  # uniform over 5 shifts: 80 of each expected, deviation 8
        assert np.bincount(shifts, minlength=5).min() > 48
    assert 160 < flipped.sum() < 240
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.2 and abs(np.corrcoef(down, flipped)[0, 1]) < 0.2


def test_what_comes_in_is_black():
    images = torch.full((200, 1, 4, 4), 9, dtype=torch.uint8)
    result = augment(images, Augment(pad=1, flip=False), seeded())
    assert set(result.unique().tolist()) == {0, 9}
    zeros = (result == 0).sum(dim=(1, 2, 3))
    assert set(zeros.tolist()) == {0, 4, 7}  # no shift, along one axis, along both


def test_what_comes_in_may_be_the_mean_colour_of_the_image():
    data = make(count=60, how=Augment(pad=2, fill="mean"))
    images, _ = to_device(data.train, "cpu")
    result = augment(images, data.augment, seeded())
    assert result.dtype == torch.uint8
    shifted = 0
    for image, original in zip(result, data.train.images, strict=True):
        colour = np.rint(original.astype(float).mean(axis=(1, 2))).astype(np.uint8)
        padded = torch.from_numpy(np.broadcast_to(colour[:, None, None], (3, 12, 12)).copy())
        padded[:, 2:10, 2:10] = torch.from_numpy(original)
        found = which(image, padded, 8)
        assert len(found) == 1
        shifted += found[0][:2] != (2, 2)
    assert shifted > 50


def test_classes_that_must_not_be_flipped_are_not():
    how = Augment(flip=True, unflipped=(0, 3))
    data = make(count=400, how=how)
    images, labels = to_device(data.train, "cpu")
    flipped = (augment(images, how, seeded(), labels) != images).flatten(1).any(dim=1)
    for label, flips in enumerate(np.bincount(labels[flipped], minlength=5)):
        assert flips == 0 if label in (0, 3) else 20 < flips < 60  # of 80
    for batch in batches(images, labels, data, batch_size=64, views=2, generator=seeded()):
        kept = torch.isin(batch.labels, torch.tensor([0, 3]))
        still = (batch.images[:, None] == normalise(images, data)[None]).flatten(2).all(dim=2).any(dim=1)
        assert still[kept].all() and not still[~kept].all()
    with pytest.raises(ValueError, match=r"labels = None: classes \(0, 3\) are not flipped"):
        augment(images, how, seeded())


@pytest.mark.parametrize("how", [Augment(pad=2, flip=False), Augment(pad=0, flip=True), Augment()])
def test_parts_of_the_augmentation_can_be_off(how: Augment):
    data = make(how=how)
    images, _ = to_device(data.train, "cpu")
    result = augment(images, how, seeded())
    for image, padded in zip(result, F.pad(images, (how.pad,) * 4), strict=True):
        found = which(image, padded, 8)
        assert found and (how.flip or not found[0][2])
    if how == Augment():
        assert torch.equal(result, images) and result.data_ptr() != images.data_ptr()


def test_the_same_generator_gives_the_same_images_and_another_seed_others():
    data = make()
    images, _ = to_device(data.train, "cpu")
    one, same, other = (augment(images, data.augment, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_normalise_scales_every_channel_into_new_memory():
    data = make()
    images, _ = to_device(data.train, "cpu")
    before = images.clone()
    result = normalise(images, data)
    mean, std = torch.tensor(data.mean).view(1, 3, 1, 1), torch.tensor(data.std).view(1, 3, 1, 1)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, (images / 255 - mean) / std)
    assert torch.equal(images, before)


def test_read_only_arrays_are_shared_without_a_warning():
    data = make()
    data.train.images.flags.writeable = data.train.labels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images, labels = to_device(data.train, "cpu")
    assert images.data_ptr() == data.train.images.ctypes.data
    assert labels.tolist() == data.train.labels.tolist()
    list(batches(images, labels, data, batch_size=4, views=2, generator=seeded()))  # writes nothing in place


def test_an_epoch_shows_every_image_once_with_its_label():
    data = make(how=Augment())
    images, labels = to_device(data.train, "cpu")
    epoch = list(batches(images, labels, data, batch_size=8, generator=seeded()))
    assert [len(b.labels) for b in epoch] == [8, 8, 7]
    shown = torch.cat([b.images for b in epoch])
    truth = normalise(images, data)
    order = torch.cat([(b.images[:, :1, 0, 0] == truth[:, 0, 0, 0]).nonzero()[:, 1] for b in epoch])
    assert sorted(order.tolist()) == list(range(23)) and order.tolist() != list(range(23))
    assert torch.equal(shown, truth[order]) and torch.equal(torch.cat([b.labels for b in epoch]), labels[order])


def test_an_epoch_may_be_drawn_with_replacement():
    data = dataclasses.replace(make(count=200, how=Augment()), replacement=True)
    images, labels = to_device(data.train, "cpu")
    truth = normalise(images, data)
    orders = []
    for seed in (0, 0, 1):
        epoch = list(batches(images, labels, data, batch_size=64, generator=seeded(seed)))
        assert [len(b.labels) for b in epoch] == [64, 64, 64, 8]
        shown, said = torch.cat([b.images for b in epoch]), torch.cat([b.labels for b in epoch])
        order = torch.cdist(shown.flatten(1), truth.flatten(1)).argmin(dim=1)
        assert torch.equal(shown, truth[order]) and torch.equal(said, labels[order])
        orders.append(order.tolist())
    assert orders[0] == orders[1] != orders[2]
    assert 110 < len(set(orders[0])) < 143  # 1 - 1/e of 200, deviation 4.4


def test_views_are_neighbours_differently_augmented():
    data = make()
    images, labels = to_device(data.train, "cpu")
    epoch = list(batches(images, labels, data, batch_size=16, views=4, generator=seeded()))
    assert [len(b.labels) for b in epoch] == [16] * 5 + [12]
    plain = dataclasses.replace(data, augment=Augment())
    same = batches(images, labels, plain, batch_size=16, views=4, generator=seeded())
    for augmented, copies in zip(epoch, same, strict=True):
        assert augmented.views == 4 and augmented.generator is not None
        assert (augmented.labels.unflatten(0, (-1, 4)) == augmented.labels[::4, None]).all()
        groups = copies.images.unflatten(0, (-1, 4))
        assert (groups == groups[:, :1]).all()
    groups = epoch[0].images.unflatten(0, (-1, 4))
    assert (groups != groups[:, :1]).flatten(1).any(dim=1).all()


def test_batches_repeat_with_the_generator_and_go_on_from_its_state():
    data = make()
    images, labels = to_device(data.train, "cpu")
    generator = seeded()
    epochs, state = [], generator.get_state()
    for _ in range(2):
        state = generator.get_state()
        epochs.append(torch.cat([b.images for b in batches(images, labels, data, batch_size=8, generator=generator)]))
    assert not torch.equal(*epochs)
    resumed = torch.Generator()
    resumed.set_state(state)
    again = torch.cat([b.images for b in batches(images, labels, data, batch_size=8, generator=resumed)])
    assert torch.equal(again, epochs[1])


@pytest.mark.parametrize(
    ("count", "size", "views", "expected"),
    [
        (9, 8, 1, [8]),  # a single image is left for the last batch: left out
        (9, 16, 2, [16]),  # a single image in two views as well
        (10, 8, 1, [8, 2]),
        (3, 8, 1, [3]),
        (3, 1, 1, [1, 1, 1]),  # batches of one were asked for
        (3, 2, 4, [4, 4, 4]),  # fewer than the views: one image a batch, all its views
        (1, 8, 1, []),
    ],
)
def test_sizes_of_batches(count: int, size: int, views: int, expected: list[int]):
    data = make(count=count)
    images, labels = to_device(data.train, "cpu")
    found = [len(b.labels) for b in batches(images, labels, data, batch_size=size, views=views, generator=seeded())]
    assert found == expected


def test_evaluation_is_in_order_whole_and_not_augmented():
    data = make(count=9, channels=1)
    images, labels = to_device(data.test, "cpu")
    found = list(in_order(images, labels, data, batch_size=4))
    assert [len(b.labels) for b in found] == [4, 4, 1]
    assert torch.equal(torch.cat([b.images for b in found]), normalise(images, data))
    assert torch.equal(torch.cat([b.labels for b in found]), labels)
