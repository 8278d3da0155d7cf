"""The package `routefront`: its names are there, and nothing is imported before it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import routefront

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "ray", "optuna", "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "sqlalchemy", "sklearn"}


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a new Python has loaded after `code`."""
    code = f"import sys\n{code}\nimport json\nprint(json.dumps(sorted({{n.partition('.')[0] for n in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=300
    )
    return set(json.loads(done.stdout))


def test_importing_it_imports_nothing_else() -> None:
    loaded = loaded_by("import routefront; assert 'Study' in dir(routefront) and not hasattr(routefront, 'nothing')")
    assert "routefront" in loaded
    assert not loaded & (HEAVY | {"search", "trainables", "spaces", "cluster"})


def test_spaces_and_errors_come_without_torch() -> None:
    loaded = loaded_by(
        "from routefront import Choice, Fixed, InputError, LogRange, Range, Space, When, __version__\n"
        "Space({'gate': Choice(('a', 'b')), 'rate': LogRange(1e-4, 1e-1, when=When('gate', ('a',)))})"
    )
    assert {"spaces", "search"} <= loaded
    assert not loaded & HEAVY


def test_a_study_is_looked_at_without_torch(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nimport routefront\n"
        f"try: routefront.Study.load('none', root=Path({str(tmp_path)!r}))\n"
        "except routefront.InputError as error: assert 'no study' in str(error)\n"
        "else: raise SystemExit('a study was found')"
    )
    assert not loaded_by(code) & {"torch", "ray", "optuna", "mlflow"}


def test_every_name_is_there_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in routefront.__all__:
        monkeypatch.delitem(vars(routefront), name, raising=False)
        value = getattr(routefront, name)
        assert vars(routefront)[name] is value
        assert name == "__version__" or value.__name__ == name
        assert f"`{name}`" in (routefront.__doc__ or "")
    assert dir(routefront) == sorted(routefront.__all__)
    with pytest.raises(AttributeError, match=r"no public name 'Studie'; it has Choice, "):
        _ = routefront.Studie
