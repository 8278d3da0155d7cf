"""The pictures of networks with exits and of halting maps: what is read from curves and arrays, what is drawn."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from search.points.schema import SCHEMA
from search.report import halting
from search.report.exits import data as exits
from search.report.exits import figures as exit_figures
from search.report.exits import flow
from search.report.exits.pngs import exit_pictures
from search.report.exits.section import exit_sections
from search.report.paths import figures as path_figures
from search.report.paths.data import Paths, TrialPaths, paths_of
from search.report.pictures import draw_paths
from search.report.style import CLASS_COLOURS, distinct
from search.studies.folder import StudyFolder
from search.study import Study
from tests.search.report.test_page import EVIL
from tests.search.report.test_paths import record

TREE = [-1, 0, 0, 1, 1, 2]
"""Two children; the first of them has two, the second one."""


def curve(epoch: int, count: int) -> list[dict[str, Any]]:
    """Three budgets and every exit alone, as a journal holds them."""
    shares = [epoch / 10] + [(1 - epoch / 10) / (count - 1)] * (count - 1)
    budgets = [
        {"setting": {"q": q}, "accuracy": 0.5 + 0.1 * q + 0.01 * epoch, "macs": 2e6 * q, "exit_fractions": shares}
        for q in (2, 1, 0.5)
    ]
    alone = [
        {"setting": {"exit": i}, "accuracy": (40 + 2 * i + epoch) / 100, "macs": 1e6 * i, "exit_fractions": []}
        for i in range(1, count + 1)
    ]
    return [*budgets, *alone]


def trial(name: str, variant: str = "ge", count: int = 3, **more: Any) -> TrialPaths:
    """A chain of exits; `more` goes into its record."""
    left = [0.5, *[0.5 / (count - 1)] * (count - 1)]
    table = [[10, *[2] * (count - 1)], [0, *[3] * (count - 1)], [5, *[0] * (count - 1)], [0] * count]
    names = {"exit_names": [f"exit-{i}" for i in range(1, count + 1)]}
    found = record(exits=count) | names | {
        "exit_frac": left, "exit_macs": [10**6 * (i + 1) for i in range(count)], "setting": {"q": 1},
        "exit_acc": [0.6 + 0.01 * i for i in range(count)], "class_by_exit": table,
        "exit_parents": list(range(-1, count - 1)), **more,
    }  # fmt: skip
    random = np.random.default_rng(3)
    odds = random.normal(0, 3, (count, 40)).astype(np.float16)
    right = random.random((count, 40)) < 0.7
    arrays = {"confidence": odds, "exit_right": right, "confidence_rows": np.arange(40, dtype=np.int32)}
    curves = {epoch: curve(epoch, count) for epoch in (1, 2, 5)}
    return TrialPaths(
        trial=name, method="imta", variant=variant, network="msdnet-3", record=found, arrays=arrays, curves=curves
    )  # fmt: skip


def halted(name: str = "s1") -> TrialPaths:
    """Maps of six of eight images; the k-th of them has k units everywhere but at one position."""
    maps = np.arange(6, dtype=np.float16)[:, None, None] + np.zeros((6, 4, 4), np.float16)
    maps[:, 0, 0] += 1
    arrays = {
        "index": np.arange(10, 18, dtype=np.int32), "ponder": maps[::-1].copy(),
        "ponder_rows": np.array([0, 2, 3, 4, 6, 7], np.int32),
    }  # fmt: skip
    cost = {"ponder": [2.5, 4.0], "ponder_std": [0.5, 1.0], "ponder_map_std": [0.1, 0.2]}
    return TrialPaths(trial=name, method="sact", variant="", network="n", record=record(**cost), arrays=arrays)


@pytest.fixture(scope="module")
def trials() -> list[TrialPaths]:
    tree = trial("t3", "tree", count=6, exit_parents=TREE, exit_names=[f"exit-{i}" for i in "abcdef"])
    return [trial("t1", "none"), trial("t2"), tree]


def test_the_tree_on_paper() -> None:
    places = exits.tree_places(TREE)
    assert places[:, 0].tolist() == [0, 1, 1, 2, 2, 2]
    assert places[:, 1].tolist() == [1.25, 0.5, 2, 0, 1, 2]
    assert exits.tree_places([-1, 0, 1]).tolist() == [[0, 0], [1, 0], [2, 0]]
    assert exits.reached(TREE, [0.1, 0.2, 0.1, 0.2, 0.15, 0.25]) == pytest.approx([1, 0.55, 0.35, 0.2, 0.15, 0.25])


def test_a_record_without_parents_is_a_chain(trials: list[TrialPaths]) -> None:
    old = {key: value for key, value in trials[0].record.items() if not key.startswith("exit_p")}
    assert exits.exit_parents(old) == [-1, 0, 1] and exits.is_chain(old)
    assert exits.exit_labels(old) == ["1", "2", "3"]
    assert not exits.is_chain(trials[2].record) and exits.exit_labels(trials[2].record) == list("abcdef")


def test_a_budget_is_the_last_curve_and_exits_alone_stand_beside_it(trials: list[TrialPaths]) -> None:
    found = exits.budget(trials[0])
    assert [macs for macs, _ in found.points] == [1e6, 2e6, 4e6] and found.points[0][1] == pytest.approx(0.6)
    assert found.anytime == [(10**6, 0.6), (2 * 10**6, 0.61), (3 * 10**6, 0.62)]
    first = exit_figures.budget_figure(trials[:1])
    assert list(first.data[0].x) == [1e6, 2e6, 4e6] and first.data[1].marker.symbol == "circle-open"
    assert exits.budget(dataclasses.replace(trials[0], curves={})).points == []


def test_accuracy_by_epoch_is_that_of_settings_for_one_exit(trials: list[TrialPaths]) -> None:
    found = exits.by_epoch(trials[0])
    assert list(found) == [1, 2, 3] and found[2] == [(1, 0.45), (2, 0.46), (5, 0.49)]
    once = dataclasses.replace(trials[0], curves={5: curve(5, 3)})
    assert exits.by_epoch(once) == {}  # one epoch is no line
    panels = exit_figures.epochs_by_exit(trials)
    assert list(panels) == [1, 2, 3, 4, 5, 6] and set(panels[1]) == {"t1", "t2", "t3"} and set(panels[6]) == {"t3"}
    figure = exit_figures.epochs_figure(trials, panels[6], exit_figures.epochs_window(panels))
    assert len(figure.data) == 1 and list(figure.data[0].x) == [1, 2, 5]
    many = exit_figures.epochs_by_exit([trial("t9", count=24)])
    assert len(many) == exit_figures.MOST_EXITS and (min(many), max(many)) == (1, 24)


def test_routing_over_training_is_read_at_one_setting(trials: list[TrialPaths]) -> None:
    epochs, shares = exits.routing(trials[0])
    assert epochs == [1, 2, 5] and shares[:, 0].tolist() == [0.1, 0.2, 0.5] and shares.sum(1) == pytest.approx([1] * 3)
    heat = exit_figures.routing_figure(trials[0]).data[0]
    assert np.array(heat.z).shape == (3, 3) and list(heat.x) == ["1", "2", "5"] and heat.z[0][2] == 0.5
    nothing = exits.routing(dataclasses.replace(trials[0], curves={}))
    assert nothing[0] == [] and nothing[1].shape == (0, 3)


def test_ranks_and_who_is_right() -> None:
    odds = np.array([[1, 2, 2, 9], [9, 5, 4, 1], [0, 0, 0, 0]], np.float16)
    right = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    found = exits.ranks(dataclasses.replace(trial("t"), arrays={"confidence": odds, "exit_right": right}))
    assert found is not None and found.names == ("1", "2")
    assert found.x == pytest.approx([0, 0.5, 0.5, 1]) and found.y == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert [exits.AGREE[i] for i in found.right] == [exits.AGREE[i] for i in (0, 1, 2, 3)]
    assert found.correlation == pytest.approx(float(np.corrcoef([1, 2.5, 2.5, 4], [4, 3, 2, 1])[0, 1]))
    figure = exit_figures.confidence_figure(found, np.arange(4))
    assert [len(trace.x) for trace in figure.data] == [1, 1, 1, 1, 2]
    alike = {"confidence": np.zeros((2, 4), np.float16), "exit_right": right[:2]}
    level = exits.ranks(dataclasses.replace(trial("t"), arrays=alike))
    assert level is not None and level.correlation == 0
    assert exits.ranks(dataclasses.replace(trial("t"), arrays={})) is None


def test_circles_have_the_area_of_their_share(trials: list[TrialPaths]) -> None:
    largest, limits = flow.largest_shares(trials), flow.accuracy_range(trials)
    assert largest == {"t1": 0.5, "t2": 0.5, "t3": 0.5}
    figure = flow.accuracy_flow(trials[2], 0.5, limits)
    *lines, circles = figure.data
    sizes = np.array(circles.marker.size)
    assert (sizes[1:] / sizes[0]) ** 2 == pytest.approx([0.2] * 5, rel=0.02)
    through = exits.reached(TREE, trials[2].record["exit_frac"])
    assert [line.line.width for line in lines] == pytest.approx([1 + 7 * share for share in through], abs=0.01)
    assert len(lines) == 6 and list(lines[4].x) == [1, 2]
    assert circles.marker.color[5] == "#7C8591"  # nobody's accuracy is known there
    assert len(flow.accuracy_flow(trials[0], 0.5, limits).layout.annotations) == 3
    empty = dataclasses.replace(trials[0], record=trials[0].record | {"exit_frac": [1.0, 0.0, 0.0]})
    assert list(flow.accuracy_flow(empty, 1.0, limits).data[-1].marker.size)[1:] == [4, 4]


def test_circles_are_divided_by_class(trials: list[TrialPaths]) -> None:
    figure = flow.class_flow(trials[0], 0.5, ["a", "b", EVIL, "d"])
    assert figure is not None
    pies = [trace for trace in figure.data if trace.type == "pie"]
    assert [list(pie.values) for pie in pies] == [[10, 5], [2, 3], [2, 3]]
    assert list(pies[0].marker.colors) == [CLASS_COLOURS[0], CLASS_COLOURS[2]]
    assert EVIL not in pies[0].labels
    heights = [pie.domain.y[1] - pie.domain.y[0] for pie in pies]
    assert (heights[0] / heights[1]) ** 2 == pytest.approx(2)
    assert flow.class_flow(trials[0], 0.5, [str(i) for i in range(11)]) is None


def test_the_sections(trials: list[TrialPaths]) -> None:
    page = "\n".join(exit_sections(trials, ["a", "b", EVIL, "d"]))
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "Exits",
        "Dataflow",
        "Accuracy against the budget",
        "Exits over training",
        "Confidence at the first two exits",
    ]
    names = re.findall(r'<div id="([\w-]+)"', page)
    assert len(names) == len(set(names))
    assert {"flow-2", "class-flow-0", "budget", "exit-accuracy", "epochs-6", "routing-1", "confidence-2"} <= set(names)
    assert EVIL not in page and len(page) < 300_000
    assert exit_sections([], []) == []


def test_a_long_tree_has_no_bars_by_class() -> None:
    page = "\n".join(exit_sections([trial("t", count=12)], ["a", "b", "c", "d"]))
    assert 'id="exits-0"' in page and "class-exits-0" not in page and 'id="class-flow-0"' in page


def test_every_line_of_a_method_has_a_colour_of_its_own() -> None:
    looks = distinct(["imta"] * 5 + ["skipnet"] * 2)
    assert len({colour for colour, _ in looks}) == 7
    assert looks[0] == (path_figures.style("imta")[0], "solid") and looks[5] == (
        path_figures.style("skipnet")[0],
        "solid",
    )
    assert path_figures.style("skipnet")[0] not in [colour for colour, _ in looks[:5]]
    assert len(distinct(["aig"] * 20)) == 20


def test_halting_maps_below_their_images() -> None:
    one = halted()
    assert halting.halting_rows(one, count=2).tolist() == [5, 4, 1, 0]  # the stored maps begin with the most
    assert halting.halting_range(one) == (0, 6)
    images = np.zeros((20, 1, 8, 8), np.uint8)
    images[:, 0] = 10 * np.arange(20)[:, None, None]
    picture = halting.halting_picture(one, images)
    edge = 33  # 32 pixels and a gap
    assert picture.shape == (4 * edge - 1, 3 * edge - 1, 4)
    assert picture[5, 5, 0] == 170 and picture[2 * edge + 5, 5, 0] == 130  # images 17 and 13
    colours = halting.coloured(one.arrays["ponder"], 0, 6)
    assert (picture[edge + 20, 20, :3] == colours[5, :, 3, 3]).all()
    assert tuple(halting.coloured(np.array([[[0.0, 6.0]]]), 0, 6)[0, :, 0].T.tolist()) == (
        [44, 123, 229],
        [217, 72, 15],
    )
    assert halting.halting_picture(one, None).shape == (2 * edge - 1, 3 * edge - 1, 4)


def test_ponder_costs_by_group() -> None:
    (bars,) = halting.ponder_figure(halted()).data
    assert (list(bars.x), list(bars.y)) == (["group 1", "group 2"], [2.5, 4.0]) and list(bars.error_y.array) == [0.5, 1]
    bare = dataclasses.replace(halted(), arrays={})  # of ACT there are no maps
    page = halting.halting_section(Paths(trials=[bare]))
    assert 'id="ponder-0"' in page and "<img" not in page and "Maps" not in page


def test_the_section_of_halting_maps() -> None:
    page = halting.halting_section(Paths(trials=[halted(), trial("t")]))
    assert (
        'id="ponder-0"' in page
        and page.count("<img") == 1
        and "ponder cost 0 (blue) to 6 (orange) at" in page
        and "images are not at hand" in page
    )
    assert halting.halting_section(Paths(trials=[trial("t")])) == ""


def test_the_png_files(trials: list[TrialPaths], tmp_path: Path) -> None:
    paths = Paths(trials=[trials[0], trials[2], halted()], classes=["$", "b", "_c", "d"])
    written = {file.name: file for file in draw_paths(SCHEMA.empty_table(), paths, tmp_path)}
    assert set(written) >= {
        "exits.png", "dataflow.png", "budget.png", "exit-training.png", "routing-training.png", "confidence.png",
        "ponder.png", "halting.png",
    }  # fmt: skip
    with Image.open(written["dataflow.png"]) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
        assert picture.width == 1125
    wedge = [int(CLASS_COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)]
    assert (np.abs(pixels - wedge).max(axis=1) < 8).sum() > 200
    assert exit_pictures(Paths()) == {"ponder.png": None, "halting.png": None}


def test_curves_come_from_the_journal(story: type, tmp_path: Path) -> None:
    told = story(("imta",))
    name = told.ask(0, "imta", variant="ge")
    told.report(name, 1, [(0.5, 1e6)])
    told.report(name, 9, [(0.8, 1e6), (0.9, 2e6)], diagnostics=record(exits=3))
    (read,) = paths_of(Study(told.spec, StudyFolder(tmp_path)), told.state).trials
    assert [len(read.curves[epoch]) for epoch in (1, 9)] == [1, 2] and exits.budget(read).points[1] == (2e6, 0.9)
