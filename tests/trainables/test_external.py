"""Anything that trains step by step: loading a class, its space, its points, its checkpoints."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spaces.space import Choice, Fixed, Range, Space
from trainables.checkpoints import CheckpointError, read_record
from trainables.contracts.objective import Axis, Objective
from trainables.external import (
    ExternalTraining,
    first_of,
    load,
    measured,
    points_of,
    reference_of,
    space_of,
)

FILE = Path(__file__).parents[1] / "fixtures" / "trainable.py"
CURVE = f"{FILE}:Curve"
AXES = Objective(
    merit=Axis(name="error", best=0.0, worst=1.0, maximise=False),
    cost=Axis(name="ms", best=None, worst=100.0, maximise=False, log=True),
)
CONFIG = {"depth": 3, "rate": 0.1, "kind": "plain"}


def _written(tmp_path: Path, text: str, name: str = "Mine") -> str:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(text))
    return f"{path}:{name}"


def _training(reference: str = CURVE, **changes: Any) -> ExternalTraining:
    told = {"name": "curve", "objective": AXES, "epochs": 4, "seed": 5, "evaluate_at": [1, 4], **changes}
    return ExternalTraining(reference, CONFIG, **told)


# -- loading ------------------------------------------------------------------------------------------


def test_a_class_of_a_file_has_its_space_and_first_configuration() -> None:
    found = load(CURVE, "curve")
    space = space_of(found, "curve")
    assert space["depth"] == Range(1, 6, integer=True)
    assert space["rate"] == Range(0.01, 1.0, log=True)
    assert space["kind"] == Choice(("plain", "wide"))
    assert first_of(found, "curve") == {"depth": 2, "rate": 0.1, "kind": "plain"}
    assert load(CURVE) is found  # the file is not imported twice


def test_a_changed_file_is_imported_again(tmp_path: Path) -> None:
    text = "class Mine:\n    space = {}\n    x = 1\n    def setup(self, config, seed): ...\n    def step(self): ...\n"
    reference = _written(tmp_path, text)
    assert load(reference).x == 1
    _written(tmp_path, text.replace("x = 1", "x = 2"))
    assert load(reference).x == 2


def test_what_lies_beside_a_file_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_a_trainable.py").write_text("OPTIONS = [1, 2]\n")
    reference = _written(
        tmp_path,
        """
        from beside_a_trainable import OPTIONS
        class Mine:
            space = {"a": OPTIONS}
            def setup(self, config, seed): ...
            def step(self): ...
        """,
    )
    assert space_of(load(reference), "mine")["a"] == Choice((1, 2))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("mine.py", "write a file and a class, for example mine.py:Mine"),
        ("nowhere/mine.py:Mine", "there is no file nowhere/mine.py"),
        (f"{FILE}:Missing", "has no Missing"),
        ("no_such_package_anywhere:Mine", "cannot be imported: ModuleNotFoundError: No module named"),
        ("json:dumps", "dumps is no class"),
        ("json:JSONDecoder", "JSONDecoder has no space; a trainable has space, setup and step"),
    ],
)
def test_a_reference_that_is_none(reference: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        load(reference, "mine")
    assert str(error.value).startswith("trainables.mine: ")
    assert "\n" not in str(error.value)


def test_a_file_that_fails_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    reference = _written(tmp_path, "raise RuntimeError('first line\\nsecond line')\n")
    with pytest.raises(ValueError, match=r"cannot be imported: RuntimeError: first line$"):
        load(reference, "mine")
    assert not [name for name in sys.modules if getattr(sys.modules[name], "__file__", "") == str(tmp_path / "mine.py")]


def test_save_without_restore(tmp_path: Path) -> None:
    reference = _written(
        tmp_path,
        """
        class Mine:
            space = {}
            def setup(self, config, seed): ...
            def step(self): ...
            def save(self, folder): ...
        """,
    )
    with pytest.raises(ValueError, match="Mine has save, but no restore"):
        load(reference)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (3, "it must be a Space, or a mapping by name"),
        ({"method": 3}, "has a parameter 'method'"),
        ({"a": list(range(10_000))}, "a has 10,000 options.*write a range"),
        ({"a": {"low": 1}}, "a range needs low and high"),
        ({"a": Range(0, 1, stage=2)}, "a is of stage 2; a trainable has one stage"),
    ],
)
def test_a_space_that_is_none(space: Any, said: str) -> None:
    class Mine:
        pass

    Mine.space = space  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=said):
        space_of(Mine, "mine")


def test_spaces_of_our_own_kind_and_of_one_point() -> None:
    class Mine:
        space = Space({"a": Fixed(3)})

    assert space_of(Mine, "mine").parameters == {"a": Fixed(3)}


def test_classes_are_named_by_their_file(tmp_path: Path) -> None:
    assert reference_of(load(CURVE)) == f"{FILE.resolve()}:Curve"
    assert reference_of("mine.py:Mine") == "mine.py:Mine"

    class Local:
        pass

    with pytest.raises(ValueError, match="define it at the top of a module"):
        reference_of(Local)
    script = tmp_path / "script.py"
    script.write_text(
        "from trainables.external import reference_of\nclass Mine: ...\n"
        "if __name__ == '__main__': print(reference_of(Mine))\n"
    )
    said = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout.strip()
    assert said == f"{script}:Mine"
    typed = "from trainables.external import reference_of\nclass Mine: ...\nreference_of(Mine)"
    failed = subprocess.run([sys.executable, "-c", typed], capture_output=True, text=True, check=False)
    assert "trainable Mine is in no file that workers could import" in failed.stderr


def test_studies_of_the_same_data_and_axes_compare() -> None:
    one = measured({"a": CURVE}, AXES)
    assert one.name == "made up"
    assert one.hash == measured({"b": f"{FILE}:Again"}, AXES).hash
    assert one.hash != measured({"a": CURVE}, Objective()).hash
    assert one.folders == (str(FILE.resolve()),)


# -- points -------------------------------------------------------------------------------------------


def test_points_stand_for_figures_of_the_axes() -> None:
    shown = [{"error": np.float32(0.25), "ms": torch.tensor(8.0), "knobs": {"width": np.int64(2)}, "count": 100}]
    assert points_of(shown, AXES) == [
        {
            "setting": {"width": 2}, "knobs": {"width": 2}, "accuracy": 0.75, "macs": 8.0, "macs_std": 0.0,
            "correct": 75, "count": 100, "merit": 0.25, "cost": 8.0,
        }
    ]  # fmt: skip
    json.dumps(points_of(shown, AXES), allow_nan=False)


def test_examples_are_counted_only_where_the_merit_is_a_share_of_them() -> None:
    wide = Objective(merit=Axis(name="error", best=0.0, worst=5.0, maximise=False), cost=AXES.cost)
    (point,) = points_of({"error": 1.0, "ms": 1, "count": 100}, wide)
    assert (point["accuracy"], point["correct"], point["count"]) == (0.8, None, None)


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (None, "step returned None: it must return points"),
        ([], "step returned no operating point at a rung"),
        ("done", "it must return points, a list of mappings"),
        ([3], "point 0 of step is 3: it must be a mapping with error and ms"),
        ([{"error": 0.1}], "point 0 of step has no 'ms', an axis of the study; it has error"),
        ([{"error": math.nan, "ms": 1}], "point 0 of step: error = nan is no finite number"),
        ([{"error": 0.1, "ms": -1}], "point 0 of step: ms = -1: a cost is above 0"),
        ([{"error": 0.1, "ms": True}], "ms = True is no finite number"),
        ([{"error": 0.1, "ms": "fast"}], "ms = 'fast' is no finite number"),
        ([{"error": 0.1, "ms": 1, "loss": 2}], "point 0 of step has 'loss', which nobody asked for"),
        ([{"error": 0.1, "ms": 1, "knobs": [1]}], "knobs = \\[1\\] must be a mapping of names to plain values"),
        ([{"error": 0.1, "ms": 1, "knobs": {"f": print}}], "must be a mapping of names to plain values"),
        ([{"error": 0.1, "ms": 1, "count": 0}], "count = 0: it is the number of examples"),
        ([{"error": 0.1, "ms": 1, "latency_ms": "x"}], "latency_ms = 'x' must be a time in milliseconds"),
        ([{"error": 0.1, "ms": 1}] * 10_001, "10,001 operating points; a curve has at most 10,000"),
    ],
)
def test_what_is_no_curve(shown: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        points_of(shown, AXES)
    assert "\n" not in str(error.value)


# -- training -----------------------------------------------------------------------------------------


def test_a_step_reports_a_curve_at_rungs_alone() -> None:
    training = _training()
    reports = [training.step() for _ in range(4)]
    assert training.done
    assert ["curve" in report for report in reports] == [True, False, False, True]
    assert [point["knobs"] for point in reports[0]["curve"]["points"]] == [{"width": w} for w in (1, 2, 4)]
    assert [report["cost_epochs"] for report in reports] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("name", ["Curve", "Again"])
def test_a_trial_goes_on_from_its_checkpoint(tmp_path: Path, name: str) -> None:
    whole, first = _training(f"{FILE}:{name}"), _training(f"{FILE}:{name}")
    for _ in range(2):
        whole.step()
        first.step()
    first.save(tmp_path / "epoch-0002", {"trial": "t0000"})
    other = _training(f"{FILE}:{name}")
    other.restore(tmp_path / "epoch-0002")
    assert other.epoch == 2
    assert other.last_report == json.loads(json.dumps(first.last_report))
    for _ in range(2):
        expected, found = whole.step(), other.step()
        assert expected.get("curve", {}).get("points") == found.get("curve", {}).get("points")
    assert ("steps.json" in read_record(tmp_path / "epoch-0002")["files"]) == (name == "Curve")


def test_a_checkpoint_of_another_trial_or_a_damaged_one(tmp_path: Path) -> None:
    training = _training()
    training.step()
    training.save(tmp_path / "epoch-0001")
    with pytest.raises(CheckpointError, match="is of another trial: seed is 5, expected 6"):
        _training(seed=6).restore(tmp_path / "epoch-0001")
    (tmp_path / "epoch-0001" / "steps.json").write_text("7")
    with pytest.raises(CheckpointError, match=r"steps\.json was cut off or changed"):
        _training().restore(tmp_path / "epoch-0001")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("(folder / 'deep').mkdir()", "Mine.save wrote 'deep': it may write files, but no folders"),
        ("(folder / 'state.json').write_text('')", "wrote 'state.json'"),
    ],
)
def test_a_save_that_writes_what_it_may_not(tmp_path: Path, body: str, said: str) -> None:
    reference = _written(
        tmp_path,
        f"""
        class Mine:
            space = {{}}
            def setup(self, config, seed): ...
            def step(self): return []
            def save(self, folder): {body}
            def restore(self, folder): ...
        """,
    )
    training = _training(reference, name="Mine", evaluate_at=[4])
    training.step()
    with pytest.raises(ValueError, match=said):
        training.save(tmp_path / "epoch-0001")
    assert not (tmp_path / "epoch-0001").exists()


def test_a_restore_that_fails_says_which(tmp_path: Path) -> None:
    reference = _written(
        tmp_path,
        """
        class Mine:
            space = {}
            def setup(self, config, seed): ...
            def step(self): return []
            def save(self, folder): (folder / "x").write_text("1")
            def restore(self, folder): raise KeyError("weights")
        """,
    )
    training = _training(reference, name="Mine", evaluate_at=[4])
    training.step()
    training.save(tmp_path / "epoch-0001")
    with pytest.raises(CheckpointError, match=r"Mine.restore failed on .*epoch-0001: KeyError: 'weights'"):
        _training(reference, name="Mine", evaluate_at=[4]).restore(tmp_path / "epoch-0001")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
