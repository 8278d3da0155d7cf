"""What a study keeps from its creation: the spaces, defaults and published settings of its methods.

They are in the study's first event. The journal tells of a trial what its space drew; all other values of its
configuration are the defaults that the study was created with. So a default, a range or a published setting that
changes later changes no study that exists.

Studies that were created by commit 7022e79 or before recorded none of this. Theirs are those of that commit
(`trainables.contracts.earlier`), narrowed by their study file as they were then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from search.errors import InputError
from spaces.recorded import recorded, space_from
from spaces.space import Space
from spaces.written import narrowed
from trainables.contracts.earlier import completed, defaults_of, unrecorded

if TYPE_CHECKING:  # looking at a study is quick without torch
    from search.journal.database import Journal
    from trainables.contracts.method import Method


Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """By method of a study its space, the defaults of its `Config`, its published setting.

    `before`: the study recorded none of them. `trainables`: by name what is no method (`trainables.external`).
    """

    spaces: Mapping[str, Space]
    defaults: Mapping[str, Mapping[str, Any]]
    papers: Mapping[str, Mapping[str, Any]]
    before: bool = False
    trainables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, created: Mapping[str, Any]) -> Kept:
        """What the payload of a study's first event says. Raises `InputError` where only later code understands it."""
        before = "methods" not in created
        spec = created["spec"]
        try:
            if before:
                methods = {name: _unrecorded(name, overrides) for name, overrides in spec["methods"].items()}
            else:
                kept = created["methods"].items()
                methods = {name: {**each, "space": space_from(each["space"])} for name, each in kept}
        except ValueError as error:
            raise InputError(f"study {spec['name']!r}: {error}") from None
        spaces, defaults, papers = (
            {name: each[part] for name, each in methods.items()} for part in ("space", "defaults", "published")
        )
        own = {name: each["path"] for name, each in (spec.get("trainables") or {}).items()}
        return cls(spaces, defaults, papers, before, own)

    @classmethod
    def by(cls, journal: Journal) -> Kept:
        """What a study's journal says, of which no more than the first event is read."""
        first = journal.first()
        if first is None:
            raise InputError(f"the journal of study {journal.study!r} is empty; is the study folder complete?")
        return cls.of(first.payload)

    def values(self, config: Mapping[str, Any]) -> Values:
        """Every value of a trial's configuration {method, ...}, as `Method.configure` takes them."""
        name = config["method"]
        drawn = {parameter: value for parameter, value in config.items() if parameter != "method"}
        if name in self.trainables:
            return drawn
        from trainables.registry import get_method

        return completed(get_method(name), {**self.defaults.get(name, {}), **drawn})

    def configure(self, config: Mapping[str, Any]) -> Any:
        """The `Config` of a trial's configuration {method, ...}; `ValueError` where its method refuses it."""
        from trainables.registry import get_method

        return get_method(config["method"]).configure(self.values(config))


def otherwise(name: str) -> str:
    """What who goes on with a study from before should know, in one line."""
    return (
        f"study {name} was begun by an earlier version: it keeps its space and its defaults, but trials that begin from"
        " now on are initialised otherwise; a new study that knows its results:"
        f" routefront search FILE --name NEW --fork {name}"
    )


def _unrecorded(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a method of a study from before; a plug-in's are today's, nobody knows what they were."""
    found = unrecorded(name)
    if found is None:
        from trainables.registry import get_method

        found = settings_of(get_method(name))
    return {**found, "space": narrowed(space_from(found["space"]), overrides, found["defaults"])}


def settings_of(method: Method) -> dict[str, Any]:
    """What a method's space, defaults and published settings are today, as plain JSON values."""
    published = {key: list(value) if isinstance(value, tuple) else value for key, value in method.published.items()}
    return {"space": recorded(method.space), "defaults": defaults_of(method), "published": published}
