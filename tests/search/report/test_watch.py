"""The live page: what it serves, to whom, that it follows the journal, and that nothing can be written through it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.errors import InputError
from search.report.watch import Watch
from tests.support.kept_study import keep


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from tests.support.story import Story

    one = Story()
    trial = one.ask(0, "static", variant="<img src=x onerror=alert(1)>")
    one.report(trial, 1, [(0.9, 1e6), (0.95, 2e6)])
    study = keep(one, tmp_path_factory.mktemp("studies"), "live")
    kept = study.folder.checkpoints / trial / "epoch-0001"
    kept.mkdir(parents=True)
    (kept / "state.json").touch()
    server = Watch(study)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    yield server, study, one
    server.close()
    thread.join(timeout=300)


def ask(server: Watch, path: str = "/", method: str = "GET", body: bytes | None = None, **headers: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    connection.putrequest(method, path, skip_host="Host" in headers)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    for name, value in {"Cookie": f"routefront-{server.port}={server.token}", **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    answer = connection.getresponse()
    answer.text = answer.read().decode()  # type: ignore[attr-defined]
    connection.close()
    return answer


def test_the_page_and_its_data(watched: Any) -> None:
    server, study, _ = watched
    page = ask(server)
    assert page.status == 200 and page.getheader("Content-Type") == "text/html; charset=utf-8"
    assert page.getheader("X-Frame-Options") == "DENY" and page.getheader("Cache-Control") == "no-store"
    assert "connect-src 'self'" in page.text and 'data-live="3"' in page.text and "<img src=x" not in page.text
    data = ask(server, "/data.json")
    known = json.loads(data.text)
    assert data.getheader("Content-Type").startswith("application/json") and data.getheader("ETag") in (
        f'"{server.page.tag}"',
    )
    assert f"routefront promote live --studies {study.folder.path.parent}" == known["document"]["promote"]
    assert known["document"]["trials"][0]["kept"] == [1] and "<img src=x" not in "".join(known["sections"].values())
    head = ask(server, "/data.json", "HEAD")
    assert head.status == 200 and head.text == "" and int(head.getheader("Content-Length")) == len(data.text.encode())


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "localhost:{port}.evil"]
)
def test_other_names_of_this_machine_are_refused(watched: Any, host: str) -> None:
    server, _, _ = watched
    for path in ("/", "/data.json"):
        answer = ask(server, path, Host=host.format(port=server.port))
        assert answer.status == 403 and "live" not in answer.text
    for own in ("localhost", "127.0.0.1", "[::1]"):
        assert ask(server, "/nothing", Host=f"{own}:{server.port}").status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "X"])
def test_nothing_is_written(watched: Any, method: str) -> None:
    server, study, _ = watched
    before = study.state().seq
    answer = ask(server, "/data.json", method, body=b'{"stop": true}')
    assert answer.status == 405 and answer.getheader("Allow") == "GET, HEAD"
    assert study.state().seq == before and not study.folder.stop.exists()


@pytest.mark.parametrize("path", ["/../study.toml", "/control.db", "/%2e%2e/control.db", "/data.json/x"])
def test_no_other_address_exists(watched: Any, path: str) -> None:
    assert ask(watched[0], path).status == 404


def test_it_follows_the_journal(watched: Any) -> None:
    server, study, one = watched
    tag = ask(server, "/data.json").getheader("ETag")
    server.page._not_before = 0.0
    unchanged = ask(server, "/data.json", If_None_Match=tag)
    assert unchanged.status == 304 and unchanged.text == ""
    journal = study.journal()
    journal.acquire()
    done = len(one.events)
    one.report(one.ask(1, "skipnet"), 1, [(0.99, 1.5e6)])
    for event in one.events[done:]:
        journal.append(event.kind, event.payload, event.trial)
    journal.close()
    server.page._not_before = 0.0
    fresh = ask(server, "/data.json", If_None_Match=tag)
    known = json.loads(fresh.text)
    assert fresh.status == 200 and fresh.getheader("ETag") != tag
    assert [t["id"] for t in known["document"]["trials"]] == ["t0000", "t0001"] and "skipnet" in known["sections"][
        "trials"
    ]
    assert len(known["document"]["front"]) == 2 and known["document"]["total"] == 3
    assert ask(server, If_None_Match=tag).text.count("t0001-1-0") >= 1


def test_it_is_bound_to_this_machine_and_says_what_is_wrong(watched: Any, tmp_path: Path) -> None:
    server, study, _ = watched
    assert server._server.server_address[0] == "127.0.0.1" and server.address.startswith(
        f"http://127.0.0.1:{server.port}/?token="
    )
    with pytest.raises(InputError, match=f"port {server.port} cannot be used"):
        Watch(study, server.port)
    control = study.folder.control
    away = control.rename(tmp_path / "control.db")
    server.page._not_before = 0.0
    answer = ask(server, "/data.json")
    assert answer.status == 503 and "no journal at" in answer.text and "Traceback" not in answer.text
    away.rename(control)


def test_another_user_of_the_machine_sees_nothing_without_the_token(watched: Any) -> None:
    server, _, _ = watched
    cookie = f"routefront-{server.port}"
    for path in ("/", "/data.json", "/?token=", "/?token=wrong", "/nothing"):
        for value in ("", "other=1", f"{cookie}=wrong", f"{cookie}=", ";;=\x7f"):
            answer = ask(server, path, Cookie=value)
            assert answer.status == 403 and "live" not in answer.text and server.token not in answer.text
    first = ask(server, server.address.partition(str(server.port))[2], Cookie="")
    assert first.status == 200
    kept = first.getheader("Set-Cookie")
    assert kept == f"{cookie}={server.token}; HttpOnly; SameSite=Strict; Path=/"
    assert ask(server, "/data.json", Cookie=kept.partition(";")[0]).status == 200
