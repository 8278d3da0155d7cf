"""`routefront watch`: a study's page, live, on this machine only, read-only.

The server is the standard library's, bound to 127.0.0.1. It answers GET of three addresses and nothing
else, and no request changes anything. Other users of the machine reach the port, too: the address that is printed
carries a token, which the browser keeps as a cookie of this port; without either, nothing is shown. A page of another
site must not read it through a name that it points to this machine (DNS rebinding), so a request's Host has to be this
machine's own name and port.
What is sent follows the study's journal; it is rebuilt at most once for a change, and never more often
than a tenth of the time that takes.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from search.errors import InputError
from search.frontier.pool import StudyPoints
from search.report.build import report_of
from search.report.document import as_data
from search.report.importance import Importances, importances, results
from search.report.page import fresh_parts, page_html
from search.studies.follow import Followed

if TYPE_CHECKING:
    from search.report.paths.data import Paths
    from search.report.record import Report
    from search.studies.stored import StoredStudy

EVERY = 3.0
"""Seconds between two questions of a page."""
_PATIENCE, _SHARE = 10.0, 10.0
_COMPOSED = 60  # operating points that are composed for a page of a running study: a few seconds
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",
}


class Page:
    """What is sent: rebuilt from the journal when it has grown, kept otherwise. Used by several threads."""

    def __init__(self, study: StoredStudy) -> None:
        self._study, self._known = study, Followed()
        self._lock = threading.Lock()
        self._report: Report | None = None
        self._bodies: dict[str, bytes] = {}
        self._paths: Paths | None = None
        self._mattered: tuple[int, list[Importances]] = (0, [])
        self._together: tuple[int, dict[str, Any] | None] = (0, None)
        self._not_before = 0.0
        self.tag = ""

    def body(self, what: str) -> tuple[bytes, str]:
        """The page ("html") or its data ("json") as of now, and the tag of that state."""
        with self._lock:
            self._refresh()
            if what not in self._bodies:
                assert self._report is not None
                if what == "html":
                    text = page_html(self._report, live=EVERY, tag=self.tag)
                else:
                    text = as_data(fresh_parts(self._report))
                self._bodies[what] = text.encode()
            return self._bodies[what], self.tag

    def _refresh(self) -> None:
        if self._report is not None and time.monotonic() < self._not_before:
            return
        started = time.monotonic()
        grown = self._known.update(self._study)
        status = self._study.status()
        tag = hashlib.sha256(f"{self._known.state.seq} {status}".encode()).hexdigest()[:16]
        if grown or tag != self.tag or self._report is None:
            state = self._known.state
            found = results(state)
            self._report = report_of(
                self._study, self._known, StudyPoints(self._study, state), found, self._forests(found), self._drawn()
            )
            self._report = replace(self._report, cascades=self._cascades(self._report.cascades))
            self._bodies, self.tag = {}, tag
        self._not_before = time.monotonic() + min(_PATIENCE, _SHARE * (time.monotonic() - started))

    def _cascades(self, recorded: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The cascades that are shown: the recorded ones; of a study that composes itself and still searches, what its
        networks make so far, composed anew when a tenth more trials are over.
        """
        state = self._known.state
        if not self._study.spec.compose or (recorded and state.ended):
            return recorded
        if state.over > 1.1 * self._together[0]:
            from search.cascades.compose import composition

            found = None
            with contextlib.suppress(InputError):  # nothing can be composed yet
                found = composition([self._study], [state], most_members=2, most=_COMPOSED, splits=1)
            self._together = state.over, found
        return self._together[1] or recorded

    def _forests(self, found: list[Any]) -> list[Importances]:
        """Grown again when there are a tenth more trials: a forest takes a second."""
        if len(found) > 1.1 * self._mattered[0]:
            self._mattered = len(found), importances(found)
        return self._mattered[1]

    def _drawn(self) -> Paths:
        """The paths of trials as they were when the page was first asked for: t-SNE takes seconds."""
        from search.report.paths.data import paths_of

        if self._paths is None:
            self._paths = paths_of(self._study, self._known.state)
        return self._paths


class Watch:
    """A server of a study's page on 127.0.0.1; `port` 0 takes a free one. `InputError` where the port is taken."""

    def __init__(self, study: StoredStudy, port: int = 0) -> None:
        self.page = Page(study)
        self.page.body("html")  # what is wrong with the study is said before a port is open
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise InputError(f"port {port} cannot be used: {error.strerror}; --port 0 takes a free one") from None
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.token = secrets.token_urlsafe(24)
        self._server.page, self._server.token = self.page, self.token  # type: ignore[attr-defined]
        own = ("127.0.0.1", "localhost", "[::1]")
        self._server.hosts = {f"{name}:{self.port}" for name in own}  # type: ignore[attr-defined]

    @property
    def address(self) -> str:
        """Where the page is, for those who know the token."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def serve(self) -> None:
        """Answer until interrupted or closed."""
        try:
            self._server.serve_forever()
        except KeyboardInterrupt:
            return
        finally:
            self._server.server_close()

    def close(self) -> None:
        """End `serve`."""
        self._server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the page, its data and nothing else."""

    server_version, sys_version = "routefront", ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # every other method
            return self._refuse_method
        raise AttributeError(name)

    def _refuse_method(self) -> None:
        self.close_connection = True  # a body that nobody reads must not be taken for the next request
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, b"read-only: GET and HEAD\n", "text/plain", Allow="GET, HEAD")

    def _answer(self, *, with_body: bool) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].strip().lower() not in self.server.hosts:  # type: ignore[attr-defined]
            self._send(HTTPStatus.FORBIDDEN, b"this page is only served to this machine\n", "text/plain", with_body)
            return
        path, _, query = self.path.partition("?")
        token, cookie = self.server.token, f"routefront-{self.server.server_port}"  # type: ignore[attr-defined]
        kept = SimpleCookie(self.headers.get("Cookie", ""))
        given = *parse_qs(query).get("token", ()), *(kept[name].value for name in (cookie,) if name in kept)
        if not any(secrets.compare_digest(one.encode(), token.encode()) for one in given):
            why = b"the address that `routefront watch` printed ends with ?token=...: open that one\n"
            self._send(HTTPStatus.FORBIDDEN, why, "text/plain", with_body)
            return
        kind = {"/": "html", "/index.html": "html", "/data.json": "json"}.get(path)
        if kind is None:
            self._send(HTTPStatus.NOT_FOUND, b"there is / and /data.json\n", "text/plain", with_body)
            return
        try:
            body, tag = self.server.page.body(kind)  # type: ignore[attr-defined]
        except (InputError, OSError) as error:
            text = " ".join(str(error).split()).encode() + b"\n"
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, text, "text/plain", with_body)
            return
        if kind == "json" and self.headers.get("If-None-Match", "").strip() in (tag, f'"{tag}"'):
            self._send(HTTPStatus.NOT_MODIFIED, b"", "application/json", with_body, ETag=f'"{tag}"')
            return
        content = "text/html" if kind == "html" else "application/json"
        remembered = {"Set-Cookie": f"{cookie}={token}; HttpOnly; SameSite=Strict; Path=/"} if kind == "html" else {}
        self._send(HTTPStatus.OK, body, content, with_body, ETag=f'"{tag}"', **remembered)

    def _send(self, status: HTTPStatus, body: bytes, kind: str, with_body: bool = True, **headers: str) -> None:
        self.send_response(status)
        if status is not HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        for name, value in {**_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and status is not HTTPStatus.NOT_MODIFIED:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged: a page asks every few seconds."""
