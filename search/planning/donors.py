"""Donors that a study file names: checkpoints, weights or registered models that trials begin with.

They are read when the study is created, compared with every configuration that may begin with them, and copied into
the study's folder under their digests (``checkpoints/donors/<digest>``): workers read them there and never ask a
registry. `search.state.donors` chooses among the study's own networks.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import InputError
from search.spec.study import StudySpec, corners
from spaces.donor import STUDY, options_of
from spaces.space import Space
from trainables import checkpoints
from trainables.contracts.method import Method, config_dict
from trainables.contracts.network import Task
from trainables.registry import get_method
from trainables.training import donors

if TYPE_CHECKING:
    from search.studies.folder import StudyFolder


Fetch = Callable[[str, Path], Path]
"""Reads a registered model into an empty folder: the folder of its checkpoint."""


@dataclass(frozen=True, slots=True)
class Named:
    """A donor that a study file names as `written`, read."""

    written: str
    donor: donors.Donor

    @property
    def folder(self) -> str:
        """Its name among the study's checkpoints."""
        return f"donors/{self.donor.digest}"

    def record(self) -> dict[str, str]:
        """What the event ``created`` says of it."""
        return {"checkpoint": self.folder, "digest": self.donor.digest, "from": self.donor.words}


def named(spec: StudySpec, task: Task, fetch: Fetch | None) -> list[Named]:
    """Every donor that a study file names, read and compared with what may begin with it.

    `fetch` reads registered models (`search.promotion.models.donor_of`); without it they are refused.

    Raises `InputError` naming method and donor where one is missing, damaged, or of another body than some
    configuration of that method; and where ``study`` is asked for, but no method of the study trains such networks.
    """
    found: dict[str, Named] = {}
    spaces = spec.spaces()
    for name, written in spec.methods.items():
        method = get_method(name)
        for option in filter(None, options_of(written.get("donor", ""))):
            configs = [{**values, "donor": option} for values in corners(spaces[name])]
            try:
                if option == STUDY:
                    _trained_here(method, configs, spaces, task)
                    continue
                if option not in found:
                    found[option] = Named(option, _read(option, fetch))
                for values in configs:
                    config = method.configure(values)
                    donors.check(found[option].donor, method, config, task)
                    donors.plan(found[option].donor, method.build(config, task))
            except ValueError as error:
                raise InputError(f"methods.{name}: {error}") from None
    return list(found.values())


def _may_be(space: Space, name: str, default: Any, wanted: Sequence[Any]) -> bool:
    """Whether a parameter can have one of the wanted values in a space; `default` is its value where it is no part."""
    parameter = space.parameters.get(name)
    return default in wanted if parameter is None else any(map(parameter.contains, wanted))


def _trained_here(
    method: Method, configs: Sequence[Mapping[str, Any]], spaces: Mapping[str, Space], task: Task
) -> None:
    """Raise `ValueError` where no method of a study trains a network that configurations may begin with."""
    assert method.donor is not None
    asked = [method.donor(method.configure(values), task) for values in configs]
    for wanted in asked:
        trained = get_method(wanted["method"])
        if trained.name not in spaces:
            continue
        usual = config_dict(trained.configure({}))
        if all(
            _may_be(spaces[trained.name], name, usual.get(name), value if isinstance(value, tuple) else (value,))
            for name, value in wanted.items()
            if name != "method"
        ):
            return
    first = {name: value[0] if isinstance(value, tuple) else value for name, value in asked[0].items()}
    body = ", ".join(f"{name} = {value!r}" for name, value in first.items() if name != "method")
    raise ValueError(f"donor = {STUDY!r}: no trial of this study is one; add [methods.{first['method']}] with {body}")


def _read(option: str, fetch: Fetch | None) -> donors.Donor:
    """A donor by path or, where nothing lies there, by the name of a registered model."""
    model = option.removeprefix("models:/")
    if model == option and (Path(option).expanduser().exists() or not _is_model(option)):
        return donors.read(option)
    if fetch is None:
        raise InputError(f"donor = {option!r}: there is no registry here that has it")
    with tempfile.TemporaryDirectory(prefix="routefront-") as scratch:
        return donors.read(fetch(option, Path(scratch)), option)


def _is_model(word: str) -> bool:
    name, mark, alias = word.partition("@")
    return bool(mark and name and alias) and not {"/", "\\"} & {*word}


def store(found: Sequence[Named], folder: StudyFolder) -> None:
    """Copy donors into a study's folder, and into its storage where it has one."""
    remote = folder.remote
    for each in found:
        place = folder.checkpoints / each.folder
        donors.keep(each.donor, place)
        if remote is not None:
            remote.push(place, f"checkpoints/{each.folder}", checkpoints.STATE)
            shutil.rmtree(place)
