"""Models of a registry that this user may not write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from search.study import Study
from tests.support.promoting import point_of
from tests.support.unprivileged import (
    allow_writing,
    forbid_writing,
    on_read_only_mount,
    run,
    without_write_permission,
)


def _forbidden(root: Path) -> list[str]:
    forbid_writing(root)
    return without_write_permission()


@pytest.mark.parametrize("read_only", [_forbidden, on_read_only_mount])
def test_a_model_is_asked_and_not_moved(tiny: Study, registry: str, read_only: Callable[[Path], list[str]]) -> None:
    root, model = tiny.folder.path.parent, ("--model", "digits")
    tiny.promote(model="digits", uri=registry, point=point_of(tiny, "static"))
    at = ("--studies", root, "--tracking", registry)
    promote = ["promote", "tiny", *model, "--point", point_of(tiny, "imta"), *at]
    try:
        known, told, tried, moved, promoted = run(
            read_only(root),
            ["history", *model, "--json", *at],
            ["predict", "--model", "digits@champion", "--split", "test", "--limit", "8", "--json", *at],
            [*promote, "--dry-run", "--json"],
            ["rollback", *model, *at],
            promote,
        )
    finally:
        allow_writing(root)
    assert known[0] == 0 and [version["version"] for version in json.loads(known[1])] == ["1"], known
    assert told[0] == 0 and json.loads(told[1])["count"] == 8, told
    assert tried[0] in (0, 1) and json.loads(tried[1])["gates"], tried
    for code, out, said in (moved, promoted):
        assert code == 2 and not out and said.count("\n") == 1 and "cannot be written" in said
