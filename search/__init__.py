"""How trials are chosen, stopped, recorded, compared and promoted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spaces.moved import install

if TYPE_CHECKING:
    from search.spec.study import StudySpec
    from search.study import Study

__all__ = ["Study", "StudySpec"]

install(__name__, __path__)


def __getattr__(name: str) -> Any:
    """`Study` and `StudySpec`, imported when they are asked for: they bring torch along."""
    if name == "Study":
        from search.study import Study

        return Study
    if name == "StudySpec":
        from search.spec.study import StudySpec

        return StudySpec
    raise AttributeError(f"module 'search' has no attribute {name!r}")
