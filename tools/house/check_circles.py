"""Import circles of the packages of a checkout: every import counts, also lazy ones and those under TYPE_CHECKING.

    python check_circles.py [CHECKOUT] [--without-type-checking]

Prints every circle (a strongly connected set of more than one module) and ends with their number; exit code 1
where there is one. A package's `__init__` counts as a module of its own; importing `a.b` is no import of `a`'s
`__init__` (the machinery runs it, but nothing is taken from it).
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOTS = ("spaces", "trainables", "search", "cluster", "routefront")


def modules(root: Path) -> dict[str, Path]:
    found = {}
    for top in ROOTS:
        for path in sorted((root / top).rglob("*.py")) if (root / top).is_dir() else ():
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path], typing: bool) -> dict[str, int]:
    """{imported module: line}."""
    tree = ast.parse(path.read_text())
    hidden = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for node in ast.walk(block)
    }
    found: dict[str, int] = {}
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if node in hidden and not typing:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in known:
                    found.setdefault(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                target = f"{base}.{alias.name}"
                target = target if target in known else base
                if target in known:
                    found.setdefault(target, node.lineno)
    found.pop(name, None)
    return found


def circles(graph: dict[str, dict[str, int]]) -> list[list[str]]:
    """Tarjan's strongly connected sets of more than one module."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on: set[str] = set()
    found: list[list[str]] = []
    sys.setrecursionlimit(10_000)

    def visit(v: str) -> None:
        index[v] = low[v] = len(index)
        stack.append(v)
        on.add(v)
        for w in graph[v]:
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in on:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            part = []
            while True:
                w = stack.pop()
                on.discard(w)
                part.append(w)
                if w == v:
                    break
            if len(part) > 1:
                found.append(sorted(part))

    for v in graph:
        if v not in index:
            visit(v)
    return sorted(found, key=lambda part: (-len(part), part))


def main() -> int:
    args = [arg for arg in sys.argv[1:] if not arg.startswith("-")]
    root = Path(args[0]) if args else Path.cwd()
    known = modules(root)
    graph = {name: imports(name, path, known, "--without-type-checking" not in sys.argv) for name, path in known.items()}
    found = circles(graph)
    for part in found:
        print(f"circle of {len(part)}: {', '.join(part)}")
        for one in part:
            for other, line in graph[one].items():
                if other in part:
                    print(f"    {one}:{line} -> {other}")
    print(f"{len(known)} modules, {sum(map(len, graph.values()))} imports, {len(found)} circles")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
