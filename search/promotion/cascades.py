"""Cascades for promotion: their members opened, executed together, and compared with what was composed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search.cascades.compose import execute_record
from search.cascades.front import find_cascade
from search.cascades.members import members_of
from search.errors import InputError
from search.frontier.point import FrontPoint, front_point
from search.promotion.candidate import Candidate
from search.promotion.choice import Target
from search.promotion.gates import Gate, both_passes, open_checkpoint
from search.promotion.versions import Evidence
from search.state.state import StudyState
from search.studies.stored import StoredStudy
from search.units import show_count, show_share
from trainables import checkpoints
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork
from trainables.data.augment import normalise, to_device
from trainables.data.splits import Data
from trainables.execution.macs import counted
from trainables.export.routefront_runner import added, figures_of
from trainables.inference.cascade import Cascade, Step
from trainables.inference.prepare import prepared
from trainables.version import code_version

_IMAGES, _BATCH, _TIMED = 32, 128, 64
_OTHERWISE = 0.002
"""Share of images that may decide otherwise: rounding may turn a figure that lies on the edge of half precision."""


@dataclass(slots=True)
class Opened:
    """A member's network with what it was built from; `folder`: the name below which it is stored."""

    point: FrontPoint
    method: Method
    network: RoutedNetwork
    folder: str
    sha256: str


@dataclass(slots=True, kw_only=True)
class CascadeEvidence(Evidence):
    """What a version of a cascade is made of. `record`: as it was composed; `opened`: its members."""

    record: dict[str, Any]
    opened: list[Opened]
    cascade: Cascade = field(init=False)

    def __post_init__(self) -> None:
        steps = self.steps([member.network for member in self.opened])
        self.cascade = Cascade(_prepared(steps), self.record["kind"], self.record["answer"])

    def steps(self, networks: list[RoutedNetwork]) -> list[Step]:
        """The members with these networks."""
        found = []
        for member, network, told in zip(self.opened, networks, self.record["members"], strict=True):
            normalisation = self.data.for_config(network.config).normalisation
            assert normalisation is not None
            found.append(Step(network, normalisation, member.point.knobs, told["temperature"]))
        return found

    @property
    def leaves(self) -> bool:
        """An answer says which member was the last."""
        return True

    def measured(self, data: Data, split: str) -> dict[str, Any]:
        """See `Evidence.measured`: by executing the cascade."""
        answered = self.executed(data, split)
        labels = getattr(data, split).labels
        right = answered["probabilities"].argmax(axis=1) == labels
        return {
            "accuracy": float(right.mean()),
            "correct": int(right.sum()),
            "count": len(labels),
            "macs": float(answered["macs"].mean()),
        }

    def executed(self, data: Data, split: str) -> dict[str, np.ndarray]:
        """What the cascade answers on a split: probabilities, macs, path, and exit, the last member."""
        images, _ = to_device(getattr(data, split), "cpu")
        parts = [self.cascade.infer(batch, self.knobs["thresholds"]) for batch in images.split(_BATCH)]
        names = {"probabilities": "probabilities", "macs": "macs", "path": "path", "exit": "member"}
        return {name: np.concatenate([getattr(part, own) for part in parts]) for name, own in names.items()}

    def store(self, folder: Path) -> None:
        """See `Evidence.store`: every network once, in a folder of its own."""
        for member in {member.folder: member for member in self.opened}.values():
            record = checkpoints.network_record(member.method, member.network)
            member.network.strip()
            checkpoints.save(
                folder / member.folder,
                {**record, "trial": member.point.trial, "epoch": member.point.epoch},
                member.network,
            )

    def tags(self) -> dict[str, str]:
        """See `Evidence.tags`; ``members`` names the points."""
        members = [f"{m['study']}:{m['point_id']}" for m in self.record["members"]]
        return Evidence.tags(self) | {"kind": "cascade", "members": json.dumps(members)}

    def serving(self) -> dict[str, Any]:
        """See `Evidence.serving`; ``cascade`` has the members and their rule."""
        task = self.opened[0].network.task
        members = []
        for member, step, told in zip(self.opened, self.cascade.steps, self.record["members"], strict=True):
            members.append(
                {
                    "folder": member.folder,
                    "point_id": f"{told['study']}:{told['point_id']}",
                    "method": member.point.method,
                    "knobs": dict(step.knobs),
                    "temperature": step.temperature,
                    "normalisation": step.normalisation.record(),
                    "checkpoint_sha256": member.sha256,
                }
            )
        return {
            "study": self.study,
            "point_id": self.point.point_id,
            "method": self.point.method,
            "network": self.point.network,
            "knobs": self.knobs,
            "curve": self.curve,
            "calibration": None,
            "cascade": {"kind": self.record["kind"], "answer": self.record["answer"], "members": members},
            "units": self.cascade.units,
            "classes": list(self.data.classes),
            "task": {"classes": task.classes, "size": task.size, "channels": task.channels},
            "normalisation": members[0]["normalisation"],
            "data": {
                "name": self.data.name,
                "hash": self.data.hash,
                "limit": self.created["spec"].get("data", {}).get("limit"),
                **({"scale": self.data.scale.record()} if self.data.scale is not None else {}),
                **({"resize": self.data.resize} if self.data.resize else {}),
            },
            "exits": [member["point_id"] for member in members],
            "macs_full": self.point.macs_full,
            "macs_min": self.opened[0].network.macs_min,
            "validation": self.validation,
            "test": self.test,
            "reference": self.reference,
            "code_version": code_version(),
        }


class CascadeCandidate(Candidate):
    """What would become a version of a cascade."""

    def record(self) -> dict[str, Any]:
        """See `Candidate.record`; ``checkpoints`` are those of its members in the study itself."""
        evidence = self.evidence
        assert isinstance(evidence, CascadeEvidence)
        members = [m for m in evidence.record["members"] if m["study"] == evidence.study]
        own = sorted({m["checkpoint"] for m in members})
        return Candidate.record(self) | {"checkpoint": "", "checkpoints": own}


def cascade_candidate(
    study: StoredStudy, state: StudyState, identity: str, data: Data, target: Target, max_latency: float | None
) -> CascadeCandidate:
    """Open the members of a cascade and measure what its gates ask. `InputError` where one is gone or another."""
    _, record = find_cascade(state, target.point.point_id)
    studies, states = _studies(study, state, record)
    opened, gates = _opened(record, studies, states)
    evidence = CascadeEvidence(
        created=state.created, identity=identity, point=target.point, method=opened[0].method,
        network=opened[0].network, data=data, knobs={"thresholds": list(record["thresholds"])},
        curve=[
            {"setting": {}, "knobs": {"thresholds": c["thresholds"]}, "accuracy": c["accuracy"], "macs": c["macs"]}
            for c in record["curve"]
        ],
        validation={}, checkpoint_sha256=_joint(opened, record), record=record, opened=opened,
    )  # fmt: skip
    answered = evidence.executed(data, "validation")
    right = answered["probabilities"].argmax(axis=1) == data.validation.labels
    accuracy, macs = float(right.mean()), float(answered["macs"].mean())
    gates += [
        _repeats(record, accuracy, macs),
        _decisions(record, studies, states, answered),
        _macs(evidence),
        *_forward(evidence),
        _latency(evidence, max_latency),
        Gate("seeds", None, "a cascade has no repeats; `routefront confirm` trains those of its members", {}),
    ]
    evidence.validation = {
        "accuracy": record["expected"], "macs": record["macs"], "measured_accuracy": accuracy, "measured_macs": macs,
        "count": len(right), "expected": record["expected"], "expected_low": record["low"],
        "expected_high": record["high"],
    }  # fmt: skip
    evidence.reference = _reference(answered, len(opened))
    return CascadeCandidate(evidence, gates)


def _prepared(steps: list[Step]) -> list[Step]:
    """The members with their networks as they are served; settings of one network stay one."""
    fast = {id(step.network): prepared(step.network) for step in steps}
    return [Step(fast[id(s.network)], s.normalisation, s.knobs, s.temperature) for s in steps]


def _studies(
    study: StoredStudy, state: StudyState, record: dict[str, Any]
) -> tuple[dict[str, StoredStudy], dict[str, StudyState]]:
    """The studies of the members by name: this one, and others below the same root."""
    studies, states = {study.spec.name: study}, {study.spec.name: state}
    for name in {member["study"] for member in record["members"]} - set(studies):
        studies[name] = type(study).load(name, root=study.folder.path.parent)
        states[name] = studies[name].state()
    return studies, states


def _opened(
    record: dict[str, Any], studies: dict[str, StoredStudy], states: dict[str, StudyState]
) -> tuple[list[Opened], list[Gate]]:
    """The members' networks, one object a checkpoint, and the gate `checkpoint` over all of them."""
    opened: list[Opened] = []
    known: dict[tuple[str, str], Opened] = {}
    wrong, says = [], []
    for told in record["members"]:
        study, state = studies[told["study"]], states[told["study"]]
        key = told["trial"], told["epoch"], told["index"]
        trial = state.trials.get(told["trial"])
        if trial is None or told["index"] >= len(trial.curves.get(told["epoch"], [])):
            raise InputError(f"member {told['point_id']} of the cascade is no point of study {told['study']!r}")
        point = front_point(state, key)
        place = told["study"], point.checkpoint
        if place not in known:
            study.folder.checkpoint(point.checkpoint)
            method, network, gate = open_checkpoint(study.folder, state, point)
            digest = gate.evidence["sha256"]
            says.append(f"{told['point_id']} {digest[:12]}")
            if gate.passed is False or digest != told["checkpoint_sha256"]:
                wrong.append(f"{told['point_id']} was composed with {told['checkpoint_sha256'][:12]}")
            known[place] = Opened(point, method, network, f"member-{len(known)}", digest)
        same = known[place]
        opened.append(Opened(point, same.method, same.network, same.folder, same.sha256))
    text = f"SHA-256 of {len(known)} network(s): {', '.join(says)}" + "".join(f"; {each}" for each in wrong)
    return opened, [Gate("checkpoint", not wrong, text, {"sha256": {m.folder: m.sha256 for m in known.values()}})]


def _joint(opened: list[Opened], record: dict[str, Any]) -> str:
    """One digest over the members' digests and the rule."""
    told = [[m.sha256, dict(m.point.knobs), r["temperature"]] for m, r in zip(opened, record["members"], strict=True)]
    text = json.dumps([told, record["kind"], record["answer"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _repeats(record: dict[str, Any], accuracy: float, macs: float) -> Gate:
    """Gate `validation`: executing gives the figures that composing recorded."""
    tolerance = max(2.5 / record["count"], _OTHERWISE)
    good = abs(accuracy - record["accuracy"]) <= tolerance and abs(macs - record["macs"]) <= 0.01 * record["macs"]
    says = (
        f"measured again {show_share(accuracy)} at {show_count(macs)} MACs, composed"
        f" {show_share(record['accuracy'])} at {show_count(record['macs'])}"
    )
    evidence = {"accuracy": record["accuracy"], "macs": record["macs"], "measured_accuracy": accuracy}
    return Gate("validation", good, says, {**evidence, "measured_macs": macs, "tolerance": tolerance})


def _decisions(
    record: dict[str, Any],
    studies: dict[str, StoredStudy],
    states: dict[str, StudyState],
    answered: dict[str, np.ndarray],
) -> Gate:
    """Gate `decisions`: image by image the same last member as the kept probabilities say."""
    names = list(dict.fromkeys(member["study"] for member in record["members"]))
    points = [f"{member['study']}:{member['point_id']}" for member in record["members"]]
    members = members_of([studies[n] for n in names], [states[n] for n in names], points=points, alike=True)
    kept = execute_record(members, record)
    if len(kept.last) != len(answered["exit"]):
        says = f"{len(kept.last)} images were kept, {len(answered['exit'])} are in the split"
        return Gate("decisions", False, says, {"kept": len(kept.last), "executed": len(answered["exit"])})
    otherwise = int((kept.last != answered["exit"]).sum())
    most = max(2, int(_OTHERWISE * len(kept.last)))
    says = (
        f"{otherwise} of {len(kept.last)} images end at another member than by the kept probabilities (at most {most})"
    )
    return Gate("decisions", otherwise <= most, says, {"otherwise": otherwise, "images": len(kept.last), "most": most})


def _some(evidence: CascadeEvidence, most: int) -> torch.Tensor:
    """The first validation images, decoded."""
    split = evidence.data.validation
    return torch.from_numpy(split.take(np.arange(min(most, len(split)))).decoded())


@torch.inference_mode()
def _macs(evidence: CascadeEvidence) -> Gate:
    """Gate `macs`: the work of the whole cascade counted call by call."""
    images = _some(evidence, _IMAGES)
    cascade = Cascade(
        evidence.steps([member.network for member in evidence.opened]),
        evidence.record["kind"],
        evidence.record["answer"],
    )
    with ExitStack() as stack:
        networks = {id(member.network): member.network for member in evidence.opened}.values()
        tallies = [stack.enter_context(counted(network)) for network in networks]
        answered = cascade.infer(images, evidence.knobs["thresholds"])
    total, said = float(sum(sum(tally.values()) for tally in tallies)), float(answered.macs.sum())
    count = len(images)
    says = f"counted {show_count(total / count)} per image on {count} images, charged {show_count(said / count)}"
    figures = {"counted": total, "charged": said, "images": count, "macs_full": evidence.point.macs_full}
    return Gate("macs", abs(total - said) <= 1e-6 * said, says, figures)


def _forward(evidence: CascadeEvidence) -> list[Gate]:
    """The gate `forward` of every member, as one: the least good of them."""
    images = _some(evidence, _IMAGES)
    found = []
    for member in evidence.opened:
        inputs = normalise(images, evidence.data.for_config(member.network.config))
        found.append(both_passes(member.network, inputs, member.point.knobs)[1])
    return [max(found, key=lambda gate: gate.evidence["difference"])]


def _latency(evidence: CascadeEvidence, most: float | None) -> Gate:
    """Gate `latency`: median milliseconds per image of the cascade, one by one and in batches of 64."""
    images = _some(evidence, _TIMED)
    figures = {}
    for size in (1, 64):
        batches = images.split(size)[:15] * (5 if size > 1 else 1)
        evidence.cascade.infer(batches[0], evidence.knobs["thresholds"])
        taken = []
        for batch in batches:
            began = time.perf_counter()
            evidence.cascade.infer(batch, evidence.knobs["thresholds"])
            taken.append(1000 * (time.perf_counter() - began) / len(batch))
        figures[f"batch_{size}_ms"] = round(float(np.median(taken)), 4)
    alone = figures["batch_1_ms"]
    says = f"{alone:.3g} ms alone, {figures['batch_64_ms']:.3g} ms in batches of 64"
    if most is not None:
        says += f" (at most {1000 * most:.3g} ms alone)"
    here = {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    told = {**figures, **here, "torch": torch.__version__, "limit_ms": None if most is None else 1000 * most}
    return Gate("latency", most is None or alone <= 1000 * most, says, told)


def _reference(answered: dict[str, np.ndarray], members: int) -> dict[str, Any]:
    """Counts of what it answers on the validation images (`routefront_runner.figures_of`)."""
    total = None
    for begin in range(0, len(answered["macs"]), _BATCH):
        part = figures_of({name: each[begin : begin + _BATCH] for name, each in answered.items()}, members)
        total = part if total is None else added(total, part)
    assert total is not None, "a validation split has images"
    return total
