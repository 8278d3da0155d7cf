"""Whatever a stranger writes: names, ids, study files, events and points are taken as they are meant, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.errors import InputError
from search.journal.events import Event, check_names
from search.points import files as points
from search.points.schema import SCHEMA
from search.promotion.models import check_names as check_model
from search.redaction import redacted
from search.spec.study import StudySpec
from search.spec.toml import read_toml, to_toml
from search.state.state import StudyState
from search.studies.folder import StudyFolder
from search.units import parsed, printable
from tests.support.story import Story

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD = st.sampled_from(["..", "../x", "/etc", "a/b", "", ".", "t0000/../x", "t0000", "a" * 64, "\x00", "x\ny", "~"])
NAMES = ODD | st.text(max_size=20)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(NAMES)
def test_names_of_studies_lead_nowhere_else(name: str) -> None:
    try:
        spec = StudySpec.parse({"name": name}, trusted=True)
    except InputError as error:
        assert len(printable(str(error)).splitlines()) == 1
    else:
        path = Path("/studies") / spec.name
        assert path.parent == Path("/studies") and path.name == name and printable(name) == name


@QUICK
@given(NAMES, NAMES)
def test_names_of_models_are_one_part(model: str, alias: str) -> None:
    try:
        check_model(model, alias)
    except InputError:
        return
    assert not {"/", "@", ":", "\x00"} & set(model) and alias.isascii() and alias


@QUICK
@given(NAMES, NAMES)
def test_nothing_outside_a_study_is_removed(name: str, other: str) -> None:
    folder = StudyFolder(Path("/studies/x"))
    if "\x00" not in name + other:
        for each in (name, f"checkpoints/{name}", f"{name}/{other}"):
            if folder._inside(each):
                assert (folder.path / each).resolve().is_relative_to("/studies/x")


@QUICK
@given(st.dictionaries(st.sampled_from(["name", "seed", "budget", "data", "methods", "journal", "x"]), VALUES))
def test_study_files_are_read_or_refused(values: dict[str, Any]) -> None:
    try:
        spec = StudySpec.parse(values, trusted=True)
    except InputError as error:
        assert "\n" not in printable(str(error))
    else:
        assert StudySpec.parse(spec.model_dump(mode="json"), trusted=True) == spec


@QUICK
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_bytes_as_a_study_file(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    try:
        values = read_toml(path)
    except InputError:
        return
    assert isinstance(values, dict)


@QUICK
@given(st.dictionaries(st.text(max_size=8), st.text(max_size=12) | st.booleans() | st.integers(-(2**62), 2**62)))
def test_a_study_file_that_is_written_is_read_again(tmp_path: Path, values: dict[str, Any]) -> None:
    try:
        to_toml(values).encode()
    except UnicodeEncodeError:  # a lone surrogate, which no file holds
        return
    path = tmp_path / "study.toml"
    path.write_text(to_toml(values))
    assert read_toml(path) == values


KINDS = "created session known plan ask start setback nodes budget report stage donor decision failed ended promotion"
STORY = Story(("static",))
STORY.ask(0)
STORY.report("t0000", 1, [(0.9, 1e6)])
KEYS = sorted({key for event in STORY.events for key in event.payload} | {"stage", "donor", "key", "action", "why"})


@settings(QUICK, max_examples=80)
@given(
    kind=st.sampled_from([*KINDS.split(), "of a later version"]),
    trial=st.none() | st.just("t0000") | NAMES,
    payload=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6),
    base=st.booleans(),
)
def test_any_event_is_folded_or_refused(kind: str, trial: Any, payload: dict[str, Any], base: bool) -> None:
    """Also one that differs from a whole one in a few places."""
    whole = next((e.payload for e in reversed(STORY.events) if e.kind == kind), {}) if base else {}
    event = Event(len(STORY.events) + 1, 2000.0, kind, trial, {**whole, **payload})
    state = StudyState.of(STORY.events)
    try:
        state.apply(event)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        check_names(event)
        assert trial is None or trial == "t0000" or trial.startswith("t") or not trial


ROW = {
    field.name: "t0000-1-0" if field.name == "point_id" else "{}" if pa.types.is_string(field.type) else 1
    for field in SCHEMA
    if field.name != "schema_version"
}


@QUICK
@given(st.dictionaries(st.sampled_from([*ROW, "other"]), PLAIN, max_size=4))
def test_points_are_written_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, change: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("points")
    try:
        points.write([{**ROW, **change}], folder)
    except (ValueError, TypeError):
        assert not list(folder.iterdir())
    else:
        table = points.read(folder)
        assert (
            len(table) == 1 and 0 <= table["accuracy"][0].as_py() <= 1 and 0 < table["macs"][0].as_py() < float("inf")
        )


@QUICK
@given(st.text(max_size=40))
def test_texts(text: str) -> None:
    assert all(c.isprintable() for c in printable(text))
    assert redacted(redacted(text)) == redacted(text)
    try:
        parsed(text)
    except InputError as error:
        assert "\n" not in str(error)
        with pytest.raises(ValueError):
            json.loads(text)


@QUICK
@given(
    st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.%+~!*", min_size=1), st.sampled_from(["http", "postgresql", "s3"])
)
def test_passwords_in_addresses_are_blotted_out(password: str, scheme: str) -> None:
    said = redacted(f"cannot reach {scheme}://me:{password}@host:5000/x?y=z, sorry", [])
    assert said == f"cannot reach {scheme}://me:***@host:5000/x?y=z, sorry"
