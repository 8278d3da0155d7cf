"""The ledger of a registered model: every move of its aliases, kept in the registry itself.

MLflow overwrites an alias and knows no compare-and-set. What it does know is that a registered
model's name is taken once, in one transaction: `holding` takes a name beside the model's and so lets
one process at a time move aliases. A move is written down as "moving", then made, then confirmed;
the next one to hold the lock finds what a killed process left and settles it: a move that is not
visible is struck out, one that is visible is confirmed, and an alias that was set past this ledger is
entered as such.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import socket
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from search.errors import InputError, RunError
from search.journal.lease import alive
from search.tracking.server import shown

LOCK = ".promoting"  # what the name of a model's lock ends with
MOVES = "routefront.alias."  # tags of a registered model: the moves of an alias, newest last
_MOST = 4900  # characters; a database keeps 5000
_STALE = 30.0  # seconds without a change after which the holder on another host counts as dead
_WAIT = 60.0


@contextlib.contextmanager
def answering(uri: str, *, asked: bool = False) -> Iterator[None]:
    """Turns whatever stops a registry, a disk or a connection in the middle into a `RunError` of one line.

    `asked`: nothing is to be written.
    """
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from safetensors import SafetensorError

    try:
        yield
    except (MlflowException, CommandError, OSError, SafetensorError, SQLAlchemyError) as error:
        text = str(getattr(error, "message", None) or getattr(error, "orig", None) or error) or type(error).__name__
        said = text.partition("[SQL: ")[0]  # SQLAlchemy's statements are no help to a reader
        said = " ".join(said.split())[:300]
        if asked:
            raise RunError(f"the registry at {shown(uri)} does not answer: {said}") from error
        raise RunError(
            f"the registry at {shown(uri)} did not take it: {said}; what is half done is"
            " finished or undone by the next promote"
        ) from error


def not_found(error: Any) -> bool:
    """Whether MLflow says that something does not exist (of an alias it says INVALID_PARAMETER_VALUE)."""
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def unseen(error: Any) -> bool:
    """Whether something does not exist as far as this user may know: a server with users says so of a name that nobody
    has taken yet, too. Who then writes is told what he may not.
    """
    return not_found(error) or error.error_code == "PERMISSION_DENIED"


# -- one at a time ---------------------------------------------------------------------------------


@contextlib.contextmanager
def holding(client: Any, model: str) -> Iterator[Lock]:
    """Be the only one to move aliases of a model; waits for another, and takes over from a dead one."""
    lock = Lock(client, model)
    lock.take()
    try:
        yield lock
    finally:
        lock.give()


class Lock:
    """A registered model's name that exists while somebody moves aliases; its description says who."""

    def __init__(self, client: Any, model: str) -> None:
        self._client, self._model, self._name = client, model, model + LOCK
        self._mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "nonce": secrets.token_hex(8)})

    def take(self) -> None:
        """Take the name; `RunError` where another keeps it for a minute."""
        from mlflow.exceptions import MlflowException

        begun = time.monotonic()
        seen, since = "", begun
        while time.monotonic() - begun < _WAIT:
            try:
                self._client.create_registered_model(self._name, description=self._mine)
                return
            except MlflowException as error:
                # of a name that is given back just now, MLflow says that it does not exist
                if error.error_code != "RESOURCE_ALREADY_EXISTS" and not not_found(error):
                    raise
            holder = self.holder()
            if holder != seen:
                seen, since = holder, time.monotonic()
            elif holder and (_dead(holder) or time.monotonic() - since > _STALE):
                self._remove()
            time.sleep(random.uniform(0.02, 0.1))
        raise RunError(f"another process keeps {self._name} in the registry ({seen}) and moves nothing; try again")

    def holder(self) -> str:
        """What the holder says of itself; empty where nobody holds it."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_registered_model(self._name).description)
        except MlflowException as error:
            if not_found(error):
                return ""
            if unseen(error):
                return "a user whose models are not shown to this one"
            raise

    def check(self) -> None:
        """Raise `RunError` where the lock was taken over (this process was taken for dead)."""
        if self.holder() != self._mine:
            raise RunError(f"{self._name} was taken over by another process; this one moves nothing more")

    def give(self) -> None:
        """Give the name back, where it is still ours; a registry that is gone is left to the next one."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):
            if self.holder() == self._mine:
                self._remove()

    def _remove(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.delete_registered_model(self._name)
        except MlflowException as error:
            if not not_found(error):
                raise


def _dead(holder: str) -> bool:
    try:
        return not alive(json.loads(holder))
    except (ValueError, KeyError, TypeError):
        return False


# -- moves -----------------------------------------------------------------------------------------


def current_version(client: Any, model: str, alias: str) -> str | None:
    """The version that an alias points to, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(model, alias).version)
    except MlflowException as error:
        if unseen(error):
            return None
        raise


def moves(client: Any, model: str, alias: str) -> list[dict[str, Any]]:
    """The moves of an alias, oldest first: id, version, previous, time, why (promote, rollback, elsewhere)."""
    return _read(client.get_registered_model(model).tags.get(MOVES + alias, "[]"))


def all_moves(tags: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The moves of every alias, from the tags of a registered model."""
    return {name.removeprefix(MOVES): _read(text) for name, text in tags.items() if name.startswith(MOVES)}


def _read(text: str) -> list[dict[str, Any]]:
    try:
        return [dict(move) for move in json.loads(text)]
    except (ValueError, TypeError):
        raise InputError(f"the ledger in the registry was overwritten with {text[:60]!r}") from None


def _write(client: Any, model: str, alias: str, known: list[dict[str, Any]]) -> None:
    while len(text := json.dumps(known, separators=(",", ":"))) > _MOST:
        known = known[1:]
    client.set_registered_model_tag(model, MOVES + alias, text)


def settle(client: Any, model: str, alias: str) -> list[dict[str, Any]]:
    """The moves, after they were made to agree with the alias; to be called with the lock held."""
    known, now = moves(client, model, alias), current_version(client, model, alias)
    settled = [move for move in known if not move.get("moving")]
    left = next((move for move in known if move.get("moving")), None)
    if left is not None and left["version"] == now:
        settled.append({name: value for name, value in left.items() if name != "moving"})
    if now != (settled[-1]["version"] if settled else None):
        before = settled[-1]["version"] if settled else None
        settled.append({"version": now, "previous": before, "time": round(time.time()), "why": "elsewhere"})
    if settled != known:
        _write(client, model, alias, settled)
    return settled


def move_alias(
    client: Any, lock: Lock, model: str, alias: str, version: str, why: str, *, identity: str = "", study: str = ""
) -> str | None:
    """Point an alias to a version; the version before. To be called with the lock held, settled before."""
    known = settle(client, model, alias)
    previous = known[-1]["version"] if known else None
    if previous == version:
        return next((move["previous"] for move in reversed(known) if move["version"] == version), None)
    move = {"version": version, "previous": previous, "time": round(time.time()), "why": why}
    move |= {name: value for name, value in (("id", identity), ("study", study[:40])) if value}
    lock.check()
    _write(client, model, alias, [*known, {**move, "moving": True}])
    client.set_registered_model_alias(model, alias, version)
    lock.check()
    _write(client, model, alias, [*known, move])
    return previous


def standing(known: list[dict[str, Any]]) -> list[str | None]:
    """The versions under an alias, the present one last: a promotion adds one, a rollback takes some away."""
    stack: list[str | None] = [known[0]["previous"]] if known and known[0]["previous"] else []
    for move in known:
        version = move["version"]
        if move["why"] == "rollback" and version in stack:
            del stack[len(stack) - stack[::-1].index(version) :]
        elif not stack or stack[-1] != version:
            stack.append(version)
    return stack


# -- what is half done -----------------------------------------------------------------------------


def confirmed(client: Any, model: str, alias: str, identity: str) -> dict[str, Any] | None:
    """The move that a promotion made, or None; settles first, under the lock."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(model)
    except MlflowException as error:
        if unseen(error):
            return None
        raise
    with holding(client, model):
        return next((move for move in settle(client, model, alias) if move.get("id") == identity), None)
