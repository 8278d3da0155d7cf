"""What is secret never gets into messages, logs and the journal: one function that blots it out."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
_USERINFO = re.compile(r"(://[^\s:/?#@'\"]*):[^\s/?#'\"]*@")
_GIVEN = re.compile(
    r"((?:pass(?:word|wd|phrase)|secret(?:_?access)?_?key|api_?key|authorization)[\"']?\s*[=:]\s*[\"']?|\bbearer\s+"
    r"|\bbasic\s+(?=[A-Za-z0-9+/]{8,}=))(?:bearer\s+|basic\s+)?[^\s&;,\"')\]}*]{4,}",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(r"PASS(WORD|WD|PHRASE)|SECRET|TOKEN|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST, _LONG = 8, 16


def redacted(text: str, values: list[str] | None = None) -> str:
    """The text with every secret as ``***``.

    Secrets are passwords in addresses (``://user:PASSWORD@``), what follows words such as ``password=`` and
    ``Bearer``, and the values of this process's variables whose names say so (MLFLOW_TRACKING_PASSWORD, PGPASSWORD,
    AWS_SECRET_ACCESS_KEY ...) where they have eight characters or more: shorter ones occur in ordinary words.
    `values`: those, where somebody has looked (`known`) for many texts.
    """
    if "://" in text and "@" in text:
        text = _USERINFO.sub(rf"\1:{HIDDEN}@", text)
    text = _GIVEN.sub(rf"\g<1>{HIDDEN}", text)
    for value in known() if values is None else values:
        if value in text:
            if len(value) < _LONG:  # a password such as "postgres" stays where it is a part of another word
                text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])", HIDDEN, text)
            else:
                text = text.replace(value, HIDDEN)
    return text


def redacted_values(value: Any) -> Any:
    """A document of mappings, lists and texts with every text `redacted`."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(each) for each in value]
    return value


def known() -> list[str]:
    """The values of this process's variables that are secrets by their names, also as addresses spell them."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and not value.startswith(("/", "file:")) and _SECRET_NAME.search(name)
    }
    return sorted({form for value in values for form in (value, quote(value, safe=""))}, key=len, reverse=True)


def carries_secret(address: str) -> bool:
    """Whether an address has a password in it: ``://user:PASSWORD@``, or an option such as ``?password=``."""
    return redacted(address, []) != address or bool(re.search(r"[?&](ssl)?pass(word|wd)?=", address, re.IGNORECASE))


def guard() -> None:
    """From here on nothing that this process logs, and no traceback that ends it, has a secret in it."""
    import logging
    import sys
    import traceback

    sys.excepthook = lambda *error: sys.stderr.write(redacted("".join(traceback.format_exception(*error))))
    made = logging.getLogRecordFactory()
    if getattr(made, "guarded", False):
        return

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        found = made(*args, **kwargs)
        try:
            text = found.getMessage()
        except (TypeError, ValueError):  # a wrong format, which logging itself tells
            return found
        if (clean := redacted(text)) != text:
            found.msg, found.args = clean, None
        if found.exc_info:
            found.exc_text = redacted("".join(traceback.format_exception(*found.exc_info)).rstrip("\n"))
        return found

    record.guarded = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
