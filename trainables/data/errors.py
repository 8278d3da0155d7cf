"""Errors of data sets: missing files, damaged files."""

from __future__ import annotations


class DataError(ValueError):
    """Images or labels that cannot be used; one line that names the file."""


class DataMissing(FileNotFoundError):
    """A data set that is not here; one line with the folder, the files and how to get them."""
