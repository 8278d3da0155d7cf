"""The sections of a report about paths, in their order."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from search.report.exits.section import exit_sections
from search.report.gates.section import gate_sections
from search.report.halting import halting_section
from search.report.paths.data import Paths
from search.report.paths.section import (
    class_section,
    copies_section,
    images_section,
    skip_section,
    summary_section,
    tsne_section,
    variants_section,
)


def path_sections(points: pa.Table, paths: Paths) -> list[str]:
    """The sections in their order; a section that has nothing to show is left out."""
    sections = [variants_section(points), *gate_sections(points, paths)]
    if paths.trials:
        gated = [t for t in paths.trials if "exit_frac" not in t.record and not t.record.get("routes")]
        choosing = replace(paths, trials=[t for t in paths.trials if not t.record.get("routes")])  # all paths run there
        exiting = [trial for trial in paths.trials if "exit_frac" in trial.record]
        sections += [
            summary_section(paths.trials),
            skip_section(gated),
            *exit_sections(exiting, paths.classes),
            class_section(choosing),
            tsne_section(paths),
            copies_section(paths.trials),
            halting_section(paths),
            images_section(choosing),
        ]
    return [section for section in sections if section]
