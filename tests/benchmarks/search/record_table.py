"""Records a table of real trainings, curves at several epochs, for searches to be compared on (`recorded.py`).

    python tests/benchmarks/search/record_table.py DATA --out FOLDER [--configs 84] [--epochs 9] [--jobs 2]
    python tests/benchmarks/search/record_table.py DATA --out FOLDER --merge tests/benchmarks/search/recorded.json

The configurations are uniform draws from the spaces of ``recorded.toml``, as many of every method. Each trains in a
process of one thread and leaves ``FOLDER/NNN.json``; what is there is not trained again. The validation
images are parted: a contender is shown the accuracy on the even ones, what it found is scored on the odd ones.
The test split is not touched.
"""

from __future__ import annotations

import argparse
import json
import os
import random
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
AT = (1, 2, 3, 4, 6, 9)


def spec(epochs: int = 9) -> StudySpec:
    """A study over the recorded spaces."""
    return StudySpec.parse({"name": "recorded", "budget": {"epochs": epochs}, **tomllib.loads(SPACES.read_text())})


def configuration(number: int) -> dict[str, Any]:
    """Configuration `number` of the table."""
    spaces = spec().spaces()
    method = list(spaces)[number % len(spaces)]
    return {"method": method, **drawn(spaces[method], random.Random(seed_of("recorded", number)), {})}


def train(number: int, data_name: str, epochs: int, file: Path) -> None:
    """Train one configuration and write what it showed."""
    import torch

    from trainables.data.datasets import default_root, load
    from trainables.registry import get_method
    from trainables.training.training import Training

    torch.set_num_threads(1)
    config = configuration(number)
    method = get_method(config["method"])
    values = {key: value for key, value in config.items() if key != "method"}
    data = load(data_name, root=default_root())
    training = Training(method, method.configure(values), data, epochs=epochs, seed=number, evaluate_at=AT)
    curves: dict[int, list[list[float]]] = {}
    seconds = []
    while not training.done:
        report = training.step()
        seconds.append(report["seconds"])
        if "curve" in report:
            assert training.last_curve is not None
            correct = training.last_curve.correct
            macs = [round(point["macs"]) for point in training.last_curve.points]
            halves = zip(correct[:, ::2].mean(1).tolist(), correct[:, 1::2].mean(1).tolist(), macs, strict=True)
            curves[report["epoch"]] = [[round(shown, 4), round(scored, 4), cost] for shown, scored, cost in halves]
    print(
        f"{number:3} {config['method']}: {max(row[0] for row in curves[epochs]):.3f}, {sum(seconds):.0f} s", flush=True
    )
    record = {"config": config, "seconds": round(statistics.mean(seconds), 2), "curves": curves}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.rename(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--configs", type=int, default=84)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--merge", type=Path, help="only write what is there as one file")
    given = parser.parse_args()
    if given.merge is not None:
        rows = [json.loads(file.read_text()) for file in sorted(given.out.glob("*.json"))]
        name = Path(given.data).name
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        given.merge.write_text(f'{{"data":{json.dumps(name)},"epochs":{given.epochs},"rows":[\n{lines}\n]}}\n')
        print(f"{len(rows)} trainings, {given.merge.stat().st_size / 1e3:.0f} kB")
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    given.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(given.jobs) as pool:
        jobs = []
        for number in range(given.configs):
            file = given.out / f"{number:03}.json"
            if not file.exists():
                jobs.append(pool.submit(train, number, given.data, given.epochs, file))
        for job in as_completed(jobs):
            job.result()


if __name__ == "__main__":
    main()
