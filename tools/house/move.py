"""The house, rebuilt: moves every file and definition of a clean checkout to its room, in commits.

    python move.py [CHECKOUT] [--no-checks]      # run it with the Python of the project (its ruff and git are used)

1. commit: `git mv` of whole files, nothing else;
2. commit: splits and merges, imports, names in strings, in the documentation and in tests; the exact edits of
   `edits.py` (what no mechanical rule gives); new files of `new/`; contracts; ruff.
3. commit: `.git-blame-ignore-revs`.

It reads the old sources, never the moved ones, so what it writes follows from the old tree and the tables alone.
Warnings name what the tables do not know (a new file, a definition in a split file, an edit that no longer
fits); nothing is dropped silently. EXTEND THE MAPPING HERE:
"""

from __future__ import annotations

import ast
import builtins
import io
import json
import re
import subprocess
import sys
import textwrap
import tokenize
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent

# -- the small table: files that are new since the mapping was made, and where they go (paths, old -> new) ----------

MORE_FILES: dict[str, str] = {
    "search/donors.py": "search/state/donors.py",
    "search/kept.py": "search/state/kept.py",
    "spaces/recorded.py": "spaces/recorded.py",
    "trainables/clutter.py": "trainables/data/clutter.py",
    "trainables/donors.py": "trainables/training/donors.py",
    "trainables/earlier.py": "trainables/contracts/earlier.py",
    "trainables/earlier.json": "trainables/contracts/earlier.json",
    "trainables/networks/initialisation.py": "trainables/networks/initialisation.py",
    "trainables/normalisation.py": "trainables/normalisation.py",  # models that were promoted earlier import it
    "tests/benchmarks/bench_learning.py": "tests/benchmarks/training/bench_learning.py",
    "search/signals.py": "search/tune/signals.py",
    "tests/cluster/check_stock.py": "tests/benchmarks/faults/check_stock.py",
    "tests/search/test_signals.py": "tests/search/tune/test_signals.py",
    "tests/security/test_not_ours.py": "tests/security/test_not_ours.py",
    "tests/search/test_donors.py": "tests/search/engine/test_donors.py",
    "tests/search/test_kept.py": "tests/search/state/test_kept.py",
    "tests/search/test_normalised.py": "tests/search/promotion/test_normalised.py",
    "tests/trainables/test_clutter.py": "tests/trainables/data/test_clutter.py",
    "tests/trainables/test_donors.py": "tests/trainables/training/test_donors.py",
    "tests/trainables/test_earlier.py": "tests/trainables/contracts/test_earlier.py",
    "tests/trainables/test_initialisation.py": "tests/trainables/networks/test_initialisation.py",
    "tests/trainables/test_normalisation.py": "tests/trainables/test_normalisation.py",
    "tests/trainables/test_recipe.py": "tests/trainables/contracts/test_recipe.py",
}
# definitions: "old.module:name" -> new module; a name that is not listed goes with its file
MORE_NAMES: dict[str, str] = {
    **{f"search.donors:{name}": "search.planning.donors" for name in ("Fetch", "Named", "named", "store")},
    "search.kept:record_of": "search.planning.creation",
    **{f"trainables.method:{name}": "trainables.contracts.recipe" for name in ("DECAYED", "DonorConfig", "HalfLife", "kernel")},
    "trainables.machine:computes_bfloat16": "trainables.training.precision",
    "trainables.networks.initialisation:first_gates": "trainables.networks.gated.gates",
}
# definitions that are renamed on the way (what was private to a file and is read by another room now)
MORE_RENAMES: dict[str, str] = {}
# files that another branch adds: tables and edits may name them before they are there
NOT_YET = {path for path in MORE_FILES if re.search(r"kept|recorded|earlier", path)}

sys.path.insert(0, str(HERE))
from edits import (  # noqa: E402
    AFTER,
    ALIASES,
    BEFORE,
    DEAD,
    DOCS,
    DUPLICATES,
    FACE_DOCS,
    FACES,
    FILES,
    FINISH,
    LATER,
    NAMES,
    PACKAGES,
    PROGRAMS,
    RENAMES,
    STATEMENTS,
    TEXT_FILES,
)

ROOTS = ("spaces", "trainables", "search", "cluster")
WARNINGS: list[str] = []


def warn(text: str) -> None:
    if text not in WARNINGS:
        WARNINGS.append(text)
        print("WARNING:", text)


# -- tables ---------------------------------------------------------------------------------------------------------

RENAME = json.loads((HERE / "data" / "rename.json").read_text())
TESTS = json.loads((HERE / "data" / "tests_moves.json").read_text())


def dotted(path: str) -> str:
    parts = list(Path(path).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: dict[str, str] = {**RENAME["modules"]}  # old module -> new module
DATA: dict[str, str] = {}  # other files, old path -> new path
for old, new in {**TESTS, **FILES, **MORE_FILES}.items():
    if old.endswith(".py"):
        MODULES[dotted(old)] = dotted(new)
    else:
        DATA[old] = new
HOMES: dict[str, str] = {**RENAME["names"], **NAMES, **MORE_NAMES}
HOMES = {key: value for key, value in HOMES.items() if value}
NEW_NAME: dict[str, str] = {**RENAMES, **MORE_RENAMES}


def new_module(old: str) -> str:
    return MODULES.get(old, old)


# -- sources --------------------------------------------------------------------------------------------------------


@dataclass
class Statement:
    """A top-level statement with the comments above it; `names` are what it binds."""

    node: ast.AST
    start: int  # first line, 0-based, of what belongs to it (comments), behind section comments
    end: int  # line behind the last
    names: set[str]
    kind: str  # docstring, import, other
    section: tuple[int, int] | None = None
    uses: set[str] = field(default_factory=set)
    eager: set[str] = field(default_factory=set)
    home: str = ""


class Source:
    """One file of the old tree."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        self.module = dotted(path)
        self.package = path.endswith("__init__.py")
        self.tree = ast.parse(text)
        self.lines = text.splitlines(keepends=True)
        self.offsets = [0]
        for line in self.lines:
            self.offsets.append(self.offsets[-1] + len(line))
        self.edits: list[tuple[int, int, str]] = []
        self.parents: dict[ast.AST, ast.AST] = {}
        self.scope_of: dict[ast.Name, ast.AST | None] = {}  # the function that binds a Name, None for the module
        self.inside: dict[ast.AST, ast.AST | None] = {}  # of an import: the nearest function around it
        self.found: list[ast.Import | ast.ImportFrom] = []
        self.args: set[str] = set()
        self.uses: dict[ast.AST, set[str]] = {}  # names of the module that a top-level statement reads
        self._resolve()
        self.statements = self._statements()
        self.owner = {name: s for s in self.statements if s.kind == "other" for name in s.names}
        self.defined = set(self.owner)
        self.imported = self._imported()

    # positions

    def at(self, line: int, column: int) -> int:
        """Offset in the text of ast's (line from 1, column in bytes)."""
        text = self.lines[line - 1]
        return self.offsets[line - 1] + len(text.encode()[:column].decode())

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    # scopes

    def _resolve(self) -> None:
        functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

        def bound(nodes: list[ast.AST]) -> set[str]:
            found: set[str] = set()
            outer: set[str] = set()

            def walk(node: ast.AST) -> None:
                if isinstance(node, (*functions, ast.ClassDef)):
                    if not isinstance(node, ast.Lambda):
                        found.add(node.name)
                    return
                if isinstance(node, comprehensions):
                    for one in ast.walk(node):
                        if isinstance(one, ast.NamedExpr):
                            found.add(one.target.id)
                    return
                if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                    found.add(node.id)
                if isinstance(node, ast.Global):
                    outer.update(node.names)
                if isinstance(node, ast.Nonlocal):
                    outer.update(node.names)
                if isinstance(node, ast.ExceptHandler) and node.name:
                    found.add(node.name)
                if isinstance(node, ast.Import | ast.ImportFrom):
                    found.update((a.asname or a.name.split(".")[0]) for a in node.names)
                if isinstance(node, ast.MatchAs | ast.MatchStar) and node.name:
                    found.add(node.name)
                for child in ast.iter_child_nodes(node):
                    walk(child)

            for node in nodes:
                walk(node)
            return found - outer

        parents, scope_of = self.parents, self.scope_of

        def visit(node: ast.AST, scopes: tuple, function: ast.AST | None, read: set[str]) -> None:
            kind = type(node)
            if kind is ast.Name:
                scope = None
                for one, names in scopes:
                    if node.id in names:
                        scope = one
                        break
                scope_of[node] = scope
                if scope is None and type(node.ctx) is ast.Load:
                    read.add(node.id)
                return
            if kind in (ast.Import, ast.ImportFrom):
                self.found.append(node)
                self.inside[node] = function
                return
            if kind in functions:
                a = node.args
                outside = [*a.defaults, *(d for d in a.kw_defaults if d)]
                every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
                outside += [arg.annotation for arg in every if arg.annotation]
                if kind is not ast.Lambda:
                    outside += [*node.decorator_list, *([node.returns] if node.returns else [])]
                for one in outside:
                    parents[one] = node
                    visit(one, scopes, function, read)
                own = {arg.arg for arg in every}
                self.args |= own
                body = [node.body] if kind is ast.Lambda else node.body
                inner = ((node, own | bound(body)), *scopes)
                for one in body:
                    parents[one] = node
                    visit(one, inner, node, read)
                return
            if kind in comprehensions:
                names = {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
                first = node.generators[0].iter
                parents[first] = node
                visit(first, scopes, function, read)
                inner = ((node, names), *scopes)
                for child in ast.iter_child_nodes(node):
                    for part in ast.iter_child_nodes(child) if type(child) is ast.comprehension else (child,):
                        if part is not first:
                            parents[part] = node
                            visit(part, inner, function, read)
                return
            if kind is ast.Call and type(node.func) is ast.Name and node.func.id == "cast" and node.args:
                named = node.args[0]  # a type as text
                if isinstance(named, ast.Constant) and isinstance(named.value, str):
                    read |= {n.id for n in ast.walk(ast.parse(named.value)) if isinstance(n, ast.Name)}
            for child in ast.iter_child_nodes(node):
                parents[child] = node
                visit(child, scopes, function, read)

        for top in self.tree.body:
            parents[top] = self.tree
            visit(top, (), None, self.uses.setdefault(top, set()))

    def function_of(self, node: ast.AST) -> ast.AST | None:
        """The function whose names an import inside it binds."""
        return self.inside.get(node)

    # statements

    def _statements(self) -> list[Statement]:
        found: list[Statement] = []
        behind = 0
        nodes = self.tree.body
        i = 0
        while i < len(nodes):
            node = nodes[i]
            end = node.end_lineno
            if i == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                found.append(Statement(node, 0, end, set(), "docstring"))
                behind, i = end, i + 1
                continue
            begin = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
            several = [node]
            # a string behind an assignment is its documentation
            while (
                isinstance(node, ast.Assign | ast.AnnAssign)
                and i + 1 < len(nodes)
                and isinstance(nodes[i + 1], ast.Expr)
                and isinstance(nodes[i + 1].value, ast.Constant)
                and isinstance(nodes[i + 1].value.value, str)
            ):
                i += 1
                several.append(nodes[i])
                end = nodes[i].end_lineno
                break
            # comments right above belong to it, section comments stand for themselves
            start, section = behind, None
            for number in range(behind, begin):
                if re.match(r"# -- .* -{5,}\s*$", self.lines[number]):
                    section = (number, number + 1)
                    start = number + 1
            kind = "import" if self._is_import(node) else "other"
            statement = Statement(node, start, end, self._bound(node), kind, section)
            for one in several:
                statement.uses |= self.uses[one]
                statement.eager |= self._eagerly(one)
            found.append(statement)
            behind, i = end, i + 1
        return found

    @staticmethod
    def _is_import(node: ast.AST) -> bool:
        if isinstance(node, ast.Import | ast.ImportFrom):
            return True
        return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"

    @staticmethod
    def _bound(node: ast.AST) -> set[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return {node.name}
        found: set[str] = set()

        def walk(one: ast.AST) -> None:
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(one.name)
                return
            if isinstance(one, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
                return
            if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
                found.add(one.id)
            for child in ast.iter_child_nodes(one):
                walk(child)

        walk(node)
        return found

    def _eagerly(self, node: ast.AST) -> set[str]:
        """Names of the module that are read while the module is executed."""
        found: set[str] = set()

        def walk(one: ast.AST) -> None:
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                parts = [*one.args.defaults, *(d for d in one.args.kw_defaults if d)]
                parts += getattr(one, "decorator_list", [])
                for part in parts:
                    walk(part)
                return
            if isinstance(one, ast.AnnAssign):  # annotations are text
                for part in (one.target, one.value):
                    if part is not None:
                        walk(part)
                return
            if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load):
                found.add(one.id)
            for child in ast.iter_child_nodes(one):
                walk(child)

        walk(node)
        return found

    # imports

    def imports(self) -> list[ast.Import | ast.ImportFrom]:
        return self.found

    def _imported(self) -> dict[str, tuple[str, str | None, bool]]:
        """What the module's own imports bind: {name: (module, name there or None, only for type checking)}."""
        found = {}
        for node in self.imports():
            if self.function_of(node) is not None:
                continue
            typing = any(self._is_import(p) and isinstance(p, ast.If) for p in self._above(node))
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                if isinstance(node, ast.ImportFrom):
                    found[name] = (node.module or "", alias.name, typing)
                else:
                    found[name] = (alias.name if alias.asname else alias.name.split(".")[0], None, typing)
        return found

    def _above(self, node: ast.AST) -> list[ast.AST]:
        found = []
        while node in self.parents:
            node = self.parents[node]
            found.append(node)
        return found

    def sliced(self, start: int, end: int) -> str:
        """The lines [start, end) with the edits in them."""
        a, b = self.offsets[start], self.offsets[min(end, len(self.lines))]
        return self.edited(a, b)

    def edited(self, a: int, b: int) -> str:
        text, at = [], a
        for begin, stop, put in sorted(self.edits):
            if stop <= a or begin >= b:
                continue
            if begin < at:
                warn(f"{self.path}: two edits overlap at {self.text[begin:stop]!r}")
                continue
            text += [self.text[at:begin], put]
            at = stop
        return "".join([*text, self.text[at:b]])


INDEX: dict[str, Source] = {}


ORIGINAL: dict[str, str] = {}  # old texts by module, before any edit


def distribute() -> None:
    """Say of every statement where it goes."""
    for source in INDEX.values():
        default = new_module(source.module)
        known = {key.partition(":")[2] for key in HOMES if key.partition(":")[0] == source.module}
        for statement in source.statements:
            if statement.kind != "other":
                continue
            homes = {HOMES.get(f"{source.module}:{name}") for name in statement.names}
            homes = {home or default for home in homes}
            for (module, prefix), home in STATEMENTS.items():
                if module == source.module and source.lines[statement.node.lineno - 1].startswith(prefix):
                    homes = {home}
            if len(homes) > 1:
                warn(f"{source.path}: one statement binds {sorted(statement.names)}, which go to {sorted(homes)}")
            statement.home = next(iter(homes), default)
        mapped = {n for s in source.statements for n in s.names if HOMES.get(f"{source.module}:{n}")}
        for name in known - source.defined:
            if not name.startswith("<"):
                warn(f"{source.path}: the mapping moves {name}, which is not there")
        # what is private and used by nothing but what moves, moves along
        changed = True
        while changed:
            changed = False
            for statement in source.statements:
                if statement.kind != "other" or statement.names & mapped or not statement.names:
                    continue
                if not all(name.startswith("_") for name in statement.names) or statement.names & DUPLICATES:
                    continue
                if any(f"{source.module}:{name}" in NEW_NAME for name in statement.names):
                    continue
                users = {
                    other.home
                    for other in source.statements
                    if other is not statement and other.kind == "other" and other.uses & statement.names
                }
                if len(users) == 1 and users != {statement.home}:
                    statement.home = users.pop()
                    changed = True
        if mapped:
            news = [n for s in source.statements if s.kind == "other" for n in s.names if n not in mapped]
            old = json.loads((HERE / "data" / "known.json").read_text()) if (HERE / "data" / "known.json").exists() else {}
            for name in news:
                if old and name not in old.get(source.module, [name]) and name in ORIGINAL[source.module]:
                    warn(f"{source.path}: {name} is new in a file that is split; it stays with its file")


def resolve(module: str, name: str) -> tuple[str, str, str] | None:
    """Where `from module import name` finds it now: (kind, new module, new name); None for what is not ours.

    kind is ``module`` (then the middle is the OLD module) or ``name``.
    """
    if f"{module}.{name}" in INDEX:
        return "module", f"{module}.{name}", name
    if module not in INDEX:
        return None
    source = INDEX[module]
    if name in source.defined:
        statement = source.owner[name]
        return "name", statement.home, NEW_NAME.get(f"{module}:{name}", name)
    if name in source.imported:
        origin, there, _ = source.imported[name]
        if there is not None:
            found = resolve(origin, there)
            if found is not None:
                return found
        return "name", new_module(module), name
    if module.split(".")[0] in ("search",) and source.package:
        return "name", new_module(module), name
    warn(f"{module} has no {name}")
    return "name", new_module(module), name


# -- rewriting one source -------------------------------------------------------------------------------------------


@dataclass
class Binding:
    """What a name of a file refers to: a module or a name of ours, in a scope of that file."""

    name: str
    scope: ast.AST | None
    kind: str
    module: str  # kind module: the old one; kind name: the new one
    target: str
    typing: bool
    node: ast.Import | ast.ImportFrom
    alias: ast.alias
    lines: list[tuple[str, str, str]] = field(default_factory=list)  # (module, name, asname) of new imports


class Rewriter:
    """The edits of one source that its new place and the new places of what it uses ask for."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.here = {s.home for s in source.statements if s.kind == "other"} or {new_module(source.module)}
        self.words = {n.id for n in source.scope_of} | source.args | source.defined
        self.bindings: list[Binding] = []
        self.renamed: dict[tuple[str, ast.AST | None], str] = {}
        self.chosen: dict[str, str] = {}  # new module -> its local name

    def run(self) -> None:
        source = self.source
        for node in source.imports():
            if isinstance(node, ast.ImportFrom) and node.level:
                warn(f"{source.path}:{node.lineno}: a relative import")
                continue
            if isinstance(node, ast.Import):
                self._plain(node)
                continue
            for alias in node.names:
                found = resolve(node.module or "", alias.name)
                if found is None:
                    continue
                kind, module, name = found
                typing = any(source._is_import(p) and isinstance(p, ast.If) for p in source._above(node))
                local = alias.asname or alias.name
                self.bindings.append(Binding(local, source.function_of(node), kind, module, name, typing, node, alias))
        for binding in self.bindings:
            if binding.kind == "module":
                self._module(binding)
            else:
                asname = binding.alias.asname or ""
                if not asname and binding.target != binding.alias.name:
                    if binding.target in self.words:
                        asname = binding.alias.name
                    else:
                        self.renamed[binding.name, binding.scope] = binding.target
                binding.lines = [(binding.module, binding.target, asname)]
        for statement in source.statements:  # definitions that have another name now
            for name in statement.names if statement.kind == "other" else ():
                new = NEW_NAME.get(f"{source.module}:{name}")
                if new:
                    other = [s.home for s in source.statements if s.kind == "other" and new in s.names]
                    if new in self.words and (not other or statement.home in other):
                        warn(f"{source.path}: {name} is to be {new}, which is there already")
                    self.renamed[name, None] = new
                    self._rename_definition(statement.node, name, new)
        for node, scope in source.scope_of.items():
            assert isinstance(node, ast.Name)
            new = self.renamed.get((node.id, scope))
            if new:
                begin, end = source.span(node)
                source.edits.append((begin, end, new))
        for node in source.imports():
            self._rewrite(node)
        self._strings()
        self._parents()

    def _rename_definition(self, node: ast.AST, name: str, new: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            begin = self.source.at(node.lineno, node.col_offset)
            match = re.compile(rf"(def|class)\s+({name})\b").match(self.source.text, begin)
            assert match, name
            self.source.edits.append((match.start(2), match.end(2), new))

    def _plain(self, node: ast.Import) -> None:
        source = self.source
        for alias in node.names:
            if alias.name in INDEX and new_module(alias.name) != alias.name:
                begin, end = source.span(alias)
                source.edits.append((begin, end, new_module(alias.name) + (f" as {alias.asname}" if alias.asname else "")))

    def _local(self, module: str, binding: Binding, first: bool) -> str:
        """The local name of a new module in this file."""
        if module in self.chosen:
            return self.chosen[module]
        last = module.rpartition(".")[2]
        explicit = binding.alias.asname
        wished = explicit if first and explicit else ALIASES.get(module, last)
        others = self.words - ({binding.name} if first else set())
        if wished in others and wished != binding.name:
            wished = binding.name if first else f"{module.split('.')[-2]}_{last}"
        self.chosen[module] = wished
        return wished

    def _module(self, binding: Binding) -> None:
        source, old = self.source, binding.module
        default = new_module(old)
        split = {s.home for s in INDEX[old].statements if s.kind == "other"} - {default}
        wanted: dict[str, set[str]] = defaultdict(set)
        uses: list[tuple[ast.Name, str, str | None]] = []
        for node, scope in source.scope_of.items():
            if not isinstance(node, ast.Name) or node.id != binding.name or scope is not binding.scope:
                continue
            if not isinstance(node.ctx, ast.Load):
                warn(f"{source.path}:{node.lineno}: {node.id} is a module and is bound again")
                continue
            parent, attribute = source.parents.get(node), None
            if isinstance(parent, ast.Attribute):
                attribute = parent.attr
            elif isinstance(parent, ast.Call) and node in parent.args[:1] and len(parent.args) > 1:
                second = parent.args[1]
                if isinstance(second, ast.Constant) and isinstance(second.value, str):
                    attribute = second.value
            home, new = default, attribute
            if attribute is not None and attribute in INDEX[old].defined:
                _, home, new = resolve(old, attribute)  # type: ignore[misc]
            elif attribute is not None and attribute not in INDEX[old].imported and split:
                warn(f"{source.path}:{node.lineno}: {old} has no {attribute}")
            uses.append((node, home, new))
            wanted[home].add(new or "")
            if new != attribute and isinstance(parent, ast.Attribute):
                begin, end = source.span(parent)
                source.edits.append((end - len(parent.attr), end, new or ""))
            elif new != attribute and isinstance(parent, ast.Call):
                source.edits.append((*source.span(parent.args[1]), json.dumps(new)))
        direct: set[str] = set()  # other homes, whose names are imported themselves
        for home, names in wanted.items():
            mine = [(node, new) for node, where, new in uses if where == home]
            attributes = all(isinstance(source.parents.get(node), ast.Attribute) for node, _ in mine)
            known = {n for n, (module, there, _) in source.imported.items() if there and resolve(module, there) == ("name", home, n)}
            if home != default and attributes and not (names & (self.words - known)):
                direct.add(home)
                binding.lines += [(home, name, "") for name in sorted(names)]
        for home in wanted or {default: set()}:
            if home in direct or (home in self.here and len(self.here) == 1):
                continue
            local = self._local(home, binding, home == default)
            package, _, last = home.rpartition(".")
            binding.lines.append((package, last, "" if local == last else local))
        for node, home, _ in uses:
            begin, end = source.span(node)
            if home in direct:
                source.edits.append((begin, end + 1, ""))  # with the dot
            elif home in self.here and len(self.here) == 1:
                source.edits.append((begin, end + 1, ""))  # with the dot
            elif self.chosen[home] != node.id:
                source.edits.append((begin, end, self.chosen[home]))

    def _rewrite(self, node: ast.Import | ast.ImportFrom) -> None:
        """The import where it stands."""
        mine = [b for b in self.bindings if b.node is node]
        if not mine:
            return
        source = self.source
        assert isinstance(node, ast.ImportFrom)
        lines: dict[str, list[str]] = {}
        for alias in node.names:
            binding = next((b for b in mine if b.alias is alias), None)
            if binding is None:
                lines.setdefault(node.module or "", []).append(alias.name + (f" as {alias.asname}" if alias.asname else ""))
                continue
            for module, name, asname in binding.lines:
                if binding.kind == "name" and module == new_module(source.module) and resolves_here(module, name):
                    if asname and asname != name:
                        warn(f"{source.path}:{node.lineno}: {name} as {asname} is of the same module now")
                    continue
                lines.setdefault(module, []).append(name + (f" as {asname}" if asname else ""))
        indent = " " * node.col_offset
        texts = [f"from {module} import {', '.join(sorted(set(names)))}" for module, names in lines.items()]
        begin, end = source.span(node)
        source.edits.append((begin, end, f"\n{indent}".join(texts) or "pass  # MOVED"))

    # strings, comments, numbers of parents

    def _strings(self) -> None:
        """Strings and comments; code has no such words but in imports, and there they are rewritten already."""
        source = self.source
        root = source.path.split("/")[0]
        skip = [source.span(n) for n in source.imports()]
        for a, b, put in replacements(source.text, root if root in ROOTS else ""):
            if not any(s <= a < e for s, e in skip) and source.text[a:b] != put:
                source.edits.append((a, b, put))

    def _parents(self) -> None:
        source = self.source
        new = file_of(source.module, source.package)
        beside = [*re.findall(r"""__file__\)[^\n]*?with_name\(["']([^"']+)""", source.text)]
        beside += re.findall(r"""__file__\)(?:\.resolve\(\))?\.parent / ["']([^"']+)""", source.text)
        for name in beside:  # data that a module reads from beside itself have to move along
            old = str(Path(source.path).with_name(name))
            there = new_path(old) or DATA.get(old + "/", old).rstrip("/")
            if ORIGINAL and str(Path(new).parent) != str(Path(there).parent):
                warn(f"{source.path}: it goes to {new} and reads {name} beside itself, which goes to {there}")
        deeper = new.count("/") - source.path.count("/")
        if not deeper:
            return
        for match in re.finditer(r"__file__\)(?:\.resolve\(\))?\.parents\[(\d+)\]", source.text):
            a, b = match.span(1)
            source.edits.append((a, b, str(int(match[1]) + deeper)))
        for match in re.finditer(r"__file__\)(?:\.resolve\(\))?((?:\.parent){2,})(?!s)\b", source.text):
            a, b = match.span(1)
            source.edits.append((a, b, f".parents[{match[1].count('.parent') - 1 + deeper}]"))


def file_of(module: str, package: bool = False) -> str:
    """The new path of an old module."""
    new = new_module(module).replace(".", "/")
    return f"{new}/__init__.py" if package else f"{new}.py"


DOTTED = re.compile(r"(?<![\w./@-])(?:search|trainables|cluster|spaces|tests)(?:\.\w+)+")
PATHS = re.compile(r"(?<![\w.@-])(?:search|trainables|cluster|spaces|tests)(?:/[\w.-]+)+")
IMPORTED = re.compile(r"\bfrom ((?:search|trainables|cluster)(?:\.\w+)*) import (\w+)(?=[;\n\"']|$)")
TICKED = re.compile(r"(?<!`)`([a-z_][\w.]*)(\(\))?`(?!`)")
KEPT_DOTTED = {module for module, names in FACES.items() if not names}


def new_dotted(text: str) -> str | None:
    """A dotted name of the old house in the new one; None where it names nothing that moved."""
    parts = text.split(".")
    for count in range(len(parts), 1, -1):
        module = ".".join(parts[:count])
        if module not in INDEX:
            continue
        rest = parts[count:]
        if module in KEPT_DOTTED and not rest:
            return None
        if rest and rest[0] in INDEX[module].defined:
            _, home, name = resolve(module, rest[0])  # type: ignore[misc]
            return ".".join([home, name, *rest[1:]])
        if rest and rest[0] in INDEX[module].imported:  # as patches name it: where it is looked up
            users = {s.home for s in INDEX[module].statements if s.kind == "other" and rest[0] in s.uses}
            home = users.pop() if len(users) == 1 else new_module(module)
            return ".".join([home, *rest])
        return ".".join([new_module(module), *rest])
    return None


def new_path(text: str) -> str | None:
    if text in DATA:
        return DATA[text]
    for old, new in DATA.items():
        if old.endswith("/") and text.startswith(old):
            return new + text.removeprefix(old)
    if text.endswith(".py") and dotted(text) in INDEX and INDEX[dotted(text)].path == text:
        return file_of(dotted(text), INDEX[dotted(text)].package)
    return None


def replacements(text: str, root: str) -> list[tuple[int, int, str]]:
    """(begin, end, new text) of everything in a text that names a place of the old house."""
    found = []
    for match in PATHS.finditer(text):
        word = match[0].rstrip(".")
        new = new_path(word)
        if new and new != word:
            found.append((match.start(), match.start() + len(word), new))
    for match in IMPORTED.finditer(text):  # code in a string: from trainables import shelf
        module = f"{match[1]}.{match[2]}"
        if module in INDEX and module not in FACES and new_module(module) != module:
            package, _, last = new_module(module).rpartition(".")
            put = f"from {package} import {last}" + ("" if last == match[2] else f" as {match[2]}")
            found.append((match.start(), match.end(), put))
    for match in DOTTED.finditer(text):
        if any(a <= match.start() < b for a, b, _ in found):
            continue
        if text[match.end() : match.end() + 1] == "/" or match[0].endswith((".py", ".toml")):
            continue
        new = new_dotted(match[0])
        if new and new != match[0]:
            found.append((match.start(), match.end(), new))
    for match in TICKED.finditer(text):
        new = new_short(match[1], root)
        if new and new != match[1]:
            found.append((match.start(1), match.end(1), new))
    return found


def new_short(word: str, root: str) -> str | None:
    """What stands in back-ticks without its root: ``networks.halting``, ``fused.prepared``, ``splits.py``."""
    if word.split(".")[0] in (*ROOTS, "tests"):
        return None
    roots = [root] if root else ["search", "trainables", "cluster"]
    for top in roots:
        for package in (top, f"{top}.networks", f"{top}.methods", f"{top}.commands"):
            if word.endswith(".py") and f"{package}.{word[:-3]}" in INDEX:
                path = file_of(f"{package}.{word[:-3]}")
                return path if not root else path.partition("/")[2]
            full = f"{package}.{word}"
            head = full.rpartition(".")[0]
            if full in INDEX and ("_" in word or "." in word):
                return new_module(full).partition(".")[2]
            if "." in word and head in INDEX and head != package and word.rpartition(".")[2] in INDEX[head].defined:
                return (new_dotted(full) or full).partition(".")[2]
    return None


# -- putting modules together ---------------------------------------------------------------------------------------


def assembled() -> dict[str, str]:
    """{new path: text} of all Python files that the old ones become."""
    parts: dict[str, list[tuple[Source, list[Statement]]]] = defaultdict(list)
    primary: dict[str, Source] = {}
    merged = set(MERGED)
    for source in INDEX.values():
        default = new_module(source.module)
        if source.module not in merged:
            if default in primary:
                warn(f"{source.path} and {primary[default].path} both become {default}")
            primary[default] = source
        groups: dict[str, list[Statement]] = defaultdict(list)
        for statement in source.statements:
            if statement.kind != "other":
                continue
            homes = [statement.home]
            if statement.names & DUPLICATES:  # everywhere where it is used
                homes = sorted({s.home for s in source.statements if s.uses & statement.names and s is not statement})
                homes = homes or [statement.home]
            for home in homes:
                groups[home].append(statement)
        for home, statements in groups.items():
            parts[home].append((source, statements))
        if source.module not in merged and default not in groups:
            parts[default].append((source, []))
    result = {}
    for module, contributions in parts.items():
        main = primary.get(module)
        package = (main is not None and main.package) or module in PACKAGE_MODULES
        path = module.replace(".", "/") + ("/__init__.py" if package else ".py")
        result[path] = whole(module, main, contributions)
    return result


MERGED: set[str] = set()
PACKAGE_MODULES: set[str] = set()


def needs(module: str, source: Source, statements: list[Statement], rewriter: Rewriter) -> dict[tuple[str, str, str], bool]:
    """New imports {(module, name, asname): only for type checking} of statements that leave their file."""
    found: dict[tuple[str, str, str], bool] = {}

    def add(key: tuple[str, str, str], typing: bool) -> None:
        found[key] = found.get(key, True) and typing

    used = set().union(*(s.uses for s in statements)) if statements else set()
    for name in sorted(used):
        if name in source.defined:
            owner = source.owner[name]
            if owner.home != module and not owner.names & DUPLICATES:
                new = NEW_NAME.get(f"{source.module}:{name}", name)
                if new.startswith("_"):
                    users = sorted(n for s in statements if name in s.uses for n in s.names)
                    warn(f"{module}: {', '.join(users)} of {source.module} use the private {owner.home}.{new}")
                add((owner.home, new, ""), False)
            continue
        bindings = [b for b in rewriter.bindings if b.name == name and b.scope is None]
        if bindings:
            for binding in bindings:
                for line in binding.lines:
                    if binding.kind == "name" and line[0] == module:
                        continue
                    add(line, binding.typing)
        elif name in source.imported:
            origin, there, typing = source.imported[name]
            if there is None:
                add((origin, "", name if name != origin else ""), typing)
            else:
                add((origin, there, name if name != there else ""), typing)
        elif not hasattr(builtins, name) and name not in ("__file__", "__name__"):
            warn(f"{source.path}: nobody binds {name}")
    return found


def import_line(key: tuple[str, str, str]) -> str:
    module, name, asname = key
    if not name:
        return f"import {module}" + (f" as {asname}" if asname else "")
    return f"from {module} import {name}" + (f" as {asname}" if asname else "")


REWRITERS: dict[str, Rewriter] = {}


HERE_NAMES: set[tuple[str, str]] = set()


def resolves_here(module: str, name: str) -> bool:
    """Whether a definition of that (new) name comes to a new module."""
    if not HERE_NAMES:
        for source in INDEX.values():
            for s in source.statements:
                if s.kind == "other":
                    HERE_NAMES.update((s.home, NEW_NAME.get(f"{source.module}:{n}", n)) for n in s.names)
    return (module, name) in HERE_NAMES


def whole(module: str, main: Source | None, contributions: list[tuple[Source, list[Statement]]]) -> str:
    """The text of a new module."""
    others = [(s, st) for s, st in contributions if s is not main]
    own = next((st for s, st in contributions if s is main), [])
    wanted: dict[tuple[str, str, str], bool] = {}
    for source, statements in others:
        for key, typing in needs(module, source, statements, REWRITERS[source.module]).items():
            wanted[key] = wanted.get(key, True) and typing
    body: list[str] = []
    if main is None:
        doc = DOCS.get(module)
        if doc is None:
            warn(f"{module}: a new module without a docstring in DOCS")
            doc = "..."
        header = [f'"""{doc}"""\n', "\nfrom __future__ import annotations\n\n"]
    else:
        left = [s for s in main.statements if s.kind == "other" and s not in own and s.home != module]
        if left:  # what it needs of what has left
            for key, typing in needs(module, main, own, REWRITERS[main.module]).items():
                if key[0] in {s.home for s in left}:
                    wanted[key] = wanted.get(key, True) and typing
        header, body = [], []
        lines_imports = [s for s in main.statements if s.kind in ("docstring", "import")]
        last = max([s.end for s in lines_imports], default=0)
        first_body = next((s for s in main.statements if s.kind == "other"), None)
        mixed = first_body is not None and any(s.kind == "import" and s.start > first_body.start for s in main.statements)
        if mixed and left:
            warn(f"{main.path}: imports stand among its statements")
        if not left and not others:  # nothing came, nothing went: as it is
            text = main.edited(0, len(main.text))
            return _documented(module, text)
        header = [main.sliced(0, last) if lines_imports else ""]
        if main.package and not own and not others:
            return _documented(module, main.sliced(0, lines_imports[0].end))
        section_open: tuple[int, int] | None = None
        for statement in main.statements:
            if statement.section is not None:
                section_open = statement.section
            if statement.kind != "other" or statement not in own:
                continue
            if section_open is not None:
                body.append("\n\n" + main.lines[section_open[0]])
                section_open = None
            body.append(main.sliced(statement.start, statement.end))
    known = {n for s in own for n in s.names}
    bound: dict[str, tuple[str, str | None, bool]] = dict(main.imported) if main is not None else {}
    early: list[str] = []
    late: list[str] = []
    first: list[tuple[Statement, str]] = []
    later: list[tuple[Statement, str]] = []
    functions = {n for _, those in others for s in those if not isinstance(s.node, ast.Assign | ast.AnnAssign) for n in s.names}
    seen: dict[str, str] = {}
    eager = set().union(*(s.eager for s in own)) if own else set()
    moved = [(source, s) for source, statements in others for s in statements]
    # what is read while the module is executed has to stand above
    up: set[int] = set()
    changed = True
    while changed:
        changed = False
        for i, (source, s) in enumerate(moved):
            names = {NEW_NAME.get(f"{source.module}:{n}", n) for n in s.names} | s.names
            if i not in up and names & eager:
                up.add(i)
                eager |= s.eager
                changed = True
    for i, (source, s) in enumerate(moved):
        text = source.sliced(s.start, s.end)
        for name in s.names:
            if name in seen and seen[name].strip() != text.strip():
                warn(f"{module}: {name} is defined twice ({source.path} and another)")
            elif name in known and name not in DUPLICATES:
                warn(f"{module}: {name} of {source.path} is defined by {main.path if main else ''} too")
            elif name in bound and bound[name][0] != source.module:
                warn(f"{module}: {name} of {source.path} is an import of {main.path if main else ''}")
        if s.names and all(name in seen and seen[name].strip() == text.strip() for name in s.names):
            continue
        if s.names and s.names <= known and s.names & DUPLICATES:
            continue
        for name in s.names:
            seen[name] = text
        constant = isinstance(s.node, ast.Assign | ast.AnnAssign) and not s.eager & (known | functions)
        (first if i in up or constant else later).append((s, text))
    for queue, out in ((first, early), (later, late)):
        while queue:  # what is read while the module is executed comes first
            open_names = {n for s, _ in queue for n in s.names}
            ready = next((k for k, (s, _) in enumerate(queue) if not (s.eager - s.names) & open_names), 0)
            out.append(queue.pop(ready)[1])
    lines, typed = [], []
    for key, typing in sorted(wanted.items()):
        if key[0] == module and key[1]:
            continue
        (typed if typing else lines).append(import_line(key) + "\n")
    if typed:
        if not any("TYPE_CHECKING" in line for line in (*header, *lines)):
            lines.append("from typing import TYPE_CHECKING\n")
        typed = ["\nif TYPE_CHECKING:\n", *("    " + line for line in typed)]
    if main is not None and lines:
        top, mark, rest = header[0].partition("\nif TYPE_CHECKING:")
        header, lines = [top, "" if top.endswith("\n") else "\n", *lines, mark, rest], []
    text = "".join([*header, *lines, *typed, "\n", *early, *body, *late])
    return _documented(module, text)


def _documented(module: str, text: str) -> str:
    """The module's docstring from the table, where its content has changed."""
    doc = DOCS.get(module)
    if doc is None or not text.startswith(('"""', 'r"""')):
        return text
    node = ast.parse(text).body[0]
    lines = text.splitlines(keepends=True)
    raw = "r" if "\\" in doc else ""
    return f'{raw}"""{doc}"""\n' + "".join(lines[node.end_lineno :])  # type: ignore[attr-defined]


def tidied(text: str) -> str:
    """Without the placeholders of imports that went, and without what they leave empty."""
    if "# MOVED" not in text:
        return text
    lines = [line for line in text.splitlines(keepends=True) if line.strip() != "pass  # MOVED"]
    out: list[str] = []
    for i, line in enumerate(lines):
        if re.match(r"\s*if TYPE_CHECKING:", line):
            indent = len(line) - len(line.lstrip())
            rest = next((other for other in lines[i + 1 :] if other.strip()), "")
            if len(rest) - len(rest.lstrip()) <= indent:
                continue
        out.append(line)
    return "".join(out)


def tidied_types(text: str) -> str:
    """Without a block for type checkers that has lost all of its imports."""
    return re.sub(r"^if TYPE_CHECKING:(?:  #[^\n]*)?\n    pass\n", "", text, flags=re.M)


def deduplicated(text: str) -> str:
    """Without an import under TYPE_CHECKING of what is imported anyway."""
    tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    runtime = {
        (n.module, a.name, a.asname)
        for n in tree.body
        if isinstance(n, ast.ImportFrom)
        for a in n.names
    }
    for block in tree.body:
        if not (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"):
            continue
        for node in block.body:
            if isinstance(node, ast.ImportFrom):
                keep = [a for a in node.names if (node.module, a.name, a.asname) not in runtime]
                if len(keep) < len(node.names):
                    put = "pass  # MOVED\n"
                    if keep:
                        names = ", ".join(a.name + (f" as {a.asname}" if a.asname else "") for a in keep)
                        put = f"from {node.module} import {names}\n"
                    for number in range(node.lineno - 1, node.end_lineno):  # type: ignore[arg-type]
                        lines[number] = ""
                    lines[node.lineno - 1] = " " * node.col_offset + put
    return tidied("".join(lines))


# -- the steps ------------------------------------------------------------------------------------------------------


def git(*words: str, check: bool = True) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, text=True, capture_output=True)
    if check and done.returncode:
        sys.exit(f"git {' '.join(words)}: {done.stderr}")
    return done.stdout


ROOT = Path.cwd()


def exact(texts: dict[str, str], edits: list[tuple[str, str, str]], what: str) -> None:
    """Exact textual replacements; each must fit once (with ``*`` as first character of the path: everywhere)."""
    for path, old, new in edits:
        if path not in texts:
            if path not in NOT_YET:
                warn(f"{what} {path}: there is no such file")
            continue
        text = texts[path]
        count = text.count(old)
        if count == 0 and new and text.count(new):
            continue  # done already
        if count != 1:
            warn(f"{what} {path}: fits {count} times: {old.strip().splitlines()[0][:90]!r}")
            continue
        texts[path] = text.replace(old, new)


def drop_dead(texts: dict[str, str]) -> None:
    """Take out the functions of `DEAD`, if really nobody names them."""
    for key in DEAD:
        module, _, name = key.partition(":")
        path = module.replace(".", "/") + ".py"
        node = next((n for n in ast.parse(texts[path]).body if getattr(n, "name", "") == name), None)
        if node is None:
            continue
        lines = texts[path].splitlines(keepends=True)
        begin = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
        rest = "".join([*lines[:begin], *lines[node.end_lineno :]])
        last = module.rpartition(".")[2]
        imports = re.compile(rf"from {re.escape(module)} import [^\n(]*\b{name}\b|from {re.escape(module)} import \([^)]*\b{name}\b|\b{last}\.{name}\b")
        users = [p for p, t in texts.items() if p.endswith(".py") and p != path and imports.search(t)]
        if users or re.search(rf"\b{name}\(", rest):
            warn(f"{path}: {name} is not dead: {users or path} uses it; it stays")
            continue
        texts[path] = rest


def check_parse(texts: dict[str, str]) -> None:
    for path, text in texts.items():
        if path.endswith(".py") and text != ORIGINAL[dotted(path)]:
            try:
                ast.parse(text)
            except SyntaxError as error:
                sys.exit(f"after the edits {path} is no Python: {error}")


def tracked() -> list[str]:
    """What git knows, without this script and its like, and without what older commits made and can make again."""
    return [path for path in git("ls-files").splitlines() if not path.startswith(("tools/", "tests/fixtures/"))]


def read_tree() -> dict[str, str]:
    texts = {}
    for path in tracked():
        if path.endswith((".py", ".md", ".toml", ".in", ".js", ".yaml")) or path in ("Makefile", ".gitignore", ".ci/run"):
            texts[path] = (ROOT / path).read_text()
    return texts


def moves(paths: list[str]) -> list[tuple[str, str]]:
    """Whole files, old and new path; files that are merged into others stay until the next step."""
    found = []
    for path in paths:
        new = path
        if path.endswith(".py"):
            if dotted(path) in MERGED:
                continue
            if dotted(path) in MODULES:
                package = dotted(path) in PACKAGE_MODULES
                new = MODULES[dotted(path)].replace(".", "/") + ("/__init__.py" if package else ".py")
        else:
            new = new_path(path) or path
        if new != path:
            found.append((path, new))
    return found


def main() -> None:
    global ROOT
    args = [a for a in sys.argv[1:] if not a.startswith("-")]
    ROOT = Path(args[0]).resolve() if args else Path.cwd()
    if git("status", "--porcelain", "--untracked-files=no").strip():
        sys.exit("the checkout has changes; begin with a clean one")
    for old in PACKAGES_MERGED:
        MERGED.add(old)
    texts = read_tree()
    paths = tracked()
    here = {dotted(p) for p in paths if p.endswith(".py")}
    for path in NOT_YET - set(paths):
        for table in (HOMES, NEW_NAME):
            for key in [key for key in table if key.partition(":")[0] == dotted(path)]:
                del table[key]
    for old in sorted(set(MODULES) - here):
        if old.split(".")[0] in (*ROOTS, "tests"):
            if old not in map(dotted, NOT_YET):
                warn(f"the mapping knows {old}, which is not there")
            MODULES.pop(old)
    flat = [p for p in paths if re.fullmatch(r"(search|trainables|trainables/networks|cluster)/\w+\.py", p)]
    stay = set((HERE / "data" / "stay.txt").read_text().split())
    for path in flat:
        if dotted(path) not in MODULES and path not in stay:
            warn(f"{path}: the mapping does not know this file; it stays where it is")
    for path in paths:
        if re.fullmatch(r"tests/(search|cluster|trainables|benchmarks)?/?\w+\.py", path):
            if dotted(path) not in MODULES and path not in stay:
                warn(f"{path}: the mapping does not know this test; it stays where it is")

    # 1. whole files
    for old, new in sorted(moves(paths), key=lambda pair: pair[0].count("/")):
        (ROOT / new).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / old).rename(ROOT / new)
    git("add", "-u")
    git("add", "--", *(new for _, new in moves(paths)))  # as `git mv` does, in one call
    git("commit", "-q", "-m", MESSAGE_MOVES)
    print("moved:", len(moves(paths)), "files")

    # 2. definitions, imports, names
    ORIGINAL.update({dotted(path): text for path, text in texts.items() if path.endswith(".py")})
    exact(texts, BEFORE, "edit before")
    exact(texts, [e for e in LATER if e[0] in texts and e[1] in texts[e[0]]], "edit before")
    for program in PROGRAMS:
        program(texts, warn)
    drop_dead(texts)
    check_parse(texts)
    for path, text in texts.items():
        if path.endswith(".py"):
            source = Source(path, text)
            INDEX[source.module] = source
    distribute()
    for source in INDEX.values():
        REWRITERS[source.module] = Rewriter(source)
    for rewriter in REWRITERS.values():
        rewriter.run()
    written = {path: deduplicated(tidied(text)) for path, text in assembled().items()}
    for path, text in texts.items():
        if not path.endswith(".py") and path not in ("requirements.lock", "CHANGELOG.md"):
            new, found = text, replacements(text, "cluster" if path.startswith("cluster/") else "")
            for a, b, put in sorted(found, reverse=True):
                new = new[:a] + put + new[b:]
            written[new_path(path) or path] = new
    for face, names in FACES.items():
        written[face.replace(".", "/") + ".py"] = face_text(face, names)
    for extra in sorted((HERE / "new").rglob("*")):
        if extra.is_file() and "__pycache__" not in extra.parts:
            written[extra.relative_to(HERE / "new").as_posix()] = extra.read_text()
    packages = {str(Path(p).parent) for p in written if p.endswith(".py") and p.split("/")[0] in ROOTS}
    for folder in sorted(packages):
        if f"{folder}/__init__.py" not in written:
            doc = PACKAGES.get(folder)
            if doc is None:
                warn(f"{folder}: a new package without a docstring in PACKAGES")
                doc = folder
            written[f"{folder}/__init__.py"] = f'"""{doc}"""\n'
    places = {dotted(p) for p in written if p.endswith(".py")}
    written["spaces/moved.py"] = moved_module(written.get("spaces/moved.py", ""), places)
    for path in tracked():
        if path.endswith(".py") and path not in written:
            (ROOT / path).unlink()
    save(written)
    ruff("check", "--fix", "--quiet", "--select", "I,F401,F811,RUF022", ".")
    ruff("format", "--quiet", ".")
    after = {p: (ROOT / p).read_text() for p in written}
    exact(after, [*AFTER], "edit after")
    exact(after, TEXT_FILES, "edit of a text file")
    for program in FINISH:
        program(after, warn)
    save({p: rewrapped(tidied_types(t)) if p.endswith(".py") else t for p, t in after.items()})
    for folder in sorted((p for p in ROOT.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts)):
        if folder.relative_to(ROOT).parts[0] in (*ROOTS, "tests") and not any(folder.iterdir()):
            folder.rmdir()
    ruff("check", "--fix", "--quiet", "--select", "I,F401,F811,RUF022", ".")
    ruff("format", "--quiet", ".")
    git("add", "-u")
    git("add", "--", *written)
    git("commit", "-q", "-m", MESSAGE_REWRITE)

    # 3. what blame is to skip
    revisions = git("log", "--format=%H %s", "-2").splitlines()
    lines = ["# Commits that move files and rewrite imports: git config blame.ignoreRevsFile .git-blame-ignore-revs"]
    lines += [line.split()[0] for line in reversed(revisions)]
    (ROOT / ".git-blame-ignore-revs").write_text("\n".join(lines) + "\n")
    git("add", ".git-blame-ignore-revs")
    git("commit", "-q", "-m", "Blame skips the two commits of the move")
    print(f"{len(WARNINGS)} warnings")
    if "--no-checks" not in sys.argv:
        sys.exit(checks())


PACKAGES_MERGED = set((HERE / "data" / "merged.txt").read_text().split())
MESSAGE_MOVES = "The house: whole files move to their rooms (moves only)"
MESSAGE_REWRITE = "The house: definitions in their rooms, imports and names follow; no import circle is left"


def face_text(module: str, names: tuple[str, ...]) -> str:
    """A module that stays importable where it was, with its public names (or with those of `names` alone)."""
    homes: dict[str, list[str]] = defaultdict(list)
    for statement in INDEX[module].statements:
        for name in statement.names if statement.kind == "other" else ():
            if name in names or (not names and not name.startswith("_")):
                homes[statement.home].append(name)
    lines = [f'"""{FACE_DOCS[module]}"""\n\nfrom __future__ import annotations\n\n']
    lines += [f"from {home} import {', '.join(sorted(found))}\n" for home, found in sorted(homes.items())]
    every = sorted(name for found in homes.values() for name in found)
    return "".join([*lines, f"\n__all__ = {json.dumps(every)}\n"])


def moved_module(template: str, places: set[str]) -> str:
    """`spaces/moved.py` with the tables of what has moved in `trainables` and `search`."""
    table = {}
    names = {}
    for source in INDEX.values():
        if source.module.split(".")[0] not in ("trainables", "search"):
            continue
        face = FACES.get(source.module)
        if face == ():
            continue
        new = new_module(source.module)
        public = {}
        for statement in source.statements:
            for name in statement.names if statement.kind == "other" else ():
                now = NEW_NAME.get(f"{source.module}:{name}", name)
                if not name.startswith("_") and not now.startswith("_") and name not in (face or ()):
                    public[name] = statement.home if now == name else f"{statement.home}:{now}"
        if new != source.module and source.module not in places:
            table[source.module] = new
        elsewhere = {name: home for name, home in public.items() if home != new}
        became_package = source.module in places and new != source.module
        if became_package:
            for name, (origin, there, typing) in source.imported.items():  # others imported them from here
                found = resolve(origin, there) if there and not typing and not name.startswith("_") else None
                if found and found[0] == "name" and not found[2].startswith("_"):
                    public.setdefault(name, found[1] if found[2] == name else f"{found[1]}:{found[2]}")
            # a name that a module of the package has now finds that module
            public = {name: home for name, home in public.items() if f"{source.module}.{name}" not in places}
            names[source.module] = public
        elif elsewhere:
            names[source.module] = elsewhere
    lines = ["MODULES = {\n", *(f'    "{k}": "{v}",\n' for k, v in sorted(table.items())), "}\n"]
    lines += ['"""Modules by their old names."""\n']
    lines += ["NAMES = {\n"]
    for module, public in sorted(names.items()):
        homes: dict[str, list[str]] = defaultdict(list)
        for name, home in sorted(public.items()):
            homes[home].append(name)
        lines += [f'    "{module}": {{\n']
        for home, those in sorted(homes.items()):
            wrapped = textwrap.wrap(" ".join(those), 60)
            texts = [f'"{line} "' for line in wrapped[:-1]] + [f'"{wrapped[-1]}"']
            lines += [f'        "{home}": {texts[0]},\n' if len(texts) == 1 else f'        "{home}": ({" ".join(texts)}),\n']
        lines += ["    },\n"]
    lines += ["}\n", '"""Names that are not in the module which their old one became, by their old module: {module: names}."""\n']
    return template.replace("# TABLES\n", "".join(lines))


def save(texts: dict[str, str]) -> None:
    for path, text in texts.items():
        target = ROOT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)


def rewrapped(text: str, width: int = 120) -> str:
    """Lines of docstrings and comments that have become too long, broken at a space; what follows moves along."""
    if not re.search(rf"^.{{{width + 1},}}$", text, re.M):
        return text
    inside: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            inside.add(token.start[0] - 1)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            inside.update(range(node.lineno - 1, node.end_lineno))  # type: ignore[arg-type]
    lines = text.split("\n")
    if not any(len(lines[i]) > width for i in inside):
        return text
    out: list[str] = []
    carry = ""  # words for the next line
    indent = prefix = ""
    for i, line in enumerate(lines):
        if carry:
            body = line.strip()
            if prefix:
                body = body.removeprefix("#").strip()
            joins = i in inside and body and not re.match(r"([-*>]|\.\.|\d+\.|=|#|Raises|Shape legend|Example)", body)
            same = joins and len(line) - len(line.lstrip()) == len(indent) and not body.startswith('"""')
            if same:
                line = f"{indent}{prefix}{carry} {body}"
            else:
                if body == '"""' or not out:
                    out.append(f"{indent}{prefix}{carry}")
                else:
                    out.append(f"{indent}{prefix}{carry}")
            carry = ""
        if i in inside and len(line) > width:
            indent = line[: len(line) - len(line.lstrip())]
            prefix = "# " if line.strip().startswith("# ") else ""
            limit = line.rfind(" ", len(indent) + 20, width + 1)
            rest = line[limit:].strip()
            if limit > 0 and '"""' not in rest:
                carry, line = rest, line[:limit]
            elif limit > 0 and rest.endswith('"""') and line.count('"""') == 1:
                out.append(line[:limit])
                line = indent + rest
        out.append(line)
    new = "\n".join(out)
    return new if new == text else rewrapped(new, width)


def ruff(*words: str) -> None:
    subprocess.run([str(ROOT / ".venv/bin/ruff"), *words], cwd=ROOT, check=False, stdout=subprocess.DEVNULL)


def checks() -> int:
    """ruff, pyright, lint-imports, circles."""
    failed = 0
    commands = [
        [".venv/bin/ruff", "check", "."],
        [".venv/bin/ruff", "format", "--check", "."],
        [".venv/bin/lint-imports"],
        [sys.executable, str(HERE / "check_circles.py"), "."],
        [".venv/bin/pyright"],
    ]
    for command in commands:
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        print("==", " ".join(command), "->", done.returncode)
        if done.returncode:
            print((done.stdout + done.stderr)[-6000:])
        failed |= done.returncode
    return failed


if __name__ == "__main__":
    main()
