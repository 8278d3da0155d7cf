"""History and rollback of an alias in the model registry."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from search.errors import InputError, RunError
from search.promotion.ledger import all_moves, answering, holding, move_alias, settle, standing
from search.promotion.models import checked, client_at, resolve
from search.promotion.versions import PROMOTION
from search.tracking.server import using


def history(model: str, uri: str) -> list[dict[str, Any]]:
    """Every version of a model, newest first.

    version, aliases, time (seconds since 1970), evidence (tags), `promotions` (by alias: study, budget,
    gates) and `moves` (of any alias to this version: alias, time, why, previous, study).
    """
    client = client_at(uri)
    with answering(uri, asked=True):
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
            checked(mlflow, model, found, Path(scratch))
        with holding(client, model) as lock:
            if standing(settle(client, model, alias)) != stack:
                raise RunError(f"{model}@{alias} was moved by somebody else at this moment; nothing was moved back")
            move_alias(client, lock, model, alias, target, "rollback")
    return {"model": model, "alias": alias, "version": target, "previous": version}
