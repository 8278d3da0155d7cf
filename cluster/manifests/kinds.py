"""Every kind of manifest by name, and what renders it."""

from __future__ import annotations

from cluster.manifests.inputs import Renderer


def renderers() -> dict[str, tuple[str, Renderer]]:
    """Every kind of manifest: the usual name of its file and what renders it."""
    from cluster.manifests import container, kuberay, ray_up, slurm

    return {
        "kuberay": ("rayjob.yaml", kuberay.render),
        "ray-up": ("ray-up.yaml", ray_up.render),
        "slurm": ("slurm.sh", slurm.render),
        "container": ("Containerfile", container.render),
    }
