"""Every method through a whole training on a GPU or on the simulated one, counted; what was counted last.

    python -m tests.support.on_device            # compares with the table, prints what changed
    python -m tests.support.on_device --write    # writes the table anew

The table (`tests/fixtures/launches.json`) holds for every configuration, by phase, the launches and the host waits of a
step in the middle of an epoch, written, not captured, and the waits that its phase declares (`Phase.most_waits`). Who
adds launches says why in the commit that writes it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.support.noise import noise
from tests.support.simcuda import Log, Simulated, sim
from trainables.inference.latency import milliseconds
from trainables.registry import get_method
from trainables.serving import Forms, load_prepared
from trainables.training import steps
from trainables.training.partial import Interrupted
from trainables.training.training import Training

TABLE = Path(__file__).resolve().parents[1] / "fixtures" / "launches.json"
_RESNET: dict[str, Any] = {"network": "resnet-8", "width": 0.25}
_POLICY: dict[str, Any] = {"policy_width": 0.25, "curriculum_batch_size": 4, "finetune_batch_size": 4}
_EXITS: dict[str, Any] = {"network": "msdnet-2", "width": 0.25, "curve_points": 3}
_COLUMNS: dict[str, Any] = {"network": "pyramid-3", "width": 0.25}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", _RESNET),
    "static densenet": ("static", {"network": "densenet-bc-22", "width": 0.25}),
    "skipnet hrl": ("skipnet", {**_RESNET, "variant": "hrl_sp", "gate": "ff1"}),
    "skipnet rl": ("skipnet", {**_RESNET, "variant": "rl", "gate": "rnn"}),
    "skipnet policy": ("skipnet", {**_RESNET, "gate": "policy"}),
    "codinet": ("codinet", {**_RESNET, "views": 2}),
    "codinet official": ("codinet", {**_RESNET, "views": 2, "impl": "official", "gate": "rnn"}),
    "aig": ("aig", _RESNET),
    "blockdrop": ("blockdrop", {**_RESNET, **_POLICY}),
    "blockdrop official": ("blockdrop", {**_RESNET, **_POLICY, "impl": "official"}),
    "sdv": ("sdv", _RESNET),
    "sdv original": ("sdv", {**_RESNET, "variant": "original"}),
    "imta all": ("imta", {**_EXITS, "variant": "all"}),
    "imta features": ("imta", {**_EXITS, "variant": "all", "cached_views": 2}),
    "decide": ("decide", _COLUMNS),
    "decide pragmatic tree": ("decide", {"network": "pyramid-tree-3", "width": 0.25, "variant": "pragmatic"}),
    "decide optimistic": ("decide", {**_COLUMNS, "variant": "optimistic", "dynamic_k_cpt": True}),
    "act": ("act", {"network": "preact-resnet-14", "width": 0.25}),
    "sact": ("sact", {"network": "preact-resnet-14", "width": 0.25}),
    "multipath": ("multipath", {"network": "resnet-8-2", "width": 0.25}),
    "multipath cnn": ("multipath", {"network": "basecnn-2", "width": 0.25}),
    "ensemble": ("ensemble", {**_RESNET, "members": 2}),
    "exits sdn": ("exits", {**_RESNET, "variant": "sdn", "exits": 3, "head": "mixed", "curve_points": 3}),
    "exits frozen": ("exits", {**_RESNET, "variant": "frozen", "exits": 3, "head": "conv", "curve_points": 3}),
    "blocks": ("blocks", {"network": "torchvision:mobilenet_v3_small", "width": 0.25}),
    "static backbone": ("static", {"network": "torchvision:mobilenet_v3_small", "width": 0.25}),
}
BATCH, STEP = 4, 3
"""Four whole batches an epoch, and what is left; the third one is counted."""
Counts = dict[str, dict[str, int]]
"""By phase {launches, waits, declared} of a step; `declared` is how often it may wait at most."""


def go(name: str, values: Mapping[str, Any], log: Log, folder: Path) -> Counts:
    """One configuration through every phase, an epoch each: interrupted, saved, restored, with curve and diagnostics.

    Then it is served, image by image and in a batch. Raises where a device would, `AssertionError` where a restored
    network is another one or where a phase that says so is not captured.
    """
    method = get_method(name)
    config = method.configure({"batch_size": BATCH, **values})
    data = noise(4 * (BATCH // method.views(config)) + 2, 8, 5, 6)
    epochs = len(method.phases(config))
    given: dict[str, Any] = {"epochs": epochs, "seed": 1, "device": "cuda", "deterministic": True}
    real = not isinstance(torch.Generator("cuda"), Simulated)
    training = Training(method, config, data, capture="off", **given)
    counts = _counted(training, log, real)
    # captured where phases say so, interrupted in the last epoch and taken up again
    captured = Training(method, config, data, diagnostics=True, **given)
    with patch.object(steps, "CHECKS", 1):
        while captured.epoch < epochs - 1:
            _captured(captured)
        captured.leaving = lambda: True
        try:
            captured.step()
        except Interrupted:
            captured.save(folder / "partial")
        other = Training(method, config, data, diagnostics=True, **given)
        other.restore(folder / "partial")
        _captured(other)
    other.save(folder / "whole")
    for (part, kept), again in zip(training.network.named_parameters(), other.network.parameters(), strict=True):
        assert again.is_cuda, f"{part} is not on the device behind restore"
        same = torch.allclose(kept, again, rtol=1e-3, atol=1e-4) if real else torch.equal(kept, again)
        assert same, f"{part}: captured, interrupted and taken up again it is another one"
    _served(other, folder / "whole")
    return counts


def _counted(training: Training, log: Log, real: bool) -> Counts:
    """Train to the end as written, without curves; what the third step of every phase took."""
    counts: Counts = {}
    seen: list[tuple[int, int]] = []

    def look() -> bool:
        seen.append((log.launches.total(), log.waits.total()))
        if real:  # the next step is the one that counts: where none may wait, PyTorch itself refuses a wait
            strict = len(seen) == STEP - 1 and training.phase is not None and training.phase.capturable
            torch.cuda.set_sync_debug_mode("error" if strict else "default")
        return False

    training.leaving, training.evaluate_at = look, set()
    while not training.done:
        seen.clear()
        report = training.step()
        (before, waited), (after, later) = seen[STEP - 2 : STEP]
        assert training.phase is not None
        declared = training.phase.most_waits(sum(unit.kind == "block" for unit in training.network.units))
        assert declared is not None, f"phase {training.phase.name} declares neither `capturable` nor `waits`"
        counts[report["phase"]] = {"launches": after - before, "waits": later - waited, "declared": declared}
    return counts


def _captured(training: Training) -> None:
    report = training.step()
    assert training.phase is not None
    assert bool(report["captured_steps"]) == training.phase.capturable, report
    assert "uncaptured" not in report, report["uncaptured"]


def _served(training: Training, folder: Path) -> None:
    assert training.last_curve is not None
    knobs = [point["knobs"] for point in training.last_curve.points][:2]
    assert all(ms > 0 for ms in milliseconds(training.network, training.validation, knobs, passes=1))
    with patch.object(Forms.__init__, "__defaults__", ((1, 4),)):
        network = load_prepared(folder, "cuda")
    assert isinstance(training.validation, torch.Tensor)
    with torch.inference_mode():
        for each in knobs:
            generator = torch.Generator("cuda").manual_seed(0)
            for images in (training.validation[:1], training.validation):
                found = network.infer(images, each, generator=generator)
                assert len(found.logits) == len(images) and found.logits.is_cuda and found.macs.is_cuda


def table() -> dict[str, Counts]:
    """What was counted last."""
    return json.loads(TABLE.read_text())


def main() -> int:
    found: dict[str, Counts] = {}
    torch.set_num_threads(1)
    for case, (name, values) in CASES.items():
        with sim() as log, tempfile.TemporaryDirectory() as folder:
            found[case] = go(name, values, log, Path(folder))
            faults = Counter(log.faults)
        print(f"{case}: {found[case]}{f', faults {dict(faults)}' if faults else ''}", flush=True)
    if "--write" in sys.argv:
        TABLE.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    changed = {case: counts for case, counts in found.items() if table().get(case) != counts}
    print(f"changed: {changed}" if changed else "as the table has it")
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())
