"""Follows a growing journal: keeps the state up to date, and records when each trial was at work.

Time is the study's own, seconds of work: what lies between two sessions does not count.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from search.journal.events import Event
from search.state.state import StudyState

if TYPE_CHECKING:
    from search.studies.stored import StoredStudy


@dataclass(slots=True)
class Span:
    """A trial's time at work, in seconds of the study: when it first started, when it was last heard of."""

    begin: float
    end: float


@dataclass(slots=True)
class Followed:
    """The state of a study and the spans of its trials; `update` folds in what is new."""

    state: StudyState = field(default_factory=StudyState)
    spans: dict[str, Span] = field(default_factory=dict)

    def apply(self, events: Iterable[Event]) -> Followed:
        """Fold events in, in order."""
        for event in events:
            self.state.apply(event)
            if event.trial is None:
                continue
            now, span = self.state.elapsed, self.spans.get(event.trial)
            if span is None:
                if event.kind in ("start", "report"):
                    self.spans[event.trial] = Span(now, now)
            elif event.kind in ("start", "report", "decision", "failed"):
                span.end = now
        return self

    def update(self, study: StoredStudy) -> bool:
        """Read what the journal has beyond what is known; whether there was anything."""
        before = self.state.seq
        journal = study.journal()
        try:
            self.apply(journal.events(after=before))
        finally:
            journal.close()
        return self.state.seq > before


def followed(study: StoredStudy) -> Followed:
    """Everything that the journal tells now."""
    found = Followed()
    found.update(study)
    return found


def lanes(spans: dict[str, Span]) -> dict[str, int]:
    """A lane for every trial, so that no two in a lane overlap: as many as there were workers at once."""
    busy: list[tuple[float, int]] = []  # (end, lane)
    free: list[int] = []
    found: dict[str, int] = {}
    for trial, span in sorted(spans.items(), key=lambda entry: (entry[1].begin, entry[1].end)):
        while busy and busy[0][0] <= span.begin:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        found[trial] = lane
        heapq.heappush(busy, (max(span.end, span.begin + 1e-9), lane))
    return found
