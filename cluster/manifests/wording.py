"""What a description's values may look like, and what is said where they do not: one line with the value."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError

from cluster.manifests.quantities import memory_bytes, seconds


def _check(pattern: str, wanted: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} is not {wanted}")
        return value

    return check


def _matching(pattern: str, wanted: str) -> AfterValidator:
    return AfterValidator(_check(pattern, wanted))


Memory = Annotated[int, BeforeValidator(memory_bytes)]
Seconds = Annotated[int, BeforeValidator(seconds)]
# A RayJob's name (RFC 1035); KubeRay appends to it and stops at 47 characters.
Label = Annotated[
    str,
    _matching(
        r"[a-z](?:[a-z0-9-]{0,45}[a-z0-9])?",
        "a name of up to 47 lower-case letters, digits and '-' that begins with a letter",
    ),
]
# Names of secrets, namespaces, claims (RFC 1123).
Name = Annotated[
    str, _matching(r"[a-z0-9](?:[a-z0-9.-]{0,250}[a-z0-9])?", "a Kubernetes name: lower-case letters, digits, '-'")
]
Word = Annotated[
    str, _matching(r"[A-Za-z0-9][A-Za-z0-9._:/@=+,-]*", "one word of letters, digits and . _ : / @ = + , -")
]
LabelValue = Annotated[str, _matching(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", "a value of a label")]
LabelKey = Annotated[
    str,
    _matching(r"(?:[a-z0-9][a-z0-9.-]*/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", "the name of a label"),
]
folder = _check(r"/[\w.@+-][\w.@+/-]*", "an absolute folder without spaces, such as '/mnt/routefront'")
bucket = _check(
    r"s3://[a-z0-9][a-z0-9.-]+(?:/[\w.=+/-]*)?", "an address of object storage, such as 's3://BUCKET/FOLDER'"
)
Folder = Annotated[str, AfterValidator(folder)]
Image = Annotated[
    str, _matching(r"[a-z0-9][\w.:/@-]*", "a container image, such as 'registry.example.org/routefront:1'")
]
Export = Annotated[str, _matching(r"[A-Za-z0-9.-]+:/[\w./-]*", "an NFS export, such as 'server.example.org:/export'")]


def refuse_secrets(address: str, place: str) -> None:
    """Raise `ValueError` where an address carries a password: it would stand in what is rendered."""
    try:
        parts = urlsplit(address)
        carries = parts.password is not None or "password" in parse_qs(parts.query)
    except ValueError:
        raise ValueError(f"{place} is no address: its host cannot be read") from None
    if carries:
        shown = f"{parts.scheme}://...@{parts.hostname or ''}"
        raise ValueError(f"{place} = {shown!r} carries a password; leave it out and name a secret that holds it")


def first_complaint(error: ValidationError, whole: type[BaseModel]) -> str:
    """The first complaint of pydantic as one line with the value and what would be right."""
    problem = error.errors()[0]
    steps = [str(step) for step in problem["loc"]]
    place = ".".join(step for step in steps if step != "[key]")
    if problem["type"] == "extra_forbidden":
        known = list(_model(whole, steps[:-1]).model_fields)
        close = difflib.get_close_matches(steps[-1], known, n=1, cutoff=0.6)
        return f"unknown key {place!r}" + (f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}")
    if problem["type"] == "missing":
        return f"{place} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message if not place or message.startswith(steps[0]) else f"{place}: {message}"
    return f"{place} = {problem.get('input')!r}: {message[0].lower()}{message[1:]}"


def _model(whole: type[BaseModel], steps: list[str]) -> type[BaseModel]:
    """The part that stands at a place such as ``["workers", "gpu"]``: names inside a table are skipped."""
    found, named = whole, False
    for step in steps:
        if named:
            named = False
            continue
        annotation = found.model_fields[step].annotation
        named = typing.get_origin(annotation) is dict
        kinds: tuple[Any, ...] = (annotation, *typing.get_args(annotation))
        found = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return found
