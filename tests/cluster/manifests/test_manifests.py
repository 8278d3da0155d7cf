from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.manifests.description import Description
from cluster.manifests.inputs import StudyFile, Versions
from cluster.manifests.kinds import renderers
from search.spec.toml import to_toml
from tests.support.described import STUDY, VERSIONS, described, values

ROOT = Path(__file__).resolve().parents[3]
RAYJOB = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
LOCAL = {"provider": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"], "ssh_user": "me"}


def rendered(kind: str, description: Description, study: StudyFile = STUDY) -> str:
    return renderers()[kind][1](description, study, VERSIONS)


def rayjob(**changes: Any) -> dict[str, Any]:
    *_, job = yaml.safe_load_all(rendered("kuberay", described(**changes)))
    jsonschema.validate(job, RAYJOB)
    return job


# -- KubeRay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"journal": ..., "tracking": ..., "kubernetes": ..., "workers__gpu__spot": False},
        {"storage__path": "s3://bucket/studies", "storage__claim": ..., "storage__secret": "keys"},
        {"workers__gpu__replicas": 0, "workers__cpu__gpus": 1},
    ],
)
def test_the_rayjob_is_one_for_its_resource_definition(changes: dict[str, Any]) -> None:
    rayjob(**changes)


def test_no_pod_may_more_than_it_needs_and_only_its_own_cluster_reaches_it() -> None:
    _, fence, job = yaml.safe_load_all(rendered("kuberay", described()))
    cluster = job["spec"]["rayClusterSpec"]
    templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    contexts = [cluster["autoscalerOptions"]["securityContext"]]
    for template in templates:
        assert template["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        contexts += [container["securityContext"] for container in template["spec"]["containers"]]
        assert template["metadata"]["labels"] == fence["spec"]["podSelector"]["matchLabels"]
    assert all(one == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}} for one in contexts)
    assert [template["spec"].get("automountServiceAccountToken", True) for template in templates] == [
        True,
        False,
        False,
    ]
    own, *others = fence["spec"]["ingress"]
    assert own == {"from": [{"podSelector": fence["spec"]["podSelector"]}]} and len(others) == 2
    assert all(rule["ports"] == [{"protocol": "TCP", "port": 8265}] for rule in others)
    assert (
        fence["spec"]["policyTypes"] == ["Ingress"] and fence["metadata"]["namespace"] == job["metadata"]["namespace"]
    )


def test_the_schema_refuses_what_the_resource_does_not_know() -> None:
    job = rayjob()
    for damage in (
        lambda s: s.update(entrypont="x"),
        lambda s: s.update(submissionMode=3),
        lambda s: s["rayClusterSpec"]["workerGroupSpecs"][0].update(replicas="2"),
        lambda s: s["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda s: s["rayClusterSpec"]["authOptions"].update(mode="tokens"),
        lambda s: s["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0].update(envs=[]),
    ):
        damaged = copy.deepcopy(job)
        damage(damaged["spec"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(damaged, RAYJOB)


def test_the_rayjob_says_what_the_description_says() -> None:
    job = rayjob()
    config, *_ = yaml.safe_load_all(rendered("kuberay", described()))
    assert config["data"] == {"study.toml": STUDY.text} and config["metadata"]["namespace"] == "research"
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert job["metadata"]["name"] == "night" and cluster["rayVersion"] == "2.60.0"
    assert spec["entrypoint"].startswith(
        "routefront search /etc/routefront/study.toml --address auto --studies /mnt/routefront/studies --tracking"
    )
    assert cluster["authOptions"] == {"mode": "token", "secretName": "routefront-token"}
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["idleTimeoutSeconds"] == 300

    head = cluster["headGroupSpec"]["template"]["spec"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}  # no trial runs beside the driver
    secrets = [source["secretRef"]["name"] for source in head["containers"][0]["envFrom"]]
    assert secrets == ["routefront-journal", "routefront-mlflow"]
    gpu, cpu = cluster["workerGroupSpecs"]
    assert (gpu["groupName"], gpu["minReplicas"], gpu["replicas"], gpu["maxReplicas"]) == ("gpu", 0, 2, 16)
    pod = gpu["template"]["spec"]
    assert "envFrom" not in pod["containers"][0]  # workers never open a database
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "8", "memory": "61440Mi", "nvidia.com/gpu": "1"}
    assert pod["nodeSelector"] == {"accelerator": "a10g", "karpenter.sh/capacity-type": "spot"}
    assert {t["key"] for t in pod["tolerations"]} == {"nvidia.com/gpu", "karpenter.sh/capacity-type"}
    assert "tolerations" not in cpu["template"]["spec"]
    for spec in (head, pod):
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounts["storage"] == "/mnt/routefront"
        assert {"name": "storage", "persistentVolumeClaim": {"claimName": "routefront"}} in spec["volumes"]


def test_rays_autoscaler_reads_the_groups_from_the_rayjob() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    job = rayjob()
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": job["metadata"], "spec": job["spec"]["rayClusterSpec"]}
    )
    validate_config(config)
    gpu = config["available_node_types"]["gpu"]
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, 16)
    assert gpu["resources"] == {"CPU": 8, "memory": 60 * 2**30, "GPU": 1}
    assert config["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
    assert config["idle_timeout_minutes"] == 5.0


# -- ray up ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cloud__zones": "us-west-2a,us-west-2b", "journal": ..., "tracking": ...},
        {"cloud": LOCAL, "workers__gpu": ..., "workers__cpu": {"max": 2, "cpus": 8, "memory": "8Gi", "gpus": 1}},
    ],
)
def test_the_launchers_own_check_takes_the_yaml(changes: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(rendered("ray-up", described(**changes)))
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["cluster_name"] == "night"
    workers = sum(t.get("min_workers", 0) for t in prepared["available_node_types"].values())
    assert workers == (2 if "workers__gpu" in changes else 3)


def test_the_launcher_asks_for_the_described_machines() -> None:
    config = yaml.safe_load(rendered("ray-up", described()))
    types = config["available_node_types"]
    assert types["gpu"]["resources"] == {"CPU": 8, "GPU": 1} and types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["cpu"]["node_config"]
    assert all("RAY_AUTH_MODE=token" in config[f"{who}_start_ray_commands"][1] for who in ("head", "worker"))
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert any("nfs.example.org:/export /mnt/routefront" in line for line in config["initialization_commands"])


@given(words=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=60))
@example("\u2028\x85\x7f'\t\ufeff# END_OF_STUDY")
@settings(max_examples=15, deadline=None)
def test_the_study_file_comes_through_every_manifest(words: str) -> None:
    text = to_toml({"name": "x", "words": words, "shell": "it's `x` $HOME %s \\ \"\n", "methods": {"static": {}}})
    study = StudyFile("x", text, 1.0, 0.25)
    config, *_ = yaml.safe_load_all(rendered("kuberay", described(), study))
    assert config["data"]["study.toml"] == text
    (command,) = yaml.safe_load(rendered("ray-up", described(), study))["head_setup_commands"]
    (document,) = re.findall(
        r"(?s)^cat > \"\$run.*?^END_OF_STUDY$", rendered("slurm", described(), study), re.MULTILINE
    )
    for line in (
        f"true && ({command})".replace("~/routefront-study.toml", "/dev/stdout"),
        document.replace('> "$run/study.toml"', ""),
    ):
        done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=300)
        assert done.stdout.decode() == text


# -- Slurm -----------------------------------------------------------------------------------------

SLURM = [
    {},
    {"slurm__nodes": 1, "slurm__gpus": 0, "slurm__requeue": False},
    {"slurm__modules": ["cuda/12", "python"], "slurm__venv": "/home/me/.venv", "slurm__environment": "/home/me/s.env"},
    {
        "slurm__account": "vision",
        "slurm__qos": "long",
        "slurm__gpu_type": "a100",
        "tracking": {"address": "http://m:5000"},
    },
]


@pytest.mark.parametrize("changes", SLURM)
def test_the_batch_script_is_clean_bash(changes: dict[str, Any], tmp_path: Path) -> None:
    script = tmp_path / "slurm.sh"
    study = STUDY if changes.get("slurm__gpus") != 0 else StudyFile("digits", STUDY.text)
    script.write_text(rendered("slurm", described(**changes), study))
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=300)
    assert "@@" not in script.read_text()
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: the script's syntax was checked, its style was not")
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def test_the_batch_script_asks_slurm_for_the_described_nodes() -> None:
    text = rendered("slurm", described(**SLURM[3]))
    asked = re.findall(r"^#SBATCH --(\S+)$", text, re.MULTILINE)
    assert {
        "job-name=night", "nodes=3", "ntasks-per-node=1", "cpus-per-task=16", "mem=122880M", "gpus-per-node=a100:4",
        "time=1-12:00:00", "partition=gpu", "account=vision", "qos=long", "signal=B:USR1@180", "requeue",
    } <= set(asked)  # fmt: skip
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])  # Slurm reads no further than that


# -- the container ---------------------------------------------------------------------------------


def test_the_container_recipe_fits_the_repository() -> None:
    text = rendered("container", described())
    lines = text.replace("\\\n", " ").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    assert {w[0] for w in words} <= {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}
    assert words[0] == ["FROM", "python:3.11-slim"]
    copied = [source for w in words if w[0] == "COPY" for source in w[1:-1]]
    assert all((ROOT / source).exists() for source in copied)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= set(copied)
    (version,) = re.findall(r"uv==(\S+)", text)
    assert f"UV_VERSION := {version}\n" in (ROOT / "Makefile").read_text()
    assert "--require-hashes requirements.lock" in text and "boto3" in text
    assert "boto3" not in rendered("container", described(cloud=...))


# -- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(renderers()))
def test_no_secret_is_rendered(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "PGPASSWORD", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hush-hush")
    assert "hush" not in rendered(kind, described())


def test_a_study_whose_addresses_carry_a_password_is_refused() -> None:
    with pytest.raises(ValueError, match=r"study 'x': an address = 'postgresql://\.\.\.@db' carries a password"):
        StudyFile("x", "", addresses=("postgresql://me:hush@db/x",))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("kuberay", {"image": ...}, "image is missing: Kubernetes needs one"),
        ("kuberay", {"storage__claim": ...}, "storage.claim is missing: pods share '/mnt/routefront' only through"),
        ("kuberay", {"kubernetes__spot_selector": ...}, "workers.gpu.spot = true needs kubernetes.spot_selector"),
        ("kuberay", {"workers": {}}, "there is no group of workers"),
        ("kuberay", {"workers__gpu__gpus": 0}, "workers.gpu has 8 CPU and 0 GPU (0.25 GPU missing)"),
        ("ray-up", {"cloud": ...}, "[cloud] is missing"),
        ("ray-up", {"image": ...}, "image is missing"),
        ("ray-up", {"cloud__region": ...}, "cloud.region is missing"),
        ("ray-up", {"storage__nfs": ...}, "storage.nfs is missing"),
        ("ray-up", {"workers__cpu__instance": ...}, "workers.cpu.instance is missing"),
        ("ray-up", {"workers__head": {"max": 1, "cpus": 1, "memory": "1Gi", "instance": "a"}}, "choose another name"),
        ("ray-up", {"cloud": LOCAL}, "cloud.worker_ips lists 2 machines, the groups of workers have 20 (max)"),
        ("ray-up", {"cloud": {"provider": "local"}}, "needs head_ip and worker_ips"),
        ("slurm", {"slurm": ...}, "[slurm] is missing"),
        ("slurm", {"slurm__gpus": 0}, "[slurm] gives a node 16 CPU and 0 GPU (0.25 GPU missing)"),
        ("slurm", {"storage__path": "s3://bucket/x"}, "a Slurm job keeps its token and files in a folder"),
    ],
)
def test_what_a_kind_needs_is_said(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        rendered(kind, described(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


_NAME = st.from_regex(r"[a-z][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True).filter(lambda name: name != "head")
_GROUP = st.builds(
    lambda low, more, cpus, gpus, spot: {
        "min": low, "max": low + more, "cpus": cpus, "memory": "8Gi", "gpus": gpus, "spot": spot, "instance": "any",
    },
    st.integers(1, 5), st.integers(0, 500), st.integers(1, 256), st.integers(1, 8), st.booleans(),
)  # fmt: skip


@given(name=_NAME, workers=st.dictionaries(_NAME, _GROUP, min_size=1, max_size=4), idle=st.integers(1, 10**5))
@settings(max_examples=25, deadline=None)
def test_any_described_cluster_is_rendered_as_valid_manifests(name: str, workers: dict[str, Any], idle: int) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    description = Description.parse(values(name=name, workers=workers, idle_timeout=f"{idle}s"))
    *_, job = yaml.safe_load_all(rendered("kuberay", description))
    jsonschema.validate(job, RAYJOB)
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert {g["groupName"]: (g["minReplicas"], g["maxReplicas"]) for g in groups} == {
        n: (g["min"], g["max"]) for n, g in workers.items()
    }
    validate_config(prepare_config(yaml.safe_load(rendered("ray-up", description))))


def test_versions_are_those_installed() -> None:
    import ray

    found = Versions.installed()
    assert found.ray == ray.__version__ and found.python == sys.version.split()[0]
    assert found.python_minor == f"{sys.version_info.major}.{sys.version_info.minor}"
