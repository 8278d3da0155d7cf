"""Networks in a person's own Python file: how they are named, what the file says, and whose files may be run.

``mine.py:build`` names the function `build` of the file ``mine.py``. Whoever builds such a network runs the file, so a
process runs only files whose very text it was told to trust (`trust`): a person's own study file says so, for a study's
folder the person agrees (`search.studies.trust`), a worker is told by the driver, a served model by whoever serves it.
Nothing here runs anything.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from spaces.space import nearest

_NAME = re.compile(r"(?P<path>.+\.py):(?P<function>[A-Za-z_]\w*)")
_trusted: set[str] = set()
_carried: ContextVar[str] = ContextVar("carried", default="")


def parts(network: Any) -> tuple[str, str] | None:
    """Path and function of a name; None where it is no name of a file's function."""
    match = _NAME.fullmatch(network) if isinstance(network, str) else None
    return None if match is None else (match["path"], match["function"])


def written(methods: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(name of the table's key, network) for every network in a file that the tables of a study file name."""
    for method, table in methods.items():
        value = table.get("network")
        for network in value if isinstance(value, list | tuple) else [value]:
            if isinstance(network, str) and parts(network) is not None:
                yield f"methods.{method}.network", network


def read(network: str) -> str:
    """The text of the file that a name stands for; its function is found in it without running it.

    Raises `ValueError` with one line where the file is missing, no text, no Python, or lacks the function.
    """
    found = parts(network)
    assert found is not None, network
    path, function = found
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        tree = ast.parse(text)
    except FileNotFoundError:
        raise ValueError(f"network = {network!r}: there is no file {path}") from None
    except SyntaxError as error:
        raise ValueError(f"network = {network!r}: {path} is no Python: {error.msg}, line {error.lineno}") from None
    except (OSError, ValueError) as error:  # no text, zeros in it
        raise ValueError(f"network = {network!r}: {path} cannot be read: {error}") from None
    names = [each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef)]
    names += [a.asname or a.name for each in tree.body if isinstance(each, ast.ImportFrom) for a in each.names]
    names += [
        target.id
        for each in tree.body
        if isinstance(each, ast.Assign)
        for target in each.targets
        if isinstance(target, ast.Name)
    ]
    if function not in names:
        raise ValueError(f"network = {network!r}: {path} defines no {function}{nearest(function, names)}")
    return text


def text_of(network: str) -> str:
    """The file's text: what a checkpoint brought along (`carrying`), else what lies at its path."""
    return _carried.get() or read(network)


@contextmanager
def carrying(text: str) -> Iterator[None]:
    """Inside the block `text` stands for the file of whatever network is built; empty: the file itself."""
    before = _carried.set(text)
    try:
        yield
    finally:
        _carried.reset(before)


def imports(text: str) -> set[str]:
    """The packages that a file imports, by their first names."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def digest(text: str) -> str:
    """SHA-256 of a file's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def trust(text: str) -> None:
    """From now on this process runs files with exactly this text."""
    if text:
        _trusted.add(digest(text))


def trusted() -> list[str]:
    """The digests of all texts that this process runs: what a driver hands on to its workers."""
    return sorted(_trusted)


def trust_digests(digests: Iterable[str]) -> None:
    """From now on this process runs files whose texts have these digests."""
    _trusted.update(digests)


def trusts(text: str) -> bool:
    """Whether this process was told to."""
    return digest(text) in _trusted


def trust_network(network: Any) -> None:
    """`trust` of the file that a network's name stands for, as it is now; other names need none.

    Raises `ValueError` where the file cannot be read.
    """
    if parts(network) is not None:
        trust(read(network))


def trust_all(networks: Iterable[str]) -> None:
    """`trust_network` of each."""
    for network in networks:
        trust_network(network)


def absolute(value: Any) -> Any:
    """A network's name, or a list of names, with the paths of files that are here made absolute."""
    if isinstance(value, list | tuple):
        return [absolute(each) for each in value]
    found = parts(value)
    if found is None or not Path(found[0]).expanduser().is_file():
        return value
    return f"{Path(found[0]).expanduser().resolve()}:{found[1]}"
