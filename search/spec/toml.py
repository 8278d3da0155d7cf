"""Study files as TOML: reading, changing, writing (the standard library only reads), and those that ship."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.errors import InputError
from spaces.space import nearest

PRESETS = Path(__file__).parent / "presets"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(v) for v in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    return repr(value)


def _text(value: str) -> str:
    """A TOML basic string: a JSON string, but that JSON may hold the control character 7F as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if key and all((c.isalnum() and c.isascii()) or c in "-_" for c in key) else _text(key)


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


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain values."""
    try:
        return tomllib.loads(path.read_text())
    except RecursionError:
        raise InputError(f"{path} is not valid TOML: it is nested too deep") from None
    except FileNotFoundError:
        raise InputError(f"no study file at {path}; presets: {', '.join(presets())} (--preset NAME)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def merge(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with dotted names replaced: ``{"budget.trials": 3}``."""
    merged = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for dotted, value in overrides.items():
        if value is None:
            continue
        first, _, rest = dotted.partition(".")
        if rest:
            part = merged.setdefault(first, {})
            if isinstance(part, dict):
                part[rest] = value
        else:
            merged[first] = value
    return merged


def presets() -> list[str]:
    """Names of the study files that ship with routefront."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset(name: str) -> Path:
    """The file of a preset."""
    path = PRESETS / f"{name}.toml"
    if not path.exists():
        raise InputError(f"unknown preset {name!r}{nearest(name, presets())}")
    return path
