"""The reference pages, made from the code when the site is built: nothing of them is written a second time by hand.

Each function returns the Markdown of one page.
"""

from __future__ import annotations

import inspect
import io
import re
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pieces import code, columns, prose, table

ROOT = Path(__file__).resolve().parents[2]


def pages() -> dict[str, str]:
    """Every reference page by its file."""
    return {
        "reference/study-file.md": study_file(),
        "reference/command-line.md": command_line(),
        "reference/python.md": python(),
        "reference/events.md": events(),
        "reference/points.md": points(),
        "reference/mlflow.md": mlflow(),
    }


# -- the study file ----------------------------------------------------------------------------------


def study_file() -> str:
    """Tables and keys of the study file, from the pydantic models."""
    from search.spec.study import StudySpec

    parts = [
        "# Keys of the study file",
        "Made from the models that check study files (`search/spec`). [The study file](../study-file.md) explains them"
        " with an example.",
    ]
    parts += _table_of(StudySpec, "")
    return "\n\n".join(parts) + "\n"


def _table_of(model: Any, path: str) -> Iterator[str]:
    from pydantic import BaseModel

    deeper: list[tuple[str, Any]] = []
    rows = []
    for name, field in model.model_fields.items():
        kinds = [each for each in _kinds(field.annotation) if inspect.isclass(each) and issubclass(each, BaseModel)]
        if kinds:
            deeper.append((f"{path}.{name}".strip("."), kinds[0]))
            continue
        rows.append((code(name), _takes(field.annotation), _default(field), _limits(field)))
    yield f"## `[{path}]`" if path else "## Above all tables"
    yield prose(model.__doc__)
    if rows:
        yield table(("key", "takes", "default", "limits"), rows)
    for name, part in deeper:
        yield from _table_of(part, name)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) or (annotation,)


_TYPES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Any: "any value"}


def _takes(annotation: Any) -> str:
    origin, kinds = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(code(each) for each in kinds)
    if origin is list:
        return f"a list of: {_takes(kinds[0])}"
    if origin is dict:
        return "a table"
    if kinds:
        return " or ".join(_takes(each) for each in kinds if each is not type(None))
    return _TYPES.get(annotation, str(annotation))


def _default(field: Any) -> str:
    if field.is_required():
        return "none: it must be given"
    if field.default_factory is not None:
        made = field.default_factory.__name__
        return {"dict": "empty", "list": "empty", "_all_methods": "all methods"}.get(made, made)
    if field.default is None:
        return ""
    if isinstance(field.default, bool):
        return code(str(field.default).lower())
    return code('""' if field.default == "" else field.default)


def _limits(field: Any) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    words |= {"min_length": "characters, at least", "max_length": "characters, at most"}
    said = [
        f"{words[name]} {getattr(limit, name):g}"
        for limit in field.metadata
        for name in words
        if getattr(limit, name, None) is not None
    ]
    return ", ".join(said)


# -- the command line --------------------------------------------------------------------------------


def command_line() -> str:
    """Every command with its arguments and options, from the typer application."""
    import typer

    from search.__main__ import app

    parts = [
        "# Commands and options",
        "Made from the command line itself. [Every command](../commands.md) at a glance.",
    ]
    for name, command in _commands(typer.main.get_command(app), "routefront"):
        parts.append(f"## {name}")
        parts.append(_help(command.help or ""))
        rows = []
        for parameter in command.params:
            if parameter.name == "help" or getattr(parameter, "hidden", False):
                continue
            if parameter.param_type_name == "argument":
                names = code((parameter.name or "").upper())
            else:
                names = ", ".join(code(each) for each in (*parameter.opts, *parameter.secondary_opts))
            plain = parameter.default not in (None, False, (), []) and not callable(parameter.default)
            default = parameter.default if plain and "Sentinel" not in repr(parameter.default) else ""
            needed = "required" if parameter.required else code(default)
            rows.append((names, prose(getattr(parameter, "help", "") or ""), needed))
        if rows:
            parts.append(table(("option", "what it says", "default"), rows))
    return "\n\n".join(parts) + "\n"


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in sorted(group.commands.items(), key=lambda item: (hasattr(item[1], "commands"), item[0])):
        if getattr(command, "hidden", False):
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _help(text: str) -> str:
    """A command's help; its examples become a block."""
    said, _, shown = re.sub(r"\x08", "", prose(text)).partition("Example")
    if not shown:
        return said
    examples = re.findall(r"routefront [^\n]*", shown)
    return said + "\n```bash\n" + "\n".join(examples) + "\n```"


# -- Python ------------------------------------------------------------------------------------------


def python() -> str:
    """The public names: what mkdocstrings is asked for, by the list that a test freezes."""
    import routefront

    parts = [
        "# Python",
        "The public names of `routefront`, which stay as they are from release to release. Each is imported when it is"
        " first used.",
    ]
    named = [each for row, _ in columns(routefront.__doc__ or "") for each in re.findall(r"`(\w+)`", row)]
    missing = {*routefront.__all__} - {*named, "__version__"}
    if missing:
        raise ValueError(f"the docstring of routefront does not name {', '.join(sorted(missing))}")
    for name in (each for each in named if each != "__version__"):
        place, _, there = routefront._PLACES[name].partition(":")
        members = _frozen_members(name)
        options = [
            f"::: {place}.{there or name}",
            "    options:",
            f'      heading: "routefront.{name}"',
            f'      toc_label: "{name}"',
            f"      members: {members if members else 'false'}",
        ]
        parts.append("\n".join(options))
    return "\n\n".join(parts) + "\n"


def _frozen_members(name: str) -> list[str]:
    lines = (ROOT / "tests" / "frozen" / "public_names.txt").read_text().splitlines()
    found = (re.match(rf"{name}\.(\w+)", line) for line in lines)
    return sorted({each[1] for each in found if each})


# -- events, points, MLflow --------------------------------------------------------------------------


def events() -> str:
    """The kinds of events, from the docstring of `search.journal.events`."""
    from search.journal import events as module

    rows = [(code(name), prose(text)) for name, text in columns(module.__doc__ or "")]
    parts = [
        "# Events of the journal",
        "The journal of a study is a database, SQLite or PostgreSQL; everything that a study is follows from its events"
        " in their order. `routefront status STUDY --trial t0003` tells those of one trial.",
        table(("kind", "payload: what it means"), rows),
        f"A `report` keeps: {', '.join(code(each) for each in module.REPORT_KEYS)}.",
    ]
    return "\n\n".join(parts) + "\n"


def points() -> str:
    """The columns of operating points, from the Arrow schema and the comments in its source."""
    from search.points import schema

    remarks = _comments(Path(inspect.getfile(schema)))
    rows = [
        (code(field.name), code(field.type), "" if field.nullable else "never null", remarks.get(field.name, ""))
        for field in schema.SCHEMA
    ]
    parts = [
        "# Operating points as Parquet",
        "A study's folder keeps every operating point in `points/`; `routefront frontier STUDY --parquet F` writes"
        f" those of the frontier with the same columns. The files' metadata has `{schema.VERSION_KEY.decode()}` ="
        f" {schema.VERSION}, which changes where a column changes its meaning.",
        table(("column", "type", "", "what"), rows),
    ]
    return "\n\n".join(parts) + "\n"


def _comments(file: Path) -> dict[str, str]:
    """By the column named in a line of source the comment behind it."""
    lines = file.read_text().splitlines()
    found: dict[str, str] = {}
    for token in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline):
        if token.type == tokenize.COMMENT:
            named = re.search(r'pa\.field\("(\w+)"', lines[token.start[0] - 1])
            if named:
                found[named[1]] = token.string.lstrip("# ").rstrip(" ;")
    return found


def mlflow() -> str:
    """The names in MLflow, from `search.tracking.names`."""
    from search.tracking import names

    parts = ["# Names in MLflow", prose(names.__doc__)]
    for title, kinds in names.NAMES.items():
        parts.append(f"## {title}")
        for kind, entries in kinds.items():
            parts.append(f"### {kind} of {title[0].lower()}{title[1:]}")
            parts.append(table(("name", "what"), [(code(name), prose(text)) for name, text in entries.items()]))
    return "\n\n".join(parts) + "\n"
