"""What mkdocs asks when it builds the site: pages made from the code, and pages from the repository's root."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, Path(__file__).parent):  # ours before whatever is installed
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

import methods  # noqa: E402
import reference  # noqa: E402
from mkdocs.structure.files import File  # noqa: E402

_ABOUT = {name: f"about/{name.lower()}" for name in ("CHANGELOG.md", "CONTRIBUTING.md", "DECISIONS.md", "SECURITY.md")}
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any, **_: Any) -> Any:
    """Put the methods' pages, which nobody lists by hand, into the navigation."""
    for entry in config["nav"]:
        if "Methods" in entry:
            entry["Methods"] = ["methods/index.md", *({name: f"methods/{name}.md"} for name in methods.names())]
    return config


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the pages that are made from the code, and those of the repository's root."""
    made = methods.pages() | reference.pages()
    made |= {place: (ROOT / name).read_text(encoding="utf-8") for name, place in _ABOUT.items()}
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links that are right in a plain view of the repository, brought to where the site has the file."""
    here = page.file.src_uri
    lies = {place: name for name, place in _ABOUT.items()}.get(here, f"docs/{here}")

    def moved(found: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(lies), found[1])).replace(os.sep, "/")
        place = _ABOUT.get(target, target.removeprefix("docs/") if target.startswith("docs/") else "")
        if not place:
            return found[0]  # strict mode says that it leads nowhere
        return f"]({os.path.relpath(place, os.path.dirname(here) or '.').replace(os.sep, '/')}{found[2] or ''})"

    return _LINK.sub(moved, markdown)
