"""The ledger of a model's aliases: rollbacks, two promotions at once, kills, outages, a full disk, changed files."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.errors import InputError, RunError
from search.promotion.history import history, rollback
from search.promotion.ledger import LOCK, MOVES, Lock, holding, moves, settle, standing
from search.promotion.models import load
from search.promotion.promotion import promote_study
from search.study import Study
from tests.support.promoting import client, point_of, processes, promote_alone, spec, train
from trainables.data.splits import Data


def move(version: str | None, previous: str | None, why: str = "promote") -> dict[str, Any]:
    return {"version": version, "previous": previous, "why": why, "time": 0}


@pytest.mark.parametrize(
    ("known", "stack"),
    [
        ([move("1", None), move("2", "1"), move("3", "2")], ["1", "2", "3"]),
        ([move("1", None), move("2", "1"), move("3", "2"), move("2", "3", "rollback")], ["1", "2"]),
        ([move("1", None), move("2", "1"), move("1", "2", "rollback"), move("2", "1")], ["1", "2"]),
        ([move("1", None), move("2", "1"), move("1", "2"), move("2", "1", "rollback")], ["1", "2"]),
        ([move("5", "4"), move("6", "5")], ["4", "5", "6"]),
        ([move("1", None), move("3", "1", "rollback")], ["1", "3"]),
        ([move("1", None), move("9", "1", "elsewhere"), move("2", "9")], ["1", "9", "2"]),
    ],
)
def test_what_stands_under_an_alias(known: list[dict[str, Any]], stack: list[str]) -> None:
    assert standing(known) == stack


def test_back_twice_forward_by_name_and_what_others_did(tiny: Study, registry: str, digits_small: Data) -> None:
    points = sorted(tiny.frontier(), key=lambda point: point.accuracy)
    picked = [points[0].point_id, points[len(points) // 2].point_id, points[-1].point_id]
    assert len(set(picked)) == 3
    for point in picked:
        promote_study(tiny, model="digits", uri=registry, data=digits_small, point=point)
    assert rollback("digits", "champion", registry)["version"] == "2"
    assert rollback("digits", "champion", registry)["version"] == "1"
    with pytest.raises(InputError, match="none before it"):
        rollback("digits", "champion", registry)
    assert rollback("digits", "champion", registry, to="3") == {
        "model": "digits",
        "alias": "champion",
        "version": "3",
        "previous": "1",
    }
    with pytest.raises(InputError, match="is version 3 already"):
        rollback("digits", "champion", registry, to="3")
    with pytest.raises(InputError, match="no version '9'; it has 1, 2, 3"):
        rollback("digits", "champion", registry, to="9")
    assert rollback("digits", "champion", registry)["version"] == "1"
    registered = client(registry)
    registered.set_registered_model_alias("digits", "champion", "2")  # somebody clicked
    made = sorted((m["time"], m["version"]) for entry in history("digits", registry) for m in entry["moves"])
    assert len(made) == 7
    assert rollback("digits", "champion", registry)["version"] == "1"
    why = [m["why"] for m in moves(registered, "digits", "champion")]
    assert why == ["promote"] * 3 + ["rollback"] * 4 + ["elsewhere", "rollback"]
    registered.set_registered_model_tag("digits", MOVES + "champion", "no ledger")
    with pytest.raises(InputError, match="overwritten with 'no ledger'"):
        rollback("digits", "champion", registry)


def test_a_long_ledger_fits_into_its_tag(registry: str, tiny: Study) -> None:
    registered = client(registry)
    registered.create_registered_model("m")
    known = [{**move(str(i + 1), str(i)), "id": "0" * 12, "study": "s" * 40} for i in range(200)]
    registered.set_registered_model_tag("m", MOVES + "champion", json.dumps(known[-30:], separators=(",", ":")))
    with holding(registered, "m"):
        settled = settle(registered, "m", "champion")  # the alias is gone: one more entry
    text = registered.get_registered_model("m").tags[MOVES + "champion"]
    assert len(text) < 5000 and settled[-1]["version"] is None and json.loads(text)[-1]["why"] == "elsewhere"


def test_one_at_a_time_and_the_dead_are_not_waited_for(registry: str, tiny: Study) -> None:
    registered = client(registry)
    order: list[str] = []

    def other() -> None:
        with holding(registered, "m"):
            order.append("second")

    with holding(registered, "m") as lock:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.5)
        order.append("first")
        lock.check()
    thread.join(300)
    assert order == ["first", "second"]
    dead = json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "nonce": "x"})
    registered.create_registered_model("m" + LOCK, description=dead)
    with holding(registered, "m"):
        order.append("third")
    late = Lock(registered, "m")
    late.take()
    registered.delete_registered_model("m" + LOCK)
    with pytest.raises(RunError, match="taken over"):
        late.check()
    late.give()
    assert order[-1] == "third" and registered.search_registered_models() == []


# -- processes of their own ------------------------------------------------------------------------


def alone(context: Any, root: Path, name: str, die_before: str = "", limit: int = 0, **words: Any) -> tuple[int, Any]:
    """(exit code, answer) of a promotion in its own process."""
    answers = context.SimpleQueue()
    process = context.Process(target=promote_alone, args=(root, name, words, die_before, limit, None, answers))
    process.start()
    process.join(200)
    return process.exitcode, None if answers.empty() else answers.get()


@pytest.mark.parametrize(
    ("die_before", "versions", "promoted"),
    [
        ("search.promotion.promotion.register", 0, 0),  # after `promoting` was appended
        ("search.promotion.promotion.register+", 1, 0),  # a version, no alias
        ("search.promotion.ledger._write+", 1, 0),  # the move is written down, not made
        ("search.promotion.promotion.move_alias+", 1, 1),  # the alias moved, the journal does not know
    ],
)
def test_a_killed_promotion_is_finished_or_undone_by_the_next(
    tiny: Study, registry: str, digits_small: Data, die_before: str, versions: int, promoted: int
) -> None:
    root, point = tiny.folder.path.parent, point_of(tiny, "skipnet")
    code, _ = alone(processes(), root, "tiny", die_before, point=point)
    assert code == -signal.SIGKILL
    registered = client(registry)
    (half,) = tiny.state().half_promoted()
    assert half["point_id"] == point and half["version"] is None and tiny.state().promotions == []
    assert len(registered.search_model_versions("name='digits'")) == versions
    other = tiny.frontier()[-1].point_id
    record = promote_study(tiny, model="digits", alias="shadow", uri=registry, data=digits_small, point=other)
    state = tiny.state()
    assert state.half_promoted() == [] and len(state.promotions) == 1 + promoted
    aliases = {name: str(v) for name, v in registered.get_registered_model("digits").aliases.items()}
    if promoted:  # it was visible, so it is true: the journal has it now
        assert state.promotions[0]["id"] == half["id"] and aliases["champion"] == state.promotions[0]["version"]
    else:
        assert "champion" not in aliases and [m["why"] for m in _moves(registered)] == []
    assert aliases["shadow"] == record["version"]
    again = promote_study(tiny, model="digits", uri=registry, data=digits_small, point=point)
    assert again["test"] == half["test"]  # not measured a second time
    assert [m["why"] for m in _moves(registered)] == ["promote"]
    made = [v.tags["point_id"] for v in registered.search_model_versions("name='digits'")]
    assert sorted(made) == sorted({point, other})  # no point twice
    assert not [m.name for m in registered.search_registered_models() if m.name.endswith(LOCK)]
    runs = registered.search_runs(
        [e.experiment_id for e in registered.search_experiments()],
        filter_string="tags.`routefront.kind` = 'promotion' and attributes.status = 'RUNNING'",
    )
    assert list(runs) == []


def _moves(registered: Any) -> list[dict[str, Any]]:
    return [m for m in moves(registered, "digits", "champion") if not m.get("moving")]


def test_two_promotions_at_one_moment_leave_one_winner(tiny: Study, registry: str, digits_small: Data) -> None:
    root = tiny.folder.path.parent
    train(Study.create(spec("rival", seed=7), root=root, data=digits_small), digits_small)
    context = processes()
    answers, barrier = context.Queue(), context.Barrier(2)
    started = [
        context.Process(target=promote_alone, args=(root, name, {}, "", 0, barrier, answers))
        for name in ("tiny", "rival")
    ]
    for process in started:
        process.start()
    found = {name: (error, what) for name, error, what in (answers.get(timeout=300) for _ in started)}
    for process in started:
        process.join(60)
    registered = client(registry)
    champion = str(registered.get_model_version_by_alias("digits", "champion").version)
    ledger, lines = moves(registered, "digits", "champion"), {}
    for name in found:
        state = Study.load(name, root=root).state()
        assert state.half_promoted() == []
        lines[name] = state.promotions
    best = {name: Study.load(name, root=root).frontier()[-1] for name in found}
    better = max(best, key=lambda name: (best[name].accuracy, -best[name].macs))
    assert found[better][0] == "", found
    assert found[better][1]["version"] == champion == ledger[-1]["version"]
    assert [line["version"] for line in lines[better]] == [champion]
    other = next(name for name in found if name != better)
    if found[other][0]:  # it came second, and did not beat the champion that was not there when it looked
        assert found[other][0] == "RunError" and "gate champion" in found[other][1] and "not better" in found[other][1]
        assert lines[other] == [] and len(ledger) == 1
    else:  # it came first, and was beaten
        assert len(ledger) == 2 and ledger[-1]["previous"] == ledger[0]["version"] == lines[other][0]["version"]
    assert not [m.name for m in registered.search_registered_models() if m.name.endswith(LOCK)]


def test_a_full_disk_leaves_nothing_half_done(tiny: Study, registry: str, digits_small: Data) -> None:
    root, point = tiny.folder.path.parent, point_of(tiny, "static")
    largest = max(p.stat().st_size for p in root.rglob("*") if p.suffix in (".db", ".db-wal"))
    size = (tiny.folder.checkpoints / tiny.frontier()[0].checkpoint / "network.safetensors").stat().st_size
    code, answer = alone(processes(), root, "tiny", limit=min(size // 2, largest // 2), point=point)
    assert code == 0 and answer[1] in ("RunError", "InputError") and "\n" not in answer[2], answer
    registered = client(registry)
    assert registered.search_model_versions("name='digits'") == [] and tiny.state().promotions == []
    assert promote_study(tiny, model="digits", uri=registry, data=digits_small, point=point)["version"] == "1"
    assert tiny.state().half_promoted() == []


# -- the registry goes away ------------------------------------------------------------------------


@contextlib.contextmanager
def failing_server(answers: int) -> Iterator[str]:
    """A server that knows an empty registry and, after so many requests, nothing more."""
    left = [answers]

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            left[0] -= 1
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if left[0] < 0:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            missing = "registered-models" in self.path or "alias" in self.path
            body = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"} if missing else {}).encode()
            self.send_response(404 if missing else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("answers", [1, 2, 3])
def test_a_registry_that_goes_away_is_one_line_and_the_next_call_settles(
    tiny: Study, registry: str, digits_small: Data, answers: int
) -> None:
    with failing_server(answers) as uri, pytest.raises((RunError, InputError)) as caught:
        promote_study(tiny, model="digits", uri=uri, data=digits_small, method="static")
    assert "\n" not in str(caught.value) and "127.0.0.1" in str(caught.value)
    assert tiny.state().promotions == []
    assert promote_study(tiny, model="digits", uri=registry, data=digits_small, method="static")["version"] == "1"
    assert len(tiny.state().promotions) == 1


# -- changed after promotion -----------------------------------------------------------------------


def test_a_version_whose_files_or_source_changed_is_neither_loaded_nor_rolled_back_to(
    tiny: Study, registry: str, digits_small: Data, tmp_path: Path
) -> None:
    import sqlalchemy as sa

    points = sorted(tiny.frontier(), key=lambda point: point.accuracy)
    for point in (points[0], points[-1]):
        promote_study(tiny, model="digits", uri=registry, data=digits_small, point=point.point_id)
    registered = client(registry)
    place = Path(registered.get_model_version_download_uri("digits", "1").removeprefix("file://"))
    whole = tmp_path / "whole"
    shutil.copytree(place, whole)
    code = next(place.rglob("routed_classifier.py"))
    code.write_text(code.read_text() + "\nraise SystemExit('this ran')\n")
    for call in (lambda: load("digits/1", registry), lambda: rollback("digits", "champion", registry)):
        with pytest.raises(InputError, match="version 1 is not what was promoted") as caught:
            call()
        assert "\n" not in str(caught.value)
    shutil.rmtree(place)
    shutil.copytree(whole, place)
    assert load("digits/1", registry).version == "1"
    (place / "python_model.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="is not what was promoted"):
        load("digits/1", registry)
    (place / "python_model.pkl").unlink()
    with sa.create_engine(registry).begin() as connection:  # the version now points to the other's files
        other = registered.get_model_version_download_uri("digits", "2")
        connection.execute(sa.text("UPDATE model_versions SET storage_location = :s WHERE version = 1"), {"s": other})
    with pytest.raises(InputError, match="is not what was promoted"):
        load("digits/1", registry)
    registered.delete_model_version_tag("digits", "2", "model_sha256")
    with pytest.raises(InputError, match="was not promoted by routefront"):
        load("digits/2", registry)
