"""A study's first events: everything that can be wrong is found before anything is written."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import InputError
from search.journal.database import Journal
from search.planning.donors import Fetch, named, store
from search.planning.warm_start import taught
from search.sampling.samplers import sampler_of
from search.spec.study import StudySpec, corners
from search.spec.toml import to_toml
from search.state.constraints import Constraints
from search.state.kept import settings_of
from search.studies.folder import StudyFolder, write_spec
from search.studies.roots import shown
from search.studies.stored import journal_address
from spaces import own_networks
from spaces.recorded import recorded
from spaces.space import Space, drawn
from trainables.contracts.objective import Objective
from trainables.data.datasets import NAMES
from trainables.external import Measured, digests_of, first_of, load, source_of
from trainables.version import code_version

if TYPE_CHECKING:
    from trainables.contracts.method import Method
    from trainables.contracts.network import RoutedNetwork, Task
    from trainables.data.splits import Data


_DRAWS = 64
_SLOW, _QUICKEST = 1e9, 10.0
"""The reference of a measured latency, where the study file names no worst: what the largest network takes at so many
MACs a second, at least so many milliseconds. It depends on no machine."""


def create(
    spec: StudySpec, folder: StudyFolder, data: Data | Measured, root: Path | None, fetch: Fetch | None = None
) -> None:
    """Write a new study: its journal with what it begins with, then its study file.

    The study file comes last: a folder without one is no study, and what a killed creation left of a journal in it
    is removed. `fetch` reads registered models (`search.planning.donors.Fetch`). Raises `InputError` where the
    sampler or data are missing, a network does not fit its images, a donor is missing or of another body, a
    method's phases not the epochs, a constraint can be met by nothing, or the folder cannot be written.
    """
    sampler_of(spec.sampler)
    created = {
        "spec": spec.model_dump(mode="json"),
        **(_without_images(spec, data) if isinstance(data, Measured) else _with_images(spec, data)),
        "code_version": code_version(),
        "methods": record_of(spec),
        **({"trainables": digests_of(spec.references)} if spec.trainables else {}),
        **({} if spec.axes == Objective() else {"objective": spec.axes.record()}),
    }
    begun = [] if isinstance(data, Measured) else named(spec, data.task, fetch)
    if begun:
        created["donors"] = {each.written: each.record() for each in begun}
    first = [("created", created), *taught(spec, data.hash, root)]
    _reach(spec, folder)
    fresh = not folder.path.exists()
    if not fresh and (others := folder.written()[1]):
        raise InputError(
            f"{folder.path} is no study and holds {others[0]!r}, which no study writes;"
            " choose another --name or --studies"
        )
    try:
        for path in (folder.points, folder.checkpoints, folder.ray):
            path.mkdir(parents=True, exist_ok=True)
        for left in folder.path.glob(f"{folder.control.name}*"):
            left.unlink()
        journal = Journal(journal_address(spec, folder), spec.name, create=True)
        try:
            journal.acquire()
            if next(iter(journal.events()), None):
                raise InputError(
                    f"the journal {spec.journal} has a study {spec.name!r} already, whose folder is not {folder.path};"
                    " choose another --name"
                )
            store(begun, folder)
            for kind, payload in first:
                journal.append(kind, payload)
        finally:
            journal.close()
        write_spec(folder, to_toml(spec.model_dump(mode="json", exclude_none=True)))
    except OSError as error:
        raise InputError(f"study folder {folder.path} cannot be written: {error.strerror or error}") from None
    except InputError:
        if fresh:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def _with_images(spec: StudySpec, data: Data) -> dict[str, Any]:
    """Reference and images of a study with methods, which must fit them."""
    phases_fit(spec)
    images_fit(spec, data)
    weights_fit(spec, data.task)
    spaces = {name: space for name, space in spec.spaces().items() if name in spec.methods}
    task = {"classes": data.task.classes, "size": data.task.size, "channels": data.task.channels}
    corner = reference(spaces, data.task, Constraints.of(spec.constraints.model_dump(), spec.axes))
    if spec.axes.timing is not None:
        named = spec.objective.cost.worst
        corner["macs"] = float(named) if named is not None else max(_QUICKEST, 1000 * corner["macs"] / _SLOW)
    return {
        "reference": corner,
        "data": {
            "name": data.name,
            "hash": data.hash,
            "classes": list(data.classes),
            "task": task,
            "counts": [len(data.train.labels), len(data.validation.labels), len(data.test.labels)],
            **({"scale": data.scale.record()} if data.scale is not None else {}),
            **({"resize": data.resize} if data.resize else {}),
        },
    }


def _without_images(spec: StudySpec, data: Measured) -> dict[str, Any]:
    """Reference and data of a study with nothing but trainables, which bring their own."""
    task = {"classes": 0, "size": 0, "channels": 0}
    return {
        "reference": spec.axes.reference,
        "data": {"name": data.name, "hash": data.hash, "classes": [], "task": task, "counts": [0, 0, 0]},
    }


def phases_fit(spec: StudySpec) -> None:
    """Raise `InputError` where a full training has fewer epochs than a method has phases at a corner of its space."""
    from trainables.contracts.recipe import plan
    from trainables.registry import get_method

    for name, space in spec.spaces().items():
        if name in spec.trainables:
            continue
        for values in corners(space):
            method = get_method(name)
            try:
                plan(method.phases(method.configure(values)), spec.budget.epochs)
            except ValueError as error:
                raise InputError(f"methods.{name}: {error}") from None


def images_fit(spec: StudySpec, data: Data) -> None:
    """Raise `InputError` where the images cannot be normalised or cropped as a corner of a method's space asks."""
    from trainables.registry import get_method

    for name, space in spec.spaces().items():
        if name in spec.trainables:
            continue
        for values in corners(space):
            try:
                data.for_config(get_method(name).configure(values))
            except ValueError as error:
                raise InputError(f"methods.{name}: {error}") from None


def weights_fit(spec: StudySpec, task: Task) -> None:
    """Raise `InputError` where pretrained weights of a network that others wrote are missing or of another one."""
    from trainables.registry import get_method

    for name, space in spec.spaces().items():
        seen = set()
        for values in corners(space):
            if not values.get("pretrained") or (key := (values.get("network"), values["pretrained"])) in seen:
                continue
            seen.add(key)
            network = built_of(get_method(name), values, task)
            try:
                if hasattr(network, "take_weights"):
                    network.take_weights(values["pretrained"])  # pyright: ignore[reportCallIssue]
            except ValueError as error:
                raise InputError(f"methods.{name}: {error}") from None


def _reach(spec: StudySpec, folder: StudyFolder) -> None:
    """Raise `InputError` where a study in object storage has no place for its journal, or its storage refuses."""
    if folder.storage is None:
        return
    if spec.journal is None or spec.journal.startswith("sqlite"):
        raise InputError(
            f"studies in {shown(folder.path.parent)} need a journal in PostgreSQL: SQLite cannot lie in object storage;"
            ' write journal = "postgresql+psycopg://HOST/DATABASE" into the study file'
        )
    remote = folder.remote
    try:
        if remote is not None:
            remote.write(".reach", "")
            remote.remove([".reach"])
    except OSError as error:
        raise InputError(str(error)) from None


def reference(spaces: Mapping[str, Space], task: Task, constraints: Constraints | None = None) -> dict[str, float]:
    """The fixed reference point: (error of guessing, largest macs_full of the spec).

    Networks are built at every corner of every method's space. Raises `InputError` where one does not
    fit the task, for example a network too small for its images, and where neither a corner nor one of
    `_DRAWS` random draws of any method can meet the constraints in any setting.
    """
    from trainables.registry import get_method

    largest, rng = 0, random.Random(0)
    asked, refused = constraints or Constraints(), []
    possible = not asked
    for name, space in spaces.items():
        method, built = get_method(name), []
        for values in corners(space):
            network = built_of(method, values, task)
            largest = max(largest, network.macs_full)
            built.append(network)
        while not possible and len(built) < _DRAWS + len(corners(space)) and all(map(asked.refuses, built)):
            built.append(built_of(method, drawn(space, rng, {}), task))
        possible = possible or not all(map(asked.refuses, built))
        refused += built
    if not possible:
        least = min(refused, key=lambda network: network.macs_min)
        raise InputError(
            f"constraints: no network of {', '.join(spaces)} can have {asked}; the cheapest of {len(refused)} that were"
            f" built, {least.config.network}, {asked.refuses(least)}"
        )
    return {"error": 1.0 - 1.0 / task.classes, "macs": float(largest)}


def built_of(method: Method, values: Mapping[str, Any], task: Task) -> RoutedNetwork:
    """The network of a configuration; `InputError` naming the method where it does not fit the images."""
    try:
        return method.build(method.configure(values), task)
    except ValueError as error:
        raise InputError(f"methods.{method.name}: {error}") from None


def placed(spec: StudySpec) -> StudySpec:
    """The spec with paths below the working folder made absolute, so that a study goes on from any other one."""

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(each) for each in value]
        kind, colon, path = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        here = Path(path).expanduser()
        return f"{kind}{colon}{here.resolve()}" if path and here.exists() else value

    values = spec.model_dump(exclude_none=True)
    for table, name in ((values["data"], "name"), (values["data"], "root")):
        if name in table and table[name] not in NAMES:
            table[name] = absolute(table[name])
    for table in values["methods"].values():
        if "pretrained" in table:
            table["pretrained"] = absolute(table["pretrained"])
        if "network" in table:
            table["network"] = own_networks.absolute(table["network"])
    for table in values["trainables"].values():
        if (source := source_of(table["path"])) is not None:
            table["path"] = f"{source}:{table['path'].rpartition(':')[2]}"
    return StudySpec.parse(values, spec.name, trusted=True)


def same(old: StudySpec, new: StudySpec) -> None:
    """Raise `InputError` naming what differs where two specs are not one study's."""
    before, after = old.fingerprint(), new.fingerprint()
    differing = sorted(_differences(before, after))
    if differing:
        raise InputError(
            f"a study named {new.name!r} exists with another spec ({', '.join(differing[:4])} differ);"
            f" `routefront resume {new.name}` goes on with the old one, --name NEW --fork {new.name} begins a new one"
            " that knows what the old one found"
        )


def _differences(a: Any, b: Any, at: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {*a, *b}:
            yield from _differences(a.get(key), b.get(key), f"{at}.{key}" if at else key)
    elif a != b:
        yield at


def record_of(spec: StudySpec) -> dict[str, Any]:
    """What a new study records: by method ``space``, ``defaults`` and ``published`` as plain JSON values."""
    from trainables.registry import get_method

    def settings(name: str) -> dict[str, Any]:
        if name not in spec.trainables:
            return settings_of(get_method(name))
        return {"defaults": {}, "published": first_of(load(spec.references[name], name), name)}

    return {name: {**settings(name), "space": recorded(space)} for name, space in spec.spaces().items()}
