import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from search.frontier.published import published_for
from search.pareto.front import non_dominated
from search.points import files as points
from search.report import document, html, style
from search.report import page as report
from search.report.build import read_report
from search.report.importance import Importances, importances
from search.report.record import Report
from search.report.study import figures as study_figures
from search.studies.follow import Followed, lanes
from tests.support.kept_study import keep

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
    return Report(
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
        front=[
            r | {"membership": 0.5, "evidence": "images", "seeds": 1} for r, on in zip(rows, mask, strict=True) if on
        ],
        results=[({"method": EVIL, "lr": 0.01 * i, "name": EVIL + str(i)}, float(i)) for i in range(9)],
        importances=[Importances(EVIL, 9, 0.5, {EVIL: 0.5}), Importances("static", 9, -0.1, {"lr": 0.0})],
        published=published_for("cifar10")[:2],
        kept={"t2": [3]},
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
                "begin": 10.0 * i,
                "end": 10.0 * i + 5,
                "lane": 0,
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
        "Point",
        "Points of the frontier",
        "Printed in the papers",
        "Hypervolume against cost",
        "What mattered",
        "Parallel coordinates",
        "Timeline",
        "Trials",
        "Configurations on the front",
        "Accuracy against MACs by variant",
    ]


def test_nothing_is_loaded_from_outside(read):
    for tag, attributes in read.tags:
        for name in ("src", "href", "action", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    policy = next(a["content"] for t, a in read.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "http" not in policy and "connect-src" not in policy
    script = policy.split("script-src")[1].split(";")[0]
    assert "unsafe" not in script and "'sha256-" in script
    assert not re.search(r"url\(|@import", html.STYLE)


def test_what_users_wrote_is_shown_and_not_run(page, read):
    assert EVIL not in page
    assert "".join(read.text).count(EVIL) >= 6  # heading, facts, trials, knobs, configurations
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert data and not set("<>&") & set(data[1])
    known = json.loads(data[1])
    assert known["name"] == EVIL and any(EVIL in t["id"] for t in known["trials"]) and "'" in known["promote"]
    shown = json.dumps(known["figures"])
    assert EVIL not in shown and "&lt;script&gt;" in shown  # plotly reads texts as HTML
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
        colour = [int(style.style(method)[0][i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 8).sum() > 50


@pytest.mark.parametrize("count", [0, 1, 2])
def test_almost_nothing_to_show(tmp_path, count):
    rows = made(count)
    table = points._table(rows) if rows else points.SCHEMA.empty_table()
    young = Report(study={"name": "young"}, points=table, front=rows[:1])
    report.frontier_png(young, tmp_path / "frontier.png")
    report.report_html(young, tmp_path / "report.html")
    assert "young" in (tmp_path / "report.html").read_text()


def test_a_test_split_is_not_drawn():
    table = points._table([*made(3), *(r | {"point_id": r["point_id"] + "t"} for r in made(3, split="test"))])
    assert len(style.drawn(table, 100)["macs"]) == 3
    assert len(document.shown_points(table, [])) == 3


def test_a_large_cloud_is_thinned():
    table = points._table(made(50))
    assert len(style.drawn(table, 20)["macs"]) == 17


def test_a_page_of_many_points_keeps_the_front_whole(monkeypatch):
    monkeypatch.setattr(document, "MOST_POINTS", 10)
    rows = made(40)
    names = document.shown_points(points._table(rows), [rows[9]])["point_id"].to_pylist()
    assert {"p8", "p9", "p10", "p11"} <= set(names) and len(names) < 20  # the whole curve of the front's trial


def test_the_document_of_a_page(full):
    known = document.document(full, {})
    assert len(known["cloud"]["t"]) == 40 and known["cloud"]["n"] == 1000 and len(known["front"]) == len(full.front)
    first = min(full.front, key=lambda r: r["macs"])
    place = known["front"][0]
    assert known["cloud"]["m"][place] == pytest.approx(first["macs"], abs=0.1)
    trial = known["trials"][known["cloud"]["t"][place]]
    assert trial["id"] == first["trial"] and trial["config"] == first["config"]
    assert next(t for t in known["trials"] if t["id"] == "t2")["kept"] == [3] and len(known["papers"]) == 2
    assert document.as_data({"a": float("nan"), "b": "</script>&"}) == '{"a":null,"b":"\\u003c/script\\u003e\\u0026"}'


def test_lanes_are_workers(story):
    one = story()
    first, second = one.ask(0), one.ask(1)
    one.report(first, 1, [(0.9, 1e6)])
    third = one.ask(2)
    one.decide(first, 1, "finish")
    fourth = one.ask(3)
    for trial in (second, third, fourth):
        one.report(trial, 1, [(0.8, 1e6)])
    known = Followed().apply(one.events)
    lane = lanes(known.spans)
    assert set(known.spans) == {first, second, third, fourth}
    assert lane[first] == lane[fourth] and len({lane[first], lane[second], lane[third]}) == 3
    assert known.state.digest() == one.state.digest()


def test_importances_find_what_mattered():
    random = np.random.default_rng(0)
    results = []
    for i in range(120):
        lr, width, method = float(10 ** random.uniform(-3, 0)), float(random.choice([0.5, 1.0])), "ab"[i % 2]
        results.append(
            ({"method": method, "lr": lr, "width": width, "fixed": 1}, -abs(np.log10(lr) + 1.5) + 0.3 * width)
        )
    found = importances(results)
    assert [f.what for f in found] == ["all methods", "a", "b"] and [f.trials for f in found] == [120, 60, 60]
    assert all(next(iter(f.shares)) == "lr" and f.explained > 0.5 for f in found) and "fixed" not in found[0].shares
    noise = importances([(c, float(random.normal())) for c, _ in results])
    assert noise[0].explained < 0.2 and importances(results[:5]) == []
    axes = study_figures.parallel_axes(results, found)
    assert axes == ["method", "lr", "width"]
    figure = study_figures.parallel_figure([*results, ({"method": "a", "epochs trained": 2}, 0.5)], axes)
    assert sum(len(trace.x or ()) for trace in figure.data) == 121 * (len(axes) + 2)


def test_a_long_history_is_thinned():
    steps = [{"seconds": i, "epochs": i, "trials": i, "hypervolume": i // 2} for i in range(20_000)]
    (trace,) = study_figures.hypervolume_figure(steps).data
    assert len(trace.x) < 2_000 and trace.x[-1] == 19_999 and trace.x[0] == 0


def browse(address, width=1200):
    """The page as headless Chromium has it after its scripts have run; nothing may be wrong on its console."""
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom",
         "--enable-logging=stderr", "--virtual-time-budget=15000", address],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    wrong = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert not wrong, wrong
    return done.stdout


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: the page is not opened in a browser")


@needs_browser
def test_a_browser_draws_the_page_and_runs_nothing_else(full, page, tmp_path):
    path = tmp_path / "page.html"
    evil = page.replace("<main>", '<main><img src="x:" onerror="document.title=1"><script>document.title=2</script>')
    assert evil != page
    for text in (page, evil):
        path.write_text(text)
        if text is evil:  # what got past the escaping would not run: the policy knows the page's own scripts only
            shown = browse_quietly(path.as_uri())
            assert "<title>1" not in shown and "<title>2" not in shown
            continue
        shown = browse(path.as_uri())
        assert 'data-ready="yes"' in shown and shown.count("<title>") >= 1
        figure = shown.split('id="frontier"')[1].split("</figure>")[0]
        assert figure.count("<path") >= 40 and "alert(1)" not in re.sub(r"<[^>]*>", "", figure)


def browse_quietly(address):
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=5000"]
    return subprocess.run([*command, address], capture_output=True, text=True, timeout=300).stdout


@needs_browser
def test_an_address_names_a_point(story, tmp_path):
    one = story()
    trial = one.ask(0, "static", variant=EVIL)
    one.report(trial, 1, [(0.9, 1e6), (0.95, 2e6)])
    one.report(trial, 3, [(0.93, 1e6), (0.97, 2e6)])
    one.decide(trial, 3, "stop", EVIL)
    study = keep(one, tmp_path, "named")
    kept = study.folder.checkpoints / trial / "epoch-0003"
    kept.mkdir(parents=True)
    (kept / "state.json").touch()
    report.report_html(read_report(study, paths=False), tmp_path / "page.html")
    shown = browse((tmp_path / "page.html").as_uri() + f"#{trial}-3-1", width=500)
    assert f"Point {trial}-3-1" in shown and f"--point {trial}-3-1 --model NAME" in shown
    assert "epoch 1" in shown and "epoch 3" in shown and "point 2 of 2" in shown and "97.0 % (94.6 to 98.3)" in shown
    assert EVIL not in shown.split("<script", 1)[0]


def test_the_whole_curve_of_a_trial_on_the_front():
    rows = made(40)
    ((method, macs, accuracy),) = style.curves(points._table(rows), [rows[9]])
    assert len(macs) == len(accuracy) == 4 and (np.diff(macs) >= 0).all() and method in style.STYLES


def test_methods_keep_their_colours():
    assert len({s[0] for s in style.STYLES.values()}) == len({s[1] for s in style.STYLES.values()}) == len(style.STYLES)
    assert style.style("a-plug-in") == style.style("a-plug-in")


@pytest.mark.parametrize(("low", "high"), [(1e6, 7e7), (2.1e6, 2.4e6), (4e7, 6e7), (1e3, 1e12), (9e5, 1.2e6)])
def test_ticks(low, high):
    ticks = style.log_ticks(low, high, 6)
    assert 2 <= len(ticks) <= 6 and all(low <= t <= high for t in ticks) and ticks == sorted(ticks)


def test_a_script_that_came_with_a_study_is_not_among_those_that_may_run(full, page, monkeypatch):
    monkeypatch.setattr(report, "path_sections", lambda *given: ['<script type="text/javascript">alert(1)</script>'])
    text = report.page_html(full)
    policy = text.split('Content-Security-Policy" content="')[1].split('"')[0]
    digest = base64.b64encode(hashlib.sha256(b"alert(1)").digest()).decode()
    assert ">alert(1)<" in text and digest not in policy and policy.count("'sha256-") == 2
    assert "data-ours" not in page  # the mark of our own scripts is nobody's business
