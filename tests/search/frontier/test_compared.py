"""Two fronts against each other, and fronts as tables and figures for papers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.errors import InputError
from search.frontier.answer import Front
from search.frontier.compared import compare
from search.frontier.point import FrontPoint
from search.frontier.tables import write_table
from search.report.frontier_png import LOOKS, draw_front
from search.study import Study
from tests.support.command import Run
from tests.support.kept_study import keep


def point(accuracy: float, macs: float, *, count: int = 10_000, seeds: int = 1, **more: str) -> FrontPoint:
    named = {"method": "aig", "network": "resnet-8", "study": "a", **more}
    return FrontPoint(
        trial="t0001", epoch=3, index=0, variant="", accuracy=accuracy, macs=macs, macs_std=0.0, macs_full=int(macs),
        params=1000, setting={}, knobs={"threshold": 0.5}, checkpoint="", config={}, config_id="c",
        correct=round(accuracy * count), count=count, seeds=seeds, **named,
    )  # fmt: skip


def front(scale: float, count: int = 10_000, lift: float = 0.0) -> list[FrontPoint]:
    return [point(0.5 + 0.1 * k + lift, scale * 1e6 * 2**k, count=count) for k in range(4)]


def test_half_the_macs_at_equal_accuracy() -> None:
    found = compare(front(1.0), front(2.0), ("ours", "theirs"))
    assert found.fewer == pytest.approx(2.0) and found.accuracies == pytest.approx((0.5, 0.8))
    # within [2M, 16M] ours has what theirs has one doubling later: 0.1 more on two of three doublings, 0.1 and then 0
    assert found.better == pytest.approx(0.1, abs=0.03) and found.macs == (2e6, 16e6)
    assert found.area == pytest.approx(found.better * 0.90309, rel=1e-4)
    low, high = found.fewer_interval or (0, 0)
    assert 1.5 < low <= 2.0 <= high < 2.6
    said = found.words()
    assert said[0].startswith("ours takes 2.00 times fewer MACs than theirs") and "more than chance" in said[0]
    assert "0 of 4 and 0 of 4 were trained with several seeds" in said[2]
    json.dumps(found.record(), allow_nan=False)
    back = compare(front(2.0), front(1.0), ("theirs", "ours"))
    assert back.fewer == pytest.approx(0.5)


def test_few_images_tell_little_and_the_same_fronts_nothing() -> None:
    wide, narrow = (compare(front(1.0, n), front(1.0, n), ("a", "b")) for n in (50, 50_000))
    assert wide.fewer == narrow.fewer == 1.0 and wide.better == 0.0
    for found in (wide, narrow):
        assert found.fewer_interval and found.fewer_interval[0] <= 1.0 <= found.fewer_interval[1]
        assert "no more than chance" in found.words()[0]
    assert wide.fewer_interval and narrow.fewer_interval and wide.fewer_interval[1] > narrow.fewer_interval[1]
    assert compare(front(1.0), front(2.0), ("a", "b")) == compare(front(1.0), front(2.0), ("a", "b"))  # same seed


def test_fronts_that_meet_nowhere() -> None:
    found = compare([point(0.9, 1e6)], [point(0.2, 1e6)], ("a", "b"))
    assert found.fewer is None and found.better is None
    assert "no accuracy in common" in found.words()[0] and "no budget in common" in found.words()[1]
    with pytest.raises(InputError, match="study 'b' has no operating point"):
        compare(front(1.0), [], ("a", "b"))


def test_tables(tmp_path: Path) -> None:
    points = [point(0.5, 1e6), point(0.6, 2e6, network="a_b&c|d", method="own")]
    write_table(points, tmp_path / "t.tex")
    tex = (tmp_path / "t.tex").read_text()
    assert r"a\_b\&c|d" in tex and r"\toprule" in tex and tex.count(r" \\") == 3
    write_table(points, tmp_path / "t.md")
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert len(lines) == 4 and "a_b&c\\|d" in lines[3] and "| 60.0 |" in lines[3]
    with pytest.raises(InputError, match=r"a table is \.tex or \.md"):
        write_table(points, tmp_path / "t.html")
    with pytest.raises(InputError, match="cannot be written"):
        write_table(points, tmp_path / "nowhere" / "t.md")


@pytest.mark.parametrize("look", LOOKS)
def test_figures_have_their_width_and_embedded_fonts(look: str, tmp_path: Path) -> None:
    points = front(1.0)
    drawn = Front(
        studies=["a"], dataset="digits", data_hash="", reference=(0.9, 1e7), hypervolume=1.0, points=points,
        methods={"aig": points, "exits": front(1.5)},
    )  # fmt: skip
    for kind in ("pdf", "svg", "png"):
        draw_front(drawn, points, tmp_path / f"f.{kind}", look)
    pdf = (tmp_path / "f.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/Type3" not in pdf
    width = float(pdf.split(b"/MediaBox [ 0 0 ")[1].split()[0])
    assert width == pytest.approx(72 * LOOKS[look].size[0], abs=0.5)
    assert b"<svg" in (tmp_path / "f.svg").read_bytes() and (tmp_path / "f.png").read_bytes()[1:4] == b"PNG"
    before = (tmp_path / "f.pdf").read_bytes()
    draw_front(drawn, points, tmp_path / "f.pdf", look)
    assert (tmp_path / "f.pdf").read_bytes() == before
    with pytest.raises(InputError, match=r"a picture is \.png, \.pdf, \.svg"):
        draw_front(drawn, points, tmp_path / "f.gif")


def test_the_command(story: type, tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ours", "theirs"):
        told = story()
        told.report(told.ask(0), 1, [(0.5, 1e6), (0.7, 2e6), (0.8, 4e6)])
        keep(told, tmp_path / "studies", name)
    monkeypatch.setenv("ROUTEFRONT_STUDIES", str(tmp_path / "studies"))
    files = {"--plot": tmp_path / "f.pdf", "--table": tmp_path / "t.md"}
    written = [word for pair in files.items() for word in pair]
    code, said, error = cli("frontier", "ours", "theirs", "--compare", "--style", "paper", *written)
    assert code == 0, error
    assert "ours takes 1.00 times fewer MACs than theirs" in said and "no more than chance" in said
    assert all(file.stat().st_size for file in files.values())
    record = json.loads(cli("frontier", "ours", "theirs", "--compare", "--json")[1])
    assert record["comparison"]["fewer"] == 1.0 and len(record["comparison"]["words"]) == 3
    for words, says in (
        (("ours", "--compare"), "--compare takes two studies, not 1"),
        (("ours", "--style", "paper"), "give --plot FILE, too"),
        (("ours", "--style", "glossy", "--plot", "f.png"), "a plot looks like screen, paper, paper-wide"),
        (("ours", "--plot", tmp_path / "f.gif"), "a picture is .png, .pdf, .svg"),
    ):
        code, _, error = cli("frontier", *words)
        assert code == 2 and says in error and len(error.splitlines()) == 1
    assert Study.load("ours", root=tmp_path / "studies")._repr_html_().count("<circle") >= 1
