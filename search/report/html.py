"""What the sections of a report share: the style of the page, tables, interactive figures, names of methods."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from search.report import style
from search.report.style import CLASS_COLOURS

# The buttons are named one by one: plotly's own set has one that leads to its web site.
_BUTTONS = ["toImage", "zoom2d", "pan2d", "resetScale2d"]
_CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtons": [_BUTTONS]}
_PANEL = {"displayModeBar": False, "responsive": True}
_OURS = f' data-ours="{secrets.token_hex(16)}"'

STYLE = """
:root{color-scheme:light dark;--ink:#1c2128;--soft:#57606a;--line:#d8dee4;--paper:#fff;--panel:#f6f8fa;--link:#0b62a3}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa4af;--line:#343b44;--paper:#14171c;--panel:#1d2229;--link:#6cb6ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:max(1120px,min(92vw,1480px));margin:0 auto;padding:1rem}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0;overflow-wrap:anywhere}h2{font-size:1.2rem;margin:2rem 0 .5rem}
p,.note{max-width:70rem;color:var(--soft);margin:.25rem 0 .75rem}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.5rem;margin:1rem 0}
dl div{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:.5rem .75rem}
dt{color:var(--soft);font-size:.8rem}dd{margin:0;font-weight:600;overflow-wrap:anywhere}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px;max-height:34rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .65rem;text-align:left;white-space:nowrap;border-bottom:1px solid var(--line)}
thead th{position:sticky;top:0;background:var(--panel)}
td.n,th.n{text-align:right}td.long{white-space:normal;min-width:14rem;overflow-wrap:anywhere}
tbody tr:last-child>*{border-bottom:0}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.45em}
small{color:var(--soft)}
button{font:inherit;font-size:.85rem;color:var(--link);background:none;border:1px solid var(--line);
border-radius:6px;padding:.1rem .4rem;cursor:pointer}
button:hover{background:var(--panel)}
h3{font-size:1rem;margin:1rem 0 .25rem}[hidden]{display:none!important}
#chosen{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:.25rem 1rem 1rem;margin-top:1rem}
#chosen h2{margin-top:.75rem}#chosen dl div{background:var(--paper)}
.command{overflow-x:auto;white-space:nowrap;color:var(--ink)}
code{background:var(--paper);border:1px solid var(--line);border-radius:6px;padding:.25rem .5rem}
figure.wide{min-width:820px}.scroll:has(figure.wide){max-height:none}
details{border:1px solid var(--line);border-radius:8px;margin:.5rem 0;padding:.5rem .75rem}
summary{cursor:pointer;overflow-wrap:anywhere}
pre{overflow-x:auto;font-size:.85rem;margin:.5rem 0 0}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
figure{margin:0}img{max-width:100%}figcaption{font-size:.9rem;overflow-wrap:anywhere}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:1rem 1.5rem}
.panels>*{min-width:0}.panels+.panels{margin-top:1rem}.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,16rem),1fr))}
.key{display:flex;flex-wrap:wrap;gap:.25rem 1rem;list-style:none;margin:.25rem 0 .75rem;padding:0;font-size:.9rem}
.key svg{vertical-align:middle;margin-right:.35em}
.scale{display:inline-block;width:7rem;height:.65em;border-radius:3px;margin:0 .3em}
.grid{display:block;width:100%;max-width:32rem;image-rendering:pixelated;border-radius:4px;margin:.15rem 0 .5rem}
.js-plotly-plot .main-svg text{fill:var(--ink)!important}
.js-plotly-plot .hoverlayer text{fill:#fff!important}
.js-plotly-plot path.xgrid,.js-plotly-plot path.ygrid{stroke:var(--line)!important}
"""


def slot(name: str, label: str, caption: str = "", *, wide: bool = False) -> str:
    """The place of a figure that `page.js` draws from the page's data; `wide` ones scroll on a narrow screen."""
    above = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    kind = ' class="wide"' if wide else ""
    return f'<figure aria-label="{escape(label)}"{kind}>{above}<div id="{name}" data-figure></div></figure>'


def _script_of_ours(figure: Any, name: str, config: Mapping[str, Any]) -> str:
    """A plotly figure as HTML whose script says that it is ours (`scripts_of_ours`); what it draws is escaped."""
    body = figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=name)
    return re.sub(r'<script(?: type="text/javascript")?>', f"<script{_OURS}>", body)


def scripts_of_ours(content: str) -> tuple[str, list[str]]:
    """The content of a page without the mark of our scripts, and those scripts' bodies.

    A script that came in with what a study tells has no mark: nobody knows it before the page is made.
    """
    bodies = re.findall(rf"<script{re.escape(_OURS)}>(.*?)</script>", content, re.S)
    return content.replace(f"<script{_OURS}>", "<script>"), bodies


def plot(figure: Any, name: str, label: str) -> str:
    """A plotly figure as HTML; the page brings plotly itself."""
    body = _script_of_ours(figure, name, _CONFIG)
    return f'<figure aria-label="{escape(label)}">{body}</figure>'


def panel(figure: Any, name: str, label: str, caption: str) -> str:
    """A small figure under its caption, for a grid of them: no buttons, and a finger on it scrolls the page."""
    figure.update_layout(dragmode=False)
    body = _script_of_ours(figure, name, _PANEL)
    return f'<figure aria-label="{escape(label)}"><figcaption>{escape(caption)}</figcaption>{body}</figure>'


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in a region that scrolls; a head that starts with # is numeric, with ~ may wrap."""
    kinds = [{"#": "n", "~": "long"}.get(head[0], "") for head in heads]
    top = "".join(
        f'<th scope="col" class="{k}">{escape(h.lstrip("#~"))}</th>' for h, k in zip(heads, kinds, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f'<td class="{k}">{cell}</td>' for cell, k in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    if not rows:
        body = f'<tr><td colspan="{len(heads)}">none yet</td></tr>'
    label = escape(caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table aria-label="{label}">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def section(title: str, about: str, body: str) -> str:
    """A section under its heading and a note; nothing where there is no body."""
    return f'<section><h2>{title}</h2><p class="note">{about}</p>{body}</section>' if body else ""


def class_key(classes: Sequence[str]) -> str:
    """The colours of the classes, where there are not more classes than colours."""
    if len(classes) > len(CLASS_COLOURS):
        return ""
    entries = [
        f'<li><span class="dot" style="background:{color}"></span>{escape(str(name))}</li>'
        for name, color in zip(classes, CLASS_COLOURS, strict=False)
    ]
    return f'<ul class="key">{"".join(entries)}</ul>'


def method_name(row: Mapping[str, Any]) -> str:
    """A method and its variant behind a dot in the method's colour."""
    color = style.style(str(row["method"]))[0]
    name = " ".join(str(row[key]) for key in ("method", "variant") if row.get(key))
    return f'<span class="dot" style="background:{color}"></span>{escape(name)}'
