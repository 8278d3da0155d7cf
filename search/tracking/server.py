"""Where MLflow records, whether it answers, and how to import it without its chatter."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from search.errors import InputError
from search.journal.database import sqlite_address
from search.journal.reading import check_files, file_of, open_reader
from search.tracking.schema import check_schema

_ANSWER_SECONDS = 4.5
_DATABASES = ("postgresql", "mysql", "mssql")


def quiet() -> ModuleType:
    """`mlflow`, imported (3 to 4 s the first time) with short time-outs and without its chatter.

    Retries are ours: MLflow's own would repeat the creation of a run whose answer was lost.
    Values that the environment already has are left alone.
    """
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback of what is raised as well
    return mlflow


@contextlib.contextmanager
def using(uri: str, registry_uri: str | None = None) -> Iterator[ModuleType]:
    """`mlflow` with these addresses; the fluent functions (`log_model`) know no other way."""
    mlflow = quiet()
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(registry_uri or uri)
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(before[names[0]])  # pyright: ignore[reportArgumentType]
        mlflow.set_registry_uri(before[names[1]] or "")
        for name, value in before.items():  # MLflow writes them for its children
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def default_uri(studies_root: Path) -> str:
    """The database beside the studies: no server, shared by all studies of a root."""
    path = Path(studies_root).resolve() / "mlflow.db"
    address = sqlite_address(path)
    if address == f"sqlite:///{path}":
        return address
    # By this name of the same driver MLflow leaves the path alone: of `sqlite:///` it makes a folder as it is written.
    return sa.make_url(address).set(drivername="sqlite+pysqlite").render_as_string(hide_password=False)


def chosen_uri(given: str | None, studies_root: Path) -> str:
    """Where every command records and looks for models: `given` (``--tracking``, else ``tracking.uri`` of the study),
    else MLFLOW_TRACKING_URI, else `default_uri`.
    """
    return given or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(studies_root)


def is_server(uri: str) -> bool:
    """Whether an address is that of a tracking server."""
    return uri.startswith(("http://", "https://"))


def shown(uri: str) -> str:
    """An address without its user and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def artifact_location(uri: str, studies_root: Path, experiment: str) -> str | None:
    """Where an experiment's artifacts go: a server decides for itself, a database keeps them beside it."""
    if is_server(uri):
        return None
    url = sa.make_url(uri)
    beside = Path(url.database).resolve().parent if url.get_backend_name() == "sqlite" and url.database else None
    folder = (beside or Path(studies_root).resolve()) / "mlflow-artifacts" / quote(experiment, safe="")
    return folder.as_uri()


def check_server(uri: str, instead: str = " or use --tracking off", *, reading: bool = False) -> None:
    """Raise `InputError` where MLflow cannot record at `uri`; takes at most 5 s and imports no mlflow.

    ``"off"`` is good: nothing is recorded. `instead`: what the message offers beside starting the server. With
    `reading` a database file need not be writable, nor be there.
    """
    if uri == "off":
        return
    if is_server(uri):
        _check_http(uri, instead)
        return
    try:
        url = sa.make_url(uri)
    except ArgumentError:
        raise InputError(
            f"tracking address {uri!r} is none that MLflow records to; use sqlite:///FILE, http://HOST:PORT or off"
        ) from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        file_of(uri)  # refuses what would name another file
        _check_file(uri, url.database, reading)
    elif backend in _DATABASES:
        _check_database(url, instead)
    else:
        raise InputError(f"tracking address {shown(uri)!r}: MLflow knows no {backend!r}; use sqlite:/// or http://")


def _check_http(uri: str, instead: str) -> None:
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(_ask(uri)), daemon=True)  # a resolver can hang
    asking.start()
    asking.join(_ANSWER_SECONDS)
    reason = answers[0] if answers else f"no answer within {_ANSWER_SECONDS:g} s"
    if reason.startswith(("refuses", "asks")):
        raise InputError(f"tracking server at {shown(uri)} {reason}")
    if reason:
        raise InputError(f"tracking server at {shown(uri)} does not answer ({reason}); start it{instead}")


def _ask(uri: str) -> str:
    """Empty where the server takes requests, else why not."""
    address = shown(uri).rstrip("/") + "/api/2.0/mlflow/experiments/search?max_results=1"
    request = urllib.request.Request(address, headers=_credentials(uri))
    try:
        with urllib.request.build_opener(_Following).open(request, timeout=_ANSWER_SECONDS) as answer:
            good = answer.headers.get_content_type() == "application/json"
            return "" if good else "something else than MLflow is listening there"
    except urllib.error.HTTPError as error:
        if error.code == 401:
            user = _user(uri)[0]
            said = f"refuses user {user!r} with this password; check" if user else "asks for a user and password; set"
            return f"{said} MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        hint = "; does its --allowed-hosts name this host and port?" if error.code == 403 else ""
        return f"HTTP {error.code} {error.reason}{hint}"
    except urllib.error.URLError as error:
        return str(getattr(error.reason, "strerror", None) or error.reason)
    except HTTPException:  # its words hold a part of the address
        return "this is no address of a server"
    except (OSError, ValueError) as error:
        return str(error)


class _Following(urllib.request.HTTPRedirectHandler):
    """Where a server sends on to another one, user and password stay behind."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The next request, without credentials unless it goes to the same host."""
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urlsplit(following.full_url).hostname != urlsplit(req.full_url).hostname:
            following.headers.pop("Authorization", None)
        return following


def _credentials(uri: str) -> dict[str, str]:
    user, password = _user(uri)
    if user:
        return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _user(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    user = parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    return user, parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")


def _check_file(uri: str, database: str | None, reading: bool) -> None:
    if not database or database == ":memory:":
        raise InputError(f"tracking address {uri!r} names no file; write sqlite:////path/to/mlflow.db")
    path = Path(database)
    if not reading:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"tracking folder {path.parent} cannot be created: {error.strerror}") from None
        for place in (path.parent, path):
            if place.exists() and not os.access(place, os.W_OK):
                raise InputError(f"tracking database {path} cannot be written; choose another or use --tracking off")
    if path.exists():
        check_files(path)
        _asked(open_reader(uri), str(path))


def _check_database(url: sa.URL, instead: str) -> None:
    try:
        arguments = {"connect_timeout": 4} if url.get_backend_name() == "postgresql" else {}
        _asked(sa.create_engine(url, connect_args=arguments), url.render_as_string(hide_password=True))
    except (SQLAlchemyError, ImportError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise InputError(
            f"tracking database at {url.render_as_string(hide_password=True)} does not answer ({reason});"
            f" start it{instead}"
        ) from None


def _asked(engine: sa.Engine, place: str) -> None:
    try:
        with engine.connect() as connection:
            check_schema(connection, place)
    finally:
        engine.dispose()


def all_of(search: Callable[..., Any], experiment: str, identity: str, size: int) -> Iterator[Any]:
    """All that a search of `MlflowClient` finds of a study in an experiment, asked for in pages of `size`."""
    token = None
    while True:
        page = search(
            [experiment], filter_string=f"tags.`routefront.study_id` = '{identity}'", max_results=size, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return
