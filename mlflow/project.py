"""What MLproject runs: the command line of this checkout, or of the installed routefront, with MLflow's addresses.

Options that were left empty are left out, `--file` becomes the study file, and `--tracking` is MLFLOW_TRACKING_URI,
which `mlflow run` sets.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_TRACKED = ("search", "promote")


def command_line(words: list[str], checkout: Path | None) -> list[str]:
    """The words of `routefront` for those of an entry point; `SystemExit` says what has no place."""
    command, *rest = words
    kept = [word for word in rest if not (word.startswith("--") and word.endswith("="))]
    file = [word.removeprefix("--file=") for word in kept if word.startswith("--file=")]
    if file:
        kept = [*file, *(word for word in kept if not word.startswith(("--file=", "--preset=")))]
    if "ROUTEFRONT_STUDIES" not in os.environ:
        if checkout is None:
            raise SystemExit("error: set ROUTEFRONT_STUDIES to the folder in which studies lie")
        kept.append(f"--studies={checkout / 'studies'}")
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if address and address.startswith("sqlite:///") and not address.startswith("sqlite:////"):
        raise SystemExit(f"error: MLFLOW_TRACKING_URI={address} is relative to a folder that is not known here;"
                         " write sqlite:////ABSOLUTE/PATH")  # fmt: skip
    if command in _TRACKED and address:
        kept.append(f"--tracking={address}")
    return [command, *kept]


def main() -> None:
    """Become `python -m search`, so that signals reach it."""
    checkout = _HERE.parent if (_HERE.parent / "search" / "__main__.py").exists() else None
    words = command_line(sys.argv[1:], checkout)
    if checkout is not None:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
        os.environ.setdefault("ROUTEFRONT_DATA", str(checkout / "data"))
    os.execv(sys.executable, [sys.executable, "-P", "-m", "search", *words])


if __name__ == "__main__":
    main()
