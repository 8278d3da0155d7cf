"""The study file: a TOML document, validated, and what follows from it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from search.errors import InputError
from search.redaction import carries_secret
from search.spec.tables import (
    BudgetSpec,
    ConstraintSpec,
    DataSpec,
    ObjectiveSpec,
    Part,
    ResourceSpec,
    RungSpec,
    SamplerSpec,
    StageSpec,
    TrackingSpec,
    WarmSpec,
)
from search.spec.toml import merge, read_toml
from spaces import own_networks
from spaces.donor import with_donor
from spaces.space import Choice, Fixed, Range, Space, nearest
from spaces.written import narrowed

if TYPE_CHECKING:
    from trainables.contracts.method import Method
    from trainables.contracts.objective import Objective


def _all_methods(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if values.get("trainables"):
        return {}  # who brings something of their own searches that
    from trainables.registry import all_methods

    try:
        return {name: {} for name in all_methods()}
    except ValueError as error:  # a plug-in; pydantic lets what a default raises pass as it is
        raise InputError(str(error)) from None


class StudySpec(Part):
    """One study. Unknown keys, wrong types and impossible values raise `InputError`.

    `diagnostics`: whether a trial's last epoch measures what `trainables.diagnostics.measure` lists. `predictions`:
    whether checkpoints keep what is answered on every validation image (`trainables.inference.predictions`), `compose`:
    whether cascades are made of it when the search ends (`search.cascades`), which keeps it, too. What
    concerns methods needs torch to be checked; a spec that was checked when its study was
    created is read without (`trusted`), so that looking at a study is quick.
    """

    name: str
    seed: int = Field(default=0, ge=0)
    data: DataSpec = DataSpec()
    budget: BudgetSpec = BudgetSpec()
    rungs: RungSpec = RungSpec()
    sampler: SamplerSpec = SamplerSpec()
    constraints: ConstraintSpec = ConstraintSpec()
    stages: StageSpec = StageSpec()
    warm_start: WarmSpec = WarmSpec()
    resources: ResourceSpec = ResourceSpec()
    tracking: TrackingSpec = TrackingSpec()
    journal: str | None = None
    diagnostics: bool = True
    predictions: bool = True
    compose: bool = False
    objective: ObjectiveSpec = ObjectiveSpec()
    trainables: dict[str, dict[str, Any]] = Field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = Field(default_factory=_all_methods)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            if len(value) > 100:
                raise ValueError(f"study name {value[:20]!r}... has {len(value)} characters; it may have 100")
            raise ValueError(
                f"study name {value!r} may hold letters, digits, '.', '_' and '-' only, the first a letter or digit"
            )
        return value

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: dict[str, dict[str, Any]], info: ValidationInfo) -> dict[str, dict[str, Any]]:
        if not value and not info.data.get("trainables"):
            raise ValueError("methods is empty; name at least one, for example [methods.skipnet]")
        if not _trusted(info):
            from trainables.registry import get_method

            for name in value:
                get_method(name)
        return value

    @field_validator("trainables", mode="before")
    @classmethod
    def _by_class(cls, value: Any) -> Any:
        """From Python a class may stand where a study file names it."""
        if not isinstance(value, Mapping):
            return value
        named = {}
        for name, written in value.items():
            table = {"path": written} if isinstance(written, type | str) else written
            if isinstance(table, Mapping) and isinstance(table.get("path"), type):
                from trainables.external import reference_of

                table = {**table, "path": reference_of(table["path"])}
            named[name] = table
        return named

    @field_validator("trainables")
    @classmethod
    def _well_named(cls, value: dict[str, dict[str, Any]], info: ValidationInfo) -> dict[str, dict[str, Any]]:
        for name, written in value.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,39}", name):
                raise ValueError(
                    f"trainables.{name}: a name has at most 40 letters, digits, '_' and '-', the first a letter"
                )
            if not isinstance(written.get("path"), str):
                raise ValueError(
                    f'trainables.{name}: path is missing; name its class, for example path = "mine.py:Mine"'
                )
        return value

    def _axes_fit(self) -> None:
        """Raise ValueError where methods and trainables can have no front together."""
        both = sorted(self.methods.keys() & self.trainables.keys())
        if both:
            raise ValueError(f"trainables.{both[0]}: a method has this name; choose another one")
        given = [name for name, value in self.constraints.model_dump().items() if value is not None]
        asked = [name for name in given if name in ("min_accuracy", "max_macs", "max_params")]
        if self.axes.timing is not None:
            self._times_fit()
        elif asked and not self.axes.usual:
            raise ValueError(
                f"constraints.{asked[0]}: the axes of this study are {self.axes.merit.name} and {self.axes.cost.name};"
                " constraints.merit and constraints.cost limit them"
            )
        try:
            if self.constraints.merit is not None:
                self.axes.accuracy_of(self.constraints.merit)
            if self.constraints.cost is not None:
                self.axes.macs_of(self.constraints.cost)
        except ValueError as error:
            raise ValueError(f"constraints: {error}") from None
        if self.methods and not self.axes.usual and self.axes.timing is None:
            raise ValueError(
                "objective: methods have accuracy (or balanced_accuracy) and MACs, not"
                f" {self.axes.merit.name} and {self.axes.cost.name};"
                ' leave [methods] out, or [objective], or say cost = "latency"'
            )

    def _times_fit(self) -> None:
        """Raise ValueError for what does not go with a latency that workers measure."""
        if self.trainables:
            raise ValueError(
                "objective.cost = 'latency': workers measure methods; trainables measure themselves, in a study of"
                " their own"
            )
        if self.constraints.max_latency is not None:
            raise ValueError("constraints.max_latency: the cost of this study is latency; constraints.cost limits it")
        if self.constraints.merit is not None and self.constraints.min_accuracy is not None:
            raise ValueError("constraints: merit and min_accuracy are the same here; give one of them")
        if self.compose:
            raise ValueError("compose: cascades are composed of counted MACs; the cost of this study is latency")

    def _cascades_fit(self) -> None:
        """Raise ValueError where no front with cascades can be searched for."""
        if self.objective.front != "cascades":
            return
        why = ""
        if self.trainables:
            why = "trainables make no cascades; leave them out"
        elif self.axes.timing is not None:
            why = "cascades are composed of counted MACs; the cost of this study is latency"
        elif self.axes.balanced:
            why = "cascades are chosen by plain accuracy; leave merit out"
        elif not self.predictions:
            why = "cascades are made of kept predictions; leave predictions = false out"
        elif self.sampler.name not in ("surrogate", "budgets"):
            why = f'sampler {self.sampler.name!r} learns from single networks alone; take "surrogate" or "budgets"'
        elif self.rungs.pause:
            why = "trials that wait at a rung are compared as single networks alone; leave rungs.pause out"
        if why:
            raise ValueError(f'objective.front = "cascades": {why}')

    @property
    def axes(self) -> Objective:
        """What is searched for."""
        return self.objective.objective(measured=bool(self.methods))

    @property
    def subject(self) -> str:
        """What is trained on, for people: the images, or where there are none the trainables."""
        return self.data.name if self.methods else ", ".join(self.trainables)

    @property
    def references(self) -> dict[str, str]:
        """By name the trainables' classes, as ``mine.py:Mine``."""
        return {name: written["path"] for name, written in self.trainables.items()}

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> StudySpec:
        rungs = self.rungs.epochs
        if rungs is not None:
            if sorted(set(rungs)) != rungs or (rungs and rungs[0] < 1):
                raise ValueError(f"rungs.epochs = {rungs}: list rising epochs from 1 on")
            if rungs and rungs[-1] >= self.budget.epochs:
                raise ValueError(
                    f"rungs.epochs = {rungs}: the last rung must come before the last epoch ({self.budget.epochs})"
                )
        if not _trusted(info):
            self.refuse_secrets()
            self._axes_fit()
            self._cascades_fit()
            if self.compose and self.axes.balanced:
                raise ValueError("compose = true: cascades are chosen by plain accuracy; leave it out, or [objective]")
            self._normalises()
            own_networks.trust_all(network for _, network in own_networks.written(self.methods))  # the person's own
            self.spaces()
        return self

    def refuse_secrets(self) -> None:
        """Raise ValueError for an address with a password: whoever the study is sent to can read its study file."""
        for name, address in (("journal", self.journal), ("tracking.uri", self.tracking.uri)):
            if not carries_secret(address or ""):
                continue
            scheme = (address or "").partition("://")[0]
            where = (
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                if scheme.startswith("http")
                else "set PGPASSWORD, or write it into ~/.pgpass (mode 0600)"
            )
            raise ValueError(
                f"{name} carries a password, which whoever reads the study would read: leave it out; {where}"
            )

    def _normalises(self) -> None:
        from trainables.normalisation import NORMALISATIONS

        word = self.data.normalise
        if word is not None and word not in NORMALISATIONS:
            raise ValueError(f"data.normalise = {word!r}: must be one of {', '.join(NORMALISATIONS)}")

    # -- what follows from the fields -------------------------------------------------------------

    @property
    def rung_epochs(self) -> list[int]:
        """The epochs at which trials are compared; by default epochs / 9 and epochs / 3."""
        if not self.rungs.enabled:
            return []
        if self.rungs.epochs is not None:
            return list(self.rungs.epochs)
        last = self.budget.epochs
        return sorted({max(1, round(last / 9)), max(1, round(last / 3))} - {last})

    def spaces(self) -> dict[str, Space]:
        """The space of every method of a new study, narrowed by its file; then it keeps it (`search.state.kept`).

        What ``[data]`` says of all methods counts as said in the table of each that says nothing itself.
        """
        from trainables.external import load, space_of
        from trainables.registry import get_method

        spaces: dict[str, Space] = {}
        for name, written in self.trainables.items():
            overrides = {key: value for key, value in written.items() if key != "path"}
            try:
                spaces[name] = narrowed(space_of(load(written["path"], name), name), overrides)
            except ValueError as error:
                raise ValueError(f"trainables.{name}: {str(error).removeprefix(f'trainables.{name}: ')}") from None
        said = {"normalise": self.data.normalise, "balance": self.data.balance, "area": self.data.area}
        common = {name: value for name, value in said.items() if value is not None}
        for name, written in self.methods.items():
            method, overrides = get_method(name), {**common, **written}
            fields = {f.name: f.default for f in dataclasses.fields(method.Config)}
            try:
                space = narrowed(*_begun(method, overrides, fields), extra=fields)
                for values in corners(space):
                    method.configure(values)
            except ValueError as error:
                raise ValueError(f"methods.{name}: {error}") from None
            spaces[name] = space
        return spaces

    def fingerprint(self) -> dict[str, Any]:
        """What makes two specs the same study: all but where and how long it runs and what is measured beside it."""
        beside = {"resources", "tracking", "journal", "diagnostics", "predictions", "compose"}
        dump = self.model_dump(mode="json", exclude=beside)
        dump["budget"] = {"epochs": self.budget.epochs}
        return dump

    @classmethod
    def parse(cls, values: Mapping[str, Any], origin: str = "study", *, trusted: bool = False) -> StudySpec:
        """A spec from plain values; `InputError` with one line where something is wrong."""
        try:
            return cls.model_validate(values, context={"trusted": trusted})
        except ValidationError as error:
            raise InputError(f"{origin}: {_first(error)}") from None

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> StudySpec:
        """A spec from a TOML file, with values that the command line replaces (dotted names)."""
        return cls.parse(merge(read_toml(path), overrides or {}), str(path))


def _begun(method: Method, overrides: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[Space, Mapping[str, Any]]:
    """A method's space with the donors that a study file names, and what else it says of the method."""
    if "donor" not in fields:
        return method.space, overrides
    space = with_donor(method.space, overrides.get("donor", ""), rate=method.donor_rate)
    for name in ("lr", "donor_lr"):
        if name in overrides and name not in space:
            said = "behind a donor the rate is another one" if name == "lr" else "without a donor there is only lr"
            raise ValueError(f"{name} = {overrides[name]!r} would change nothing: {said}")
    return space, {name: value for name, value in overrides.items() if name != "donor"}


def _trusted(info: ValidationInfo) -> bool:
    return bool(info.context and info.context.get("trusted"))


def corners(space: Space, limit: int = 64) -> list[dict[str, Any]]:
    """Configurations that take every option of every choice and both ends of every range once."""
    lists: dict[str, list[Any]] = {}
    for name, parameter in space.parameters.items():
        match parameter:
            case Range():
                kind = int if parameter.integer else float
                lists[name] = [kind(parameter.low), kind(parameter.high)]
            case Choice():
                lists[name] = list(parameter.options)
            case Fixed():
                lists[name] = [parameter.value]
    count = min(limit, max(map(len, lists.values()), default=1))
    return [space.build(lambda name, _, i=i: lists[name][min(i, len(lists[name]) - 1)]) for i in range(count)]


def _first(error: ValidationError) -> str:
    """The first complaint of pydantic as one line with the value and what would be right."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    value = problem.get("input")
    if problem["type"] == "extra_forbidden":
        part: Any = StudySpec
        for step in problem["loc"][:-1]:
            part = part.model_fields[step].annotation
            part = next((each for each in get_args(part) if each is not type(None)), part)  # a table, or none
        return f"unknown key {place!r}{nearest(str(problem['loc'][-1]), list(part.model_fields))}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{place} is missing"
    if problem["type"] == "value_error":
        return f"{place}: {message}" if place and place.split(".")[0] not in message else message
    return f"{place} = {value!r}: {message[0].lower()}{message[1:]}"
