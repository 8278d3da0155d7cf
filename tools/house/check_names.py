"""Names in strings, comments and documents that lead nowhere: ``search.x.y``, ``search/x.py``, and ``module.name`` in code.

    python check_names.py [CHECKOUT]

Reads sources only. A hit may be right all the same (history in DECISIONS.md, a made-up name in a test).
"""
import ast, io, re, subprocess, sys, tokenize
from pathlib import Path

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
files = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True).stdout.splitlines()
modules, bound = {}, {}
for f in files:
    if f.endswith(".py"):
        parts = Path(f).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = f
        tree = ast.parse((ROOT / f).read_text())
        names = set()
        for n in ast.walk(tree):
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)): names.add(n.name)
            elif isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store): names.add(n.id)
            elif isinstance(n, (ast.Import, ast.ImportFrom)): names |= {(a.asname or a.name).split(".")[0] for a in n.names}
        bound[name] = names | {"__file__", "__name__", "__path__", "__doc__"}
packages = {".".join(m.split(".")[:k]) for m in modules for k in range(1, m.count(".") + 1)}
DOTTED = re.compile(r"(?<![\w./@-])(?:search|trainables|cluster|spaces|tests)(?:\.\w+)+")
PATHS = re.compile(r"(?<![\w.@-])(?:search|trainables|cluster|spaces|tests|mlflow)(?:/[\w.-]+)+\.(?:py|js|csv|toml|json)\b")
tracked = set(files)

def resolve(text):
    parts = text.split(".")
    for k in range(len(parts), 0, -1):
        m = ".".join(parts[:k])
        if m in modules or m in packages:
            rest = parts[k:]
            return not rest or rest[0] in bound.get(m, ()) 
    return False

count = 0
def say(f, line, what):
    global count; count += 1; print(f"{f}:{line}: {what}")
def texts(f):
    text = (ROOT / f).read_text()
    if f.endswith(".py"):
        for t in tokenize.generate_tokens(io.StringIO(text).readline):
            if t.type in (tokenize.STRING, tokenize.COMMENT): yield t.start[0], t.string
    else:
        for i, line in enumerate(text.split("\n"), 1): yield i, line
for f in files:
    if f.endswith((".py", ".md", ".in", ".toml", ".yaml")) or f == "Makefile":
        if f in ("spaces/moved.py", "tests/spaces/test_moved.py", "CHANGELOG.md", "requirements.lock"): continue
        for line, text in texts(f):
            for m in DOTTED.finditer(text):
                if m[0].endswith((".py", ".toml", ".yaml", ".js", ".db", ".in", ".md")) or m[0].endswith("_"): continue
                if not resolve(m[0]): say(f, line, m[0])
            for m in PATHS.finditer(text):
                if m[0] not in tracked and not any(t.startswith(m[0]) for t in tracked): say(f, line, m[0])
    if f.endswith(".py"):
        tree = ast.parse((ROOT / f).read_text())
        alias = {}
        for n in ast.walk(tree):
            if isinstance(n, ast.ImportFrom) and n.module:
                for a in n.names:
                    full = f"{n.module}.{a.name}"
                    if full in modules: alias[a.asname or a.name] = full
                    elif n.module in modules and a.name not in bound[n.module]: say(f, n.lineno, f"from {n.module} import {a.name}")
                    elif n.module.split(".")[0] in ("search","trainables","cluster","spaces","tests") and n.module not in modules and n.module not in packages: say(f, n.lineno, f"from {n.module}")
        stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        for n in ast.walk(tree):
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id in alias and n.value.id not in stored:
                m = alias[n.value.id]
                if n.attr not in bound[m] and f"{m}.{n.attr}" not in modules: say(f, n.lineno, f"{n.value.id}.{n.attr} ({m})")
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "setattr" and len(n.args) > 1:
                a, b = n.args[:2]
                if isinstance(a, ast.Name) and a.id in alias and isinstance(b, ast.Constant) and b.value not in bound[alias[a.id]]:
                    say(f, n.lineno, f"setattr({a.id}, {b.value!r}) ({alias[a.id]})")
print(count, "names lead nowhere")
