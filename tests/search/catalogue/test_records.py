"""The file that `routefront methods` prints says what the methods say, and is read without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from search.catalogue.records import computed, networks_computed, networks_written, records, written
from search.errors import InputError


def test_the_file_is_what_the_methods_say() -> None:
    assert json.loads(json.dumps(computed())) == written(), (
        "a method or its space has changed: python -m search.catalogue.records --write"
    )


def test_printing_methods_needs_no_torch() -> None:
    code = (
        "import sys\nfrom search.__main__ import main\nsys.argv = ['routefront', 'methods']\n"
        "try:\n    main()\nfinally:\n    print(sorted({'torch', 'ray', 'mlflow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith("[]\n") and "codinet" in done.stdout, done.stderr


def test_an_unknown_method_is_named_with_its_neighbour() -> None:
    assert [record["name"] for record in records("act")] == ["act"]
    with pytest.raises(InputError, match="unknown method 'skipnat'; did you mean 'skipnet'"):
        records("skipnat")


def test_the_written_networks_are_the_built_ones() -> None:
    assert networks_written() == networks_computed(), (
        "a method's default network has changed: python -m search.catalogue.records --write"
    )
