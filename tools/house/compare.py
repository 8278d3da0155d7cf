"""Definitions before and after: what is missing, new, or differs (but for names of modules and docstrings).

    python compare.py OLD_CHECKOUT NEW_CHECKOUT
"""
import ast, sys, subprocess, collections
from pathlib import Path

def collect(root):
    found = collections.defaultdict(list)
    for top in ("spaces", "trainables", "search", "cluster", "mlflow", "tests"):
        for path in sorted(Path(root, top).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    found[node.name].append((str(path.relative_to(root)), node))
                elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                    found[ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)].append((str(path.relative_to(root)), node))
    return found

def normal(node):
    class Clean(ast.NodeTransformer):
        def visit_Import(self, n): return None
        def visit_ImportFrom(self, n): return None
        def visit_Expr(self, n):
            self.generic_visit(n)
            return None if isinstance(n.value, ast.Constant) else n
    return ast.dump(Clean().visit(ast.parse(ast.unparse(node))))

old, new = collect(sys.argv[1]), collect(sys.argv[2])
for name in sorted(old.keys() | new.keys()):
    a = collections.Counter(normal(n) for _, n in old.get(name, []))
    b = collections.Counter(normal(n) for _, n in new.get(name, []))
    if a != b:
        places = [p for p, n in old.get(name, []) if normal(n) not in b], [p for p, n in new.get(name, []) if normal(n) not in a]
        kind = "gone" if not b else "new" if not a else "differs" if places[0] or places[1] else f"count {sum(a.values())} -> {sum(b.values())}"
        print(f"{kind:8} {name}: {places[0]} -> {places[1]}")
