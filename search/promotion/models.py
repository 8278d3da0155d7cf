"""The model registry: what an alias points to, where it pointed before, and the models behind it."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from search.errors import InputError, RunError
from search.mlflow_client import check_server, is_server, quiet, shown, using
from search.promote_ledger import LOCK, all_moves, answering, holding, move_alias, settle, standing
from search.registration import DIGEST, PROMOTION, fetched, folder_digest
from spaces.space import nearest

_ROWS = 1024


@dataclass(slots=True)
class Registered:
    """A model of the registry, loaded. `serving`: what it was promoted with (``serving.json``).

    `files`: the folder that it runs from, gone when this object is.
    """

    name: str
    version: str
    alias: str | None
    serving: dict[str, Any]
    tags: dict[str, str] = field(default_factory=dict)
    model: Any = None
    files: tempfile.TemporaryDirectory[str] | None = None

    @property
    def shown(self) -> str:
        """``name@alias (version 3)`` or ``name/3``."""
        return f"{self.name}@{self.alias} (version {self.version})" if self.alias else f"{self.name}/{self.version}"


def no_registry(uri: str) -> bool:
    """Whether an address is that of a file which does not exist yet."""
    if is_server(uri):
        return False
    url = sa.make_url(uri)
    return url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists()


def client_at(uri: str, *, must_exist: bool = True) -> Any:
    """An `MlflowClient`; `InputError` where nothing answers (or, for a file, where there is none yet)."""
    check_server(uri)
    if must_exist and no_registry(uri):
        raise InputError(f"no model registry at {shown(uri)}; nothing was promoted there yet")
    return quiet().MlflowClient(tracking_uri=uri, registry_uri=uri)


def check_names(model: str, alias: str) -> None:
    """Raise `InputError` for a name or an alias that the registry would refuse."""
    if model.endswith(LOCK):
        raise InputError(f"model name {model!r} is not possible: names that end with {LOCK!r} are the registry's locks")
    if not re.fullmatch(r"[^/:@\s][^/:@']*", model):
        raise InputError(f"model name {model!r} is not possible: it must not be empty or hold / : @ or quotes")
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
        known = [found.name for found in client.search_registered_models() if not found.name.endswith(LOCK)]
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
    with answering(uri):
        found = resolve(client, name, version=version, alias=alias)
    scratch = tempfile.TemporaryDirectory(prefix="routefront-", ignore_cleanup_errors=True)
    with using(uri) as mlflow, warnings.catch_warnings(record=True):  # it would have type hints
        folder = _checked(mlflow, name, found, Path(scratch.name))
        try:
            loaded = mlflow.pyfunc.load_model(str(folder))
        except Exception as error:  # code, weights: whatever comes out, it is this model
            raise _not_loaded(name, found.version, error) from error
    serving = loaded.metadata.metadata or {}
    return Registered(name, str(found.version), alias, serving, dict(found.tags), loaded, scratch)


def checkpoint_of(model: str, uri: str, scratch: Path) -> Path:
    """The checkpoint folder of ``NAME@ALIAS`` or ``NAME/VERSION`` below an empty folder; its files are those promoted.

    Raises `InputError` where there is no such model or it is damaged. Nothing of it is run.
    """
    name, version, alias = split_name(model)
    client = client_at(uri)
    with answering(uri):
        found = resolve(client, name, version=version, alias=alias)
    with using(uri) as mlflow:
        return _checked(mlflow, name, found, scratch) / "artifacts" / "model"


def _not_loaded(name: str, version: Any, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"model {name} version {version} cannot be loaded: {reason}")


def _checked(mlflow: Any, name: str, found: Any, scratch: Path) -> Path:
    """The files of a version in a folder of our own, if they are those that were promoted.

    They hold code that loading runs, so they are compared before anything reads them. Raises
    `InputError` where they or the version's source were changed, or cannot be fetched.
    """
    promoted = found.tags.get(DIGEST)
    if promoted is None:
        raise InputError(f"model {name} version {found.version} was not promoted by routefront")
    try:
        folder = fetched(mlflow, f"models:/{name}/{found.version}", scratch / "model")
        digest = folder_digest(folder)
    except Exception as error:  # a download fails in many ways
        raise _not_loaded(name, found.version, error) from error
    if digest != promoted:
        raise InputError(
            f"model {name} version {found.version} is not what was promoted: the files at its source have digest"
            f" {digest[:12]}, promoted was {promoted[:12]}; roll back, or promote again"
        )
    return folder


def predict(
    registered: Registered,
    images: np.ndarray,
    *,
    knobs: dict[str, Any] | None = None,
    max_macs: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows for uint8 `images` (n, channels, size, size).

    label, class, confidence, probabilities (of all classes), macs, path (executed share of every unit)
    and, with exits, exit. `knobs` replace some of the promoted ones (all, where the curve's settings hold them
    and the promoted one does not); with `max_macs` the model's most accurate setting of at most so many MACs
    per image answers. Raises `InputError` for a wrong shape or knob, and for a budget below the cheapest setting.
    """
    from mlflow.exceptions import MlflowException

    task = registered.serving["task"]
    shape = (task["channels"], task["size"], task["size"])
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(
            f"{registered.shown} takes uint8 images of shape (n, {', '.join(map(str, shape))}),"
            f" not {images.dtype} of shape {images.shape}"
        )
    params: dict[str, Any] = {"knobs": json.dumps(knobs)} if knobs else {}
    if max_macs is not None:
        params["max_macs"] = float(max_macs)
    for start in range(0, len(images), _ROWS):
        try:
            table = registered.model.predict(images[start : start + _ROWS], params=params)
        except MlflowException as error:
            raise InputError(f"{registered.shown}: {error.message.splitlines()[0]}") from None
        yield from table.to_dict("records")


def history(model: str, uri: str) -> list[dict[str, Any]]:
    """Every version of a model, newest first.

    version, aliases, time (seconds since 1970), evidence (tags), `promotions` (by alias: study, budget,
    gates) and `moves` (of any alias to this version: alias, time, why, previous, study).
    """
    client = client_at(uri)
    versions = client.search_model_versions(f"name='{model}'") if "'" not in model else []
    if not versions:
        resolve(client, model, version="1")  # says which models there are
    registered = client.get_registered_model(model)
    aliases: dict[str, list[str]] = {}
    for alias, version in registered.aliases.items():
        aliases.setdefault(str(version), []).append(alias)
    made = [{"alias": alias, **move} for alias, known in all_moves(registered.tags).items() for move in known]
    return [
        {
            "model": model,
            "version": str(found.version),
            "aliases": sorted(aliases.get(str(found.version), [])),
            "time": found.creation_timestamp / 1000,
            **{name: value for name, value in found.tags.items() if not name.startswith(PROMOTION)},
            "promotions": {
                name.removeprefix(PROMOTION): _said(value)
                for name, value in found.tags.items()
                if name.startswith(PROMOTION)
            },
            "moves": sorted((m for m in made if m["version"] == str(found.version)), key=lambda m: m["time"]),
        }
        for found in sorted(versions, key=lambda found: -int(found.version))
    ]


def _said(text: str) -> dict[str, Any]:
    """A promotion's tag; empty where somebody wrote something else into it."""
    try:
        said = json.loads(text)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


# -- moving back -----------------------------------------------------------------------------------


def rollback(model: str, alias: str, uri: str, *, to: str | None = None) -> dict[str, Any]:
    """Point an alias to the version before the present one, or to version `to`: {model, alias, version, previous}.

    A second rollback goes one further back. Raises `InputError` where there is no such model, alias or
    version, nothing before, or where the version's files are not those that were promoted.
    """
    client = client_at(uri)
    with answering(uri):
        version = str(resolve(client, model, alias=alias).version)
        with holding(client, model):
            stack = standing(settle(client, model, alias))
        target = to if to is not None else next((v for v in reversed(stack[:-1]) if v is not None), None)
        if target is None:
            raise InputError(f"{model}@{alias} is version {version}, and there is none before it to go back to")
        found = resolve(client, model, version=target)
        if target == version:
            raise InputError(f"{model}@{alias} is version {version} already")
        # fetched without the lock: it may take longer than others would wait
        with tempfile.TemporaryDirectory(prefix="routefront-") as scratch, using(uri) as mlflow:
            _checked(mlflow, model, found, Path(scratch))
        with holding(client, model) as lock:
            if standing(settle(client, model, alias)) != stack:
                raise RunError(f"{model}@{alias} was moved by somebody else at this moment; nothing was moved back")
            move_alias(client, lock, model, alias, target, "rollback")
    return {"model": model, "alias": alias, "version": target, "previous": version}
