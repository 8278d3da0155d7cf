"""Inputs of networks against formulas by hand, and who may choose them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from trainables import checkpoints
from trainables.contracts.network import Task
from trainables.contracts.recipe import TrainingConfig
from trainables.data.augment import batches, normalise, to_device
from trainables.data.splits import Augment, Data, Split, digest
from trainables.diagnostics.measure import diagnose
from trainables.inference.evaluation import exit_logits
from trainables.normalisation import NORMALISATIONS, Normalisation
from trainables.registry import METHODS, get_method
from trainables.serving import load_network
from trainables.training.training import Training

torch.set_num_threads(1)
TINY = {"network": "resnet-8", "width": 0.25, "batch_size": 32}
C10 = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))
C100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def made(channels: int = 3, name: str = "noise", count: int = 12, size: int = 8) -> Data:
    """Images of different contrast, the last one of a single value, the one before with one pixel off."""
    random = np.random.RandomState(0)
    span = random.uniform(0.05, 1, (count, 1, 1, 1))
    images = (random.uniform(0, 255, (count, channels, size, size)) * span).astype(np.uint8)
    images[-2:] = 7
    images[-2, 0, 0, 0] = 8
    split = Split(images, np.arange(count) % 4)
    return Data(
        name=name,
        task=Task(classes=4, size=size, channels=channels),
        classes=tuple("abcd"),
        train=split,
        validation=split,
        test=split,
        mean=(0.5, 0.25, 0.1)[:channels],
        std=(0.2, 0.3, 0.4)[:channels],
        augment=Augment(pad=2, flip=True),
        hash=digest(tuple("abcd"), (split,)),
    )


def by_constants(images: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    return (images / 255 - np.reshape(mean, (1, -1, 1, 1))) / np.reshape(std, (1, -1, 1, 1))


def by_image(images: np.ndarray) -> np.ndarray:
    return np.stack([(x - x.mean()) / max(x.std(), 1 / np.sqrt(x.size)) for x in images.astype(np.float64)])


BY_HAND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "data": lambda x: by_constants(x, (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)),
    "none": lambda x: x / 255,
    "image": by_image,
    "resnet": lambda x: by_constants(x, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "msdnet": lambda x: by_constants(x, *C10),
    "imagenet": lambda x: by_constants(x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": lambda x: x / 127.5 - 1,
    "blockdrop-32": lambda x: (
        (x - np.reshape((125.3, 123.0, 113.9), (3, 1, 1))) / np.reshape((63, 62.1, 66.7), (3, 1, 1))
    ),
}


@pytest.mark.parametrize("word", NORMALISATIONS)
def test_every_choice_is_its_formula(word: str) -> None:
    data = made()
    images = data.train.decoded()
    found = normalise(torch.tensor(images), data.for_config(TrainingConfig(normalise=word)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.from_numpy(BY_HAND[word](images)).float(), rtol=1e-5, atol=1e-5)


def test_constants_of_cifar_100() -> None:
    data = made(name="cifar100")
    images = torch.tensor(data.train.images)
    for word, mean, std in (("msdnet", *C100), ("resnet", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))):
        found = normalise(images, data.for_config(TrainingConfig(normalise=word)))
        torch.testing.assert_close(found, torch.from_numpy(by_constants(images.numpy(), mean, std)).float())


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_its_own_has_mean_0_and_deviation_1_unless_it_is_flat(channels: int) -> None:
    data = made(channels)
    found = normalise(torch.tensor(data.train.images), data.for_config(TrainingConfig(normalise="image"))).double()
    assert found.mean(dim=(1, 2, 3)).abs().max() < 1e-5
    deviation = found.std(dim=(1, 2, 3), correction=0)
    assert (deviation[:-2] - 1).abs().max() < 1e-5
    count = channels * 64
    # one value of N is 1 more: the deviation sqrt(N - 1) / N lies below 1 / sqrt(N), which divides instead
    assert deviation[-2] == pytest.approx(np.sqrt((count - 1) / count), rel=1e-5) and (found[-1] == 0).all()


@pytest.mark.parametrize("word", ["data", "image"])
def test_an_image_gets_the_same_bits_in_any_batch_and_layout(word: str) -> None:
    data = made(size=31, count=40).for_config(TrainingConfig(normalise=word))
    images = torch.tensor(data.train.images)
    whole = normalise(images, data)
    for other in (
        torch.cat([normalise(image[None], data) for image in images]),
        normalise(images.contiguous(memory_format=torch.channels_last), data),
        normalise(images.flip(0), data).flip(0),
        normalise(images.float(), data),
    ):
        assert torch.equal(whole, other)


def test_nobody_normalises_what_no_configuration_chose() -> None:
    data = made()
    images, labels = to_device(data.train, "cpu")
    for forgotten in (lambda: normalise(images, data), lambda: next(batches(images, labels, data, batch_size=4))):
        with pytest.raises(ValueError, match="images of noise: no configuration chose their normalisation"):
            forgotten()


def test_a_choice_forgets_the_one_before_and_leaves_the_images() -> None:
    data = made()
    first = data.for_config(TrainingConfig(normalise="image", crop=1))
    again = first.for_config(TrainingConfig())
    assert first.normalisation == Normalisation(per_image=True) and first.training_augment == Augment(pad=1, flip=True)
    assert again.normalisation == Normalisation(data.mean, data.std) and again.training_augment == data.augment
    assert first.hash == data.hash and first.train is data.train and first.augment == data.augment


def test_records_survive_json_and_old_ones_have_mean_and_std_alone() -> None:
    for how in (Normalisation((0.5,), (0.2,)), Normalisation(per_image=True)):
        assert Normalisation.of(json.loads(json.dumps(how.record()))) == how
    assert Normalisation.of({"mean": [0.5, 0.25], "std": [0.2, 0.3]}) == Normalisation((0.5, 0.25), (0.2, 0.3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"normalise": "photos"}, "normalise = 'photos': must be one of data, none, image, resnet, msdnet, imagenet"),
        ({"normalise": 1}, "normalise = 1 has the wrong type"),
        ({"crop": -2}, "crop = -2: must be a whole number of pixels; -1 is the data set's own padding"),
        ({"crop": 1.5}, "crop = 1.5 has the wrong type"),
        ({"crop": True}, "crop = True has the wrong type"),
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_what_no_images_could_have_is_refused_with_the_configuration(
    name: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        get_method(name).configure(values)


def test_what_these_images_cannot_have_is_refused_when_they_are_asked() -> None:
    grey = "constants of RGB images, and grey has 1 channel; take data, none or image"
    for word in ("resnet", "msdnet", "blockdrop-32"):
        with pytest.raises(ValueError, match=f"normalise = '{word}': are {grey}"):
            made(1, "grey").for_config(TrainingConfig(normalise=word))
    assert made().for_config(TrainingConfig(crop=7)).training_augment.pad == 7
    for crop in (8, 9):
        with pytest.raises(ValueError, match=f"crop = {crop}: images of 8 pixels can be shifted by 7 at most"):
            made().for_config(TrainingConfig(crop=crop))
    by_area = dataclasses.replace(made(), augment=Augment(flip=True, area=(0.08, 1.0)))
    with pytest.raises(ValueError, match="crop = 2: training images of noise are cropped by area"):
        by_area.for_config(TrainingConfig(crop=2))
    for crop in (-1, 0):
        assert by_area.for_config(TrainingConfig(crop=crop)).training_augment == by_area.augment


def test_training_images_are_shifted_by_the_chosen_crop() -> None:
    """One bright pixel goes wherever a shift of so many pixels takes it, and nowhere else."""
    data = made(count=300)
    images = torch.zeros(300, 3, 8, 8, dtype=torch.uint8)
    images[:, :, 3, 3] = 200
    seen: dict[int, set[tuple[int, int]]] = {}
    for crop in (-1, 0, 1, 3):
        chosen = data.for_config(TrainingConfig(normalise="none", crop=crop))
        still = dataclasses.replace(chosen, augment=dataclasses.replace(chosen.augment, flip=False))
        generator = torch.Generator().manual_seed(0)
        (batch,) = batches(images, torch.zeros(300).long(), still, batch_size=300, generator=generator)
        places = batch.images[:, 0].flatten(1).argmax(dim=1)
        seen[crop] = {divmod(int(place), 8) for place in places}
    for crop, reach in ((-1, 2), (0, 0), (1, 1), (3, 3)):
        span = range(3 - reach, 4 + reach)
        assert seen[crop] == {(row, column) for row in span for column in span}


# -- the same inputs in training, curves, diagnostics ------------------------------------------------


@pytest.fixture(scope="module")
def quarters() -> Data:
    """Grey images of any contrast whose class is their brightest quarter: one contrast hides another by constants."""
    random = np.random.RandomState(0)

    def split(count: int) -> Split:
        labels = np.arange(count) % 4
        images = random.uniform(0, 120, (count, 1, 8, 8))
        for image, label in zip(images[:, 0], labels, strict=True):
            row, column = 4 * (label // 2), 4 * (label % 2)
            image[row : row + 4, column : column + 4] += 100
        return Split((images * random.uniform(0.05, 1, (count, 1, 1, 1))).astype(np.uint8), labels.astype(np.int64))

    looks = {"mean": (0.3,), "std": (0.2,), "augment": Augment(pad=1), "hash": "0" * 64}
    parts = {"train": split(256), "validation": split(120), "test": split(4)}
    return Data(name="quarters", task=Task(classes=4, size=8, channels=1), classes=tuple("abcd"), **parts, **looks)


@pytest.fixture(scope="module")
def trained(quarters: Data) -> Training:
    method = get_method("skipnet")
    config = method.configure({**TINY, "lr": 0.05, "normalise": "image", "crop": 1})
    training = Training(method, config, quarters, epochs=4, diagnostics=True)
    while not training.done:
        training.step()
    return training


def test_curves_and_diagnostics_take_the_images_as_training_did(trained: Training, quarters: Data) -> None:
    assert trained.last_report is not None
    points, network = trained.last_report["curve"]["points"], trained.network.eval()
    labels = torch.from_numpy(quarters.validation.labels)

    def accuracies(inputs: np.ndarray) -> list[float]:
        with torch.inference_mode():
            found = network.sweep(torch.from_numpy(inputs).float(), [point["knobs"] for point in points])
        return [float(each.logits.argmax(dim=1).eq(labels).double().mean()) for each in found]

    right = accuracies(by_image(quarters.validation.decoded()))
    wrong = accuracies(by_constants(quarters.validation.decoded(), quarters.mean, quarters.std))
    assert [point["accuracy"] for point in points] == pytest.approx(right, abs=0.006)
    assert max(right) > 0.5 and max(right) - max(wrong) > 0.1  # else nothing was shown
    usual = next(p for p in points if p["setting"] == trained.last_report["diagnostics"]["setting"])
    assert trained.last_report["diagnostics"]["acc"] == pytest.approx(usual["accuracy"], abs=0.006)
    again = diagnose(trained.method, network, quarters)  # of images that nobody chose for
    assert again.record["acc"] == trained.last_report["diagnostics"]["acc"]


def test_the_first_step_sees_the_images_as_chosen(quarters: Data) -> None:
    """Without crops, an epoch of one batch is all training images: its loss is that of the untrained network."""
    method = get_method("static")
    few = dataclasses.replace(quarters, train=quarters.train.take(np.arange(64)), augment=Augment())
    losses = {}
    for word in ("data", "image", "none"):
        config = method.configure({**TINY, "batch_size": 64, "normalise": word})
        training = Training(method, config, few, epochs=1)
        forms = {"data": lambda x: by_constants(x, quarters.mean, quarters.std), "none": BY_HAND["none"]}
        inputs = {**forms, "image": by_image}[word](few.train.decoded())
        training.network.train()
        with torch.no_grad():
            logits = training.network(torch.from_numpy(inputs).float()).output
        expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(few.train.labels)).item()
        losses[word] = training.step()["losses"]["cross_entropy"]
        assert losses[word] == pytest.approx(expected, rel=1e-4)
    assert len({round(loss, 3) for loss in losses.values()}) == 3


def test_a_second_phase_on_cached_features_reads_the_images_as_chosen(quarters: Data) -> None:
    method = get_method("imta")
    values = {"network": "msdnet-2", "growth": 4, "variant": "isc", "cached_views": 1, "batch_size": 32}
    plain = dataclasses.replace(quarters, train=quarters.train.take(np.arange(64)), augment=Augment())
    training = Training(method, method.configure({**values, "normalise": "image"}), plain, epochs=2)
    training.step()
    training.step()
    network = training.network.eval()
    assert training.cache is not None
    with torch.inference_mode():
        expected = network.trunk(torch.from_numpy(by_image(plain.train.decoded())).float())  # type: ignore[operator]
    torch.testing.assert_close(training.cache.features[0], expected, rtol=1e-3, atol=1e-4)
    assert exit_logits(network, training.validation).shape[0] == 2


# -- checkpoints --------------------------------------------------------------------------------------


def older(folder: Any) -> None:
    """Rewrite a checkpoint as one of before configurations had these two values."""
    path = folder / checkpoints.STATE
    record = json.loads(path.read_text())
    for name in ("normalise", "crop"):
        del record["config"][name]
    path.write_text(json.dumps(record))


def test_checkpoints_of_before_there_was_a_choice_go_on_and_no_other_choice_does(quarters: Data, tmp_path: Any) -> None:
    method = get_method("static")

    def training(**values: Any) -> Training:
        return Training(method, method.configure({**TINY, **values}), quarters, epochs=2)

    begun = training()
    begun.step()
    begun.save(tmp_path / "epoch-0001")
    older(tmp_path / "epoch-0001")
    with pytest.raises(checkpoints.CheckpointError, match="config has normalise = 'data', expected 'image'"):
        training(normalise="image").restore(tmp_path / "epoch-0001")
    with pytest.raises(checkpoints.CheckpointError, match="of another trial: its config has crop"):
        training(crop=0).restore(tmp_path / "epoch-0001")
    taken = training()
    taken.restore(tmp_path / "epoch-0001")
    assert taken.step()["losses"] == begun.step()["losses"]
    assert load_network(tmp_path / "epoch-0001")[1].config.normalise == "data"


def test_a_phase_does_not_begin_behind_one_with_other_inputs(quarters: Data, tmp_path: Any) -> None:
    method = get_method("imta")
    values = {"network": "msdnet-2", "growth": 4, "batch_size": 32}
    network = method.build(method.configure({**values, "normalise": "image"}), quarters.task)
    checkpoints.save(tmp_path / "phase1", checkpoints.network_record(method, network), network)
    behind = {**values, "variant": "isc", "phase1": str(tmp_path / "phase1")}
    for word, good in (("image", True), ("data", False)):
        training = Training(method, method.configure({**behind, "normalise": word}), quarters, epochs=1)
        if good:
            training.step()
            continue
        with pytest.raises(ValueError, match=r"was trained with normalise = 'image', this training has 'data'"):
            training.step()
