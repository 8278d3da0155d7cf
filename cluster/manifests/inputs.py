"""What manifests are rendered from, and what is checked before: the study, versions, whether a trial fits."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from cluster.manifests.description import Description, Slurm, WorkerGroup
from cluster.manifests.wording import refuse_secrets


@dataclass(frozen=True, slots=True)
class StudyFile:
    """The study that a cluster runs: its name, its text as TOML, what one trial needs.

    Raises `ValueError` where one of its addresses carries a password.
    """

    name: str
    text: str
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for address in self.addresses:
            refuse_secrets(address, f"study {self.name!r}: an address")


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions that all nodes have: Python's as ``3.11.7``, Ray's, ours."""

    python: str
    ray: str
    routefront: str

    @classmethod
    def installed(cls) -> Versions:
        """Those of this process: what is rendered fits the driver that rendered it."""
        return cls(platform.python_version(), metadata.version("ray"), metadata.version("routefront"))

    def __str__(self) -> str:
        return f"routefront {self.routefront} with Ray {self.ray} on Python {self.python}"

    @property
    def python_minor(self) -> str:
        """``3.11``."""
        return ".".join(self.python.split(".")[:2])


Renderer = Callable[[Description, StudyFile, Versions], str]


def wanted(description: Description) -> list[str]:
    """The kinds that a description has parts for."""
    kinds = ["kuberay"] if description.workers and description.storage.claim else []
    kinds += ["ray-up"] if description.cloud else []
    kinds += ["slurm"] if description.slurm else []
    return [*kinds, *(["container"] if {"kuberay", "ray-up"} & set(kinds) else [])]


def check_trials_fit(description: Description, study: StudyFile) -> None:
    """Raise `ValueError` where no worker node holds a trial, or none that is there at the beginning."""
    cpus, gpus = study.cpus_per_trial, study.gpus_per_trial
    fitting = {n: g for n, g in description.workers.items() if g.max and g.cpus >= cpus and g.gpus >= gpus}
    if not fitting:
        groups = "; ".join(f"workers.{name} has {offers(group, study)}" for name, group in description.workers.items())
        raise ValueError(f"{needs(study)}; {groups or 'there is no group of workers, write one such as [workers.cpu]'}")
    if not any(group.start for group in fitting.values()):
        raise ValueError(
            f"no trial of study {study.name!r} fits at the beginning: replicas = 0 of {', '.join(fitting)}; set it to 1"
        )


def notes(description: Description, study: StudyFile, kinds: list[str]) -> list[str]:
    """What is no error and still worth a line."""
    found = []
    idle = [f"workers.{name}" for name, group in description.workers.items() if group.gpus and group.max]
    idle += ["slurm"] if description.slurm and description.slurm.gpus else []
    if idle and not study.gpus_per_trial:
        found.append(
            f"the GPUs of {' and '.join(idle)} stay idle, no trial of study {study.name!r} asks for any; in the study"
            " file, resources.gpus_per_trial = 0.25 lets four trials share one"
        )
    if description.journal is None and set(kinds) - {"container"}:
        found.append(
            "without [journal] the study's SQLite lies in the shared folder, where only the driver's node may open it;"
            " status and stop work there alone"
        )
    return found


def needs(study: StudyFile) -> str:
    """What one trial needs, where no node has it."""
    need = f"{study.cpus_per_trial:g} CPU and {study.gpus_per_trial:g} GPU"
    return f"no node holds a trial of study {study.name!r}: one needs {need}"


def offers(node: WorkerGroup | Slurm, study: StudyFile) -> str:
    """What a node has, and what it lacks for one trial."""
    pairs = (("CPU", node.cpus, study.cpus_per_trial), ("GPU", node.gpus, study.gpus_per_trial))
    missing = " and ".join(f"{need - has:g} {kind}" for kind, has, need in pairs if need > has)
    return f"{node.cpus} CPU and {node.gpus} GPU ({missing + ' missing' if missing else 'max = 0'})"
