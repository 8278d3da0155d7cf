"""How trials are chosen, stopped, recorded, compared and promoted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.spec import StudySpec
    from search.study import Study

__all__ = ["Study", "StudySpec"]


def __getattr__(name: str) -> Any:
    """`Study` and `StudySpec`, imported when they are asked for: they bring torch along."""
    if name == "Study":
        from search.study import Study

        return Study
    if name == "StudySpec":
        from search.spec import StudySpec

        return StudySpec
    raise AttributeError(f"module 'search' has no attribute {name!r}")
