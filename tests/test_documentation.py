"""The documentation: its site loads nothing from elsewhere, its commands exist, its reference is the code's."""

from __future__ import annotations

import fnmatch
import functools
import html.parser
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.story import Story
from tests.support.tracked import told

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "link": "href",
    "video": "src",
    "audio": "src",
}
NOT_LOADED = ("canonical", "prev", "next", "edit")
"""Relations of `link` that a browser follows only when it is told to."""


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of docs/tools, which are no package."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "tools")


# -- the site ----------------------------------------------------------------------------------------


class Remote(html.parser.HTMLParser):
    """Collects the addresses of other machines that a page loads something from."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        address = values.get(LOADED.get(tag, ""), "") or ""
        if "//" in address and values.get("rel") not in NOT_LOADED:
            self.found.append(address)


def remote_in_css(text: str) -> list[str]:
    """Addresses that a style sheet loads."""
    return re.findall(r"(?:url\(|@import\s+)['\"]?((?:https?:)?//[^'\")\s]+)", text)


def test_what_is_loaded_from_elsewhere_is_found() -> None:
    page = Remote()
    page.feed('<link rel="stylesheet" href="https://a/x.css"><script src="//b/c.js"></script>')
    page.feed('<a href="https://d">d</a><link rel="canonical" href="https://e"><img src="f.png">')
    assert page.found == ["https://a/x.css", "//b/c.js"]
    style = "@import 'https://a/f.css'; b { background: url(//c/d.png) } i { background: url(e.png) }"
    assert remote_in_css(style) == ["https://a/f.css", "//c/d.png"]


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=500, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "skipnet.html", "command-line.html", "changelog.html"} <= {page.name for page in pages}
    for file in pages:
        page = Remote()
        page.feed(file.read_text(encoding="utf-8"))
        assert page.found == [], file
        assert "mermaid" not in re.findall(r'class="([^"]*)"', file.read_text(encoding="utf-8")), (
            file
        )  # loads its script
    for file in (tmp_path / "site").rglob("*.css"):
        assert remote_in_css(file.read_text(encoding="utf-8")) == [], file
    python = (tmp_path / "site" / "reference" / "python.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in python for name in ("search.study.Study.create", "spaces.space.When"))
    sizes = [(file.name, file.stat().st_size) for file in (ROOT / "docs" / "pictures").iterdir()]
    assert sizes and all(0 < size < 200_000 for _, size in sizes), sizes


# -- commands ----------------------------------------------------------------------------------------


def shown(text: str) -> Iterator[list[str]]:
    """The commands of routefront in the blocks of a page, as words."""
    for kind, block in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if kind not in ("", "bash", "sh", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\$\(|&&|;|\|\||(?<= )\| (?=routefront)|`", line):
                found = re.search(r"(?:^|\s|/)(routefront) (?=[a-z-])(.*)", part)
                if found and "=" not in found[2].split()[0]:
                    yield words(found[2])


def words(rest: str) -> list[str]:
    """A command's words, without what the shell takes, and without the words that explain it."""
    rest = re.split(r"\s#| {2,}|\s[012&]?>|\s<|(?<!\w)&$|\s\|\s(?=[a-z]+(?:\s|$)(?!\w+ STUDY))", f"{rest} ")[0]
    return shlex.split(rest.strip().rstrip(")'\""))


@functools.cache
def command_line() -> Any:
    """The command line as click has it, which takes a moment to make."""
    import typer

    from search.__main__ import app

    return typer.main.get_command(app)


def wrong(command: list[str]) -> str:
    """What the command line does not know of a command, empty where it knows all."""
    at = command_line()
    rest = list(command)
    while hasattr(at, "commands"):
        if not rest or rest[0].startswith("-"):
            return ""  # `routefront --help`
        if rest[0] not in at.commands:
            return f"no command {rest[0]!r}"
        at = at.commands[rest.pop(0)]
    known = {each for parameter in at.params for each in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help",
        "--debug",
    }
    for word in rest:
        option = word.strip("[]").partition("=")[0]
        if option.startswith("-") and not re.match(r"-?\d|-$", option) and option not in known:
            return f"{at.name} has no {option}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_that_is_shown_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = list(shown(text))
    assert [f"{' '.join(each)}: {why}" for each in found if (why := wrong(each))] == []
    if page.name in ("commands.md", "start.md", "README.md"):
        assert len(found) >= 4


def test_every_option_in_the_list_of_commands_exists() -> None:
    def options(command: Any) -> set[str]:
        if hasattr(command, "commands"):
            return set().union(*(options(each) for each in command.commands.values()))
        return {each for parameter in command.params for each in (*parameter.opts, *parameter.secondary_opts)}

    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", (ROOT / "docs" / "commands.md").read_text()))
    assert len(named) > 40 and named - options(command_line()) - {"--help"} == set()


def test_a_command_that_does_not_exist_is_found() -> None:
    page = "```\nroutefront search x.toml --budget 3   # no such option\nroutefront list | delete STUDY\n```\n"
    assert [wrong(each) for each in shown(page)] == ["search has no --budget", ""]
    assert [wrong(each) for each in shown("```bash\nx=1; .venv/bin/routefront serach a\n```\n")] == [
        "no command 'serach'"
    ]


# -- the reference -----------------------------------------------------------------------------------


def test_every_kind_of_event_is_in_the_reference(tools: None) -> None:
    import reference  # pyright: ignore[reportMissingImports]

    from search.state.state import StudyState
    from search.tracking.chronicle import Chronicle

    known = {
        name.removeprefix("_on_") for cls in (StudyState, Chronicle) for name in dir(cls) if name.startswith("_on_")
    }
    page = reference.events()
    assert known and [kind for kind in known if f"| `{kind}` |" not in page] == []


def test_what_mlflow_is_told_has_its_name_in_the_reference() -> None:
    from search.tracking.chronicle import STUDY, Chronicle
    from search.tracking.names import NAMES

    story, chronicle = told(Story(), 4), Chronicle()
    story.add("ended", {"why": "finished"})
    for event in story.events:
        chronicle.apply(event)
    seen: dict[str, dict[str, set[str]]] = {}
    for key, change in chronicle.changes.items():
        kinds = seen.setdefault("The study's run" if key == STUDY else "A trial's run", {})
        kinds.setdefault("Parameters", set()).update(change.params)
        kinds.setdefault("Metrics", set()).update(name for name, *_ in change.metrics)
        kinds.setdefault("Tags", set()).update(change.tags)
        kinds.setdefault("Files", set()).update(change.files)
    for run, kinds in seen.items():
        for kind, names in kinds.items():
            patterns = NAMES[run][kind]
            assert [name for name in names if not any(fnmatch.fnmatch(name, each) for each in patterns)] == [], (
                run,
                kind,
            )
            if kind in ("Metrics", "Files"):
                idle = [each for each in patterns if not fnmatch.filter(names, each)]
                assert set(idle) <= {"lr", "diagnostics/*", "diagnostics.json"}, (run, kind)


def test_sizes_of_published_networks_are_the_codes(tools: None) -> None:
    """Those that are built within a second; all are written by `python docs/tools/methods.py --write`."""
    import json

    import methods  # pyright: ignore[reportMissingImports]

    known = json.loads((ROOT / "docs" / "tools" / "sizes.json").read_text())
    cases = {
        methods.key(name, values): (name, values, task)
        for name in methods.names()
        for values, task, _ in methods.cases(name)
    }
    assert list(known) == list(cases)
    for key in ('codinet {"network": "resnet-32"}', 'multipath {"network": "basecnn-3", "variant": "cc"}'):
        assert known[key] == methods.counted(*cases[key])
    assert all(len(page) > 1500 for page in methods.pages().values())


# -- tutorials ---------------------------------------------------------------------------------------


def test_blocks_become_one_script(tools: None, tmp_path: Path) -> None:
    import run  # pyright: ignore[reportMissingImports]

    page = tmp_path / "page.md"
    blocks = {
        "toml": "# a/b.toml\nx = 1\n",
        "text": "not run\n",
        "python": "print(open('a/b.toml').read() == 'x = 1\\n')\n",
        "bash": "set_here=2\n",
        "bash ": 'test $set_here = 2 && test "$(which python)" != /usr/bin/python\nfalse\necho no\n',
    }
    page.write_text("".join(f"```{kind}\n{text}```\n" for kind, text in blocks.items()))
    ran = subprocess.run(
        [sys.executable, str(Path(run.__file__)), str(page)], capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 1 and "\nTrue\n" in ran.stdout and "FAILED with status 1" in ran.stdout
    assert "\nno\n" not in ran.stdout and "not run" not in ran.stdout and "$ set_here=2" in ran.stdout
