"""Docstrings as Markdown, and tables: what every generated page is made of."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

_RULE = re.compile(r"^=+( =+)+$")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cells are text already."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(each) for each in line)} |\n" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def code(value: object) -> str:
    """A word in the type of code."""
    return f"`{value}`" if str(value) else ""


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: double backticks become single ones, roles and rules of reST are taken apart."""
    text = inspect.cleandoc(docstring or "")
    text = re.sub(r":math:`([^`]*)`", lambda found: f"`{plain_equation(found[1])}`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return "\n".join(line.replace("<", "&lt;") if "`" not in line else line for line in text.splitlines())


_WORDS = {
    r"\lambda": "λ", r"\sum": "Σ", r"\alpha": "α", r"\beta": "β", r"\gamma": "γ", r"\tau": "τ", r"\cdot": "·",
    r"\times": "×", r"\leq": "≤", r"\le": "≤", r"\ge": "≥", r"\in": "∈", r"\pi": "π", r"\log": "log",
    r"\varepsilon": "ε", r"\epsilon": "ε", r"\theta": "θ", r"\sigma": "σ", r"\mu": "μ", r"\rho": "ρ", r"\,": " ",
}  # fmt: skip


def plain_equation(latex: str) -> str:
    """An equation of a docstring in letters that every font has: the site loads no typesetter."""
    for word, letter in _WORDS.items():
        latex = latex.replace(word, letter)
    latex = re.sub(r"_\{([^{}]*)\}", r"_\1", latex)
    return " ".join(latex.replace("{", "").replace("}", "").split())


def columns(docstring: str) -> list[tuple[str, str]]:
    """The rows of the first table in a docstring, of two columns between rules of equals signs."""
    lines = inspect.cleandoc(docstring).splitlines()
    rules = [number for number, line in enumerate(lines) if _RULE.match(line.strip())]
    begin, end = rules[0], rules[-1]
    width = lines[begin].index(" ")
    rows: list[tuple[str, str]] = []
    for line in lines[begin + 1 : end]:
        if _RULE.match(line.strip()):
            continue
        name, text = line[:width].strip(), line[width:].strip()
        if name:
            rows.append((name, text))
        elif rows:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {text}")
    return rows
