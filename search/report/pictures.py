"""All pictures of a report as PNG files, for pages that hold no script and for papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from matplotlib.backends.backend_agg import FigureCanvasAgg

from search.report.cascades import cascades_picture
from search.report.exits.pngs import exit_pictures
from search.report.gates.pngs import gate_figures
from search.report.paths.data import Paths
from search.report.paths.pngs import (
    copies_picture,
    draw_classes,
    draw_skipping,
    images_picture,
    rows_picture,
    tsne_picture,
    variants_picture,
)


def draw_paths(points: pa.Table, paths: Paths, folder: Path) -> list[Path]:
    """Write what there is to draw into a folder; the files, named after what they show."""
    gated = [t for t in paths.trials if "exit_frac" not in t.record and not t.record.get("routes")]
    choosing = replace(paths, trials=[t for t in paths.trials if not t.record.get("routes")])  # all paths run there
    figures = {
        "variants.png": variants_picture(points) if len(points) else None,
        "skip-ratio.png": rows_picture(gated, draw_skipping, 1.9),
        **exit_pictures(paths),
        "classes.png": rows_picture(
            choosing.trials, lambda axes, t: draw_classes(axes, t, paths.classes), 3.0, columns=2
        ),
        "tsne.png": tsne_picture(paths),
        "kl.png": copies_picture(paths.trials) if paths.trials else None,
        "easy-hard.png": images_picture(choosing),
        **gate_figures(points, paths),
    }
    written = []
    for name, figure in figures.items():
        if figure is not None:
            FigureCanvasAgg(figure)
            figure.savefig(folder / name, format="png", dpi=150, metadata={"Software": "routefront"})
            written.append(folder / name)
    return written


def draw_cascades(composition: Mapping[str, Any], folder: Path) -> Path:
    """Write the picture of a composition into a folder; its file."""
    figure, path = cascades_picture(composition), folder / "cascades.png"
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=160, metadata={"Software": "routefront"})
    return path
