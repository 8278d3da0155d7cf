"""ImageNet folders: listed and not opened, cropped as the papers crop, decoded batch by batch."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from trainables.contracts.network import Task
from trainables.contracts.recipe import TrainingConfig
from trainables.data import datasets
from trainables.data.augment import batches, in_order, normalise, to_device
from trainables.data.encoded import TRIES, LazyImages, random_box
from trainables.data.errors import DataError, DataMissing
from trainables.data.splits import Augment, Data, Source, Split, divide
from trainables.diagnostics.copies import copy_of
from trainables.diagnostics.measure import diagnose
from trainables.registry import get_method
from trainables.training.partial import Interrupted
from trainables.training.training import Training

SIZES = [(40, 30), (30, 44), (36, 36), (25, 60)]


def colour_of(number: int) -> tuple[int, int, int]:
    return (10 * (number % 25), 25 * (number // 25), 128)


def write(folder: Path, classes: list[str], counts: dict[str, int], *, flat: bool) -> None:
    """Images of one colour, which tells the class and the number; or of noise, half of them grey or JPEG."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for c, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                size = SIZES[i % 4]
                image = Image.new("RGB", size, colour_of(10 * c + i))
                if not flat:
                    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
                    image = image.convert("L") if i % 4 == 1 else image
                image.save(folder / split / name / f"{name}_{i}.{'JPEG' if i % 2 and not flat else 'png'}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "imagenet"
    write(path, ["n01", "n02", "n03"], {"train": 20, "val": 6}, flat=False)
    (path / "train" / "n01" / ".DS_Store").write_text("litter")
    return path


@pytest.fixture(scope="module")
def noise(folder: Path) -> Data:
    return datasets.load("imagenet", root=folder.parent, image_size=16).for_config(TrainingConfig())


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Data:
    path = tmp_path_factory.mktemp("flat")
    write(path, ["n01", "n02", "n03"], {"train": 10, "val": 2}, flat=True)
    return datasets.load(f"imagenet:{path}", root=Path("nowhere"), image_size=16).for_config(TrainingConfig())


def in_memory(data: Data) -> Data:
    """The same images decoded, without augmentation."""
    splits = {s: Split(getattr(data, s).decoded(), getattr(data, s).labels) for s in ("train", "validation", "test")}
    return dataclasses.replace(data, **splits, augment=Augment())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_what_is_listed(noise: Data, folder: Path):
    assert noise.task == Task(classes=3, size=16, channels=3) and noise.classes == ("n01", "n02", "n03")
    assert [np.bincount(s.labels).tolist() for s in (noise.train, noise.validation, noise.test)] == [
        [18] * 3,
        [2] * 3,
        [6] * 3,
    ]
    assert noise.mean == (0.485, 0.456, 0.406) and noise.std == (0.229, 0.224, 0.225)
    assert noise.augment == Augment(flip=True, area=(0.08, 1.0))
    assert datasets.load("imagenet", root=folder.parent).task.size == 224
    status = {s.name: s for s in datasets.catalogue(folder.parent)}
    assert status["imagenet"].complete and not status["imagenet-100"].complete


def test_the_hash_knows_names_lengths_labels_and_not_the_place(noise: Data, folder: Path, tmp_path: Path):
    import shutil

    assert datasets.load(f"imagenet:{folder}", root=Path("nowhere"), image_size=16).hash == noise.hash
    shutil.copytree(folder, tmp_path / "copy")
    assert datasets.load(f"imagenet:{tmp_path / 'copy'}", root=Path("nowhere")).hash == noise.hash
    with (tmp_path / "copy" / "val" / "n02" / "n02_0.png").open("ab") as file:
        file.write(b"\0")
    assert datasets.load(f"imagenet:{tmp_path / 'copy'}", root=Path("nowhere")).hash != noise.hash


def test_a_sample_of_its_files_tells_a_copy(noise: Data):
    sample = noise.sample(3)
    assert 3 < len(sample) <= 9 and all(Path(path).stat().st_size == length for path, length in sample)
    assert noise.sample(1) and datasets.load("digits", root=Path("nowhere"), image_size=8).sample() == ()


def test_evaluated_images_are_those_of_torchvision(noise: Data, folder: Path):
    usual = v2.Compose([v2.Resize(18), v2.CenterCrop(16)])  # 16 * 256 / 224
    files = sorted((folder / "val").rglob("n0*_*"))
    assert len(files) == len(noise.test) == 18
    expected = np.stack([np.asarray(usual(Image.open(file).convert("RGB"))).transpose(2, 0, 1) for file in files])
    assert (noise.test.decoded() == expected).all() and noise.test.images.shape == expected.shape
    assert (noise.test.images[np.array([3, 1])] == expected[[3, 1]]).all()
    assert (noise.test.images[:2] == expected[:2]).all() and len(noise.test.images[:0]) == 0
    images, labels = to_device(noise.test, "cpu")
    found = list(in_order(images, labels, noise, batch_size=7))
    assert [len(b.labels) for b in found] == [7, 7, 4]
    torch.testing.assert_close(torch.cat([b.images for b in found]), normalise(torch.from_numpy(expected), noise))
    assert found[0].images.is_contiguous(memory_format=torch.channels_last)


@settings(deadline=None)
@given(st.integers(8, 3000), st.integers(8, 3000), st.integers(0, 2**31), st.sampled_from([(0.08, 1.0), (0.5, 0.6)]))
def test_random_boxes_have_the_area_and_the_ratio_asked_for(
    width: int, height: int, seed: int, area: tuple[float, float]
):
    draws = np.random.default_rng(seed).random((TRIES, 4))
    left, top, right, bottom = random_box(width, height, area, draws)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    middle = {left, width - right} <= {(width - w) // 2, -(-(width - w) // 2)}
    slack = 1 / min(w, h) + 0.5 / (w * h)  # edges are whole pixels
    share, ratio = w * h / (width * height), w / h
    fits = area[0] * (1 - slack) <= share <= area[1] * (1 + slack) and 0.75 * (1 - slack) <= ratio <= (1 + slack) / 0.75
    assert fits or middle


def test_random_boxes_are_distributed_as_those_of_torchvision():
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    image = Image.new("L", (60, 40))
    usual = v2.RandomResizedCrop(8)
    rows = [usual.make_params([image]) for _ in range(3000)]
    theirs = np.array([[r["left"], r["top"], r["width"], r["height"]] for r in rows])
    boxes = np.array([random_box(60, 40, (0.08, 1.0), random.random((TRIES, 4))) for _ in range(3000)])
    ours = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / 3000)
    assert (abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4.5 * error).all()
    assert abs(ours.std(axis=0) / theirs.std(axis=0) - 1).max() < 0.08


def test_a_long_image_falls_back_to_its_middle():
    draws = np.random.default_rng(0).random((TRIES, 4))
    assert random_box(4000, 10, (0.9, 1.0), draws) == (1993, 0, 2006, 10)
    assert random_box(10, 4000, (0.9, 1.0), draws) == (0, 1993, 10, 2006)


def test_an_epoch_shows_every_image_once_with_its_label(flat: Data):
    images, labels = to_device(flat.train, "cpu")
    epoch = list(batches(images, labels, flat, batch_size=8, generator=seeded()))
    assert [len(b.labels) for b in epoch] == [8, 8, 8, 3]
    shown = torch.cat([b.images for b in epoch])
    assert (shown == shown[:, :, :1, :1]).all()  # of one colour, as the files
    spots = flat.train.images[:][:, :, 0, 0]
    pixels = shown[:, :, 0, 0] * torch.tensor(flat.std) + torch.tensor(flat.mean)
    order = [int(np.flatnonzero((spots == spot).all(axis=1))[0]) for spot in np.rint(255 * pixels.numpy())]
    assert sorted(order) == list(range(27)) != order
    assert torch.cat([b.labels for b in epoch]).tolist() == flat.train.labels[order].tolist()


def test_crops_follow_the_generator_and_not_the_number_of_threads(noise: Data):
    images, labels = to_device(noise.train, "cpu")
    shown = []
    for seed, threads in ((0, 1), (0, 2), (1, 1)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            epoch = batches(images, labels, noise, batch_size=16, generator=seeded(seed))
            shown.append(torch.cat([b.images for b in epoch]))
        finally:
            torch.set_num_threads(before)
    torch.testing.assert_close(shown[0], shown[1], rtol=0, atol=1e-6)
    assert not torch.equal(shown[0], shown[2])


def test_views_are_neighbours_with_crops_of_their_own(noise: Data, flat: Data):
    for data in (noise, flat):
        images, labels = to_device(data.train, "cpu")
        batch = next(batches(images, labels, data, batch_size=12, views=3, generator=seeded()))
        groups, truth = batch.images.unflatten(0, (-1, 3)), batch.labels.unflatten(0, (-1, 3))
        assert groups.shape[:2] == (4, 3) and (truth == truth[:, :1]).all()
        differ = (groups != groups[:, :1]).flatten(2).any(dim=2)[:, 1:]
        assert differ.all() if data is noise else not differ.any()


def test_without_area_training_sees_the_evaluated_images(noise: Data):
    plain = dataclasses.replace(noise, augment=Augment())
    images, labels = to_device(plain.train, "cpu")
    epoch = list(batches(images, labels, plain, batch_size=64, generator=seeded()))
    shown, truth = epoch[0].images, normalise(torch.from_numpy(noise.train.decoded()), noise)
    order = torch.cdist(shown.flatten(1), truth.flatten(1)).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(54))
    torch.testing.assert_close(shown, truth[order])
    crop = copy_of(torch.from_numpy(noise.test.images[:4]), "crop", noise, seeded())
    assert crop.shape == (4, 3, 16, 16)


def test_it_crosses_processes_as_names(noise: Data):
    buffers: list[pickle.PickleBuffer] = []
    small = pickle.dumps(noise, protocol=5, buffer_callback=buffers.append)
    assert len(small) < 5_000 and len(buffers) == 9
    found = pickle.loads(small, buffers=buffers)
    assert found.hash == noise.hash and (found.test.images[:3] == noise.test.images[:3]).all()


@pytest.mark.parametrize("name", ["static", "imta"])
def test_training_is_that_of_the_decoded_images(name: str, noise: Data):
    """One epoch and its curve and diagnostics, without augmentation: from files and from memory."""
    method = get_method(name)
    network = {"static": "resnet-8", "imta": "msdnet-2"}[name]
    config = method.configure({"network": network, "width": 0.25, "batch_size": 18, "lr": 0.01})
    reports = []
    for data in (dataclasses.replace(noise, augment=Augment()), in_memory(noise)):
        training = Training(method, config, data, epochs=2, evaluate_at=[1], diagnostics=False)
        report = training.step()
        found = diagnose(method, training.network, data)
        reports.append((report["losses"], report["curve"]["points"], found.record["macs"], found.record["kl_aug"]))
    assert reports[0][0] == pytest.approx(reports[1][0], rel=1e-5)
    for lazy, memory in zip(reports[0][1], reports[1][1], strict=True):
        assert lazy["correct"] == memory["correct"] and lazy["macs"] == memory["macs"]
    assert reports[0][2] == reports[1][2] and reports[0][3] == pytest.approx(reports[1][3], rel=1e-3)


def test_a_restored_training_goes_on_as_if_nothing_had_happened(noise: Data, tmp_path: Path):
    method = get_method("static")
    config = method.configure({"network": "resnet-8", "width": 0.25, "batch_size": 18})
    straight, first, second = (Training(method, config, noise, epochs=2, seed=1) for _ in range(3))
    reports = [straight.step(), straight.step()]
    first.step()
    first.save(tmp_path / "epoch")
    second.restore(tmp_path / "epoch")
    second.leaving = lambda: True
    with pytest.raises(Interrupted, match=r"^1 of 3 steps of epoch 2 are done"):
        second.step()
    second.save(tmp_path / "part")
    first.restore(tmp_path / "part")
    assert first.step()["losses"] == reports[1]["losses"]


def test_50_000_of_a_million_are_held_out():
    images = np.zeros((1, 1, 4, 4), dtype=np.uint8)
    labels = np.arange(1_000_000) % 10
    source = Source(
        classes=tuple("0123456789"),
        train=Split(np.broadcast_to(images, (1_000_000, 1, 4, 4)), labels),
        test=Split(images, np.zeros(1, dtype=np.int64)),
        augment=Augment(),
    )
    assert [len(s) for s in divide(source, 0)] == [950_000, 50_000, 1]


def test_a_hundred_classes_are_always_the_same(tmp_path: Path):
    classes = [f"n{i:03d}" for i in range(104)]
    for name in classes:
        for split, count in (("train", 2), ("val", 1)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / name / f"{i}.JPEG").write_bytes(name.encode())  # not opened
    data = datasets.load(f"imagenet-100:{tmp_path}", root=Path("nowhere"))
    assert len(data.classes) == data.task.classes == 100 and sorted(data.classes) == list(data.classes)
    assert sorted({*classes} - {*data.classes}) == ["n044", "n047", "n064", "n067"]
    assert len(datasets.load(f"imagenet:{tmp_path}", root=Path("nowhere")).classes) == 104
    for split in (data.train, data.validation, data.test):
        for name, label in zip(split.images.names, split.labels, strict=True):
            assert name.decode().split("/")[1] == data.classes[label]
    (tmp_path / "imagenet-100.txt").write_text("\n".join(reversed(classes[4:])))
    assert datasets.load(f"imagenet-100:{tmp_path}", root=Path("nowhere")).classes == tuple(classes[4:])
    (tmp_path / "imagenet-100.txt").write_text("\n".join(classes[5:]))
    with pytest.raises(DataError, match=r"imagenet-100.txt names 99 different classes on 99 lines: .* takes 100"):
        datasets.load(f"imagenet-100:{tmp_path}", root=Path("nowhere"))
    (tmp_path / "imagenet-100.txt").write_text("\n".join([*classes[5:], "dog"]))
    with pytest.raises(DataError, match=r"imagenet-100.txt names dog, which is no folder in .*train"):
        datasets.load(f"imagenet-100:{tmp_path}", root=Path("nowhere"))


def test_what_is_wrong_is_said_in_one_line(folder: Path, tmp_path: Path):
    with pytest.raises(DataMissing, match=r"imagenet is not in .*/imagenet: no .*train and no .*val; .*image-net.org"):
        datasets.load("imagenet", root=tmp_path)
    with pytest.raises(DataError, match=r"imagenet was not downloaded: .*image-net.org"):
        datasets.download("imagenet", tmp_path)
    with pytest.raises(DataError, match=r"train has 3 class folders: imagenet-100 takes 100 or more"):
        datasets.load("imagenet-100", root=folder.parent)
    write(tmp_path, ["n01", "n02"], {"train": 4, "val": 1}, flat=True)
    name = f"imagenet:{tmp_path}"
    path = tmp_path / "train" / "n02" / "n02_1.png"
    path.write_bytes(path.read_bytes()[:60])
    data = datasets.load(name, root=tmp_path, image_size=8).for_config(TrainingConfig())
    images, labels = to_device(data.train, "cpu")
    assert isinstance(images, LazyImages)
    with pytest.raises(DataError, match=r"n02_1.png is not a whole image file"):
        list(batches(images, labels, dataclasses.replace(data), batch_size=4, generator=seeded()))
    path.unlink()
    with pytest.raises(DataMissing, match=r"no image at .*n02_1.png"):
        list(batches(images, labels, data, batch_size=4, generator=seeded()))
    for image in (tmp_path / "train" / "n02").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"train/n02 holds no image"):
        datasets.load(name, root=tmp_path)
    (tmp_path / "val" / "n02" / "n02_0.png").rename(tmp_path / "val" / "n02_0.png")
    (tmp_path / "val" / "n02").rmdir()
    write(tmp_path / "more", ["n02"], {"train": 1}, flat=True)
    (tmp_path / "more" / "train" / "n02" / "n02_0.png").rename(path)
    with pytest.raises(DataError, match=r"val has no folder n02: expected .*val/<class>/<image>"):
        datasets.load(name, root=tmp_path)
