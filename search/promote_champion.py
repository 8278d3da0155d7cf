"""The gate `champion`: a point replaces what an alias points to only where it is better at the alias's budget.

Both are compared by the validation split of the same images (the test split ranks nothing), with the
figures that their promotions measured again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search.promote_choice import Budget
from search.promote_gates import Gate
from search.promote_ledger import current_version
from search.registration import PROMOTION
from search.units import show_count, show_share


@dataclass(frozen=True, slots=True)
class Champion:
    """The version that an alias points to, with its tags."""

    version: str
    alias: str
    tags: Mapping[str, str]

    @property
    def budget(self) -> Budget:
        """What it was promoted for under this alias."""
        try:
            said = json.loads(self.tags.get(PROMOTION + self.alias, "{}")).get("budget") or {}
            return Budget(said.get("max_macs"), said.get("min_accuracy"))
        except (ValueError, AttributeError):
            return Budget()


def champion_of(client: Any | None, model: str, alias: str) -> Champion | None:
    """The present champion, or None where there is none (or no registry yet)."""
    version = None if client is None else current_version(client, model, alias)
    if client is None or version is None:
        return None
    return Champion(version, alias, dict(client.get_model_version(model, version).tags))


def beats(champion: Champion | None, mine: Mapping[str, str], asked: Budget) -> Gate:
    """The gate `champion` for a point of which `mine` would be the version's tags.

    Under a budget of MACs the more accurate wins, of equals the cheaper; where only an accuracy was
    asked for, the cheaper one that has it. Without a budget of its own the point takes the champion's.
    """
    if champion is None:
        return Gate("champion", None, "no champion yet", {})
    tags, version = champion.tags, f"version {champion.version}"
    evidence: dict[str, Any] = {"version": champion.version}
    old = _figures(tags)
    if old is None or not {"data_hash", "point_id"} <= set(tags):
        return Gate("champion", False, f"{version} was not promoted by routefront: nothing to compare with", evidence)
    if _identity(tags) == _identity(mine):
        return Gate("champion", True, f"it is the champion already ({version})", evidence)
    for name, what in (("data_hash", "measured on other images"), ("calibrated_on", "calibrated on other images")):
        if tags.get(name, "") != mine.get(name, ""):
            then, now = (each.get(name, "")[:12] or "none" for each in (tags, mine))
            says = f"{version} was {what} (digest {then}, now {now}): take another alias, or roll back first"
            return Gate("champion", False, says, {**evidence, "data": then, "data_now": now})
    budget = champion.budget if asked == Budget() else asked
    new = _figures(mine)
    assert new is not None
    evidence |= {"accuracy": old[0], "macs": old[1], "max_macs": budget.max_macs, "min_accuracy": budget.min_accuracy}
    says = (
        f"{show_share(new[0])} at {show_count(new[1])} MACs against {show_share(old[0])} at {show_count(old[1])}"
        f" of {version}"
    )
    fits_new, fits_old = _fits(budget, new), _fits(budget, old)
    if not fits_new:
        return Gate("champion", False, f"{says}, which was promoted for {_shown(budget)}: give a budget", evidence)
    if not fits_old:
        return Gate("champion", True, f"{says}, which is outside {_shown(budget)}", evidence)
    better = (-new[1], new[0]) > (-old[1], old[0]) if budget.cheapest else (new[0], -new[1]) > (old[0], -old[1])
    wish = "cheaper" if budget.cheapest else "better"
    return Gate("champion", better, says if better else f"{says}: not {wish}", evidence)


def _identity(tags: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(tags.get(name, "") for name in ("study_id", "point_id", "knobs", "calibrated_on"))


def _figures(tags: Mapping[str, str]) -> tuple[float, float] | None:
    try:
        return float(tags["validation_accuracy"]), float(tags["macs"])
    except (KeyError, ValueError):
        return None


def _fits(budget: Budget, figures: tuple[float, float]) -> bool:
    cheap = budget.max_macs is None or figures[1] <= budget.max_macs
    return cheap and (budget.min_accuracy is None or figures[0] >= budget.min_accuracy)


def _shown(budget: Budget) -> str:
    parts = [f"at most {show_count(budget.max_macs)} MACs"] if budget.max_macs is not None else []
    parts += [f"at least {show_share(budget.min_accuracy)}"] if budget.min_accuracy is not None else []
    return " and ".join(parts) or "no budget"
