"""Records a table of real trainings, the curve of every epoch, for searches to be compared on (`recorded.py`).

    python tests/benchmarks/search/record_table.py DATA --out FOLDER [--configs 162] [--repeated 20] [--jobs 2]
    python tests/benchmarks/search/record_table.py DATA --out FOLDER --merge tests/benchmarks/search/trainings.json

The configurations are uniform draws from the spaces of ``recorded.toml``, as many of every method; those of `repeated`,
evenly chosen, are trained on two more seeds. Each trains in a process of one thread and leaves ``FOLDER/NNN.json``, or
``NNN-SEED.json``; what is there is not trained again, and one that was interrupted goes on behind its last epoch.
``NNN.npz`` beside it keeps the class probabilities and MACs of the last curve on validation and test images, for
cascades of these networks to be composed (`bench_composed.py`). A point is [accuracy on the even validation images, on
the odd ones, on the test images, MACs]: a contender is shown the even ones, what it found is scored on the odd ones,
and the test split is read by the comparison of selections alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tomllib
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.sampling.proposals import seed_of
from search.spec.study import StudySpec
from spaces.space import drawn

SPACES = Path(__file__).with_name("recorded.toml")
EPOCHS = 12


def spec(epochs: int = EPOCHS) -> StudySpec:
    """A study over the recorded spaces."""
    return StudySpec.parse({"name": "recorded", "budget": {"epochs": epochs}, **tomllib.loads(SPACES.read_text())})


def configuration(number: int) -> dict[str, Any]:
    """Configuration `number` of the table."""
    spaces = spec().spaces()
    method = list(spaces)[number % len(spaces)]
    return {"method": method, **drawn(spaces[method], random.Random(seed_of("recorded", number)), {})}


def train(number: int, seed: int, data_name: str, file: Path) -> None:
    """Train one configuration and write what it showed after every epoch."""
    import numpy as np
    import torch

    from trainables import checkpoints
    from trainables.data.augment import normalise, to_device
    from trainables.data.datasets import default_root, load
    from trainables.registry import get_method
    from trainables.training.training import Training

    torch.set_num_threads(1)
    config = configuration(number)
    method = get_method(config["method"])
    values = {key: value for key, value in config.items() if key != "method"}
    data = load(data_name, root=default_root())
    training = Training(
        method,
        method.configure(values),
        data,
        epochs=EPOCHS,
        seed=seed,
        evaluate_at=range(1, EPOCHS + 1),
        predictions=True,
    )
    folder, notes = file.with_suffix(".trial"), file.with_suffix(".notes")
    curves: dict[str, list[list[float]]] = {}
    seconds: list[float] = []
    if (known := checkpoints.newest(folder)) is not None and notes.exists():
        training.restore(known)
        curves, seconds = json.loads(notes.read_text())
        curves, seconds = {k: v for k, v in curves.items() if int(k) <= training.epoch}, seconds[: training.epoch]
    images, labels = to_device(data.test, "cpu")
    test = normalise(images, training.data), labels
    while not training.done:
        report = training.step()
        seconds.append(report["seconds"])
        assert training.last_curve is not None
        curves[str(report["epoch"])], on_test = _points(training, test)
        if not training.done:
            notes.write_text(json.dumps([curves, seconds]))
            training.save(checkpoints.epoch_folder(folder, training.epoch))
            shutil.rmtree(checkpoints.epoch_folder(folder, training.epoch - 1), ignore_errors=True)
    assert training.last_curve is not None
    answers = {**_answers(training.last_curve.predictions, "validation"), **_answers(on_test, "test")}
    np.savez_compressed(file.with_suffix(".npz"), config=json.dumps(config), **answers)
    best = max(row[0] for row in curves[str(EPOCHS)])
    print(f"{file.stem:6} {config['method']}: {best:.3f}, {sum(seconds):.0f} s", flush=True)
    record = {"number": number, "seed": seed, "config": config, "seconds": round(statistics.median(seconds), 2)}
    part = file.with_suffix(".part")
    part.write_text(json.dumps({**record, "curves": curves}))
    part.rename(file)
    shutil.rmtree(folder, ignore_errors=True)
    notes.unlink(missing_ok=True)


def _points(training: Any, test: Any) -> tuple[list[list[float]], Any]:
    """A curve's points, and what they answer on the test images at the knobs that the validation images gave."""
    from trainables.inference.evaluation import curve, exit_logits
    from trainables.inference.predictions import Collected, Predictions
    from trainables.inference.prepare import prepared

    found, method, network = training.last_curve, training.method, training.network
    images, labels = test
    if method.calibrate is None:
        on_test = curve(method, network, images, labels, keep=True)
        tested, answers = [point["accuracy"] for point in on_test.points], on_test.predictions
    else:
        network.eval()
        logits = exit_logits(prepared(network), images)
        results = [network.replay(logits, point["knobs"]) for point in found.points]
        tested = [float(result.logits.argmax(dim=1).eq(labels).double().mean()) for result in results]
        collected = [Collected() for _ in results]
        for each, result in zip(collected, results, strict=True):
            each.add(result)
        answers = Predictions.collected(collected, labels)
        network.train()
    even, odd = found.correct[:, ::2].mean(1).tolist(), found.correct[:, 1::2].mean(1).tolist()
    macs = [round(point["macs"]) for point in found.points]
    points = [[round(a, 4), round(b, 4), round(c, 4), d] for a, b, c, d in zip(even, odd, tested, macs, strict=True)]
    return points, answers


def _answers(kept: Any, split: str) -> dict[str, Any]:
    """What a curve's points answered on every image of a split, by the names of the arrays."""
    import numpy as np

    every = np.stack([kept.of(setting) for setting in range(kept.settings)]).astype(np.float16)
    answers = {"labels": kept.labels, "probabilities": every, "macs": kept.macs}
    return {f"{name}_{split}": array for name, array in answers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--configs", type=int, default=162)
    parser.add_argument("--repeated", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--merge", type=Path, help="only write what is there as one file")
    given = parser.parse_args()
    if given.merge is not None:
        rows = [json.loads(file.read_text()) for file in sorted(given.out.glob("*.json"))]
        name = Path(given.data).name
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        given.merge.write_text(f'{{"data":{json.dumps(name)},"epochs":{EPOCHS},"rows":[\n{lines}\n]}}\n')
        print(f"{len(rows)} trainings, {given.merge.stat().st_size / 1e3:.0f} kB")
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = [(number, number, f"{number:03}") for number in range(given.configs)]
    chosen = [round(i * (given.configs - 1) / max(1, given.repeated - 1)) for i in range(given.repeated)]
    wanted += [(number, 1000 * seed + number, f"{number:03}-{seed}") for seed in (1, 2) for number in chosen]
    with ProcessPoolExecutor(given.jobs) as pool:
        jobs = []
        for number, seed, name in wanted:
            file = given.out / f"{name}.json"
            if not file.exists():
                jobs.append(pool.submit(train, number, seed, given.data, file))
        for job in as_completed(jobs):
            job.result()


if __name__ == "__main__":
    main()
