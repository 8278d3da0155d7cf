"""Text that several manifests share: YAML, templates, the command that runs the study."""

from __future__ import annotations

import shlex
import string
from importlib import resources
from typing import Any

import yaml

from cluster.manifests.description import Description

NODE_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_process_group_cleanup_enabled": "1",
}


class _Template(string.Template):
    delimiter = "@@"  # `$` is the shell's


def fill(template: str, **values: object) -> str:
    """A template of this package with its places filled. Raises `KeyError` where one is left."""
    text = resources.files("cluster.manifests").joinpath(template).read_text()
    return _Template(text).substitute({name: str(value) for name, value in values.items()})


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # a reader should find every value where it is used


def _lines(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _lines)


def to_yaml(*documents: dict[str, Any], comment: str = "") -> str:
    """YAML documents in their own order, under a comment."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    bodies = [yaml.dump(d, Dumper=_Dumper, sort_keys=False, width=110, default_flow_style=False) for d in documents]
    return head + "---\n".join(bodies)


def search_command(description: Description, study_file: str, address: str) -> str:
    """The shell's line that runs the study, the same after an interruption; the arguments are words of the shell."""
    line = f"routefront search {study_file} --address {address} --studies {shlex.quote(description.studies)}"
    if description.tracking is not None:
        where = description.tracking.address
        line += (
            f" --tracking {shlex.quote(where)}" if where else ' --tracking "${MLFLOW_TRACKING_URI:?it is in no secret}"'
        )
    return line
