"""The pictures of docs/how-it-works.md, drawn from a small real study.

python docs/tools/pictures.py            trains for about two minutes, writes docs/pictures/*.svg
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from routefront import Study, StudySpec  # noqa: E402
from search.pareto.front import hypervolume, non_dominated  # noqa: E402
from search.report.style import style  # noqa: E402
from search.studies.stored import load_data  # noqa: E402
from search.units import show_count  # noqa: E402
from trainables.registry import get_method  # noqa: E402
from trainables.training.training import Training  # noqa: E402

OUT = ROOT / "docs" / "pictures"
WIDE = {"width": [0.5, 1.0], "batch_size": 64, "schedule": "cosine", "lr": {"low": 0.05, "high": 0.2, "log": True}}
SPEC: dict[str, Any] = {
    "name": "pictures",
    "seed": 1,
    "data": {"name": "cluttered-digits", "image_size": 16, "limit": 2400},
    "budget": {"trials": 14, "epochs": 18},
    "rungs": {"epochs": [2, 6], "grace": 3, "reduction": 2.0, "immune": 0.25},
    "sampler": {"published": False},
    "diagnostics": False,
    "predictions": False,
    "methods": {
        "static": {"network": "resnet-8", **WIDE},
        "exits": {"network": "resnet-14", "variant": "joint", "exits": 3, "where": "stages", **WIDE},
        "aig": {"network": "resnet-14", **WIDE},
    },
}
GREY = "#B9BEC4"


def main() -> None:
    """Search, draw, say where."""
    plt.rcParams.update(
        {"svg.hashsalt": "routefront", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    with tempfile.TemporaryDirectory() as folder:
        study = Study.create(StudySpec.parse(SPEC), root=Path(folder))
        train(study)
        state = study.state()
    OUT.mkdir(exist_ok=True)
    for name, draw in {"curve": curve, "rungs": rungs, "frontier": frontier}.items():
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        draw(axes, state)
        file = OUT / f"{name}.svg"
        figure.savefig(file, metadata={"Date": None, "Creator": None})
        plt.close(figure)
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size // 1000} kB")


def train(study: Study) -> None:
    """Run the study here, trial by trial, as workers would: the same seeds give the same pictures."""
    torch.set_num_threads(1)
    spec, data = study.spec, load_data(study.spec)
    evaluate_at = [*spec.rung_epochs, spec.budget.epochs]
    with study.driving() as driver:
        driver.workers = 1
        while (trial := driver.ask()) is not None:
            driver.started(trial.id)
            method = get_method(trial.method)
            values = driver.values(trial)
            epochs = spec.budget.epochs
            training = Training(
                method, method.configure(values), data, epochs=epochs, seed=trial.seed, evaluate_at=evaluate_at
            )
            action = "continue"
            while action == "continue" and not training.done:
                report = training.step()
                params, macs_full = training.size
                size = {"params": params, "macs_full": macs_full, "checkpoint": ""}
                action = driver.report(trial.id, {**report, **size})
            print(trial.id, trial.method, "epochs:", training.epoch, flush=True)
        driver.end("finished")


def curve(axes: Any, state: Any) -> None:
    """One trial's curve at every epoch that was evaluated: the training of a network with exits."""
    whole = [trial for trial in state.trials.values() if trial.method == "exits" and trial.state == "finished"]
    trial = max(whole, key=lambda each: len(each.curves) * 1e6 + 1 - each.arrays(max(each.curves))[0].min())
    for shade, epoch in zip(np.linspace(0.35, 1, len(trial.curves)), sorted(trial.curves), strict=True):
        error, macs = trial.arrays(epoch)
        order = np.argsort(macs)
        axes.plot(
            macs[order],
            100 * (1 - error[order]),
            "o-",
            color=style("exits")[0],
            alpha=shade,
            ms=3,
            label=f"epoch {epoch}",
        )
    named(axes, "one training, its curve after each evaluated epoch")
    axes.legend(frameon=False)


def rungs(axes: Any, state: Any) -> None:
    """Every trial's hypervolume by epoch; those that were stopped end at a rung."""
    reference = state.created["reference"]
    corner = reference["error"], reference["macs"]
    for trial in state.trials.values():
        epochs = sorted(trial.curves)
        values = [hypervolume(*trial.arrays(epoch), corner) for epoch in epochs]
        stopped = trial.state == "stopped"
        colour = GREY if stopped else style(trial.method)[0]
        axes.plot(epochs, values, "-", color=colour, lw=1 if stopped else 1.8, zorder=1 if stopped else 2)
        axes.plot(epochs[-1:], values[-1:], "x" if stopped else "o", color=colour, ms=5, zorder=3)
    for method in sorted({trial.method for trial in state.trials.values() if trial.state == "finished"}):
        axes.plot([], [], "o-", color=style(method)[0], label=f"{method}, trained in full")
    axes.plot([], [], "x-", color=GREY, label="stopped at a rung")
    for epoch in SPEC["rungs"]["epochs"]:
        axes.axvline(epoch, color="#7C8591", lw=0.8, ls=":")
    axes.set(xlabel="epoch (dotted: rungs)", ylabel="hypervolume of the trial's curve")
    axes.set_title("trials are compared at rungs by their whole curves", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="upper left")


def frontier(axes: Any, state: Any) -> None:
    """Every operating point of full trainings, and those that no other one beats."""
    errors, costs = [], []
    for trial in state.trials.values():
        for epoch in sorted(trial.curves):
            error, macs = trial.arrays(epoch)
            errors.append(error)
            costs.append(macs)
            last = epoch == max(trial.curves) and trial.state == "finished"
            colour, marker, _ = style(trial.method)
            shown = {"color": colour, "ms": 4, "zorder": 2} if last else {"color": GREY, "ms": 2, "zorder": 1}
            axes.plot(macs, 100 * (1 - error), marker if last else ".", ls="", **shown)
    error, macs = np.concatenate(errors), np.concatenate(costs)
    kept = non_dominated(error, macs)
    order = np.argsort(macs[kept])
    axes.step(macs[kept][order], 100 * (1 - error[kept][order]), where="post", color="#22262B", lw=1.4, zorder=3)
    for method in sorted({trial.method for trial in state.trials.values() if trial.state == "finished"}):
        axes.plot([], [], style(method)[1], color=style(method)[0], label=method)
    axes.plot([], [], "-", color="#22262B", label="the frontier")
    axes.plot([], [], ".", color=GREY, label="earlier epochs")
    shown = macs[error < 0.8]
    axes.set_xlim(shown.min() / 1.3, shown.max() * 1.3)
    named(axes, "all operating points of the study")
    axes.legend(frameon=False, loc="lower right")
    axes.set_ylim(bottom=20)


def named(axes: Any, title: str) -> None:
    """Axes of accuracy against MACs."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [t * 10**e for e in range(3, 10) for t in (1, 2, 5) if low <= t * 10**e <= high]
    axes.set_xticks(ticks, [show_count(each) for each in ticks])
    axes.minorticks_off()
    axes.set(xlabel="MACs an image", ylabel="accuracy on the validation split, %")
    axes.set_title(title, loc="left", fontsize=10)


if __name__ == "__main__":
    main()
