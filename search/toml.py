"""Writing TOML (the standard library only reads it): scalars, lists, nested tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(v) for v in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML basic string
    return repr(value)


def _key(key: str) -> str:
    return key if key and all((c.isalnum() and c.isascii()) or c in "-_" for c in key) else json.dumps(key)


def to_toml(values: Mapping[str, Any], prefix: str = "", depth: int = 2) -> str:
    """A TOML document; mappings down to `depth` become tables, deeper ones inline."""
    scalars = {k: v for k, v in values.items() if not (isinstance(v, Mapping) and depth)}
    tables = {k: v for k, v in values.items() if k not in scalars}
    lines = [f"{_key(k)} = {_value(v)}" for k, v in scalars.items()]
    text = "\n".join(lines) + ("\n" if lines else "")
    for key, table in tables.items():
        name = f"{prefix}.{_key(key)}" if prefix else _key(key)
        body = to_toml(table, name, depth - 1)
        text += f"\n[{name}]\n{body}"
    return text
