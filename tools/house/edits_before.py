"""Edits of the OLD files, before they are divided.

`BEFORE`: exact ones, (old path, text, new text), each has to fit exactly once. `PROGRAMS`: those that find their
place by names. `LATER`: exact ones of what another branch adds, applied where they fit. Names and imports
here are those of the old house; the mover rewrites them with everything else.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable

BEFORE: list[tuple[str, str, str]] = []
LATER: list[tuple[str, str, str]] = [
    ("trainables/checkpoints.py", "record, which earlier code may have written (`trainables.earlier`)", "record, which may be of earlier code (`trainables.earlier`)"),
]
PROGRAMS: list[Callable[[dict[str, str], Callable[[str], None]], None]] = []


def edit(path: str, old: str, new: str) -> None:
    BEFORE.append((path, old, new))


# == search: the study is divided into what is stored and what drives ===============================================

READERS = ("__init__", "load", "journal", "state", "kept", "status", "extend", "write", "check_data", "reclaimable")
"""Methods of `Study` that go to `StoredStudy`; a method that is new stays with `Study`."""

STORED = '''class StoredStudy:
    """A study as it is stored: its spec, its folder, its journal. Reading needs no lease."""

'''
DRIVES = '''class Study(StoredStudy):
    """A study that can be created, launched, asked for its frontier and promoted from. Launching takes the lease."""

'''


def divide_study(texts: dict[str, str], warn: Callable[[str], None]) -> None:
    path = "search/study.py"
    text = texts[path]
    tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    one = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Study"), None)
    if one is None or any(isinstance(n, ast.ClassDef) and n.name == "StoredStudy" for n in tree.body):
        warn(f"{path}: there is no class Study to divide")
        return
    parts: dict[bool, list[str]] = {True: [], False: []}
    behind = one.body[0].end_lineno  # its docstring
    for node in one.body[1:]:
        begin = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        piece = [line for line in lines[behind:begin] if not re.match(r"\s*# -- .* -{5,}$", line)]
        while piece and not piece[0].strip():
            piece.pop(0)
        name = getattr(node, "name", "")
        parts[name in READERS].append("".join([*piece, *lines[begin : node.end_lineno]]))
        behind = node.end_lineno
    stored = STORED + "\n".join(parts[True])
    drives = DRIVES + "\n".join(parts[False])
    texts[path] = "".join([*lines[: one.lineno - 1], stored, "\n\n", drives, *lines[one.end_lineno :]])


def stored_below(texts: dict[str, str], warn: Callable[[str], None]) -> None:
    """What lies below the study takes a `StoredStudy`: the word in code, not in strings, not `optuna.Study`."""
    for path, text in texts.items():
        if not re.fullmatch(r"search/\w+\.py", path) or path in ("search/__init__.py", "search/study.py"):
            continue
        if "from search.study import" not in text or not re.search(r"\bStudy\b", text):
            continue
        lines = text.splitlines(keepends=True)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        for before, token in reversed(list(zip(tokens, tokens[1:]))):
            if token.type == tokenize.NAME and token.string == "Study" and before.string != ".":
                row, column = token.start
                line = lines[row - 1]
                lines[row - 1] = line[:column] + "StoredStudy" + line[column + 5 :]
        texts[path] = "".join(lines)


PROGRAMS += [divide_study, stored_below]

S = "search/study.py"
edit(S, "    def load(cls, name: str | Path, *, root: Path | None = None) -> Study:", "    def load(cls, name: str | Path, *, root: Path | None = None) -> Self:")
edit(S, "time: float | None = None, cost: float | None = None) -> Study:\n", "time: float | None = None, cost: float | None = None) -> Self:\n")
edit(S, "        found = Study(spec, self.folder)\n        found._write()\n", "        found = type(self)(spec, self.folder)\n        found.write()\n")
edit(S, '''    def _write(self) -> None:
        write_spec(''', '''    def write(self) -> None:
        """Write the study's file: the spec as it is now."""
        write_spec(''')
edit(S, "from typing import TYPE_CHECKING, Any\n", "from typing import TYPE_CHECKING, Any, Self\n")
edit(S, '''    @contextlib.contextmanager
    def driving(self) -> Iterator[Driver]:
        """Hold the lease and write: yields the driver, closed at the end whatever happens."""
        from search.driver import Driver

        journal = self.journal()
        journal.acquire()
        driver = Driver(self.folder, self.spec, journal)
        try:
            driver.replay(journal.events())
            if Study.load(self.folder.path).spec.budget != self.spec.budget:  # `resume` with other limits
                self._write()
            yield driver
        finally:
            driver.release()
''', '''    def driving(self) -> AbstractContextManager[Driver]:
        """Hold the lease and write: see `search.driver.driving`."""
        from search.driver import driving

        return driving(self)
''')
edit(S, "import contextlib\nfrom collections.abc import Callable, Iterator, Mapping, Sequence\n", "import contextlib\nfrom collections.abc import Callable, Mapping, Sequence\nfrom contextlib import AbstractContextManager\n")
edit(S, "def all_studies(root: Path | None = None) -> list[Study]:", "def all_studies(root: Path | None = None) -> list[StoredStudy]:")
edit(S, "            found.append(Study.load(path.parent))\n", "            found.append(StoredStudy.load(path.parent))\n")

D = "search/driver.py"
edit(D, "def driver_at(path: str) -> Driver:\n", '''@contextlib.contextmanager
def driving(study: StoredStudy) -> Iterator[Driver]:
    """Hold a study's lease and write: yields the driver, closed at the end whatever happens."""
    journal = study.journal()
    journal.acquire()
    driver = Driver(study.folder, study.spec, journal)
    try:
        driver.replay(journal.events())
        if StoredStudy.load(study.folder.path).spec.budget != study.spec.budget:  # `resume` with other limits
            study.write()
        yield driver
    finally:
        driver.release()


def driver_at(path: str) -> Driver:
''')
edit(D, "import logging\nimport time\nfrom collections.abc import Callable, Sequence\n", "import contextlib\nimport logging\nimport time\nfrom collections.abc import Callable, Iterator, Sequence\n")
edit(D, "from search.stages import SharedStages\n", "from search.stages import SharedStages\nfrom search.study import StoredStudy\n")

edit("search/promote.py", "    with study.driving() as driver:\n        yield driver.state, driver\n", '''    from search.driver import driving

    with driving(study) as driver:
        yield driver.state, driver
''')
edit("search/commands/manage.py", "    from search.study import Study, all_studies\n\n    chosen = ", "    from search.driver import driving\n    from search.study import StoredStudy, all_studies\n\n    chosen = ")
edit("search/commands/manage.py", "    chosen = [Study.load(study, root=studies)] if study", "    chosen = [StoredStudy.load(study, root=studies)] if study")
edit("search/commands/manage.py", "            with found.driving() as driver:  # refuses", "            with driving(found) as driver:  # refuses")
edit("search/commands/study.py", "if TYPE_CHECKING:\n    from search.study import Study\n", "if TYPE_CHECKING:\n    from search.study import StoredStudy\n")
edit("search/commands/study.py", "def status_record(study: Study, state: Any)", "def status_record(study: StoredStudy, state: Any)")

# -- donors: what follows from the state, and what is read when a study is created -------------------------------------

O = "search/donors.py"
edit(O, "def named(spec: StudySpec, task: Task, root: Path | None) -> list[Named]:\n    \"\"\"Every donor that a study file names, read and compared with what may begin with it.\n", '''Fetch = Callable[[str, Path], Path]
"""Reads a registered model into an empty folder: the folder of its checkpoint."""


def named(spec: StudySpec, task: Task, fetch: Fetch | None) -> list[Named]:
    """Every donor that a study file names, read and compared with what may begin with it.

    `fetch` reads registered models (`search.registered.donor_of`); without it they are refused.
''')
edit(O, "                    found[option] = Named(option, _read(spec, option, root))\n", "                    found[option] = Named(option, _read(option, fetch))\n")
edit(O, "def _read(spec: StudySpec, option: str, root: Path | None) -> donors.Donor:\n", "def _read(option: str, fetch: Fetch | None) -> donors.Donor:\n")
edit(O, '''    from search.mlflow_client import default_uri
    from search.registered import checkpoint_of
    from search.spec import studies_root

    uri = spec.tracking.uri or default_uri(studies_root(root))
    if uri == "off":
        raise InputError(f"donor = {option!r}: a registered model needs tracking.uri, which is off")
    with tempfile.TemporaryDirectory(prefix="routefront-") as scratch:
        return donors.read(checkpoint_of(model, uri, Path(scratch)), option)
''', '''    if fetch is None:
        raise InputError(f"donor = {option!r}: there is no registry here that has it")
    with tempfile.TemporaryDirectory(prefix="routefront-") as scratch:
        return donors.read(fetch(option, Path(scratch)), option)
''')
edit(O, "from collections.abc import Iterator, Mapping, Sequence\n", "from collections.abc import Callable, Iterator, Mapping, Sequence\n")
edit(D, "from search.donors import Donors, takers\n", "")
edit(D, "    if not takers(state.created[\"spec\"][\"methods\"]):\n        return set()\n    names = ", '''    from search.donors import Donors, takers  # they bring torch, and most questions about checkpoints need none

    if not takers(state.created["spec"]["methods"]):
        return set()
    names = ''')
R = "search/registered.py"
edit(R, "def _not_loaded(name: str, version: Any, error: Exception) -> InputError:\n", '''def donor_of(spec: StudySpec, root: Path | None, option: str, scratch: Path) -> Path:
    """The checkpoint folder of a registered model that a study file names as a donor: see `checkpoint_of`."""
    uri = spec.tracking.uri or default_uri(studies_root(root))
    if uri == "off":
        raise InputError(f"donor = {option!r}: a registered model needs tracking.uri, which is off")
    return checkpoint_of(option.removeprefix("models:/"), uri, scratch)


def _not_loaded(name: str, version: Any, error: Exception) -> InputError:
''')
edit(R, "from search.mlflow_client import check_server, is_server, quiet, shown, using\n", "from search.mlflow_client import check_server, default_uri, is_server, quiet, shown, using\n")
edit(R, "from search.registration import DIGEST, PROMOTION, fetched, folder_digest\n", "from search.registration import DIGEST, PROMOTION, fetched, folder_digest\nfrom search.spec import StudySpec, studies_root\n")
edit(S, "            create(spec, folder, data or load_data(spec), root)\n", '''            from search.registered import donor_of

            create(spec, folder, data or load_data(spec), root, partial(donor_of, spec, root))
''')
edit(S, "from contextlib import AbstractContextManager\n", "from contextlib import AbstractContextManager\nfrom functools import partial\n")
edit("search/creation.py", "def create(spec: StudySpec, folder: StudyFolder, data: Data, root: Path | None) -> None:\n", "def create(spec: StudySpec, folder: StudyFolder, data: Data, root: Path | None, fetch: Fetch | None = None) -> None:\n")
edit("search/creation.py", "    begun = named(spec, data.task, root)\n", "    begun = named(spec, data.task, fetch)\n")
edit("search/creation.py", "from search.donors import named, store\n", "from search.donors import Fetch, named, store\n")
edit("search/creation.py", "    journal in it is removed. Raises `InputError` where", "    journal in it is removed. `fetch` reads registered models (`search.donors.Fetch`). Raises `InputError` where")

# -- rungs: what two files share ------------------------------------------------------------------------------------

edit("search/decisions.py", "_PRIOR, _PRIOR_TRIALS, _FULL = 0.5, 8, 0.8\n", '''_PRIOR, _FULL = 0.5, 0.8
PRIOR_TRIALS = 8
"""Of so many trials what is expected of a rung counts for, beside those that came to it."""
''')


def prior_trials(texts: dict[str, str], warn: Callable[[str], None]) -> None:
    path = "search/decisions.py"
    head, mark, tail = texts[path].partition("\nPRIOR_TRIALS = 8\n")
    if not mark:
        return
    texts[path] = head.replace("_PRIOR_TRIALS", "PRIOR_TRIALS") + mark + tail.replace("_PRIOR_TRIALS", "PRIOR_TRIALS")


PROGRAMS.append(prior_trials)

# -- sampling: Optuna in the rooms that are named after it -----------------------------------------------------------

V = "search/view.py"
edit(V, '''    def as_optuna(self, trial: Trial, spaces: Mapping[str, Space], values: Sequence[float] | None) -> FrozenTrial:
        """A trial with these values, or running where there are none."""
        key = trial.id, len(spaces)
        if key not in self.frozen:
            params, distributions = record(trial.config, spaces)
            self.frozen[key] = optuna.create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
        found = self.frozen[key]
        found.state = TrialState.RUNNING if values is None else TrialState.COMPLETE
        found.values = None if values is None else list(values)
        return found
''', "")
edit(V, "def _at_rung(", '''def as_optuna(view: View, trial: Trial, spaces: Mapping[str, Space], values: Sequence[float] | None) -> FrozenTrial:
    """A trial of a view with these values, or running where there are none."""
    key = trial.id, len(spaces)
    if key not in view.frozen:
        params, distributions = record(trial.config, spaces)
        view.frozen[key] = optuna.create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
    found = view.frozen[key]
    found.state = TrialState.RUNNING if values is None else TrialState.COMPLETE
    found.values = None if values is None else list(values)
    return found


def _at_rung(''')
edit(V, "    frozen: dict[tuple[str, int], FrozenTrial] = field(default_factory=dict)\n", "    frozen: dict[tuple[str, int], Any] = field(default_factory=dict)\n")
edit(V, "        frozen: dict[tuple[str, int], FrozenTrial] | None = None,\n", "        frozen: dict[tuple[str, int], Any] | None = None,\n")
edit(V, "def drawn(space: Space, rng: random.Random, given: Mapping[str, Any]) -> Config:\n", "def drawn(space: Space, rng: random.Random, given: Mapping[str, Any]) -> dict[str, Any]:\n")
edit(V, '''    """Uniform draws of the parameters of a space that are not given."""
    values: Config = {}
''', '''    """Uniform draws of the parameters of a space that are not given."""
    values: dict[str, Any] = {}
''')
edit("search/samplers.py", "    trials = [view.as_optuna(trial, view.spaces, [scores[trial.id]]) for trial in view.told()]\n", "    trials = [as_optuna(view, trial, view.spaces, [scores[trial.id]]) for trial in view.told()]\n")
edit("search/samplers.py", "    trials += [view.as_optuna(trial, view.spaces, None) for trial in view.silent]\n", "    trials += [as_optuna(view, trial, view.spaces, None) for trial in view.silent]\n")
edit("search/samplers.py", "from search.view import Config, View, ask_random\n", "from search.view import Config, View, as_optuna, ask_random\n")

# -- commands -------------------------------------------------------------------------------------------------------

edit("search/commands/look.py", '''    app.command("frontier")(frontier)
    app.command("report")(report)
    app.command("watch")(watch)
''', '''    app.command("frontier")(frontier)


def register_report(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("report")(report)
    app.command("watch")(watch)
''')
edit("search/__main__.py", "from search.commands import catalogue, cluster, launch, look, manage, model, study, track\n", "from search.commands import catalogue, cluster, launch, look, manage, model, study, track\nfrom search.commands import report\n")
edit("search/__main__.py", "for module in (catalogue, launch, study, look, manage, model, track, cluster):\n", "for module in (catalogue, launch, study, look, report, manage, model, track, cluster):\n")

# -- report: pictures and sections put together from what the rooms offer ---------------------------------------------

P = "search/path_section.py"
edit(P, '''            _panels("Skip ratio per block", _SKIPPING, "skip", [(t, path_plots.skip_figure(t)) for t in gated]),
''', '''            skip_section(gated),
''')
edit(P, '''_SKIPPING = "The share of the validation images that skip a block, from the first block to the last."


''', '''def skip_section(trials: Sequence[TrialPaths]) -> str:
    """How often each block is skipped, trial by trial."""
    about = "The share of the validation images that skip a block, from the first block to the last."
    return _panels("Skip ratio per block", about, "skip", [(t, path_plots.skip_figure(t)) for t in trials])


''')
DOCUMENTED = {
    P: {
        "_variants": ("variants_section", "The best accuracy against MACs of every method and variant."),
        "_summary": ("summary_section", "A table of the trials whose paths are drawn."),
        "_by_class": ("class_section", "How many blocks run for the images of each class, trial by trial."),
        "_tsne": ("tsne_section", "The relaxed decisions in two dimensions, coloured by class and by path length."),
        "_copies": ("copies_section", "How far predictions for augmented copies are from those for their images."),
        "_images": ("images_section", "The images with the shortest and the longest paths."),
    },
    "search/path_pngs.py": {
        "_rows": ("rows_picture", ""),
        "_skipping": ("draw_skipping", "Bars: the share of the images that skip each block."),
        "_by_class": ("draw_classes", "Median and quartiles of the blocks that run for the images of each class."),
        "_tsne": ("tsne_picture", "The relaxed decisions in two dimensions; None where no trial has any."),
        "_copies": ("copies_picture", "The KL between predictions for images and for their augmented copies."),
        "_variants": ("variants_picture", "The best accuracy against MACs of every method and variant."),
        "_images": ("images_picture", "The images with the shortest and the longest paths; None where there are none."),
    },
    "search/exit_pngs.py": {
        "_ponder": ("ponder_picture", "Bars: the ponder cost of each group; None where no trial halts."),
        "_halting": ("halting_pictures", "Images above their halting maps; None where no trial has stored some."),
    },
    "search/paths.py": {"_variant": ("variant_of", "The variant of a trial's method; empty where it has none.")},
    "search/registered.py": {"_checked": ("checked", "")},
    "search/kept.py": {"_today": ("settings_of", "What a method's space, defaults and published settings are today, as plain JSON values.")},
}
"""Private functions that another room calls now: their public names and docstrings (by file)."""


def published_functions(texts: dict[str, str], warn: Callable[[str], None]) -> None:
    """Give the functions of `DOCUMENTED` docstrings; the names follow by `RENAMES`."""
    for path, functions in DOCUMENTED.items():
        if path not in texts:
            if path != "search/kept.py":  # another branch adds it
                warn(f"{path}: there is no such file")
            continue
        tree = ast.parse(texts[path])
        lines = texts[path].splitlines(keepends=True)
        nodes = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
        for name in functions.keys() - nodes.keys():
            warn(f"{path}: there is no function {name}")
        for node in sorted(nodes.values(), key=lambda n: -n.lineno):
            text = functions.get(node.name, ("", ""))[1]
            if text and ast.get_docstring(node) is None:
                lines.insert(node.body[0].lineno - 1, f'    """{text}"""\n')
        texts[path] = "".join(lines)


PROGRAMS.append(published_functions)
edit("search/exit_pngs.py", '_GREY = "#7C8591"\n', 'GREY = "#7C8591"\n"""Legible on white and on near-black."""\n')


def grey(texts: dict[str, str], warn: Callable[[str], None]) -> None:
    path = "search/exit_pngs.py"
    texts[path] = re.sub(r"\b_GREY\b", "GREY", texts[path])


PROGRAMS.append(grey)

# == trainables =======================================================================================================

# -- checkpoints know no methods; what is served is loaded and prepared in one place -----------------------------------

C = "trainables/checkpoints.py"
edit(C, "def newest(folder: Path) -> Path | None:\n", '''def load_prepared(folder: Path, device: torch.device | str = "cpu") -> RoutedNetwork:
    """The network of a checkpoint as it is served: on its device, in eval mode, prepared for inference."""
    return prepared(load_network(folder, device)[1])


def newest(folder: Path) -> Path | None:
''')
edit(C, "from trainables.method import Method, config_dict\n", "from trainables.fused import prepared\nfrom trainables.method import Method, config_dict\n")
edit("mlflow/routed_classifier.py", '''    network = importlib.import_module("trainables.checkpoints").load_network(folder, device)[1]
    try:
        fused = importlib.import_module("trainables.fused")
    except ModuleNotFoundError:  # promoted before networks were prepared
        return network
    return fused.prepared(network)
''', '''    # this file and the code beside it are promoted together: a module that is missing is an error, never skipped
    return importlib.import_module("trainables.serving").load_prepared(folder, device)
''')

# -- imta: what one method alone does ----------------------------------------------------------------------------------

edit("trainables/networks/collaboration.py", "    from trainables import checkpoints  # knows all methods, ours among them\n\n", "")
edit("trainables/networks/collaboration.py", "from trainables.network import Task\n", "from trainables import checkpoints\nfrom trainables.network import Task\n")

# -- fast forms: a table where modules were asked for an attribute -----------------------------------------------------

F = "trainables/fused.py"
edit(F, '''        if hasattr(module, "fused"):
            return module.fused(self.dtype)  # pyright: ignore[reportCallIssue]
''', '''        if type(module) in FAST:
            return FAST[type(module)](module, self.dtype)
''')
edit(F, '''class _Preparation:
    """One walk''', '''FAST: dict[type[nn.Module], Callable[[Any, torch.dtype], nn.Module]] = {
    NormAct: FusedNormAct,
    ScoreConv: FusedScoreConv,
    PreActUnit: FusedPreActUnit,
    FusedPreActUnit: lambda unit, dtype: unit,  # prepared already
}
"""What makes the fast form of a module of exactly this type, for arithmetic of a type."""


class _Preparation:
    """One walk''')
edit(F, '''from collections.abc import Sequence
from typing import Protocol, runtime_checkable
''', '''from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable
''')
edit(F, "from trainables.fused_routers import folded, prepared_router\n", "from trainables.fused_positions import FusedNormAct, FusedPreActUnit, FusedScoreConv\nfrom trainables.fused_routers import folded, prepared_router\n")
edit(F, "from trainables.networks.multipath_folding import fold_norms\n", "from trainables.networks.multipath_folding import fold_norms\nfrom trainables.networks.positions import ScoreConv\nfrom trainables.networks.preact import NormAct, PreActUnit\n")
edit("trainables/networks/preact.py", '''
    def fused(self, dtype: torch.dtype) -> nn.Module:
        """See `trainables.fused`."""
        from trainables.fused_positions import FusedNormAct  # which builds on what this file defines

        return FusedNormAct(self, dtype)
''', "")
edit("trainables/networks/preact.py", '''
    def fused(self, dtype: torch.dtype) -> nn.Module:
        """See `trainables.fused`."""
        from trainables.fused_positions import FusedPreActUnit

        return FusedPreActUnit(self, dtype)
''', "")
edit("trainables/networks/positions.py", '''
    def fused(self, dtype: torch.dtype) -> nn.Module:
        """See `trainables.fused`."""
        from trainables.fused_positions import FusedScoreConv  # which builds on what this file defines

        return FusedScoreConv(self, dtype)
''', "")
edit("trainables/fused_positions.py", '''
    def fused(self, dtype: torch.dtype) -> nn.Module:
        """It is already."""
        return self
''', "")
edit("trainables/fused_positions.py", "see `trainables.fused`, which asks a module for its fast form.", "see `trainables.fused.FAST`.")
edit("tests/trainables/methods/test_sact.py", "        found = score.fused(dtype)(features)\n", "        found = FusedScoreConv(score, dtype)(features)\n")


def score_conv_import(texts: dict[str, str], warn: Callable[[str], None]) -> None:
    path = "tests/trainables/methods/test_sact.py"
    line = "from trainables.fused_positions import FusedScoreConv\n"
    if line not in texts[path]:
        texts[path] = re.sub(r"^(from trainables\.)", line + r"\1", texts[path], count=1, flags=re.M)


PROGRAMS.append(score_conv_import)

# -- plug-ins -----------------------------------------------------------------------------------------------------------

edit("trainables/registry.py", "        method = point.load()\n", '''        try:
            method = point.load()
        except ImportError as error:  # it may have been written against other places (`spaces.moved`)
            raise ValueError(f"plug-in {point.value!r} cannot be imported: {error}") from None
''')
edit("search/spec.py", "    return {name: {} for name in all_methods()}\n", '''    try:
        return {name: {} for name in all_methods()}
    except ValueError as error:  # a plug-in; pydantic lets what a default raises pass as it is
        raise InputError(str(error)) from None
''')

# -- lines that would become too long ----------------------------------------------------------------------------------

edit(
    "tests/trainables/test_hybrid.py",
    """from trainables.data import load; print(load(sys.argv[1], root=pathlib.Path('x')).hash)"\n""",
    """from trainables.data import load;"\n        " print(load(sys.argv[1], root=pathlib.Path('x')).hash)"\n""",
)
edit(
    "tests/trainables/test_clutter.py",
    """    code = "import pathlib; from trainables.data import load; print(load('cluttered-digits', root=pathlib.Path()).hash)"\n""",
    """    code = "import pathlib; from trainables.data import load;"\n    code += " print(load('cluttered-digits', root=pathlib.Path()).hash)"\n""",
)
edit("tests/test_packaging.py", """    ignore = shutil.ignore_patterns(".venv", ".git", "demo", "studies", "data", "*.egg-info", "build", "__pycache__")
    shutil.copytree""", """    everywhere = shutil.ignore_patterns(".venv", ".git", "*.egg-info", "build", "__pycache__")
    top = {"demo", "studies", "data"}  # there are packages of these names, too

    def ignore(at: str, names: list[str]) -> set[str]:
        return everywhere(at, names) | (top & {*names} if Path(at) == ROOT else set())

    shutil.copytree""")
edit("tests/test_packaging.py", """{"search/presets/digits.toml", "search/presets/cifar10.toml\"""", """{"search/frontier/published.csv", "search/report/page.js"} <= names
    assert {"search/presets/digits.toml", "search/presets/cifar10.toml\"""")
edit("tests/benchmarks/recorded.py", "as a problem of `search.simulate`: a configuration", "as a problem for the simulation: a configuration")
