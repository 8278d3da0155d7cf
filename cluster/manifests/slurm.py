"""A Slurm batch script: one job whose nodes are a Ray cluster, with the study on it.

Ray's own `ray symmetric-run` is not used: it makes no token, refuses a node on which another Ray runs,
and ends with `ray stop`, which kills every Ray of the user on that node.
"""

from __future__ import annotations

import shlex

from cluster.manifests.description import Description, Slurm
from cluster.manifests.inputs import StudyFile, Versions, needs, offers
from cluster.manifests.quantities import mebibytes, slurm_time
from cluster.manifests.text import NODE_ENVIRONMENT, fill, search_command

_END = "END_OF_STUDY"


def render(description: Description, study: StudyFile, versions: Versions) -> str:
    """The script for `sbatch`. Raises `ValueError` where the description lacks what Slurm needs."""
    slurm = description.slurm
    if slurm is None:
        raise ValueError("[slurm] is missing: say at least nodes, cpus and memory (of one node)")
    if description.storage.remote:
        raise ValueError(
            f"storage.path = {description.storage.path!r}: a Slurm job keeps its token and files in a folder"
            " that its nodes share; write one, such as '/scratch/NAME/routefront'"
        )
    _check_fit(slurm, study)
    if _END in study.text.split("\n"):
        raise ValueError(f"study {study.name!r} holds a line {_END}, which ends its copy in the script")
    return fill(
        "slurm.sh.in",
        directives="\n".join(f"#SBATCH --{word}" for word in _directives(description, slurm)),
        versions=versions,
        prepare="\n".join(_prepare(slurm)),
        environment="\n".join(
            f"export {key}={shlex.quote(value)}"
            for key, value in {**NODE_ENVIRONMENT, "ROUTEFRONT_DATA": description.data}.items()
        ),
        storage=shlex.quote(description.storage.path),
        studies=shlex.quote(description.studies),
        name=shlex.quote(study.name),
        temp=shlex.quote(slurm.temp),
        port=slurm.port,
        offer=" ".join(_offer(slurm)),
        cpus=slurm.cpus,
        study_text=study.text.rstrip("\n"),
        end=_END,
        secrets=f"set -a\n# shellcheck source=/dev/null\nsource {shlex.quote(slurm.environment)}\nset +a"
        if slurm.environment
        else ": # no file of secrets: what sbatch found in its environment is handed on",
        search=search_command(description, '"$run/study.toml"', '"$ip:$port"'),
        requeue=int(slurm.requeue),
    )


def _check_fit(slurm: Slurm, study: StudyFile) -> None:
    if slurm.cpus < study.cpus_per_trial or slurm.gpus < study.gpus_per_trial:
        raise ValueError(f"{needs(study)}; [slurm] gives a node {offers(slurm, study)}")


def _directives(description: Description, slurm: Slurm) -> list[str]:
    gpus = f"gpus-per-node={slurm.gpu_type + ':' if slurm.gpu_type else ''}{slurm.gpus}" if slurm.gpus else None
    named = {"partition": slurm.partition, "account": slurm.account, "qos": slurm.qos}
    words = [
        f"job-name={description.name}",
        f"nodes={slurm.nodes}",
        "ntasks-per-node=1",
        f"cpus-per-task={slurm.cpus}",
        f"mem={mebibytes(slurm.memory)}M",
        gpus,
        f"time={slurm_time(slurm.time)}",
        *(f"{key}={value}" for key, value in named.items() if value),
        f"output={description.name}-%j.log",
        "open-mode=append",
        "signal=B:USR1@180",
        "requeue" if slurm.requeue else "no-requeue",
    ]
    return [word for word in words if word]


def _prepare(slurm: Slurm) -> list[str]:
    modules = [f"module load {shlex.join(slurm.modules)}"] if slurm.modules else []
    venv = [f"# shellcheck source=/dev/null\nsource {shlex.quote(slurm.venv + '/bin/activate')}"] if slurm.venv else []
    return [*modules, *venv]


def _offer(slurm: Slurm) -> list[str]:
    """What a node offers Ray; the store of shared objects is a part of its memory, 20 GB at most."""
    store = min(slurm.memory * 3 // 10, 20 * 10**9)
    return [
        f"--num-cpus={slurm.cpus}",
        f"--num-gpus={slurm.gpus}",
        f"--memory={slurm.memory - store}",
        f"--object-store-memory={store}",
    ]
