"""What users rely on is frozen: the names of `routefront`, and the command line's commands and options.

`tests/frozen` lists both, a line for every name, parameter, field, command, option. A line that the code no longer has
fails: users rely on it. A line that the list does not have fails, too, until it is added:

    python -m tests.test_frozen --write

That adds lines and removes none. Annotations are not frozen (pyright reads them, and a type may become wider), nor are
help texts.
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "frozen"
OURS = ("routefront", "search", "trainables", "spaces", "cluster")
MADE_BY_OTHERS = ("Study", "PromotedModel")
"""Classes that `Study.create`, `Study.load` and `load` make; users do not call them."""
INTERNAL = {
    "Study": (
        "agree changed check_data driving foreign journal kept left permit reclaimable spec_of stored untrusted write"
    ).split(),
}
"""What the platform itself asks of a class that users see: it may move or go."""
WRITE = "python -m tests.test_frozen --write"


# -- the public names ------------------------------------------------------------------------------


def public_names() -> list[str]:
    """Lines for every name of `routefront`: parameters, methods, properties, attributes, fields."""
    import routefront

    lines: list[str] = []
    for name in sorted(routefront.__all__):
        value = getattr(routefront, name)
        lines.append(name)
        if inspect.isclass(value):
            lines += class_lines(name, value)
        elif callable(value):
            lines += signature_lines(name, value)
    return lines


def class_lines(name: str, cls: type) -> Iterator[str]:
    """What a class of ours offers: how it is made, and all that has no underscore and is not inherited from others'."""
    from pydantic import BaseModel

    if issubclass(cls, BaseModel):
        yield from table_lines(name, cls)
    elif issubclass(cls, Exception):
        yield f"{name} is a {cls.__base__.__name__}"
    elif name not in MADE_BY_OTHERS:
        yield from signature_lines(name, cls)
    kin = [each for each in cls.__mro__ if each.__module__.partition(".")[0] in OURS]
    fields = set(getattr(cls, "model_fields", ()))
    members: dict[str, Any] = {}
    for each in reversed(kin):
        members |= {attribute: None for attribute in attributes(each) | set(inspect.get_annotations(each))}
        members |= vars(each)
    fields |= set(INTERNAL.get(name, ()))
    for attribute in sorted(each for each in members if not each.startswith(("_", "model_")) and each not in fields):
        value = members[attribute]
        bound = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(bound):
            yield f"{name}.{attribute}()"
            yield from signature_lines(f"{name}.{attribute}", getattr(cls, attribute))
        elif not isinstance(value, type):
            yield f"{name}.{attribute}"


def attributes(cls: type) -> set[str]:
    """The attributes that a class's `__init__` assigns to its instances."""
    made = vars(cls).get("__init__")
    steps = dis.get_instructions(made) if inspect.isfunction(made) else ()
    return {str(step.argval) for step in steps if step.opname == "STORE_ATTR"}


def signature_lines(name: str, value: Any) -> Iterator[str]:
    """A line for every parameter: its place where it may be given by place, its name, its default."""
    parameters = [each for each in inspect.signature(value).parameters.values() if each.name != "self"]
    for place, parameter in enumerate(parameters, start=1):
        kinds = {
            parameter.POSITIONAL_ONLY: f"[{place}] ",
            parameter.POSITIONAL_OR_KEYWORD: f"[{place}] {parameter.name}",
            parameter.VAR_POSITIONAL: f"*{parameter.name}",
            parameter.KEYWORD_ONLY: f"{parameter.name}",
            parameter.VAR_KEYWORD: f"**{parameter.name}",
        }
        default = "" if parameter.default is parameter.empty else f" = {shown(parameter.default)}"
        yield f"{name}({kinds[parameter.kind]}{default})"


def table_lines(name: str, cls: Any) -> Iterator[str]:
    """A line for every key of a table of the study file, the tables in it included."""
    from pydantic import BaseModel

    for key, field in cls.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield f"{name}.{key}"
            yield from table_lines(f"{name}.{key}", field.annotation)
        elif field.is_required():
            yield f"{name}.{key}"
        else:
            yield f"{name}.{key} = {shown(field.default_factory or field.default)}"


def shown(value: Any) -> str:
    """A default as text that is the same on every machine."""
    made = callable(value) or type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS"
    return "(a function or what one makes)" if made else repr(value)


# -- the command line ------------------------------------------------------------------------------


def command_line() -> list[str]:
    """Lines for every command, argument and option."""
    import typer

    from search.__main__ import app

    return list(command_lines("routefront", typer.main.get_command(app)))


def command_lines(name: str, command: Any) -> Iterator[str]:
    """A command with what it takes, and those below it."""
    yield name
    for parameter in command.params:
        if parameter.name == "help":
            continue
        many = " ..." if parameter.multiple or parameter.nargs == -1 else ""
        option = parameter.param_type_name == "option"
        takes = " VALUE" if option and not parameter.is_flag else ""
        needed = " (required)" if parameter.required else ""
        default = "" if parameter.required or parameter.default is None else f" = {shown(parameter.default)}"
        words = " ".join([*parameter.opts, *parameter.secondary_opts]) if option else parameter.name.upper()
        yield f"{name} {words}{takes}{many}{needed}{default}"
    for below, child in sorted(getattr(command, "commands", {}).items()):
        yield from command_lines(f"{name} {below}", child)


# -- the lists -------------------------------------------------------------------------------------

LISTS = {"public_names.txt": public_names, "command_line.txt": command_line}


def frozen(name: str) -> list[str]:
    path = FOLDER / name
    return path.read_text().splitlines() if path.exists() else []


def complaint(name: str, listed: list[str], lines: list[str]) -> str:
    """What is wrong with a list, as text; empty where it fits."""
    gone = [line for line in listed if line not in lines]
    new = [line for line in lines if line not in listed]
    said = []
    if gone:
        said += [f"tests/frozen/{name}: users rely on these, they must stay:", *(f"  {line}" for line in gone)]
    if new:
        said += [f"tests/frozen/{name} does not have these yet; add them with `{WRITE}`:", *(f"  {x}" for x in new)]
    return "\n".join(said)


@pytest.mark.parametrize("name", list(LISTS))
def test_what_users_rely_on_is_as_listed(name: str) -> None:
    lines = LISTS[name]()
    assert len(lines) == len(set(lines)) > 50
    wrong = complaint(name, frozen(name), lines)
    assert not wrong, f"\n{wrong}"


def test_a_removal_and_an_addition_are_told_apart() -> None:
    assert complaint("x.txt", ["a", "b"], ["b", "a"]) == ""
    assert complaint("x.txt", ["a", "b"], ["a"]) == "tests/frozen/x.txt: users rely on these, they must stay:\n  b"
    assert WRITE in complaint("x.txt", ["a"], ["a", "b"]) and "must stay" not in complaint("x.txt", ["a"], ["a", "b"])


def test_the_lists_see_every_kind_of_change() -> None:
    def given(a: int, /, b: int, *rest: int, c: int = 1, **more: int) -> None: ...

    assert list(signature_lines("f", given)) == ["f([1] )", "f([2] b)", "f(*rest)", "f(c = 1)", "f(**more)"]
    names, options = frozen("public_names.txt"), frozen("command_line.txt")
    assert {
        "Study.create()", "Study.create([1] spec)", "Study.create(root = None)", "Study.spec", "Study.load()",
        "Study.frontier(latency = False)", "StudySpec.budget.trials = 24", "StudySpec.name", "Method(name)",
        "Method.configure([1] values)", "Range(log = False)", "RoutedNetwork.infer([2] knobs)",
        "RoutedNetwork.macs_full", "Task(classes = 10)", "load(uri = None)", "InputError is a ValueError",
        "predict([2] images)", "PromotedModel.predict(max_macs = None)",
    } <= {*names}  # fmt: skip
    assert {
        "routefront", "routefront --debug = False", "routefront frontier", "routefront frontier STUDY ... (required)",
        "routefront frontier --max-macs VALUE", "routefront cluster render", "routefront gc --dry-run = False",
    } <= {*options}  # fmt: skip


def write() -> int:
    """Add what the lists do not have yet; refuse where they have more than the code."""
    FOLDER.mkdir(exist_ok=True)
    code = 0
    for name, lines_of in LISTS.items():
        lines, listed = lines_of(), frozen(name)
        gone = [line for line in listed if line not in lines]
        if gone:
            print(complaint(name, gone, []), file=sys.stderr)
            code = 1
            continue
        (FOLDER / name).write_text("".join(f"{line}\n" for line in lines))
        print(f"tests/frozen/{name}: {len(lines)} lines, {len(lines) - len(listed)} new")
    return code


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {WRITE}")
    sys.exit(write())
