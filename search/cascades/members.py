"""The operating points that may be members of cascades, with what their checkpoints keep of every validation image.

Shape legend: P members, n images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from search.cascades.sweep import Answers
from search.errors import InputError
from search.pareto.front import front_layers
from search.points.rows import point_id
from search.state.state import StudyState
from trainables.checkpoints import CheckpointError, read_record
from trainables.inference.predictions import PREDICTIONS, Predictions, PredictionsError, read
from trainables.inference.rules import MOST_CLASSES, doubt, factor, scaled, scores, temperature_of

if TYPE_CHECKING:
    from search.studies.stored import StoredStudy

MOST = 200
"""At most so many operating points take part: those of the first fronts."""


@dataclass(frozen=True, slots=True)
class Member:
    """An operating point of a study. `checkpoint_sha256`: the digest of its network's file."""

    study: str
    trial: str
    epoch: int
    index: int
    method: str
    variant: str
    network: str
    knobs: dict[str, Any]
    checkpoint: str
    checkpoint_sha256: str
    accuracy: float
    macs: float
    macs_full: int
    params: int
    seed: int

    @property
    def point_id(self) -> str:
        """The identity of the point in its study."""
        return point_id(self.trial, self.epoch, self.index)

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return {"point_id": self.point_id, **asdict(self)}


@dataclass(slots=True)
class Members:
    """Operating points of studies of the same images, and their answers on the validation split.

    `labels` (n,); `macs` (P, n); `correct` (P, n) each member alone; `family` (P,): equal where work is shared between
    two members (settings of one checkpoint whose images leave along a chain of exits).
    """

    members: list[Member]
    labels: NDArray[np.integer]
    macs: NDArray[np.float64]
    correct: NDArray[np.bool_]
    family: NDArray[np.int64]
    kept: list[tuple[Predictions, int]]

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.kept[0][0].count

    def only(self, places: Sequence[int]) -> Members:
        """Some of the members, in the order that is given."""
        chosen = list(places)
        members, kept = [self.members[i] for i in chosen], [self.kept[i] for i in chosen]
        return Members(members, self.labels, self.macs[chosen], self.correct[chosen], self.family[chosen], kept)

    def probabilities(self, member: int) -> NDArray[np.float32]:
        """The probabilities (n, C) that a member answers with."""
        predictions, setting = self.kept[member]
        return predictions.of(setting)

    def temperatures(self, images: NDArray[np.intp]) -> list[float]:
        """The temperature of every member, fitted on some images."""
        return [
            temperature_of(self.probabilities(i)[images], self.labels[images].astype(np.intp))
            for i in range(len(self.members))
        ]

    def answers(self, kind: str, answer: str, temperatures: Sequence[float]) -> Answers:
        """What members answer on all images under one rule. `InputError` where means have too many classes."""
        if answer != "last" and self.classes > MOST_CLASSES[answer]:
            raise InputError(
                f"{self.classes} classes: answer {answer!r} is computed for at most {MOST_CLASSES[answer]};"
                " answer by the last"
            )
        doubts, totals = [], []
        for member, temperature in enumerate(temperatures):
            shares = scaled(self.probabilities(member), temperature)
            doubts.append(doubt(shares, kind))
            if answer != "last":
                totals.append(scores(shares).T)
        correct, total = self.correct, np.stack(totals) if totals else None
        if total is not None:
            correct = total.argmax(axis=1) == self.labels
        parts = np.stack(doubts), correct, self.macs, self.family, self.labels, total
        return Answers(*parts, factor=factor(answer))


def members_of(
    studies: Sequence[StoredStudy],
    states: Sequence[StudyState],
    *,
    points: Sequence[str] = (),
    most: int = MOST,
    alike: bool = False,
) -> Members:
    """The points of studies whose checkpoints keep predictions: those of the first fronts, or `points` by identity
    (``t0003-9-2``, of several studies ``STUDY:t0003-9-2``). With `alike` they are these points in this order.

    Raises `InputError` where studies have different images, classes, label orders or splits, a named point or its
    checkpoint is gone, predictions are damaged or of another version, or fewer than two members are left.
    """
    for state in states:
        if (state.created.get("objective") or {}).get("timing"):
            raise InputError(
                f"study {state.created['spec']['name']!r} searches against measured latency: cascades are composed of"
                " counted MACs"
            )
    for other in states[1:]:
        _comparable(states[0], other)
    named = [_named(text, studies, states) for text in points]
    found: list[tuple[Member, Predictions, int]] = []
    for study, state in zip(studies, states, strict=True):
        wanted = {key for name, key in named if name == study.spec.name} if points else None
        found += _of(study, state, wanted, most)
    if not found and not points:
        names = ", ".join(study.spec.name for study in studies)
        raise InputError(
            f"no checkpoint of {names} keeps predictions: composing takes a study that ran with predictions = true"
            " (the default since this version)"
        )
    if alike:
        by_name = {(m.study, (m.trial, m.epoch, m.index)): (m, p, s) for m, p, s in found}
        return _joined([by_name[key] for key in named])
    found = _distinct(found)
    if len(found) < 2:
        raise InputError(f"{len(found)} member: a cascade takes at least two different operating points")
    if len(found) > most:
        error, macs = (
            np.array([f(member) for member, _, _ in found]) for f in (lambda m: 1 - m.accuracy, lambda m: m.macs)
        )
        ranked = np.lexsort((macs, front_layers(error, macs)))[:most]
        found = [found[i] for i in np.sort(ranked).tolist()]
    return _joined(found)


def _joined(found: list[tuple[Member, Predictions, int]]) -> Members:
    labels = found[0][1].labels
    for member, predictions, _ in found:
        if predictions.count != found[0][1].count or not np.array_equal(predictions.labels, labels):
            raise InputError(
                f"point {member.point_id} of {member.study!r} was measured on another validation split than"
                f" {found[0][0].point_id} of {found[0][0].study!r}: cascades take members of one split"
            )
    places: dict[tuple[Any, ...], int] = {}
    family = []
    for place, (member, predictions, _) in enumerate(found):
        key = (member.study, member.checkpoint) if shares_work(predictions) else (place,)
        family.append(places.setdefault(key, len(places)))
    correct = np.stack([p.of(s).argmax(axis=1) == labels for _, p, s in found])
    macs = np.stack([p.macs[s] for _, p, s in found])
    return Members(
        [member for member, _, _ in found], labels, macs, correct, np.array(family), [(p, s) for _, p, s in found]
    )


def shares_work(predictions: Predictions) -> bool:
    """Whether images leave along a chain of exits: then every path is a beginning of a longer one."""
    return predictions.exits is not None and bool((np.diff(predictions.path.astype(np.float32), axis=2) <= 0).all())


def _distinct(found: list[tuple[Member, Predictions, int]]) -> list[tuple[Member, Predictions, int]]:
    """Without settings of one checkpoint that answer and cost the same."""
    unique: dict[tuple[Any, ...], tuple[Member, Predictions, int]] = {}
    for member, predictions, setting in found:
        key = member.study, member.checkpoint, predictions.macs[setting].tobytes(), predictions.of(setting).tobytes()
        unique.setdefault(key, (member, predictions, setting))
    return list(unique.values())


def _of(
    study: StoredStudy, state: StudyState, wanted: set[tuple[str, int, int]] | None, most: int
) -> list[tuple[Member, Predictions, int]]:
    """Points of a study with their predictions; where none are `wanted` by name, of the first fronts."""
    there = study.folder.kept()
    keys: list[tuple[str, int, int]] = []
    error: list[float] = []
    macs: list[float] = []
    for trial in state.trials.values():
        for epoch in trial.curves:
            if wanted is None and trial.checkpoints.get(epoch) not in there:
                continue
            e, m = trial.arrays(epoch)
            keys += [(trial.id, epoch, index) for index in range(len(e))]
            error += e.tolist()
            macs += m.tolist()
    if wanted is None:
        counts = np.flatnonzero(np.isfinite(error))
        layers = front_layers(np.array(error)[counts], np.array(macs)[counts]) if len(counts) else counts
        chosen = [keys[i] for i in counts[np.argsort(layers, kind="stable")][:most].tolist()]
    else:
        chosen = [key for key in keys if key in wanted]
    files: dict[str, tuple[Predictions | None, str]] = {}
    found = []
    for name, epoch, index in chosen:
        trial = state.trials[name]
        checkpoint = trial.checkpoints.get(epoch, "")
        where = f"point {point_id(name, epoch, index)} of study {study.spec.name!r}"
        if checkpoint not in there:
            raise InputError(
                f"{where}: its checkpoint {checkpoint or '(none)'} is gone from {study.folder.checkpoints}"
            )
        if checkpoint not in files:
            files[checkpoint] = _read(study, checkpoint, where)
        predictions, digest = files[checkpoint]
        curve = trial.curves[epoch]
        if predictions is None:
            if wanted is not None:
                raise InputError(f"{where}: its checkpoint keeps no predictions")
            continue
        if predictions.settings != len(curve) or predictions.macs.shape[1] != curve[index]["count"]:
            raise InputError(f"{where}: the predictions beside its checkpoint are of another curve")
        shown, point = trial.shown[epoch], curve[index]
        member = Member(
            study.spec.name, name, epoch, index, trial.method, str(trial.config.get("variant", "")),
            str(trial.config.get("network", "")), dict(point["knobs"]), checkpoint, digest, point["accuracy"],
            point["macs"], shown["macs_full"], shown["params"], trial.seed,
        )  # fmt: skip
        found.append((member, predictions, index))
    return found


def _read(study: StoredStudy, checkpoint: str, where: str) -> tuple[Predictions | None, str]:
    """The predictions of a checkpoint (None where it keeps none), and the digest of its network."""
    try:
        folder = study.folder.checkpoint(checkpoint)
        files = read_record(folder).get("files", {})
        return (read(folder / PREDICTIONS) if PREDICTIONS in files else None), str(files.get("network.safetensors", ""))
    except (CheckpointError, PredictionsError) as error:
        raise InputError(f"{where}: {error}") from None


def _named(text: str, studies: Sequence[StoredStudy], states: Sequence[StudyState]) -> tuple[str, tuple[str, int, int]]:
    """The study and the key of a point that was named."""
    study, colon, identity = text.rpartition(":")
    names = [each.spec.name for each in studies]
    if not colon and len(names) > 1:
        raise InputError(f"point {text!r}: of several studies, write STUDY:POINT, for example {names[0]}:t0003-9-2")
    name = study if colon else names[0]
    if name not in names:
        raise InputError(f"point {text!r}: study {name!r} is not among {', '.join(names)}")
    trial, _, rest = identity.partition("-")
    epoch, _, index = rest.partition("-")
    known = states[names.index(name)].trials.get(trial)
    if (
        known is None
        or not (epoch.isdigit() and index.isdigit())
        or int(index) >= len(known.curves.get(int(epoch), []))
    ):
        raise InputError(
            f"no point {identity!r} in study {name!r}; `routefront frontier {name}` shows those of the front"
        )
    return name, (trial, int(epoch), int(index))


def _comparable(one: StudyState, other: StudyState) -> None:
    """Raise `InputError` unless two studies have the same images, classes in one order, and splits."""
    a, b = one.created["data"], other.created["data"]
    names = one.created["spec"]["name"], other.created["spec"]["name"]
    for key, what in (("task", "kinds of images"), ("classes", "classes or orders of labels"), ("hash", "images")):
        if a.get(key) != b.get(key):
            told = ", ".join(f"{name!r}: {_short(each.get(key))}" for name, each in zip(names, (a, b), strict=True))
            raise InputError(f"studies of different {what} make no cascade together ({told})")
    if a.get("counts") != b.get("counts"):
        raise InputError(
            f"studies {names[0]!r} and {names[1]!r} have different splits: {a['counts']} and {b['counts']}"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:24] + "..." + text[-24:]
