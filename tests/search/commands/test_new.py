"""`init`, `new`, `completion`, and studies in notebooks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.catalogue import beginning
from search.errors import InputError
from search.frontier.answer import Front
from search.frontier.notebook import front_html
from search.frontier.point import FrontPoint
from search.spec.study import StudySpec
from tests.support.command import Run, runner

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(monkeypatch, capfd)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "my photos" / name).mkdir(parents=True)
        for k in range(3):
            pixels = np.full((70, 90, 3), 20 * k, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "my photos" / name / f"{k}.png")
    (tmp_path / "mine.py").write_text("def build(classes):\n    raise RuntimeError('nobody runs it')\n")
    return tmp_path


def test_init_writes_a_study_file_that_is_one(photos: Path, run: Run) -> None:
    options = ("--data", "my photos", "--network", "none", "--time", "30m", "--max-macs", "20M")
    code, said, _ = run("init", "s.toml", *options)
    assert code == 0 and "wrote s.toml" in said
    spec = StudySpec.read(photos / "s.toml")
    assert (spec.name, spec.data.name, spec.data.image_size) == ("my-photos", "my photos", 64)
    assert spec.budget.time == 1800 and spec.constraints.max_macs == 20e6
    assert list(spec.methods) == ["static", "aig", "exits", "imta"]
    assert "70 pixels in the median" in (photos / "s.toml").read_text()
    code, _, error = run("init", "s.toml", *options)
    assert code == 2 and "s.toml is there already" in error


@pytest.mark.parametrize("network", ["torchvision:mobilenet_v3_small", "mine.py:build"])
def test_init_with_a_network_of_others_runs_nothing(network: str, photos: Path, run: Run) -> None:
    code, _, _ = run("init", "n.toml", "--data", "digits", "--network", network, "--time", "1h", "--max-macs", "none")
    assert code == 0
    spec = StudySpec.read(photos / "n.toml")
    assert list(spec.methods) == ["static", "exits"] and spec.methods["exits"]["network"] == network
    assert spec.constraints.max_macs is None and spec.data.image_size is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"--data": "nowhere"}, "there is no such folder here"),
        ({"--data": "digist"}, "did you mean 'digits'"),
        ({"--network": "torchvision:resnet19"}, "did you mean 'resnet18'"),
        ({"--network": "mine.py:biuld"}, "defines no biuld"),
        ({"--network": "resnet-8"}, "is one of ours"),
        ({"--time": "0s"}, "longer than nothing"),
        ({"--max-macs": "many"}, "many"),
    ],
)
def test_init_refuses_in_a_line(options: dict[str, str], says: str, photos: Path, run: Run) -> None:
    usual = {"--data": "digits", "--network": "none", "--time": "1h", "--max-macs": "none", **options}
    code, _, error = run("init", "x.toml", *(word for pair in usual.items() for word in pair))
    assert code == 2 and says in error and len(error.splitlines()) == 1
    assert not (photos / "x.toml").exists()


def test_init_asks_nobody_where_nobody_is(photos: Path, run: Run) -> None:
    code, _, error = run("init", "x.toml", "--data", "digits")
    assert code == 2 and "nobody can be asked here: give --network, --time, --max-macs" in error


def test_who_answers_wrongly_is_asked_again(photos: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    from search.commands import new

    answers = iter(["nowhere", "digits", "none", "soon", "2h", "none"])
    monkeypatch.setattr(new, "terminal", lambda: True)
    monkeypatch.setattr(new.typer, "prompt", lambda *_, **__: next(answers))
    code, _, error = run("init", "asked.toml")
    assert code == 0 and "there is no such folder here" in error and "soon" in error
    assert StudySpec.read(photos / "asked.toml").budget.time == 7200


def test_new_method(photos: Path, run: Run) -> None:
    code, said, _ = run("new", "method", "my-gate")
    assert code == 0 and "pip install -e ." in said and (photos / "my-gate" / "my_gate" / "method.py").is_file()
    code, _, error = run("new", "method", "aig")
    assert code == 2 and "there is a method aig already" in error


def test_completion(tmp_path: Path, run: Run) -> None:
    for shell in ("bash", "zsh", "fish"):
        code, said, _ = run("completion", shell)
        assert code == 0 and "_ROUTEFRONT_COMPLETE" in said
    code, _, error = run("completion", "tcsh")
    assert code == 2 and "bash, zsh, fish" in error
    (tmp_path / "studies" / "night").mkdir(parents=True)
    (tmp_path / "studies" / "night" / "study.toml").write_text("")
    start = f"import sys; sys.argv[0] = 'routefront'; sys.path.insert(0, {str(ROOT)!r})"
    start += "; from search.__main__ import main; main()"

    def completed(words: str, place: int) -> list[str]:
        asked = {"_ROUTEFRONT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
        environment = {**os.environ, **asked, "ROUTEFRONT_STUDIES": str(tmp_path / "studies")}
        command = [sys.executable, "-c", start]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120).stdout.split()

    assert "frontier" in completed("routefront fro", 1)
    assert completed("routefront status ni", 2) == ["night"]


# -- notebooks -------------------------------------------------------------------------------------


def front(*points: FrontPoint, empty: str = "") -> Front:
    return Front(
        studies=["<b>"],
        dataset="digits",
        data_hash="",
        reference=(0.9, 1e7),
        hypervolume=0.0,
        points=points,
        empty=empty,
    )


def test_a_front_as_html_is_escaped_and_has_no_script() -> None:
    def point(k: int) -> FrontPoint:
        return FrontPoint(
            trial="t", epoch=1, index=k, method="<script>alert(1)</script>", variant="", network="n",
            accuracy=0.5 + k / 99,
            macs=1e6 * 1.1**k, macs_std=0, macs_full=1, params=1, setting={}, knobs={}, checkpoint="", config={},
            config_id="", correct=50, count=100,
        )  # fmt: skip

    found = front(*(point(k) for k in range(30)))._repr_html_()
    assert "<script" not in found and "&lt;script&gt;" in found and "<b>&lt;b&gt;" not in found
    assert (
        found.count("<circle") == 30 and found.count("<tr>") == 21 and "10 points in the middle are left out" in found
    )
    assert "no point" in front_html((), "digits", "study a", empty="no point yet")


def test_a_study_in_a_notebook(tmp_path: Path) -> None:
    from search.study import Study

    broken = Study(StudySpec.parse({"name": "gone"}, trusted=True), _folder(tmp_path))
    assert broken._repr_html_().startswith("<p><b>study gone</b>: ")


def _folder(path: Path):
    from search.studies.folder import StudyFolder

    return StudyFolder(path / "gone")


def test_the_answers_are_checked_once_more() -> None:
    with pytest.raises(InputError):
        beginning.checked_macs("-3")
