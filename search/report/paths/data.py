"""The paths of a study's best trials, as its report draws them: what was measured, what lies beside checkpoints.

The figures are those that `trainables.diagnostics.measure` took at the end of a trial, on the validation
split; nothing is run again. Shape legend: n images, D decisions, N routed blocks, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from search.errors import InputError
from search.state.retention import chosen, variant_of
from search.state.state import StudyState
from search.state.trial import Trial

if TYPE_CHECKING:
    from search.studies.stored import StoredStudy
    from trainables.data.encoded import ImageFiles

MOST_EMBEDDED, ALL_EMBEDDED = 2_000, 3_000
"""Points of one t-SNE, and of all of a page together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPaths:
    """One trial: `record` and `arrays` are those of `trainables.diagnostics.measure` (`path` (n, N) unpacked).

    `arrays` is empty where the checkpoint of the last epoch was not kept. `curves`: the operating points
    of every epoch that was evaluated, as the journal has them.
    """

    trial: str
    method: str
    variant: str
    network: str
    record: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    curves: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For captions and legends."""
        return f"{' '.join(filter(None, (self.method, self.variant)))}, {self.network}, {self.trial}"

    @property
    def blocks(self) -> int:
        """N."""
        return len(self.record["blocks"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """What the pictures of paths are drawn from.

    `places`: what `embedded` found. `images`: the validation images (n, channels, S, S) uint8 or
    None, and then `note` says why.
    """

    trials: Sequence[TrialPaths] = ()
    classes: Sequence[str] = ()
    places: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    images: np.ndarray | ImageFiles | None = None
    note: str = ""


def paths_of(study: StoredStudy, state: StudyState) -> Paths:
    """The paths of a study's chosen trials, and its validation images where they are at hand."""
    trials = [_read(study, trial) for trial in chosen(state)]
    data = state.created["data"]
    images, note = None, ""
    if any("index" in trial.arrays for trial in trials):
        images, note = _images(study, data["hash"])
    return Paths(trials=trials, classes=data["classes"], places=embedded(trials), images=images, note=note)


def _read(study: StoredStudy, trial: Trial) -> TrialPaths:
    """A trial's record from the journal and its arrays from its last checkpoint, if that was kept."""
    from trainables import checkpoints
    from trainables.diagnostics.measure import unpacked

    assert trial.diagnostics is not None
    arrays: dict[str, np.ndarray] = {}
    try:
        folder = study.folder.checkpoint(trial.checkpoint or "none")
        if checkpoints.DIAGNOSTICS in checkpoints.read_record(folder)["files"]:
            tensors = checkpoints.read_tensors(folder, checkpoints.DIAGNOSTICS)
            path = unpacked(tensors, len(trial.diagnostics["blocks"]))
            arrays = {**{name: tensor.numpy() for name, tensor in tensors.items()}, "path": path.numpy()}
    except checkpoints.CheckpointError:
        arrays = {}  # pruned, or damaged: what the journal holds is drawn
    return TrialPaths(
        trial=trial.id,
        method=trial.method,
        variant=variant_of(trial),
        network=str(trial.config.get("network", "")),
        record=trial.diagnostics,
        arrays=arrays,
        curves=trial.curves,
    )


def _images(study: StoredStudy, digest: str) -> tuple[np.ndarray | ImageFiles | None, str]:
    """The study's validation images, or None and the reason."""
    from search.studies.stored import load_data

    try:
        data = load_data(study.spec)
    except InputError as error:
        return None, str(error)
    if data.hash != digest:
        return None, f"the images of {study.spec.data.name!r} are not those that the study was run on"
    return data.validation.images, ""


def spread(entry: Mapping[str, Any], shares: Sequence[float] = (0.25, 0.75)) -> list[float]:
    """Quantiles of the skipped blocks of one class from its histogram (an entry of skip_by_class)."""
    counts = np.cumsum(entry["histogram"])
    return [float(entry["least"] + np.searchsorted(counts, share * counts[-1])) for share in shares]


def embedded(trials: Sequence[TrialPaths]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """t-SNE of the relaxed decisions of every trial that has some: {trial: (rows (m,), places (m, 2))}.

    Seeded; at most `MOST_EMBEDDED` images a trial, drawn at random. Left out are networks with exits
    (their path is one number), and trials whose decisions are the same for every image.
    """
    able = [t for t in trials if "relaxed" in t.arrays and "exit" not in t.arrays and _differ(t.arrays["relaxed"])]
    most = min(MOST_EMBEDDED, ALL_EMBEDDED // max(1, len(able)))
    found = {}
    for trial in able:
        count = len(trial.arrays["relaxed"])
        rows = np.sort(np.random.default_rng(0).permutation(count)[:most])
        found[trial.trial] = (rows, _tsne(trial.arrays["relaxed"][rows].astype(np.float32)))
    return found


def _differ(relaxed: np.ndarray) -> bool:
    return len(relaxed) >= 10 and float(np.ptp(relaxed.astype(np.float32), axis=0).max(initial=0)) > 1e-3


def _tsne(values: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    init = "pca" if values.shape[1] > 1 else "random"
    # n_jobs: a report may be drawn beside a running search
    tsne = TSNE(perplexity=min(30.0, (len(values) - 1) / 3), init=init, random_state=0, n_jobs=1)
    return tsne.fit_transform(values)


def extremes(trial: TrialPaths, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the images with the shortest and the longest paths: (easy, hard), each at most `count`.

    Among paths of one length the sum of the relaxed decisions decides, so that the images which came
    nearest to another path are at the ends.
    """
    length = trial.arrays["path"].sum(axis=1)
    relaxed = trial.arrays["relaxed"].astype(np.float64).sum(axis=1)
    order = np.lexsort((np.arange(len(length)), relaxed, length))
    count = min(count, len(order) // 2)
    return order[:count], order[::-1][:count]
