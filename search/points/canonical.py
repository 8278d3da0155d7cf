"""The one JSON spelling of values that are compared as text: configurations, settings, knobs."""

from __future__ import annotations

import json
from typing import Any

from search.units import parsed


def canonical(value: Any) -> str:
    """Plain values as the one JSON text that equal values have: the keys of mappings are sorted."""
    return json.dumps(value, sort_keys=True)


def canonical_text(text: str) -> str:
    """JSON text of any spelling as `canonical` writes it; earlier releases did not sort the keys in their files."""
    return canonical(parsed(text))
