"""A front as a table for a paper: LaTeX (booktabs) or Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from search.errors import InputError
from search.frontier.point import FrontPoint
from search.units import knobs_text, printable, show_count

SUFFIXES = (".tex", ".md")
_HEADS = ("Method", "Network", "Setting", "Accuracy (%)", "95 % interval", "MACs", "Parameters")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def write_table(points: Sequence[FrontPoint], path: Path) -> None:
    """The points, a row each, into a .tex or a .md file.

    Raises `InputError` for another suffix, or where the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"--table {path}: a table is {' or '.join(SUFFIXES)}")
    several = len({point.study for point in points}) > 1
    rows = [_row(point, several) for point in points]
    heads = (*(("Study",) if several else ()), *_HEADS)
    text = _latex(heads, rows) if path.suffix == ".tex" else _markdown(heads, rows)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def _row(point: FrontPoint, several: bool) -> tuple[str, ...]:
    low, high = point.interval or (None, None)
    interval = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
    words = (
        *((point.study,) if several else ()),
        f"{point.method} {point.variant}".strip(),
        point.network,
        knobs_text(point.knobs),
        f"{100 * point.accuracy:.1f}",
        interval,
        show_count(point.macs),
        show_count(point.params),
    )
    return tuple(printable(word) for word in words)


def _latex(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = "".join("r" if head in _HEADS[3:] else "l" for head in heads)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(re.sub(r"[\\&%$#_{}~^]", lambda found: _LATEX[found[0]], cell) for cell in cells) + r" \\"

    body = "\n".join(f"  {line(row)}" for row in rows)
    return (
        "% needs \\usepackage{booktabs}; accuracy on the validation split, MACs per image\n"
        f"\\begin{{tabular}}{{{columns}}}\n  \\toprule\n  {line(heads)}\n  \\midrule\n{body}\n  \\bottomrule\n"
        "\\end{tabular}\n"
    )


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells) + " |"

    rule = "| " + " | ".join("---:" if head in _HEADS[3:] else "---" for head in heads) + " |"
    return "\n".join([line(heads), rule, *map(line, rows)]) + "\n"
