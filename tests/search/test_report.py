import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from search import page_parts, plots, points, report
from search.frontier import non_dominated

EVIL = "</script><script>alert(1)</script><img src=http://evil.example/x.png>"


def made(count=40, split="validation"):
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        macs = float(10 ** random.uniform(6, 7.5))
        rows.append(
            {
                "point_id": f"p{i}",
                "study": EVIL,
                "trial": f"t{i // 4}{EVIL if i < 4 else ''}",
                "config_id": "c",
                "repeat": 0,
                "method": ("skipnet", "imta", "static")[i % 3],
                "variant": "",
                "network": "resnet-38",
                "image_size": 32,
                "dataset": "digits",
                "data_hash": "h",
                "split": split,
                "phase": "joint",
                "epoch": 3,
                "cost_epochs": 3.0,
                "setting": {"q": 0.5},
                "knobs": {"threshold": 0.512345, "note": EVIL},
                "accuracy": round(900 - 100 * (7.5 - np.log10(macs)) - 60 * random.random()) / 1000,
                "correct": 800,
                "count": 1000,
                "macs": macs,
                "macs_std": 0.0,
                "macs_full": 40_000_000,
                "params": 560_000,
                "seconds": 1.0,
                "seed": i,
                "checkpoint": "",
                "config": {"width": 16, "note": EVIL},
                "code_version": "x",
            }
        )
    return rows


@pytest.fixture(scope="module")
def full():
    rows = made()
    mask = non_dominated([1 - r["accuracy"] for r in rows], [r["macs"] for r in rows])
    return report.Report(
        study={
            "name": EVIL,
            "state": "running",
            "dataset": "digits",
            "trials": {"running": 2, "stopped": 7, "finished": 1, "failed": 0, "total": 10},
            "epochs": 30.5,
            "seconds": 3725,
            "hypervolume": 1.23456,
            "reference": {"error": 0.9, "macs": 40e6},
            "seed": 7,
            "goal": EVIL,
        },
        points=points._table(rows),
        front=[r for r, keep in zip(rows, mask, strict=True) if keep],
        history=[{"seconds": 60.0 * i, "epochs": 3 * i, "trials": i, "hypervolume": i / 10} for i in range(1, 9)],
        trials=[
            {
                "trial": f"t{i}",
                "method": "imta",
                "network": "resnet-38",
                "state": "stopped",
                "epoch": 3,
                "best_accuracy": None if i == 1 else 0.97222,
                "min_macs": None if i == 1 else 2.35e6,
                "reason": EVIL,
            }
            for i in range(3)
        ],
    )


@pytest.fixture(scope="module")
def page(full, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.report_html(full, path)
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.stack, self.text, self.heads = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("script", "style"):
            self.text.append(data)
            if self.stack[-1] == "h2":
                self.heads.append(data)


@pytest.fixture(scope="module")
def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def test_the_page_is_well_formed_and_has_its_sections(read):
    assert read.stack == []
    assert read.heads == [
        "Frontier",
        "Points of the frontier",
        "Accuracy against MACs by variant",
        "Hypervolume against cost",
        "Trials",
        "Configurations on the front",
    ]


def test_nothing_is_loaded_from_outside(read):
    for tag, attributes in read.tags:
        for name in ("src", "href", "action", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    policy = next(a["content"] for t, a in read.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "http" not in policy
    assert not re.search(r"url\(|@import", page_parts.STYLE)


def test_what_users_wrote_is_shown_and_not_run(page, read):
    assert EVIL not in page
    assert "".join(read.text).count(EVIL) >= 6  # heading, facts, trials, knobs, configurations
    assert not any(a.get("src", "").startswith("http") for _, a in read.tags)


def test_it_says_what_is_shown(read):
    text = "".join(read.text)
    assert "FLOP" not in text and "MACs" in text and "validation split" in text
    assert "30.5 epochs in 1h 02m" in text and "1.2346" in text and "error 90.0 %, 40M MACs" in text
    assert "2 running, 7 stopped, 1 finished" in text
    assert "97.2 %" in text and "2.35M" in text


def test_it_is_accessible(read):
    tags = [t for t, _ in read.tags]
    assert ("html", {"lang": "en"}) in read.tags and "title" in tags and tags.count("h1") == 1
    assert all(a.get("scope") == "col" for t, a in read.tags if t == "th") and "th" in tags
    assert all(a.get("alt") for t, a in read.tags if t == "img") and "img" in tags
    assert all(a.get("aria-label") for t, a in read.tags if t in ("table", "figure"))
    assert any(a.get("name") == "viewport" for _, a in read.tags)


def test_the_picture_has_content(full, tmp_path):
    report.frontier_png(full, tmp_path / "frontier.png")
    with Image.open(tmp_path / "frontier.png") as picture:
        assert picture.size == (1200, 800)
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for method in ("skipnet", "imta"):
        colour = [int(plots.style(method)[0][i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 8).sum() > 50


@pytest.mark.parametrize("count", [0, 1, 2])
def test_almost_nothing_to_show(tmp_path, count):
    rows = made(count)
    table = points._table(rows) if rows else points.SCHEMA.empty_table()
    young = report.Report(study={"name": "young"}, points=table, front=rows[:1])
    report.frontier_png(young, tmp_path / "frontier.png")
    report.report_html(young, tmp_path / "report.html")
    assert "young" in (tmp_path / "report.html").read_text()


def test_a_test_split_is_not_drawn():
    table = points._table([*made(3), *(r | {"point_id": r["point_id"] + "t"} for r in made(3, split="test"))])
    assert len(plots.drawn(table, 100)["macs"]) == 3
    assert plots.frontier_figure(table, [])[1] == 3


def test_a_large_cloud_is_thinned():
    table = points._table(made(50))
    assert len(plots.drawn(table, 20)["macs"]) == 17


def test_the_whole_curve_of_a_trial_on_the_front():
    rows = made(40)
    ((method, macs, accuracy),) = plots.curves(points._table(rows), [rows[9]])
    assert len(macs) == len(accuracy) == 4 and (np.diff(macs) >= 0).all() and method in plots.STYLES


def test_methods_keep_their_colours():
    assert len({s[0] for s in plots.STYLES.values()}) == len({s[1] for s in plots.STYLES.values()}) == len(plots.STYLES)
    assert plots.style("a-plug-in") == plots.style("a-plug-in")


@pytest.mark.parametrize(("low", "high"), [(1e6, 7e7), (2.1e6, 2.4e6), (4e7, 6e7), (1e3, 1e12), (9e5, 1.2e6)])
def test_ticks(low, high):
    ticks = plots.log_ticks(low, high, 6)
    assert 2 <= len(ticks) <= 6 and all(low <= t <= high for t in ticks) and ticks == sorted(ticks)
