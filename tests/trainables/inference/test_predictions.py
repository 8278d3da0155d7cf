"""Kept predictions are what is executed, come back as they were, and nothing else is taken for them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from trainables.checkpoints import CheckpointError, read_record
from trainables.contracts.network import Inference
from trainables.data.augment import normalise, to_device
from trainables.data.splits import Data
from trainables.inference import predictions as kept
from trainables.inference.predictions import PREDICTIONS, Collected, Predictions, PredictionsError, probabilities
from trainables.registry import get_method
from trainables.training.training import Training


@pytest.fixture(scope="module")
def images() -> Data:
    from trainables.data import datasets

    return datasets.load("digits", root=Path("unused"), image_size=8, limit=64)


@pytest.mark.parametrize(("method", "network"), [("skipnet", "resnet-8"), ("imta", "msdnet-2")])
def test_a_checkpoint_keeps_what_its_points_answer(method: str, network: str, images: Data, tmp_path: Path) -> None:
    found = get_method(method)
    config = found.configure({"network": network, "width": 0.25, "batch_size": 32})
    training = Training(found, config, images, epochs=1, predictions=True)
    report = training.step()
    training.save(tmp_path / "epoch-0001")
    assert PREDICTIONS in read_record(tmp_path / "epoch-0001")["files"]
    read = kept.read(tmp_path / "epoch-0001" / PREDICTIONS)
    pixels, labels = to_device(images.validation, "cpu")
    assert (read.labels == labels.numpy()).all() and read.settings == len(report["curve"]["points"])
    inputs = normalise(pixels, images.for_config(config))
    for setting in (0, read.settings - 1):
        with torch.no_grad():
            result = training.network.eval().infer(inputs, report["curve"]["points"][setting]["knobs"])
        assert np.allclose(read.of(setting), probabilities(result.logits), atol=2e-3)
        assert np.allclose(read.macs[setting], result.macs.numpy())
        assert np.allclose(read.path[setting], result.path.numpy(), atol=1e-3)
        if result.exits is not None:
            assert read.exits is not None and (read.exits[setting] == result.exits.numpy()).all()
    (tmp_path / "epoch-0001" / PREDICTIONS).write_bytes(b"other")
    with pytest.raises(CheckpointError, match="cut off or changed"):
        read_record(tmp_path / "epoch-0001")


def test_a_training_keeps_none_unless_it_is_told(images: Data, tmp_path: Path) -> None:
    method = get_method("static")
    training = Training(method, method.configure({"network": "resnet-8", "width": 0.25}), images, epochs=1)
    training.step()
    training.save(tmp_path / "epoch-0001")
    assert not (tmp_path / "epoch-0001" / PREDICTIONS).exists()


def answers(classes: int, count: int = 300, shares: bool = False) -> Predictions:
    draw = torch.Generator().manual_seed(classes)
    parts = []
    for _ in range(3):
        path = torch.rand(count, 9, generator=draw)
        logits = 4 * torch.randn(count, classes, generator=draw)
        one = Collected()
        one.add(Inference(logits, path if shares else path.round(), path.double().sum(1) + 1, path))
        parts.append(one)
    return Predictions.collected(parts, torch.randint(classes, (count,), generator=draw))


@pytest.mark.parametrize("classes", [2, 16, 17, 300])
@pytest.mark.parametrize("shares", [False, True])
def test_what_is_written_comes_back(classes: int, shares: bool, tmp_path: Path) -> None:
    before = answers(classes, shares=shares)
    kept.write(tmp_path / PREDICTIONS, before)
    after = kept.read(tmp_path / PREDICTIONS)
    assert after.count == classes and (after.path == before.path).all() and (after.macs == before.macs).all()
    for setting in range(3):
        assert (after.of(setting) == before.of(setting)).all()
        assert np.allclose(after.of(setting).sum(1), 1, atol=3e-3)


def test_of_many_classes_the_five_largest_are_exact_to_half_a_bit() -> None:
    logits = 3 * torch.randn(50, 100, generator=torch.Generator().manual_seed(1))
    exact, found = logits.softmax(1).numpy(), probabilities(logits)
    top = np.argsort(-exact, axis=1)[:, :5]
    assert np.allclose(np.take_along_axis(found, top, 1), np.take_along_axis(exact, top, 1), rtol=1e-3)
    assert (found.argmax(1) == exact.argmax(1)).all()


def broken(tmp_path: Path, **changes: object) -> Path:
    arrays = {**answers(4).arrays(), **changes}
    np.savez_compressed(tmp_path / PREDICTIONS, **{k: v for k, v in arrays.items() if v is not None})  # type: ignore[arg-type]
    return tmp_path / PREDICTIONS


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": np.array(2)}, "was kept by another version"),
        ({"version": None}, "was kept by another version"),
        ({"macs": np.full((3, 300), np.nan)}, "MACs are not finite"),
        ({"labels": np.full(300, 7, np.uint16)}, "classes beyond its 4"),
        ({"every": None}, "no class probabilities"),
        ({"every": np.full((3, 300, 4), 2, np.float16)}, "outside"),
        ({"every": np.zeros((3, 300, 5), np.float16)}, "has the shape"),
        ({"every": np.zeros((3, 300, 4), np.float64)}, "is of type float64"),
        ({"labels": np.array([{}] * 300, dtype=object)}, "is damaged"),
    ],
)
def test_what_is_no_such_file_is_one_line(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match=says) as caught:
        kept.read(broken(tmp_path, **changes))
    assert "\n" not in str(caught.value) and PREDICTIONS in str(caught.value)


def test_a_file_that_is_cut_off_gone_or_a_bomb_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = broken(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PredictionsError, match="is damaged"):
        kept.read(path)
    path.unlink()
    with pytest.raises(PredictionsError, match="is not there"):
        kept.read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("macs.npy", "w") as file:
        file.write(bytes(1 << 22))
    monkeypatch.setattr(kept, "_LARGEST", 1 << 21)
    with pytest.raises(PredictionsError, match="would unpack to"):
        kept.read(path)
