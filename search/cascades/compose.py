"""Composes studies: from kept predictions to cascades that are points of the study, in its journal and in Parquet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from search.cascades.members import MOST, Members, members_of
from search.cascades.selection import Rule, Selection, corrected, select, thinned
from search.cascades.sweep import Chain, Found, execute, settings_of, singles
from search.errors import InputError
from search.pareto.confidence import membership
from search.points.canonical import canonical
from trainables.inference.rules import ANSWERS, DOUBTS

if TYPE_CHECKING:
    from search.engine.driver import Driver
    from search.state.state import StudyState
    from search.studies.stored import StoredStudy

RULES = (Rule("probability", "last"), Rule("probability", "mean"))
MOST_MEMBERS = 4
_SETTINGS = 24
_BUDGETS = 12


def rule_of(text: str) -> Rule:
    """A rule as it is written: ``probability-last``, ``margin-mean`` ... Raises `InputError` for another word."""
    kind, _, answer = text.partition("-")
    if kind not in DOUBTS or answer not in ANSWERS:
        known = ", ".join(f"{k}-{a}" for k in DOUBTS for a in ANSWERS)
        raise InputError(f"rule {text!r}: write one of {known}")
    return Rule(kind, answer)


def compose(studies: Sequence[StoredStudy], driver: Driver, **options: Any) -> dict[str, Any]:
    """Compose the points of studies and record the front of cascades in the first study, which `driver` writes.

    `options`: as for `composition`.
    See `search.cascades.members.members_of` for what takes part and for what is refused, and
    `search.cascades.selection.select` for how it is chosen. Returns the payload of the event `cascades`. Raises
    `InputError` where nothing can be composed; nothing is written then.
    """
    states = [driver.state, *(study.state() for study in studies[1:])]
    number = 1 + max((line["number"] for line in driver.state.cascades), default=0)
    payload = composition(studies, states, number=number, **options)
    driver.record("cascades", payload)
    write_parquet(driver, payload)
    return payload


def composition(
    studies: Sequence[StoredStudy],
    states: Sequence[StudyState],
    *,
    number: int = 0,
    points: Sequence[str] = (),
    rules: Sequence[Rule] = RULES,
    most_members: int = 3,
    most: int = MOST,
    splits: int = 2,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """What `compose` records, which is recorded nowhere: numbers begin with 1, so that 0 stands for what is only shown.

    Raises `InputError` where nothing can be composed.
    """
    if not 2 <= most_members <= MOST_MEMBERS:
        raise InputError(f"members {most_members}: a cascade has 2 to {MOST_MEMBERS}")
    if any(study.spec.axes.balanced for study in studies):
        raise InputError("a study of balanced accuracy composes no cascades: they are chosen by plain accuracy")
    if splits < 1:
        raise InputError(f"splits {splits}: the validation images are halved at least once")
    began = time.perf_counter()
    members = members_of(studies, states, points=points, most=most)
    selection = select(members, rules, most_members=most_members, splits=splits, seed=seed, say=say)
    payload = {
        "number": number,
        "studies": [study.spec.name for study in studies],
        "images": selection.images,
        "members": len(members.members),
        "rules": [f"{rule.kind}-{rule.answer}" for rule in rules],
        "compared": selection.compared,
        "splits": splits,
        "seed": seed,
        "points": _records(members, selection),
        "single": _single(members),
        "seconds": time.perf_counter() - began,
    }
    if not payload["points"]:
        raise InputError(
            f"no cascade of {len(members.members)} members is better than they are by themselves"
            f" ({selection.compared:,} were compared)"
        )
    payload["gains"] = gains(payload)
    return payload


def _records(members: Members, selection: Selection) -> list[dict[str, Any]]:
    """The cascades of the front as plain values, cheapest first, with their probability to be on the joint front."""
    front = [chosen for chosen in thinned(selection.front) if len(chosen.chain.members) > 1]
    if not front:
        return []
    alone = _alone(members)
    done = []
    for chosen in front:
        answers = members.only(chosen.chain.members).answers(chosen.rule.kind, chosen.rule.answer, chosen.temperatures)
        chain = Chain(tuple(range(len(chosen.chain.members))), chosen.chain.thresholds)
        done.append((chosen, chain, answers, execute(answers, chain)))
    single = [chain.members[0] for chain in alone.chains]
    bits = [each.correct for *_, each in done] + [members.correct[i] for i in single]
    right = np.array([each.sum() for each in bits])
    macs = np.array([each.macs.mean() for *_, each in done] + [members.macs[i].mean() for i in single])
    shift = np.array([chosen.expected - chosen.accuracy for chosen in front] + [0.0] * len(single))
    count = np.full(len(bits), selection.images)
    on_front = membership(right, count, macs, bits=bits, shift=shift)
    records = []
    for place, (chosen, chain, answers, each) in enumerate(done):
        reached = [float((each.last >= i).mean()) for i in range(len(chain.members))]
        curve = []
        for setting, sure, cost in settings_of(answers, chain, _SETTINGS):
            found = replace(chosen, accuracy=sure / selection.images, macs=cost)
            found = corrected(found, selection.optimism, selection.images)
            curve.append({"thresholds": list(setting.thresholds), "accuracy": found.expected, "macs": cost})
        told = [members.members[i].record() for i in chosen.chain.members]
        records.append(
            {
                "index": place,
                "kind": chosen.rule.kind,
                "answer": chosen.rule.answer,
                "members": [m | {"temperature": t} for m, t in zip(told, chosen.temperatures, strict=True)],
                "thresholds": list(chosen.chain.thresholds),
                "accuracy": chosen.accuracy,
                "correct": int(each.correct.sum()),
                "count": selection.images,
                "macs": float(each.macs.mean()),
                "macs_std": float(each.macs.std()),
                "expected": chosen.expected,
                "low": chosen.low,
                "high": chosen.high,
                "membership": float(on_front[place]),
                "going": reached,
                "curve": curve,
            }
        )
    return records


def _alone(members: Members) -> Found:
    """The front of single members."""
    return singles(members.answers("probability", "last", [1.0] * len(members.members)))


def _single(members: Members) -> list[dict[str, Any]]:
    """The front of single members: point_id, study, accuracy, macs."""
    alone = _alone(members)
    found = []
    for chain, right, macs in zip(alone.chains, alone.right, alone.macs, strict=True):
        member = members.members[chain.members[0]]
        told = {"point_id": member.point_id, "study": member.study}
        found.append(told | {"accuracy": right / len(members.labels), "macs": macs})
    return found


def gains(payload: dict[str, Any]) -> dict[str, Any]:
    """What cascades add to the front of single points, by what is expected of them.

    ``budgets``: at budgets evenly over log MACs the best single and the best cascade; ``macs``: for every point of the
    single front how many times fewer MACs the cheapest cascade takes that is expected to be as accurate (1 where none
    is cheaper).
    """
    single, cascades = payload["single"], payload["points"]
    budgets = np.geomspace(min(s["macs"] for s in single), max(s["macs"] for s in single), _BUDGETS).tolist()
    rows = []
    for budget in budgets:
        budget *= 1 + 1e-9
        alone = max((s["accuracy"] for s in single if s["macs"] <= budget), default=None)
        together = max((c["expected"] for c in cascades if c["macs"] <= budget), default=None)
        rows.append({"budget": budget, "single": alone, "cascade": together})
    fewer = []
    for point in single:
        able = [c["macs"] for c in cascades if c["expected"] >= point["accuracy"]]
        ratio = max(1.0, point["macs"] / min(able)) if able else 1.0
        fewer.append({"accuracy": point["accuracy"], "macs": point["macs"], "fewer": ratio})
    return {"budgets": rows, "macs": fewer, "median_fewer": float(np.median([each["fewer"] for each in fewer]))}


def write_parquet(driver: Driver, payload: dict[str, Any]) -> None:
    """The cascades of a composition as one Parquet file of the study's folder ``cascades``."""
    rows = []
    for record in payload["points"]:
        plain = {k: v if isinstance(v, int | float | str) else canonical(v) for k, v in record.items() if k != "index"}
        names = {"point_id": identity(payload["number"], record), "study": payload["studies"][0]}
        rows.append({**names, "point_kind": "cascade", **plain, "compared": payload["compared"]})
    folder = driver.folder.path / "cascades"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{payload['number']:04d}.parquet"
    part = folder / f".{name}.{os.getpid()}.tmp"
    pq.write_table(pa.Table.from_pylist(rows), part, compression="snappy", write_page_checksum=True)
    part.replace(folder / name)
    if driver.folder.remote is not None:
        driver.folder.remote.put(Path(folder / name), f"cascades/{name}")


def identity(number: int, record: dict[str, Any]) -> str:
    """The identity of a cascade among a study's points: composition, number of members, place: ``c0001-2-7``."""
    return f"c{number:04d}-{len(record['members'])}-{record['index']}"


def execute_record(members: Members, record: dict[str, Any]) -> Any:
    """A recorded cascade executed from kept predictions; `members` are its own, in its order."""
    answers = members.answers(record["kind"], record["answer"], [m["temperature"] for m in record["members"]])
    return execute(answers, Chain(tuple(range(len(record["members"]))), tuple(record["thresholds"])))
