"""Tables of the move that no list of files gives: names, docstrings, exact edits. Read by `move.py`."""

from __future__ import annotations

from edits_after import AFTER, FINISH, TEXT_FILES
from edits_before import BEFORE, DOCUMENTED, LATER, PROGRAMS
from edits_docs import DOCS, PACKAGES

# -- files ----------------------------------------------------------------------------------------------------------

FILES: dict[str, str] = {
    # data
    "search/page.js": "search/report/page.js",
    "search/published.csv": "search/frontier/published.csv",
    "search/presets/": "search/spec/presets/",
    # otherwise than the mapping: a module `load` beside a function `load` hid the function from old importers
    "trainables/data.py": "trainables/data/datasets.py",
    "tests/trainables/test_data.py": "tests/trainables/data/test_datasets.py",
}

# -- definitions: home of a name, "" takes an entry of rename.json out -----------------------------------------------

NAMES: dict[str, str] = {
    "search.study:<readers of Study>": "",
    "search.study:_READ": "",
    "search.study:StoredStudy": "search.studies.stored",
    "search.exit_pngs:_GREY": "",
    "search.exit_pngs:_ponder": "search.report.halting",
    "search.exit_pngs:GREY": "search.report.png",
    "search.pooled:state_table": "search.points.table",  # apart from rows, which need no pyarrow
    "search.view:as_optuna": "search.sampling.optuna_samplers",
    "search.decisions:PRIOR_TRIALS": "search.rungs.brackets",
    "search.commands.look:register_report": "search.commands.report",
    "trainables.checkpoints:load_prepared": "trainables.serving",
}

# names that become public because another room reads them
RENAMES: dict[str, str] = {
    f"{path[:-3].replace('/', '.')}:{old}": new for path, functions in DOCUMENTED.items() for old, (new, _) in functions.items()
}
RENAMES["search.commands.look:register_report"] = "register"

# definitions that every part of a split file has for itself
DUPLICATES = {"_log"}

# statements without a name: (module, how the line begins) -> home
STATEMENTS: dict[tuple[str, str], str] = {
    ("search.samplers", "optuna.logging.set_verbosity"): "search.sampling.optuna_samplers",
}

# local names of modules whose last part says too little alone
ALIASES: dict[str, str] = {
    "search.points.files": "points",
    "search.pareto.front": "pareto",
    "search.frontier.query": "query",
    "search.journal.database": "database",
    "search.report.exits.figures": "exit_figures",
    "search.report.gates.figures": "gate_figures",
    "search.report.paths.figures": "path_figures",
    "search.report.study.figures": "study_figures",
    "search.report.study.section": "study_section",
    "search.report.exits.data": "exits",
    "search.report.paths.data": "paths",
    "search.tracking.process": "process",
    "search.tune.run": "run",
}

# old paths that go on working: all their public names, or those named
FACES: dict[str, tuple[str, ...]] = {"trainables.method": (), "trainables.network": (), "trainables.fused": ("prepared",)}
FACE_DOCS = {
    "trainables.method": """What a plug-in's method is made of, at the place that plug-ins import from: it stays where modules move.

The definitions are in `trainables.contracts`.
""",
    "trainables.network": """The contract of a network, at the place that plug-ins import from: it stays where modules move.

The definitions are in `trainables.contracts.network`.
""",
    "trainables.fused": """`prepared`, at the place where scripts of models that were promoted earlier look for it.

Without it they would serve networks that are not prepared, and say nothing. New code imports
`trainables.inference.prepare`.
""",
}

# what nobody calls, not even a test ("module:name"); it stays, with a warning, where somebody does by now
DEAD = ("search.mlflow_client:answering", "search.pooled:describe_reference", "search.query:pool")
