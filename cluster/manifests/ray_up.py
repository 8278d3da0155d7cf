"""YAML for Ray's cluster launcher, `ray up`: Amazon's machines, or machines of one's own.

The token is the launcher's own `~/.ray/auth_token`, copied to every node; no file that is rendered
holds it.
"""

from __future__ import annotations

import shlex
from typing import Any

from cluster.manifests.description import Cloud, Description, WorkerGroup
from cluster.manifests.inputs import StudyFile, Versions, check_trials_fit
from cluster.manifests.text import NODE_ENVIRONMENT, search_command, to_yaml

_PORT = 6379
_STUDY = "~/routefront-study.toml"
_TOKEN = "~/.ray/auth_token"


def render(description: Description, study: StudyFile, versions: Versions) -> str:
    """The launcher's YAML. Raises `ValueError` where the description lacks what `ray up` needs."""
    cloud = _check(description)
    check_trials_fit(description, study)
    config: dict[str, Any] = {
        "cluster_name": description.name,
        "max_workers": sum(group.max for group in description.workers.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": round(description.idle_timeout / 60, 2),
        "provider": _provider(cloud),
        "auth": {"ssh_user": cloud.ssh_user},
        "docker": _docker(description),
    }
    if cloud.provider == "aws":
        config["available_node_types"] = _node_types(description, cloud)
        config["head_node_type"] = "head"
    else:
        config["min_workers"] = config["max_workers"]
    start = "ulimit -n 65536; " + " ".join(f"{key}={value}" for key, value in _environment(description).items())
    config |= {
        "file_mounts": {_TOKEN: _TOKEN},
        "initialization_commands": _mount(description, cloud),
        "head_setup_commands": [_write(study.text, _STUDY)],
        "head_start_ray_commands": [
            "ray stop",
            f"{start} ray start --head --num-cpus=0 --num-gpus=0 --port={_PORT}"
            " --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{start} ray start --address=$RAY_HEAD_IP:{_PORT}"],
    }
    return to_yaml(config, comment=_comment(description, study, versions))


def _check(description: Description) -> Cloud:
    cloud, groups = description.cloud, description.workers
    if cloud is None:
        raise ValueError("[cloud] is missing: `ray up` needs provider = 'aws' with a region, or 'local' with head_ip")
    if description.image is None:
        raise ValueError(
            "image is missing: `ray up` starts one on every machine, such as image = 'registry.example.org/rf:1'"
        )
    if cloud.provider == "local":
        machines, asked = len(cloud.worker_ips), sum(group.max for group in groups.values())
        if cloud.head_ip is None or not machines:
            raise ValueError("cloud.provider = 'local' needs head_ip and worker_ips, the addresses of your machines")
        if machines != asked:
            raise ValueError(f"cloud.worker_ips lists {machines} machines, the groups of workers have {asked} (max)")
        return cloud
    if cloud.region is None:
        raise ValueError("cloud.region is missing, for example region = 'us-west-2'")
    parts = {"head": description.head, **{f"workers.{name}": group for name, group in groups.items() if group.max}}
    without = [name for name, part in parts.items() if part.instance is None]
    if without:
        raise ValueError(f"{without[0]}.instance is missing: the type of machine, for example instance = 'm6i.2xlarge'")
    if "workers.head" in parts:
        raise ValueError("workers.head: `ray up` calls the head node so; choose another name")
    if description.storage.nfs is None and not description.storage.remote:
        raise ValueError(
            f"storage.nfs is missing: machines of a cloud do not share {description.storage.path!r} by themselves;"
            " write nfs = 'SERVER:/EXPORT'"
        )
    return cloud


def _provider(cloud: Cloud) -> dict[str, Any]:
    if cloud.provider == "local":
        return {"type": "local", "head_ip": cloud.head_ip, "worker_ips": list(cloud.worker_ips)}
    zones = {"availability_zone": cloud.zones} if cloud.zones else {}
    return {"type": "aws", "region": cloud.region, **zones, "cache_stopped_nodes": False}


def _environment(description: Description) -> dict[str, str]:
    return {**NODE_ENVIRONMENT, "ROUTEFRONT_DATA": description.data, "RAY_AUTH_MODE": "token"}


def _docker(description: Description) -> dict[str, Any]:
    path = description.storage.path
    shared = [] if description.storage.remote else [f"--volume={path}:{path}"]
    environment = [f"--env={key}={value}" for key, value in _environment(description).items()]
    return {
        "image": description.image,
        "container_name": "routefront",
        "pull_before_run": True,
        "run_options": [
            "--ulimit=nofile=65536:65536",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            *shared,
            *environment,
        ],
    }


def _node_types(description: Description, cloud: Cloud) -> dict[str, Any]:
    head = {"resources": {"CPU": 0}, "max_workers": 0, "node_config": _machine(str(description.head.instance), cloud)}
    groups = {name: _node_type(group, cloud) for name, group in description.workers.items() if group.max}
    return {"head": head, **groups}


def _node_type(group: WorkerGroup, cloud: Cloud) -> dict[str, Any]:
    machine = _machine(str(group.instance), cloud)
    if group.spot:
        machine["InstanceMarketOptions"] = {"MarketType": "spot"}
    resources = {"CPU": group.cpus, **({"GPU": group.gpus} if group.gpus else {})}
    # The launcher knows no number to begin with: it holds min_workers, and adds more on demand.
    return {"resources": resources, "min_workers": group.start, "max_workers": group.max, "node_config": machine}


def _machine(instance: str, cloud: Cloud) -> dict[str, Any]:
    disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": cloud.disk, "VolumeType": "gp3"}}
    return {"InstanceType": instance, "BlockDeviceMappings": [disk]}


def _mount(description: Description, cloud: Cloud) -> list[str]:
    """Commands that a machine runs before the container is there."""
    if description.storage.remote:
        return []
    path = shlex.quote(description.storage.path)
    if description.storage.nfs is None:
        return [f"test -w {path}"]
    return [
        f"sudo mkdir -p {path}",
        "command -v mount.nfs4 || (sudo apt-get update -qq && sudo apt-get install -y -qq nfs-common)",
        f"mountpoint -q {path} || sudo mount -t nfs4 {shlex.quote(description.storage.nfs)} {path}",
    ]


def _write(text: str, path: str) -> str:
    """A shell command that writes a file line by line; a here-document would not survive the launcher's quoting."""
    lines = [shlex.quote(line) for line in text.rstrip("\n").split("\n")]
    return "printf '%s\\n' \\\n" + "".join(f"  {line} \\\n" for line in lines) + f"  > {path}"


def _comment(description: Description, study: StudyFile, versions: Versions) -> str:
    follow = shlex.join(["routefront", "status", study.name, "--studies", description.studies, "--watch"])
    run = f"set -a; touch ~/routefront.env; . ~/routefront.env; {search_command(description, _STUDY, 'auto')}"
    lines = [
        f"Rendered by {versions}, here and there.",
        "Once:    ray get-auth-token --generate        (the token, ~/.ray/auth_token)",
        "Start:   ray up THIS_FILE",
    ]
    if description.journal or description.tracking:
        lines.append(
            "Secrets: ray rsync-up THIS_FILE routefront.env '~/routefront.env'    (PGPASSWORD=... and the like)"
        )
    return "\n".join(
        [
            *lines,
            f"Run:     ray exec --tmux THIS_FILE {shlex.quote(run)}",
            f"Follow:  ray exec THIS_FILE {shlex.quote(follow)}",
            "End:     ray down THIS_FILE",
        ]
    )
