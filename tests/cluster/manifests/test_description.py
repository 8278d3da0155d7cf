from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.manifests.description import Description
from cluster.manifests.inputs import check_trials_fit, notes, wanted
from cluster.manifests.quantities import memory_bytes, seconds, slurm_time
from tests.support.described import STUDY, described, values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nmae": "x"}, "unknown key 'nmae'; did you mean 'name'?"),
        ({"workers__gpu__gpuss": 1}, "unknown key 'workers.gpu.gpuss'; did you mean 'gpus'?"),
        ({"slurm__partitions": "gpu"}, "unknown key 'slurm.partitions'; did you mean 'partition'?"),
        ({"head__zzz": 1}, "unknown key 'head.zzz'; known: cpus, memory, selector, instance"),
        ({"name": ...}, "name is missing"),
        ({"workers__gpu__max": ...}, "workers.gpu.max is missing"),
        ({"name": "Night"}, "name: 'Night' is not a name of up to 47 lower-case letters"),
        ({"name": "n" * 48}, "is not a name of up to 47"),
        ({"workers__GPU": {}}, "workers.GPU: 'GPU' is not a name of"),
        ({"workers__gpu__cpus": "8"}, "workers.gpu.cpus = '8': input should be a valid integer"),
        ({"workers__gpu__cpus": 0}, "workers.gpu.cpus = 0: input should be greater than or equal to 1"),
        ({"workers__gpu__memory": "64"}, "workers.gpu.memory: '64' is not an amount of memory; write"),
        ({"workers__gpu__memory": "0Gi"}, "workers.gpu.memory: '0Gi' is less than '1Mi'"),
        ({"idle_timeout": 300}, "idle_timeout: 300 is not a time; write for example '90s'"),
        ({"workers__gpu__min": 17}, "workers.gpu: min = 17 is more than max = 16"),
        ({"workers__gpu__replicas": 17}, "workers.gpu: replicas = 17 lies outside min = 0 and max = 16"),
        ({"workers": {}, "slurm": ...}, "zero workers: write a group such as"),
        ({"workers__gpu": {"max": 0, "cpus": 1, "memory": "1Gi"}, "workers__cpu": ..., "slurm": ...}, "zero workers"),
        ({"slurm__nodes": 0}, "slurm.nodes = 0: input should be greater than or equal to 1"),
        ({"preset": ...}, "say which study runs: either study = 'study.toml' or preset = 'digits'"),
        ({"study": "study.toml"}, "say which study runs"),
        ({"storage__path": "studies"}, "storage.path: 'studies' is not an absolute folder"),
        ({"storage__path": "/mnt/my studies"}, "is not an absolute folder without spaces"),
        ({"storage__path": "http://x/y"}, "is not an address of object storage, such as 's3://BUCKET/FOLDER'"),
        ({"storage__path": "s3://bucket/x", "journal": ...}, "'s3://bucket/x' needs a [journal] in PostgreSQL"),
        ({"storage__path": "s3://KEY:hush@bucket/x"}, "storage.path = 's3://...@bucket' carries a password"),
        ({"journal__address": "postgresql+psycopg://me:hush@db/x"}, "journal.address = 'postgresql+psycopg://...@db'"),
        ({"journal__address": "postgresql+psycopg://db/x?password=hush"}, "carries a password; leave it out and name"),
        ({"journal__address": "sqlite:///x"}, "'sqlite:///x' is no PostgreSQL address"),
        ({"journal": {}}, "journal says neither host nor secret"),
        ({"tracking": {}}, "tracking says neither address nor secret"),
        ({"tracking__address": "http://me:hush@mlflow:5000"}, "tracking.address = 'http://...@mlflow' carries"),
        ({"tracking__address": "sqlite:///x"}, "'sqlite:///x' is no MLflow server that all nodes reach"),
        ({"cloud__provider": "azur"}, "cloud.provider = 'azur': input should be 'aws' or 'local'"),
        ({"slurm__partition": "gpu\n#SBATCH --wrap=evil"}, "is not one word"),
        ({"image": "a b"}, "image: 'a b' is not a container image"),
        ({"kubernetes__spot_selector": {"a b": "c"}}, "kubernetes.spot_selector.a b: 'a b' is not the name of a label"),
    ],
)  # fmt: skip
def test_bad_descriptions_get_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        described(**changes)
    line = str(caught.value)
    assert line.startswith("description: ") and message in line and "\n" not in line and "hush" not in line, line


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no description of a cluster at"):
        Description.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name =")
    with pytest.raises(ValueError, match=r"bad\.toml is not valid TOML"):
        Description.read(tmp_path / "bad.toml")
    with pytest.raises(ValueError, match="cannot be read"):
        Description.read(tmp_path)


def test_what_follows_from_a_description() -> None:
    found = described()
    assert [group.start for group in found.workers.values()] == [2, 1]
    assert found.data == "/mnt/routefront/data" and found.studies == "/mnt/routefront/studies"
    assert wanted(found) == ["kuberay", "ray-up", "slurm", "container"]
    assert wanted(described(cloud=..., storage__claim=...)) == ["slurm"]
    assert wanted(described(slurm=..., cloud=...)) == ["kuberay", "container"]
    assert found.workers["gpu"].memory == 60 * 2**30 and found.slurm is not None and found.slurm.time == 36 * 3600


def test_a_plan_that_no_node_satisfies_says_what_is_missing() -> None:
    from dataclasses import replace

    check_trials_fit(described(), STUDY)
    greedy = replace(STUDY, cpus_per_trial=10.0, gpus_per_trial=2.0)
    with pytest.raises(ValueError) as caught:
        check_trials_fit(described(), greedy)
    assert str(caught.value) == (
        "no node holds a trial of study 'digits': one needs 10 CPU and 2 GPU; workers.gpu has 8 CPU and 1 GPU"
        " (2 CPU and 1 GPU missing); workers.cpu has 16 CPU and 0 GPU (2 GPU missing)"
    )
    with pytest.raises(ValueError, match=r"workers.gpu has 8 CPU and 1 GPU \(max = 0\)"):
        check_trials_fit(described(workers__gpu__max=0, workers__gpu__replicas=...), STUDY)
    with pytest.raises(ValueError, match="fits at the beginning: replicas = 0 of gpu; set it to 1"):
        check_trials_fit(described(workers__gpu__replicas=0), STUDY)


def test_what_is_no_error_is_noted() -> None:
    from dataclasses import replace

    assert notes(described(), STUDY, ["kuberay"]) == []
    (idle,) = notes(described(), replace(STUDY, gpus_per_trial=0.0), ["kuberay"])
    assert "the GPUs of workers.gpu and slurm stay idle" in idle
    (sqlite,) = notes(described(journal=...), STUDY, ["slurm"])
    assert "SQLite lies in the shared folder" in sqlite


@given(amount=st.integers(1, 10**6), unit=st.sampled_from(["Mi", "Gi", "Ti"]))
def test_memory_is_whole_mebibytes(amount: int, unit: str) -> None:
    found = memory_bytes(f"{amount}{unit}")
    assert found == amount * {"Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]


@given(duration=st.integers(1, 10**7))
def test_times_of_slurm_read_back(duration: int) -> None:
    days, _, clock = slurm_time(duration).partition("-")
    hours, minutes, rest = clock.split(":")
    assert int(days) * 86400 + int(hours) * 3600 + int(minutes) * 60 + int(rest) == duration
    assert seconds(f"{duration}s") == duration


_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.text(max_size=3))
)


@given(place=st.sampled_from(sorted(values())), value=st.one_of(_LEAVES, st.dictionaries(st.text(max_size=8), _LEAVES)))
def test_whatever_stands_there_is_a_description_or_one_line(place: str, value: Any) -> None:
    try:
        Description.parse({**values(), place: value})
    except ValueError as error:
        assert len(str(error).splitlines()) == 1 and str(error).startswith("description: ")
