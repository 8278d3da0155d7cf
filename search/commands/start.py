"""What a command leaves out while it starts."""

from __future__ import annotations

import sys
from typing import Any


class _NotNow:
    """A finder that says of pandas that it is not installed."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name == "pandas":
            raise ImportError(name)


def without_pandas() -> None:
    """Import pyarrow's data sets without pandas, which takes a third of the time that `frontier` needs to start.

    pyarrow looks for pandas at its first comparison. It looks again where a data frame is asked for, and pandas can be
    imported as ever.
    """
    if "pandas" in sys.modules or "pyarrow.dataset" in sys.modules:
        return
    finder: Any = _NotNow()
    sys.meta_path.insert(0, finder)
    try:
        import pyarrow.dataset  # noqa: F401
    finally:
        sys.meta_path.remove(finder)
