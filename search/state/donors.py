"""Donors of a study: the trained networks that its trials may begin with (`trainables.donors`).

A donor that a study file names, a checkpoint or a registered model, is read when the study is created, compared
with every configuration that may begin with it, and copied into the study's folder under its digest
(``checkpoints/donors/<digest>``): workers read it there and never ask a registry.

``study`` is another trial of the study: of all trials that are over, that began with no donor themselves and whose
body is the one asked for, the best: finished before stopped, then by the accuracy that its curves show on the
validation split. It is chosen when the trial is asked for, from the state right then, and its event names it. Who is
over stays so, hence the best of a body only ever gives way to a better one: its checkpoint is kept, and any other
that trials begin with while they are not over. Where there is none yet a trial begins from scratch, at a learning
rate drawn as for others (`without`).
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import InputError
from search.spec import StudySpec, corners
from search.trial import Donor, Trial
from spaces.donor import STUDY, options_of
from spaces.space import Space
from trainables import checkpoints, donors
from trainables.method import Method, config_dict
from trainables.network import Task
from trainables.registry import get_method

if TYPE_CHECKING:
    from search.folder import StudyFolder
    from search.state import StudyState

_RANK = tuple[bool, float, int]


def takers(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The methods of a study file whose trials may begin with a network of the study itself."""
    return [name for name, written in methods.items() if STUDY in options_of(written.get("donor", ""))]


class Donors:
    """The networks of a study that its trials may begin with. What is remembered follows from the state."""

    def __init__(self, state: StudyState) -> None:
        self._state = state
        self._known: dict[str, dict[str, Any] | None] = {}

    def best(self, config: Mapping[str, Any]) -> Donor | None:
        """The donor of a configuration ``{"method": ..., ...}``; None where no trial can be it yet."""
        method = get_method(config["method"])
        if method.donor is None:
            return None
        try:
            wanted = method.donor(self._state.kept.configure(config), Task(**self._state.created["data"]["task"]))
        except ValueError:  # a setting that its method refuses: its trial will say so
            return None
        ranked = [(self._rank(trial), trial) for trial in self._of(wanted["method"]) if self._fits(trial, wanted)]
        if not ranked:
            return None
        _, trial = max(ranked, key=lambda entry: entry[0])
        return self._given(trial)

    def kept(self) -> set[str]:
        """Names of the checkpoints ``trial/epoch-NNNN`` that trials to come may begin with: the best of every body."""
        found: dict[str, tuple[_RANK, Trial]] = {}
        task = Task(**self._state.created["data"]["task"])
        for name in takers(self._state.created["spec"]["methods"]):
            method = get_method(name)
            if method.donor is None:
                continue
            wanted = method.donor(self._state.kept.configure({"method": name, "donor": STUDY}), task)
            kind = {key: wanted[key] for key in ("method", "variant") if key in wanted}
            names = sorted({*wanted, "shortcut"} - kind.keys())
            for trial in self._of(wanted["method"]):
                if not self._fits(trial, kind):
                    continue
                body = json.dumps([name, [(self._config(trial) or {}).get(key) for key in names]])
                rank = self._rank(trial)
                if body not in found or rank > found[body][0]:
                    found[body] = rank, trial
        return {self._given(trial).checkpoint for _, trial in found.values()}

    def _of(self, method: str) -> Iterator[Trial]:
        """Trials of a method that are over, began with no donor, and left a checkpoint that is not lost."""
        for trial in self._state.trials.values():
            fresh = trial.state in ("finished", "stopped") and trial.donor is None and not trial.config.get("donor")
            if fresh and trial.method == method and self._epochs(trial):
                yield trial

    def _epochs(self, trial: Trial) -> list[int]:
        """Epochs that have both a curve and a checkpoint."""
        lost = self._state.lost_donors
        return [epoch for epoch in trial.curves if trial.checkpoints.get(epoch, "") not in ("", *lost)]

    def _fits(self, trial: Trial, wanted: Mapping[str, Any]) -> bool:
        config = self._config(trial)
        if config is None:
            return False
        return all(config.get(k) in (v if isinstance(v, tuple) else (v,)) for k, v in wanted.items())

    def _config(self, trial: Trial) -> dict[str, Any] | None:
        """A trial's whole configuration, defaults included; None of one that its method refuses."""
        if trial.id not in self._known:
            try:
                whole = config_dict(self._state.kept.configure(trial.config))
                self._known[trial.id] = {"method": trial.method, **whole}
            except ValueError:
                self._known[trial.id] = None
        return self._known[trial.id]

    def _accuracy(self, trial: Trial, epoch: int) -> float:
        return max(point["accuracy"] for point in trial.curves[epoch])

    def _epoch(self, trial: Trial) -> int:
        """The epoch of the most accurate of a trial's checkpoints, of equals the later."""
        return max(self._epochs(trial), key=lambda epoch: (self._accuracy(trial, epoch), epoch))

    def _rank(self, trial: Trial) -> _RANK:
        """What is compared: finished before stopped, then by accuracy, of equals the earlier."""
        return trial.state == "finished", self._accuracy(trial, self._epoch(trial)), -trial.number

    def _given(self, trial: Trial) -> Donor:
        epoch = self._epoch(trial)
        return Donor(trial.id, epoch, trial.checkpoints[epoch])


def without(config: Mapping[str, Any], space: Space, seed: int) -> dict[str, Any]:
    """A configuration that was to begin with a network of the study, from scratch: at a learning rate of its own."""
    rate = space["lr"] if "lr" in space else get_method(config["method"]).space["lr"]
    kept = {name: value for name, value in config.items() if name not in ("donor", "donor_lr")}
    return {**kept, "donor": "", "lr": rate.sample(random.Random(seed))}


# -- when a study is created -----------------------------------------------------------------------


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


def named(spec: StudySpec, task: Task, root: Path | None) -> list[Named]:
    """Every donor that a study file names, read and compared with what may begin with it.

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
                    found[option] = Named(option, _read(spec, option, root))
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


def _read(spec: StudySpec, option: str, root: Path | None) -> donors.Donor:
    """A donor by path or, where nothing lies there, by the name of a registered model."""
    model = option.removeprefix("models:/")
    if model == option and (Path(option).expanduser().exists() or not _is_model(option)):
        return donors.read(option)
    from search.mlflow_client import default_uri
    from search.registered import checkpoint_of
    from search.spec import studies_root

    uri = spec.tracking.uri or default_uri(studies_root(root))
    if uri == "off":
        raise InputError(f"donor = {option!r}: a registered model needs tracking.uri, which is off")
    with tempfile.TemporaryDirectory(prefix="routefront-") as scratch:
        return donors.read(checkpoint_of(model, uri, Path(scratch)), option)


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
