"""The pictures of paths: which trials, what is read beside checkpoints, what stands on the page."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from search.points import files as points
from search.report import variants
from search.report.exits.figures import class_exit_figure, exit_colours, exit_figure, exit_shares
from search.report.html import panel
from search.report.mosaic import mosaic
from search.report.paths import figures as path_figures
from search.report.paths.data import Paths, TrialPaths, embedded, extremes, paths_of, spread
from search.report.pictures import draw_paths
from search.report.sections import path_sections
from search.state.retention import chosen
from search.studies.folder import StudyFolder
from search.study import Study
from tests.search.report.test_page import EVIL, made
from trainables.diagnostics.copies import COPIES


def record(blocks: int = 9, images: int = 60, exits: int = 0, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Diagnostics as a trial reports them, from paths drawn at random."""
    random = np.random.default_rng(seed)
    run = random.random((images, blocks)) < random.uniform(0.2, 0.9, blocks)
    skipped, labels = blocks - run.sum(1), np.arange(images) % 3
    classes = []
    for label in range(3):
        counts = np.bincount(skipped[labels == label])
        least = int(np.flatnonzero(counts)[0])
        median = float(np.median(skipped[labels == label]))
        entry = {"images": 20, "acc": 0.5 + 0.1 * label, "median": median, "least": least}
        classes.append({**entry, "histogram": counts[least:].tolist()})
    classes.append({"images": 0})
    found = {
        "setting": {"threshold": 0.5}, "knobs": {"threshold": 0.5}, "images": images, "params": 1000,
        "decisions": blocks, "blocks": [f"block-{k}" for k in range(blocks)],
        "groups": [3 * k // blocks for k in range(blocks)], "acc": 0.8, "err": 0.2, "macs": 3e6,
        "K": float(run.sum(1).mean()), "n_paths": 7, "compute_pct": 61.0,
        "skip_ratio": (1 - run.mean(0)).round(6).tolist(), "skip_by_class": classes,
        "consistency": dict.fromkeys(COPIES, 30), "kl_aug": dict.fromkeys(COPIES, 0.125), "kl_bins": [-6, 2, 8],
        "kl_histogram": {how: [6, 6, 12, 12, 12, 6, 6, 0] for how in COPIES}, "seconds": 0.1, "share_of_time": 0.02,
    }  # fmt: skip
    if exits:
        found |= {"exit_acc": [0.6] * exits, "exit_frac": [1 / exits] * exits, "exit_acc_given_exit": [0.7] * exits}
        found["exit_acc_given_exit"][-1] = None
        found["class_by_exit"] = [[20 - 5 * c, *[0] * (exits - 2), 5 * c] for c in range(3)] + [[0] * exits]
    return {**found, **more}


def trial(name: str, method: str = "codinet", variant: str = "full", exits: int = 0, images: int = 60) -> TrialPaths:
    measured = record(exits=exits, images=images)
    random = np.random.default_rng(1)
    relaxed = random.random((images, 9)).astype(np.float16)
    arrays = {
        "index": np.arange(images, dtype=np.int32), "label": (np.arange(images) % 3).astype(np.int32),
        "relaxed": relaxed, "path": (relaxed > 0.5).astype(np.float32), "macs": np.full(images, 3e6, np.float32),
    }  # fmt: skip
    if exits:
        arrays["exit"] = np.zeros(images, np.int16)
    return TrialPaths(trial=name, method=method, variant=variant, network="resnet-20", record=measured, arrays=arrays)


@pytest.fixture(scope="module")
def paths() -> Paths:
    trials = [trial("t1"), trial("t2", variant="vanilla"), trial("t3", "imta", "ge", exits=3)]
    images = np.random.default_rng(2).integers(0, 255, (60, 3, 8, 8)).astype(np.uint8)
    return Paths(trials=trials, classes=["a", "b", EVIL, "d"], places=embedded(trials), images=images)


@pytest.fixture(scope="module")
def sections(paths: Paths) -> str:
    return "\n".join(path_sections(points._table(made(20)), paths))


def test_the_sections_of_a_study_with_gates_and_exits(sections: str) -> None:
    assert re.findall("<h2>(.*?)</h2>", sections) == [
        "Accuracy against MACs by variant",
        "Paths of the best trials",
        "Skip ratio per block",
        "Exits",
        "Dataflow",
        "Computation by class",
        "Paths by t-SNE",
        "KL between images and their augmented copies",
        "Easy and hard images",
    ]
    assert EVIL not in sections and "alert(1)" in sections  # the name of a class
    assert "50.0 %" in sections and "0.125" in sections and "61.0 %" in sections
    names = re.findall(r'<div id="([\w-]+)"', sections)
    assert len(names) == len(set(names)) and {"skip-1", "tsne-class-0", "kl-mixture", "exits-0"} <= set(names)


def test_a_page_without_scripts_grows_little(sections: str) -> None:
    assert len(sections) < 400_000 and "plotly.js v" not in sections


def test_pictures_hold_the_images_with_the_shortest_and_longest_paths(paths: Paths, sections: str) -> None:
    easy, hard = extremes(paths.trials[0])
    length = paths.trials[0].arrays["path"].sum(1)
    assert len(easy) == len(hard) == 20 and length[easy].max() <= np.delete(length, easy).min()
    assert length[hard].min() >= np.delete(length, hard).max()
    assert paths.images is not None
    first = re.findall(r'class="grid"[^>]*base64,([^"]+)"', sections)[0]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(first))))
    assert (picture == mosaic(paths.images[easy])).all()
    assert (picture[:8, 9:17, :3] == paths.images[easy[1]].transpose(1, 2, 0)).all()
    assert (picture[9:17, :8, :3] == paths.images[easy[10]].transpose(1, 2, 0)).all()


def test_large_and_grey_images_in_a_mosaic() -> None:
    grey = np.arange(3 * 128 * 128, dtype=np.uint32).astype(np.uint8).reshape(3, 1, 128, 128)
    picture = mosaic(grey, columns=2)
    assert picture.shape == (129, 129, 4)
    assert (picture[:64, :64, 2] == grey[0, 0, ::2, ::2]).all() and picture[100, 100, 3] == 0


def test_without_images_the_page_says_why(paths: Paths) -> None:
    gone = dataclasses.replace(paths, images=None, note="no data set <here>")
    page = "\n".join(path_sections(points._table(made(4)), gone))
    assert "The images cannot be shown: no data set &lt;here&gt;" in page and 'class="grid"' not in page


def test_without_arrays_what_the_journal_holds_is_drawn(paths: Paths) -> None:
    bare = Paths(trials=[dataclasses.replace(t, arrays={}) for t in paths.trials], classes=paths.classes)
    page = "\n".join(path_sections(points._table(made(4)), bare))
    assert "Skip ratio per block" in page and "t-SNE" not in page and "Easy and hard" not in page


def test_nothing_measured_nothing_shown() -> None:
    assert path_sections(points.SCHEMA.empty_table(), Paths()) == []


def test_skip_ratios_and_groups(paths: Paths) -> None:
    figure = path_figures.skip_figure(paths.trials[0])
    assert list(figure.data[0].y) == paths.trials[0].record["skip_ratio"]
    assert [shape.x0 for shape in figure.layout.shapes] == [2.5, 5.5]
    assert [(note.x, note.text) for note in figure.layout.annotations] == [
        (1, "group 1"),
        (4, "group 2"),
        (7, "group 3"),
    ]
    assert path_figures.group_middles([0, 0]) == []


def test_quartiles_come_from_the_histogram() -> None:
    skipped = [2, 2, 3, 3, 3, 4, 6, 6]
    counts = np.bincount(skipped)[2:]
    assert (
        spread({"least": 2, "histogram": counts.tolist()})
        == np.quantile(skipped, [0.25, 0.75], method="inverted_cdf").tolist()
    )


def test_classes_are_drawn_by_accuracy(paths: Paths) -> None:
    rows = path_figures.class_rows(paths.trials[0], ["x", "y", "a class of a very long name", "empty"])
    assert [row["name"] for row in rows] == ["x", "y", "a class of a very long name"]
    assert [path_figures.class_label(row) for row in rows][1:] == ["y · 60 %", "a class of a … · 70 %"]
    entry = paths.trials[0].record["skip_by_class"][0]
    assert rows[0]["median"] == 9 - entry["median"] and rows[0]["low"] <= rows[0]["median"] <= rows[0]["high"]
    figure = path_figures.class_figure(paths.trials[0], ["x", "y", "z", "w"])
    assert list(figure.data[0].x) == [row["median"] for row in rows]


def test_quartiles_of_rounded_numbers_hold_the_median() -> None:
    entry = {"images": 2, "acc": 0.5, "median": 1.4, "least": 1, "histogram": [2]}
    (row,) = path_figures.class_rows(dataclasses.replace(trial("t"), record=record(skip_by_class=[entry])), ["a"])
    assert row["low"] == row["median"] == 9 - 1.4 and row["high"] == 8


def test_many_classes_are_thinned() -> None:
    entry = {"images": 1, "median": 1.0, "least": 1, "histogram": [1]}
    many = record(skip_by_class=[{**entry, "acc": i / 100} for i in range(100)])
    rows = path_figures.class_rows(dataclasses.replace(trial("t"), record=many), [str(i) for i in range(100)])
    assert len(rows) == 20 and (rows[0]["acc"], rows[-1]["acc"]) == (0, 0.99)


def test_kl_lines_share_their_bins(paths: Paths) -> None:
    figure = path_figures.kl_figure(paths.trials, "crop")
    assert np.log10(figure.data[0].x).tolist() == pytest.approx([-5.5, -4.5, -3.5, -2.5, -1.5, -0.5, 0.5, 1.5])
    assert list(figure.data[0].y) == [0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0]
    looks = path_figures.looks(paths.trials)
    assert len(set(looks.values())) == 3 and looks["t1"][0] == path_figures.style("codinet")[0]


def test_one_line_for_every_variant() -> None:
    rows = made(40)
    for i, row in enumerate(rows):
        row["variant"] = ("", "one", "two")[i % 5 % 3]
    rows.append({**rows[0], "point_id": "test", "split": "test", "accuracy": 0.999, "macs": 1.0})
    table = points._table(rows)
    fronts = variants.variant_fronts(table)
    assert {(m, v) for m, v, _, _ in fronts} == {(r["method"], r["variant"]) for r in rows}
    for method, variant, macs, accuracy in fronts:
        mine = [r for r in rows if (r["method"], r["variant"], r["split"]) == (method, variant, "validation")]
        best = [
            r
            for r in mine
            if not any(
                (o["macs"] <= r["macs"] and o["accuracy"] > r["accuracy"])
                or (o["macs"] < r["macs"] and o["accuracy"] >= r["accuracy"])
                for o in mine
            )
        ]
        assert sorted(zip(macs, accuracy, strict=True)) == sorted((r["macs"], r["accuracy"]) for r in best)
    assert len({(d.line.color, d.line.dash) for d in variants.variants_figure(table).data}) == len(fronts)


def test_exits_and_their_classes(paths: Paths) -> None:
    exiting = paths.trials[2]
    bars, everyone, leaving = exit_figure(exiting).data
    assert list(bars.y) == [1 / 3] * 3 and list(everyone.y) == [0.6] * 3 and leaving.y[2] is None
    names, shares = exit_shares(exiting, ["a", "b", "c", "d"])
    assert names == ["c", "b", "a"] and shares.sum(1).tolist() == pytest.approx([1, 1, 1]) and shares[0, 2] == 0.5
    assert len(class_exit_figure(exiting, ["a", "b", "c", "d"]).data) == 3
    assert len(set(exit_colours(7))) == 7 and exit_colours(1) == ["#2C7BE5"]


def test_figures_are_small(paths: Paths) -> None:
    assert len(panel(path_figures.skip_figure(paths.trials[0]), "name", "label", "caption")) < 4_000


def test_t_sne_is_seeded_and_keeps_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.report.paths.data.ALL_EMBEDDED", 60)
    alike = trial("alike")
    alike.arrays["relaxed"][:] = 0.5
    trials = [trial("t1", images=80), trial("t2"), alike, trial("t3", "imta", exits=3)]
    one, other = embedded(trials), embedded(trials)
    assert set(one) == {"t1", "t2"} and len(one["t1"][0]) == 30 and one["t1"][1].shape == (30, 2)
    assert (one["t1"][1] == other["t1"][1]).all()
    limits = path_figures.common(one)
    for _, xy in one.values():
        for axis, (low, high) in enumerate(limits):
            assert low < xy[:, axis].min() and xy[:, axis].max() < high


def test_the_png_files(paths: Paths, tmp_path: Path) -> None:
    few = dataclasses.replace(paths, trials=[paths.trials[0], paths.trials[2]], classes=["$", "b", "_c", "d"])
    written = draw_paths(points._table(made(20)), few, tmp_path)
    assert {file.name for file in written} == {
        "variants.png", "skip-ratio.png", "exits.png", "dataflow.png", "classes.png", "tsne.png",
        "kl.png", "easy-hard.png",
    }  # fmt: skip
    for file in written:
        with Image.open(file) as picture:
            colours = picture.convert("RGB").getcolors(maxcolors=2**24)
            assert picture.width == 1125 and colours is not None and len(colours) > 8
    assert draw_paths(points.SCHEMA.empty_table(), Paths(), tmp_path) == []


def told(story: type) -> Any:
    """Two codinet variants and a static one on digits; the worst codinet trial is not on the front."""
    told = story(("static", "codinet"), epochs=9)
    settings = (("full", 0.9, 5e6), ("full", 0.7, 6e6), ("vanilla", 0.6, 7e6), ("full", 0.95, 9e6))
    for number, (variant, accuracy, macs) in enumerate(settings):
        name = told.ask(number, "codinet", variant=variant)
        told.report(name, 9, [(accuracy, macs)], diagnostics=record(acc=accuracy))
    name = told.ask(4, "static")
    told.report(name, 9, [(0.99, 2e7)], diagnostics=record(decisions=0))
    stopped = told.ask(5, "codinet")
    told.report(stopped, 1, [(0.99, 3e7)])
    return told


def test_the_best_of_every_variant_is_chosen_first(story: type) -> None:
    state = told(story).state
    assert [t.id for t in chosen(state)] == ["t0000", "t0003", "t0002"]
    assert [t.id for t in chosen(state, most=2)] == ["t0003", "t0002"]


def test_their_checkpoints_are_kept(story: type) -> None:
    from search.state.retention import kept_checkpoints

    s = story(("codinet",))
    for number, (variant, accuracy, macs) in enumerate((("full", 0.9, 5e6), ("full", 0.8, 6e6), ("vanilla", 0.7, 7e6))):
        name = s.ask(number, "codinet", variant=variant)
        s.report(name, 9, [(accuracy, macs)], diagnostics=record(acc=accuracy))
    s.report(s.ask(3, "codinet", variant="vanilla"), 9, [(0.6, 8e6)], diagnostics=record(acc=0.6))
    assert kept_checkpoints(s.state) == {f"t000{i}/epoch-0009" for i in range(3)}  # two fronts, and the best vanilla


def test_mlflow_gets_scalars_and_the_whole(story: type) -> None:
    from search.tracking.chronicle import Chronicle

    s = story(("imta",))
    measured = record(exits=3)
    s.report(s.ask(0, "imta"), 9, [(0.9, 5e6)], diagnostics=measured)
    chronicle = Chronicle()
    for event in s.events:
        chronicle.apply(event)
    change = chronicle.changes["t0000"]
    metrics = {name: value for name, value, _, step in change.metrics if step == 9}
    assert metrics["diagnostics/K"] == measured["K"] and metrics["diagnostics/n_paths"] == 7
    assert metrics["diagnostics/consistency/crop"] == 0.5 and metrics["diagnostics/kl_aug/mixture"] == 0.125
    assert metrics["diagnostics/skip_ratio/block-3"] == measured["skip_ratio"][3]
    assert metrics["diagnostics/exit_frac/1"] == 1 / 3 and "diagnostics/exit_acc_given_exit/3" not in metrics
    document = change.files["diagnostics.json"]
    assert (document["trial"], document["split"]) == ("t0000", "validation")
    assert document["skip_by_class"] == measured["skip_by_class"]


def test_the_study_file_switches_them_off() -> None:
    from search.spec.study import StudySpec
    from search.tune.searcher import constants

    spec = StudySpec.parse({"name": "off", "diagnostics": False, "methods": {"static": {}}})
    assert constants(spec)["diagnostics"] is False
    on = StudySpec.parse({"name": "off", "methods": {"static": {}}})
    assert on.diagnostics and on.fingerprint() == spec.fingerprint()


@pytest.fixture
def study(story: type, tmp_path: Path) -> Iterator[tuple[Study, Any]]:
    yield Study(told(story).spec, StudyFolder(tmp_path)), told(story).state


def test_arrays_are_read_beside_the_checkpoint(study: tuple[Study, Any]) -> None:
    import torch
    from safetensors.torch import save_file

    from trainables.checkpoints import _digest

    found, state = study
    folder = found.folder.checkpoints / "t0003" / "epoch-0009"
    folder.mkdir(parents=True)
    arrays = {
        "index": torch.arange(4, dtype=torch.int32), "relaxed": torch.rand(4, 9).half(),
        "path_bits": torch.tensor([[0b10100000, 0b10000000]] * 4, dtype=torch.uint8),
    }  # fmt: skip
    save_file(arrays, folder / "diagnostics.safetensors")
    digest = _digest(folder / "diagnostics.safetensors")
    (folder / "state.json").write_text(json.dumps({"files": {"diagnostics.safetensors": digest}}))
    read = paths_of(found, state)
    assert [bool(t.arrays) for t in read.trials] == [False, True, False]
    assert read.trials[1].arrays["path"][0].tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 1]
    assert read.images is None and "not those that the study was run on" in read.note  # the story's digest is zeros
    (folder / "diagnostics.safetensors").write_bytes(b"cut off")
    assert paths_of(found, state).trials[1].arrays == {}


def test_an_absent_data_set_is_said(study: tuple[Study, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from search.report.paths.data import _images

    found, state = study
    absent = found.spec.model_copy(update={"data": found.spec.data.model_copy(update={"name": "gone"})})
    images, note = _images(Study(absent, found.folder), state.created["data"]["hash"])
    assert images is None and "no data set 'gone'" in note
