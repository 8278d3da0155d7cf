"""A front as a table for a paper: LaTeX (booktabs) or Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from search.errors import InputError
from search.frontier.point import FrontPoint
from search.units import AxesText, knobs_text, printable, show_count

SUFFIXES = (".tex", ".md")
_WORDS = 3  # columns of words, in front of those of figures
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def write_table(points: Sequence[FrontPoint], path: Path, axes: AxesText | None = None) -> None:
    """The points, a row each, into a .tex or a .md file; `axes`: what accuracies and MACs stand for.

    Raises `InputError` for another suffix, or where the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"--table {path}: a table is {' or '.join(SUFFIXES)}")
    shown, several = axes or AxesText(), len({point.study for point in points}) > 1
    rows = [_row(point, several, shown) for point in points]
    merit, cost = (shown.merit_title, shown.cost_title)
    merit = f"{merit.capitalize()} (%)" if shown.usual else merit
    heads = ("Method", "Network", "Setting", merit, "95 % interval", cost, "Parameters")
    heads, words = (*(("Study",) if several else ()), *heads), _WORDS + several
    text = _latex(heads, rows, words, shown) if path.suffix == ".tex" else _markdown(heads, rows, words)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def _row(point: FrontPoint, several: bool, axes: AxesText) -> tuple[str, ...]:
    interval = "" if point.interval is None else axes.between(*point.interval, " to ")
    words = (
        *((point.study,) if several else ()),
        f"{point.method} {point.variant}".strip(),
        point.network,
        knobs_text(point.knobs),
        f"{100 * point.accuracy:.1f}" if axes.usual else axes.merit(point.accuracy),
        interval,
        axes.cost(point.macs),
        show_count(point.params),
    )
    return tuple(printable(word) for word in words)


def _latex(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int, axes: AxesText) -> str:
    columns = "l" * words + "r" * (len(heads) - words)
    said = "as its trainables measured it"
    if axes.usual:
        said = f"{axes.merit_title} on the validation split, MACs per image"

    def line(cells: Sequence[str]) -> str:
        return " & ".join(re.sub(r"[\\&%$#_{}~^]", lambda found: _LATEX[found[0]], cell) for cell in cells) + r" \\"

    body = "\n".join(f"  {line(row)}" for row in rows)
    return (
        f"% needs \\usepackage{{booktabs}}; {said}\n"
        f"\\begin{{tabular}}{{{columns}}}\n  \\toprule\n  {line(heads)}\n  \\midrule\n{body}\n  \\bottomrule\n"
        "\\end{tabular}\n"
    )


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells) + " |"

    rule = "| " + " | ".join("---" if column < words else "---:" for column in range(len(heads))) + " |"
    return "\n".join([line(heads), rule, *map(line, rows)]) + "\n"
