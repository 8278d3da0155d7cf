"""The pictures of soft routing: which gates and images are shown, what stands on the page and in the files."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.points import files as points
from search.report import variants
from search.report.gates import figures as gate_figures
from search.report.paths.data import Paths, TrialPaths
from search.report.pictures import draw_paths
from search.report.sections import path_sections
from tests.search.report.test_page import EVIL, made
from tests.search.report.test_paths import record, trial

IMAGES = 60
# one-to-two, then two-to-two: gates 0, 1 and 2 ... 5; tensors 0 ... 2 and 3 ... 6
LAYERS = [
    {"place": "input", "inputs": 1, "outputs": 2, "gates": [0.25, 0.75], "strengths": [2.0, 1.0, 3.0]},
    {"place": "conv2", "inputs": 2, "outputs": 2, "gates": [0.5, 0.5, 0.1, 0.9], "strengths": [1.0, 1.0, 1.0, 3.0]},
]
WEIGHTS = [{"layer": 4, "kind": "convolution", "low": -1.0, "high": 1.0, "counts": [[1, 2, 1], [0, 4, 0]]}]


def soft(name: str = "m1", **arrays: Any) -> TrialPaths:
    random = np.random.default_rng(0)
    labels = np.arange(IMAGES) % 3
    relaxed = random.uniform(0.4, 0.6, (IMAGES, 6))
    relaxed[:, 1] = 0.5 + 0.1 * labels  # tells the classes apart, as gate 4 does
    relaxed[:, 4] = 0.9 - 0.1 * labels
    found = {
        "index": np.arange(IMAGES, dtype=np.int32),
        "label": labels.astype(np.int32),
        "relaxed": relaxed.astype(np.float16),
        "strengths": random.uniform(0.5, 1, (IMAGES, 7)).astype(np.float16),
        "path": np.ones((IMAGES, 9), np.float32),
        **arrays,
    }
    measured = record(routes={"layers": LAYERS, "weights": WEIGHTS})
    return TrialPaths(trial=name, method="multipath", variant="cc", network="basecnn-2", record=measured, arrays=found)


@pytest.fixture(scope="module")
def paths() -> Paths:
    images = np.random.default_rng(2).integers(0, 255, (IMAGES, 3, 8, 8)).astype(np.uint8)
    return Paths(trials=[soft(), trial("t1")], classes=["a", "b", EVIL, "d"], images=images)


def test_gates_are_numbered_as_decisions_are() -> None:
    gates = gate_figures.gates_of(soft())
    assert [(g.column, g.place, g.i, g.j) for g in gates] == [
        *((k, "input", 0, k) for k in range(2)),
        *((2 + 2 * i + j, "conv2", i, j) for i in range(2) for j in range(2)),
    ]
    assert gates[5].label == "conv2, gate from input 2 to path 2"


def test_the_gates_that_tell_classes_apart_are_shown() -> None:
    one = soft()
    assert [g.column for g in gate_figures.telling(one)] == [1, 4]
    assert [g.column for g in gate_figures.telling(one, most=1)] == [1]
    first, last = gate_figures.telling(one)
    assert gate_figures.shown_classes(one, first) == [0, 1, 2] and gate_figures.shown_classes(one, last) == [2, 1, 0]
    assert gate_figures.shown_classes(one, first, most=2) == [0, 2]
    middles, shares = gate_figures.gate_histogram(one, first, 2)
    assert shares.sum() == pytest.approx(1) and shares[-1] == 1 and 0.69 < middles[-1] < 0.7
    figure = gate_figures.gate_figure(one, first, ["a", "b", EVIL])
    assert len(figure.data) == 3 and EVIL not in str(figure.data[2].name)


def test_images_at_both_ends_of_a_gate() -> None:
    one = soft()
    (gate,) = [g for g in gate_figures.gates_of(one) if g.column == 0]
    most, least = gate_figures.openers(one, gate, 5)
    values = one.arrays["relaxed"][:, 0]
    assert values[most].min() >= np.delete(values, most).max() and values[most[0]] == values.max()
    assert values[least].max() <= np.delete(values, least).min() and values[least[0]] == values.min()


def test_the_flow_of_the_mean_and_of_one_image() -> None:
    one = soft()
    first, second = gate_figures.flow(one)
    assert first["gates"].tolist() == [[0.25, 0.75]] and first["inputs"].tolist() == [1.0]
    assert first["outputs"].tolist() == [0.25, 0.75] and second["gates"].tolist() == [[0.5, 0.5], [0.1, 0.9]]
    row = gate_figures.flow(one, 7)[1]
    assert row["gates"].ravel().tolist() == one.arrays["relaxed"][7, 2:].astype(float).tolist()
    sizes = one.arrays["strengths"][7, 3:5].astype(float)
    assert np.allclose(row["inputs"], sizes / sizes.sum()) and row["outputs"].sum() == pytest.approx(1)
    figure = gate_figures.flow_figure(one)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(lines) == 6 and lines[1].line.width > lines[0].line.width
    assert len(figure.data[-1].x) == 7 and gate_figures.shade("#E03131", 1.0) == "#E03131"
    ungated = {**LAYERS[0], "gates": []}
    plain = dataclasses.replace(one, record=record(routes={"layers": [ungated, LAYERS[1]], "weights": []}))
    assert gate_figures.flow(plain)[0]["gates"] is None and [g.column for g in gate_figures.gates_of(plain)] == [
        0,
        1,
        2,
        3,
    ]
    assert len([t for t in gate_figures.flow_figure(plain).data if t.mode == "lines"]) == 4


def test_weights_are_shares_of_a_path() -> None:
    (middles, first), (_, second) = gate_figures.weight_lines(WEIGHTS[0])
    assert middles.round(3).tolist() == [-0.667, 0, 0.667]
    assert first.tolist() == [0.25, 0.5, 0.25] and second.tolist() == [0, 1, 0]


def test_accuracy_against_parameters_has_what_nothing_smaller_beats() -> None:
    rows = [{**made(1)[0], "point_id": str(k), "method": "multipath", "params": p, "accuracy": a}
            for k, (p, a) in enumerate([(100, 0.5), (200, 0.4), (300, 0.7), (300, 0.6)])]  # fmt: skip
    ((method, variant, params, accuracy),) = variants.variant_fronts(points._table(rows), "params")
    assert (method, variant) == ("multipath", "")
    assert params.tolist() == [100, 300] and accuracy.tolist() == [0.5, 0.7]


def test_sections_and_files(paths: Paths, tmp_path: Path) -> None:
    page = "\n".join(path_sections(points._table(made(20)), paths))
    titles = re.findall("<h2>(.*?)</h2>", page)
    own = ["Accuracy against parameters", "Routing flow", "Gates by class", "Images that open gates"]
    assert [t for t in titles if t in own] == own and "Weights of parallel paths" in titles
    assert EVIL not in page
    names = re.findall(r'<div id="([\w-]+)"', page)
    assert len(names) == len(set(names))
    assert {"flow-0-0", "flow-0-2", "gate-0-1", "weights-0-0", "skip-0"} <= set(names) and "skip-1" not in names
    files = draw_paths(points._table(made(20)), paths, tmp_path)
    expected = {"parameters.png", "routing-flow.png", "gates.png", "gate-images.png", "path-weights.png"}
    assert expected <= {file.name for file in files}
    assert all(file.stat().st_size > 4000 for file in files if file.name in expected)


def test_what_is_missing_is_left_out(paths: Paths, tmp_path: Path) -> None:
    table = points._table(made(8))
    bare = Paths(trials=[dataclasses.replace(paths.trials[0], arrays={})], classes=paths.classes)
    page = "\n".join(path_sections(table, bare))
    assert "Routing flow" in page and "Gates by class" not in page and "Images that open gates" not in page
    gone = dataclasses.replace(paths, images=None, note="no data set <here>")
    assert page.count("cannot be shown") == 0
    assert "\n".join(path_sections(table, gone)).count("no data set &lt;here&gt;") == 2
    others = "\n".join(path_sections(table, Paths(trials=[trial("t1")], classes=paths.classes)))
    assert "Routing flow" not in others and "Accuracy against parameters" not in others
    assert not (tmp_path / "gates.png").exists()
