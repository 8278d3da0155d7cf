"""The model registry: what an alias points to, where it pointed before, and the models behind it."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from search.errors import InputError
from search.mlflow_client import answering, check_server, is_server, quiet, shown, using
from spaces.space import nearest

_HISTORY = "routefront.alias."  # tags of a registered model: the moves of its aliases, newest last
_MOVES = 40  # how many are kept; a tag holds 5000 characters
_ROWS = 1024


@dataclass(slots=True)
class Registered:
    """A model of the registry, loaded. `serving`: what it was promoted with (``serving.json``)."""

    name: str
    version: str
    alias: str | None
    serving: dict[str, Any]
    tags: dict[str, str] = field(default_factory=dict)
    model: Any = None

    @property
    def shown(self) -> str:
        """``name@alias (version 3)`` or ``name/3``."""
        return f"{self.name}@{self.alias} (version {self.version})" if self.alias else f"{self.name}/{self.version}"


def client_at(uri: str, *, must_exist: bool = True) -> Any:
    """An `MlflowClient`; `InputError` where nothing answers (or, for a file, where there is none yet)."""
    check_server(uri)
    if must_exist and not is_server(uri):
        url = sa.make_url(uri)
        if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
            raise InputError(f"no model registry at {shown(uri)}; nothing was promoted there yet")
    return quiet().MlflowClient(tracking_uri=uri, registry_uri=uri)


def check_names(model: str, alias: str) -> None:
    """Raise `InputError` for a name or an alias that the registry would refuse."""
    if not re.fullmatch(r"[^/:@\s][^/:@]*", model):
        raise InputError(f"model name {model!r} is not possible: it must not be empty or hold '/', ':' or '@'")
    reserved = re.fullmatch(r"v\d+|latest", alias, re.IGNORECASE)
    if reserved or not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", alias) or alias.isdigit():
        raise InputError(f"alias {alias!r} is not possible: letters, digits, '_' and '-', and no version such as v1")


# -- asking ----------------------------------------------------------------------------------------


def resolve(client: Any, name: str, *, version: str | None = None, alias: str | None = None) -> Any:
    """MLflow's model version; `InputError` with the nearest names where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise InputError(f"the model registry refuses: {error.message}") from None
    try:
        model = client.get_registered_model(name)
    except MlflowException:
        known = [found.name for found in client.search_registered_models()]
        hint = nearest(name, known) if known else "; nothing was promoted yet"
        raise InputError(f"no registered model {name!r}{hint}") from None
    if alias is not None:
        hint = nearest(alias, list(model.aliases)) if model.aliases else "; it has no alias"
        raise InputError(f"model {name!r} has no alias {alias!r}{hint}")
    versions = sorted(int(found.version) for found in client.search_model_versions(f"name='{name}'"))
    raise InputError(f"model {name!r} has no version {version!r}; it has {', '.join(map(str, versions)) or 'none'}")


def split_name(model: str) -> tuple[str, str | None, str | None]:
    """(name, version, alias) of ``NAME@ALIAS`` or ``NAME/VERSION``."""
    match = re.fullmatch(r"([^/@:\s]+)(?:@([^/@:\s]+)|/(\d+))", model)
    if match is None:
        raise InputError(f"model {model!r}: write NAME@ALIAS or NAME/VERSION, for example digits@champion")
    return match[1], match[3], match[2]


def load(model: str, uri: str) -> Registered:
    """The model behind ``NAME@ALIAS`` or ``NAME/VERSION``; `InputError` where there is none or it is damaged."""
    name, version, alias = split_name(model)
    client = client_at(uri)
    found = resolve(client, name, version=version, alias=alias)
    with using(uri) as mlflow, warnings.catch_warnings(record=True):  # it would have type hints
        try:
            loaded = mlflow.pyfunc.load_model(f"models:/{name}/{found.version}")
        except Exception as error:  # download, damaged files, code: whatever comes out, it is this model
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"model {name} version {found.version} cannot be loaded: {reason}") from error
    serving = loaded.metadata.metadata or {}
    if "knobs" not in serving:
        raise InputError(f"model {name} version {found.version} was not promoted by routefront")
    return Registered(name, str(found.version), alias, serving, dict(found.tags), loaded)


def predict(
    registered: Registered, images: np.ndarray, *, knobs: dict[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows label, class, confidence, macs (and exit) for uint8 `images` (n, channels, size, size).

    `knobs` replace some of the promoted ones. Raises `InputError` for a wrong shape or knob.
    """
    from mlflow.exceptions import MlflowException

    task = registered.serving["task"]
    shape = (task["channels"], task["size"], task["size"])
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(
            f"{registered.shown} takes uint8 images of shape (n, {', '.join(map(str, shape))}),"
            f" not {images.dtype} of shape {images.shape}"
        )
    params = {"knobs": json.dumps(knobs)} if knobs else None
    for start in range(0, len(images), _ROWS):
        try:
            table = registered.model.predict(images[start : start + _ROWS], params=params)
        except MlflowException as error:
            raise InputError(f"{registered.shown}: {error.message.splitlines()[0]}") from None
        yield from table.to_dict("records")


def history(model: str, uri: str) -> list[dict[str, Any]]:
    """Every version of a model, newest first: version, aliases, time (seconds since 1970), evidence (tags)."""
    client = client_at(uri)
    versions = client.search_model_versions(f"name='{model}'") if "'" not in model else []
    if not versions:
        resolve(client, model, version="1")  # says which models there are
    aliases: dict[str, list[str]] = {}
    for alias, version in client.get_registered_model(model).aliases.items():
        aliases.setdefault(str(version), []).append(alias)
    return [
        {
            "model": model,
            "version": str(found.version),
            "aliases": sorted(aliases.get(str(found.version), [])),
            "time": found.creation_timestamp / 1000,
            **found.tags,
        }
        for found in sorted(versions, key=lambda found: -int(found.version))
    ]


# -- moving aliases --------------------------------------------------------------------------------


def current_version(client: Any, model: str, alias: str) -> str | None:
    """The version that an alias points to, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(model, alias).version)
    except MlflowException:
        return None


def moves(client: Any, model: str, alias: str) -> list[dict[str, Any]]:
    """The moves of an alias, oldest first: version, previous, time, why (promote or rollback)."""
    return json.loads(client.get_registered_model(model).tags.get(_HISTORY + alias, "[]"))


def move_alias(client: Any, model: str, alias: str, version: str, why: str) -> str | None:
    """Point an alias to a version; the version before. The move is written down before it is made."""
    previous = current_version(client, model, alias)
    known = moves(client, model, alias)
    if previous == version:  # again, after a crash perhaps: what was written down still holds
        return known[-1]["previous"] if known and known[-1]["version"] == version else None
    if not (known and known[-1]["version"] == version and known[-1]["previous"] == previous):
        known.append({"version": version, "previous": previous, "time": round(time.time()), "why": why})
        client.set_registered_model_tag(model, _HISTORY + alias, json.dumps(known[-_MOVES:], separators=(",", ":")))
    client.set_registered_model_alias(model, alias, version)
    return previous


def rollback(model: str, alias: str, uri: str) -> dict[str, Any]:
    """Point an alias to the version before its last promotion: {model, alias, version, previous}.

    Raises `InputError` where there is no such model or alias, or nothing before.
    """
    client = client_at(uri)
    version = str(resolve(client, model, alias=alias).version)
    known = [move for move in moves(client, model, alias) if move["why"] == "promote" and move["version"] == version]
    target = known[-1]["previous"] if known else None
    if target is None:
        raise InputError(f"{model}@{alias} is version {version}, and there is none before it to go back to")
    resolve(client, model, version=target)
    with answering(uri):
        move_alias(client, model, alias, target, "rollback")
    return {"model": model, "alias": alias, "version": target, "previous": version}
