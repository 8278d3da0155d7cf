"""A cascade as a folder: every network once in a folder of its own, and a manifest with the rule between them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.contracts.network import Knobs, RoutedNetwork
from trainables.export import routefront_runner as runner
from trainables.export.families import program_of
from trainables.export.folder import RUNNER, seal, write
from trainables.export.graphs import OPSET
from trainables.inference.rules import factor
from trainables.normalisation import Normalisation


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a cascade: its network, stored below `folder`, how pixels become its inputs, its knobs.

    `told`: what else the manifest says of it, its ``temperature`` at least. `accuracy` and `macs` (mean an image): its
    own, on validation images.
    """

    folder: str
    network: RoutedNetwork
    normalisation: Normalisation
    knobs: Knobs
    accuracy: float
    macs: float
    told: Mapping[str, Any]


def write_cascade(
    folder: Path,
    members: Sequence[Member],
    runs: Sequence[Sequence[int]],
    *,
    kind: str,
    answer: str,
    settings: Sequence[Mapping[str, Any]],
    promoted: Knobs,
    classes: Sequence[str],
    model: Mapping[str, Any],
    reference: Mapping[str, Any] | None = None,
    opset: int = OPSET,
) -> dict[str, Any]:
    """Write the members' folders, the manifest and the runner into an existing empty folder; the manifest.

    `runs`: the numbers of members that one execution of a network serves (`trainables.inference.cascade.Cascade.runs`).
    `settings`: the curve, each with ``knobs`` (their ``thresholds``), ``accuracy`` and ``macs``. `kind` and `answer`:
    the rule (`trainables.inference.rules`). Raises `ExportError` for a member that cannot be exported.
    """
    records: list[dict[str, Any]] = []
    written: dict[str, dict[str, Any]] = {}
    programs = {}
    for place, member in enumerate(members):
        same = [each for each in members if each.folder == member.folder]
        if member.folder not in written:
            program = programs[member.folder] = program_of(member.network, [each.knobs for each in same])
            (folder / member.folder).mkdir()
            written[member.folder] = write(
                folder / member.folder,
                member.network,
                program,
                settings=[{"knobs": dict(e.knobs), "accuracy": e.accuracy, "macs": e.macs} for e in same],
                promoted=same[0].knobs,
                classes=classes,
                normalisation=member.normalisation,
                model={**model, "member": member.folder},
                opset=opset,
            )
            (folder / member.folder / RUNNER).unlink()  # the one beside the members runs them
        records.append(
            {
                **member.told,
                "weight": factor(answer) ** place,
                "folder": member.folder,
                "digest": written[member.folder]["digest"],
                "knobs": dict(member.knobs),
                "values": programs[member.folder].values(member.knobs),
            }
        )
    said = "last" if answer == "last" else "mean"  # a mean says by its members' weights how it is weighted
    task = members[0].network.task
    units = [
        {"name": f"{run[0] + 1}:{unit.name}", "kind": unit.kind, "macs": unit.macs}
        for run in runs
        for unit in members[run[0]].network.units
    ]
    manifest = {
        "format": runner.CASCADE,
        "version": runner.VERSION,
        "model": dict(model),
        "form": "onnx",
        "opset": opset,
        "classes": list(classes),
        "image": {"channels": task.channels, "size": task.size},
        "cascade": {"kind": kind, "answer": said, "members": records, "runs": [list(run) for run in runs]},
        "units": units,
        "macs_full": sum(members[run[0]].network.macs_full for run in runs),
        "exits": [str(member.told.get("point_id", number + 1)) for number, member in enumerate(members)],
        "rule": f"an image goes on to the next member where its doubt, by {kind}, is above the member's threshold",
        "settings": [{**each, "values": dict(each["knobs"])} for each in settings],
        "promoted": {"knobs": dict(promoted), "values": dict(promoted)},
        "reference": reference,
        "single": None,
        "single_missing": "a cascade is run member by member",
    }
    shutil.copyfile(str(runner.__file__), folder / RUNNER)
    return seal(folder, manifest)
