"""The two ways a command fails: a wrong input (exit code 2) and a failed run (exit code 1)."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be: one line that names the value and what would be right."""


class RunError(RuntimeError):
    """Something that was asked for rightly did not succeed."""
