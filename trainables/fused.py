"""`prepared`, at the place where scripts of models that were promoted earlier look for it.

Without it they would serve networks that are not prepared, and say nothing. New code imports
`trainables.inference.prepare`.
"""

from __future__ import annotations

from trainables.inference.prepare import prepared

__all__ = ["prepared"]
