"""Edits of the NEW files, when they were formatted.

`AFTER` and `TEXT_FILES`: exact ones, (new path, text, new text), each has to fit exactly once. `FINISH`: programs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
AFTER: list[tuple[str, str, str]] = []
TEXT_FILES: list[tuple[str, str, str]] = []
FINISH: list[Callable[[dict[str, str], Callable[[str], None]], None]] = []


def edit(path: str, old: str, new: str) -> None:
    (AFTER if path.endswith(".py") else TEXT_FILES).append((path, old, new))


def contracts(texts: dict[str, str], warn: Callable[[str], None]) -> None:
    """The import contracts, packages and package data of pyproject.toml."""
    path = "pyproject.toml"
    text = texts[path]
    block = (HERE / "data" / "importlinter.toml").read_text()
    old = re.search(r"^\[tool\.importlinter\]\n.*?(?=^\[tool\.pytest)", text, re.S | re.M)
    if old is None:
        warn(f"{path}: no contracts to replace")
    else:
        text = text[: old.start()] + block + text[old.end() :]
    old = re.search(r"^\[tool\.setuptools\]\npackages = \[.*?^\]\n", text, re.S | re.M)
    if old is None:
        warn(f"{path}: no list of packages to replace")
    else:
        found = '[tool.setuptools.packages.find]\ninclude = ["spaces", "spaces.*", "trainables", "trainables.*", "search", "search.*", "cluster", "cluster.*"]\nnamespaces = false\n'
        text = text[: old.start()] + found + text[old.end() :]
    old = re.search(r'^search = \["presets/\*\.toml", "published\.csv", "page\.js"\]\n', text, re.M)
    if old is None:
        warn(f"{path}: the package data of search are others by now; divide them by hand")
    else:
        data = '"search.frontier" = ["published.csv"]\n"search.report" = ["page.js"]\n"search.spec" = ["presets/*.toml"]\n'
        text = text[: old.start()] + data + text[old.end() :]
    text = text.replace('\ntrainables = ["earlier.json"]\n', '\n"trainables.contracts" = ["earlier.json"]\n')
    texts[path] = text


def load_network_stays(texts: dict[str, str], warn: Callable[[str], None]) -> None:
    """Scripts of models that were promoted earlier ask `trainables.checkpoints` for it."""
    path = "trainables/checkpoints.py"
    if "def __getattr__" in texts[path] or "\ndef load_network" in texts[path]:
        warn(f"{path}: has load_network or __getattr__ already; nothing is added")
        return
    texts[path] += '''

def __getattr__(name: str) -> Any:
    """`load_network`, where scripts of models that were promoted earlier look for it; it is a floor above."""
    if name == "load_network":
        return importlib.import_module("trainables.serving").load_network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
'''
    texts[path] = texts[path].replace("\nimport hashlib\n", "\nimport hashlib\nimport importlib\n", 1)


FINISH += [contracts, load_network_stays]
edit("Makefile", "	@for file in tests/benchmarks/bench_*.py; do", "	@for file in tests/benchmarks/*/bench_*.py; do")

# -- faces and the hook for old places -------------------------------------------------------------------------------

edit("trainables/__init__.py", "import os\n\n", "import os\n\nfrom spaces.moved import install\n\n")
edit("trainables/__init__.py", 'os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")\n', 'os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")\n\ninstall(__name__, __path__)\n')
edit("search/__init__.py", "from typing import TYPE_CHECKING, Any\n", "from typing import TYPE_CHECKING, Any\n\nfrom spaces.moved import install\n")
edit("search/__init__.py", '__all__ = ["Study", "StudySpec"]\n', '__all__ = ["Study", "StudySpec"]\n\ninstall(__name__, __path__)\n')

# -- tests -----------------------------------------------------------------------------------------------------------

edit("tests/conftest.py", '    "test_upload_process.py",\n', '    "test_process.py",\n')
edit("tests/conftest.py", '    "test_storage.py",\n', '    "test_object_storage.py",\n')
edit("tests/search/promotion/test_models.py", "def test_one_model_answers_at_several_budgets(", '''def test_what_is_served_is_prepared(served: Registered) -> None:
    network = served.model.unwrap_python_model().network
    assert any(type(module).__name__ == "FusedConv" for module in network.modules())
    assert not any(type(module) is torch.nn.BatchNorm2d for module in network.modules())


def test_one_model_answers_at_several_budgets(''')
edit("tests/search/promotion/test_models.py", "import pytest\nfrom PIL import Image\n", "import pytest\nimport torch\nfrom PIL import Image\n")
