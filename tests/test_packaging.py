from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the sources, as `pip install .` builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    everywhere = shutil.ignore_patterns(".venv", ".git", "*.egg-info", "build", "__pycache__")
    top = {"demo", "studies", "data"}  # there are packages of these names, too

    def ignore(at: str, names: list[str]) -> set[str]:
        return everywhere(at, names) | (top & {*names} if Path(at) == ROOT else set())

    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(folder),
            "./source",
        ],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=300,
    )
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_brings_packages_presets_and_what_mlflow_runs(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    tops = ("routefront", "spaces", "trainables", "search", "cluster")
    for source in [p for top in tops for p in (ROOT / top).rglob("*.py")]:
        assert source.relative_to(ROOT).as_posix() in names
    assert {"search/frontier/published.csv", "search/report/page.js", "search/catalogue/methods.json"} <= names
    assert "search/catalogue/template/network.py.in" in names
    assert {
        "search/spec/presets/digits.toml",
        "search/spec/presets/cifar10.toml",
        "trainables/contracts/earlier.json",
    } <= names
    data = {name.split("/share/routefront/")[1] for name in names if "/share/routefront/" in name}
    assert {p.name for p in (ROOT / "mlflow").iterdir() if p.is_file()} <= data
    assert not any(name.startswith(("mlflow/", "tests/")) for name in names)
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "routefront = search.__main__:main" in wheel.read(entry).decode()


def test_the_wheel_imports_by_the_name_of_the_distribution(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")
    code = (
        "import importlib.metadata, routefront, sys\n"
        "assert routefront.__file__.startswith(sys.path[0]), routefront.__file__\n"
        "assert routefront.Study.__module__ == 'search.study'\n"
        "assert sys.modules['search.study'].__file__.startswith(sys.path[0])\n"
        "assert routefront.__version__ == importlib.metadata.version('routefront')\n"
    )
    preamble = f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r})\n"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-I", "-c", preamble + code]  # -I: neither this folder nor PYTHONPATH
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_folder_mlflow_shadows_nothing() -> None:
    assert not (ROOT / "mlflow" / "__init__.py").exists()
    code = "import mlflow; assert 'site-packages' in mlflow.__file__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)


def test_the_lock_holds_hashes_and_no_addresses() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock and "--hash=sha256:" in lock
    pinned = re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE | re.IGNORECASE)
    assert {"ray", "torch", "torchvision", "optuna", "mlflow", "pyarrow", "pytest", "setuptools"} <= set(pinned)
