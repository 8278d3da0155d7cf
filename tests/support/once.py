"""What takes long to make and is made once in a run of the tests, by whichever of its processes needs it first."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

_PLACE = "ROUTEFRONT_TESTS_ONCE"


def shared() -> Path:
    """The folder for it, which the process that asks first makes and removes at its end; its children inherit it.

    `tests/conftest.py` asks: so it is made by pytest-xdist's controller.
    """
    if _PLACE not in os.environ:
        os.environ[_PLACE] = tempfile.mkdtemp(prefix="routefront-once-")
        atexit.register(shutil.rmtree, os.environ[_PLACE], ignore_errors=True)
    return Path(os.environ[_PLACE])


def once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` has filled. Nobody changes what is in it: tests copy it."""
    folder = shared() / name
    made = folder.with_suffix(".made")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


# -- databases of MLflow ---------------------------------------------------------------------------


def empty_registry() -> Path:
    """A migrated MLflow database without runs and models: making one takes seconds, copying it none."""

    def make(folder: Path) -> None:
        from search.tracking.server import quiet

        quiet().MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    return once("registry", make) / "mlflow.db"


def registry_in(root: Path) -> str:
    """The address of the MLflow beside the studies of a root; where it has none, an empty one is put there."""
    from search.tracking.server import default_uri

    root.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), (root / "mlflow.db").open("xb") as database:
        database.write(empty_registry().read_bytes())
    return default_uri(root)
