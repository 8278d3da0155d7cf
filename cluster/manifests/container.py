"""A container recipe that installs routefront from its lock, for every road that needs an image."""

from __future__ import annotations

from cluster.manifests.description import Description
from cluster.manifests.inputs import StudyFile, Versions
from cluster.manifests.text import fill

# The tools of `ray up` inside the head's container: it starts and reaches the other machines from there.
_LAUNCHER = ("openssh-client", "rsync", "tmux")

_BOTO3 = "RUN uv pip install --system --no-cache boto3  # `ray up` asks Amazon for machines from the head node\n"


def render(description: Description, study: StudyFile, versions: Versions) -> str:
    """The recipe (Containerfile), to be built in a checkout."""
    cloud = description.cloud
    return fill(
        "Containerfile.in",
        versions=versions,
        ray=versions.ray,
        python_minor=versions.python_minor,
        image=description.image or "routefront",
        why="; the others reach the other machines for `ray up`" if cloud else "",
        tools=" ".join(["ca-certificates", "wget", *(_LAUNCHER if cloud else ())]),
        also=_BOTO3 if cloud and cloud.provider == "aws" else "",
    )
