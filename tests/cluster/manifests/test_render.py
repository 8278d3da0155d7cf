"""`routefront cluster render` as a person meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.spec.toml import to_toml
from tests.support.command import Run
from tests.support.described import values

STUDY: dict[str, Any] = {
    "name": "night",
    "data": {"name": "digits"},
    "resources": {"cpus_per_trial": 2.0, "gpus_per_trial": 0.5},
    "methods": {"static": {"network": "resnet-8"}},
}


def written(folder: Path, study: dict[str, Any] = STUDY, /, **changes: Any) -> Path:
    (folder / "study.toml").write_text(to_toml(study))
    path = folder / "cluster.toml"
    path.write_text(to_toml(values(**{"preset": ..., "study": "study.toml", **changes}), depth=3))
    return path


def test_a_cluster_with_object_storage(cli: Run, tmp_path: Path) -> None:
    path = written(tmp_path, storage={"path": "s3://bucket/x", "secret": "keys"})
    code, printed, said = cli("cluster", "render", path, "--to", "kuberay")
    assert code == 0, said
    *_, job = yaml.safe_load_all(printed)
    assert "--address auto --studies s3://bucket/x/studies" in job["spec"]["entrypoint"]
    for group in (job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {"secretRef": {"name": "keys"}} in container["envFrom"]


def test_all_at_once_into_a_folder(cli: Run, tmp_path: Path) -> None:
    out = tmp_path / "made" / "here"
    code, printed, said = cli("cluster", "render", written(tmp_path), "--out", out)
    assert code == 0 and not said, said
    assert {path.name for path in out.iterdir()} == {"rayjob.yaml", "ray-up.yaml", "slurm.sh", "Containerfile"}
    assert [line.split()[0] for line in printed.splitlines()] == ["kuberay", "ray-up", "slurm", "container"]
    assert os.access(out / "slurm.sh", os.X_OK) and not os.access(out / "rayjob.yaml", os.X_OK)
    config, _, job = yaml.safe_load_all((out / "rayjob.yaml").read_text())
    assert tomllib.loads(config["data"]["study.toml"]) == {**STUDY, "journal": "postgresql+psycopg://"}
    assert job["metadata"]["annotations"]["routefront/study"] == "night"


def test_one_of_them_to_a_file_and_to_the_terminal(cli: Run, tmp_path: Path) -> None:
    path = written(tmp_path)
    code, printed, _ = cli("cluster", "render", path, "--to", "slurm")
    assert code == 0 and printed.startswith("#!/usr/bin/env bash\n#SBATCH --job-name=night\n")
    code, _, _ = cli("cluster", "render", path, "--to", "slurm", "--out", tmp_path / "job.sh")
    assert code == 0 and (tmp_path / "job.sh").read_text() == printed
    code, text, _ = cli("cluster", "render", path, "--to", "slurm", "--json")
    assert code == 0 and json.loads(text) == {"to": "slurm", "text": printed}
    code, text, _ = cli("cluster", "render", path, "--out", tmp_path / "all", "--json")
    assert code == 0 and set(json.loads(text)["files"]) == {"kuberay", "ray-up", "slurm", "container"}


def test_what_is_worth_a_line_goes_to_stderr(cli: Run, tmp_path: Path) -> None:
    code, _, said = cli(
        "cluster", "render", written(tmp_path, {**STUDY, "resources": {}}, journal=...), "--to", "kuberay"
    )
    assert (
        code == 0
        and len(said.splitlines()) == 2
        and said.startswith("note: the GPUs of workers.gpu and slurm stay idle")
    )


@pytest.mark.parametrize(
    ("changes", "study", "words", "message"),
    [
        ({}, {}, ("--to", "kubray"), "--to 'kubray' is no kind of manifest; did you mean 'kuberay'?"),
        ({}, {}, (), "say which with --to (kuberay, ray-up, slurm, container), or where all go with --out FOLDER"),
        ({"workers__gpu__gpuss": 1}, {}, ("--to", "kuberay"), "unknown key 'workers.gpu.gpuss'; did you mean 'gpus'?"),
        ({"workers": {}, "slurm": ...}, {}, ("--to", "kuberay"), "zero workers"),
        ({}, {"resources": {"gpus_per_trial": 2.0}}, ("--to", "kuberay"), "a trial uses one GPU at most"),
        ({}, {"resources": {"cpus_per_trial": 32.0}}, ("--to", "slurm"), "16 CPU and 4 GPU (16 CPU missing)"),
        ({"study": "none.toml"}, {}, ("--to", "kuberay"), "none.toml"),
        ({"study": ..., "preset": "digit"}, {}, ("--to", "kuberay"), "unknown preset 'digit'; did you mean 'digits'?"),
        ({}, {"methods": {"statik": {}}}, ("--to", "kuberay"), "unknown method 'statik'; did you mean 'static'?"),
        ({}, {"tracking": {"uri": "http://me:hush@mlflow"}}, ("--to", "kuberay"), "carries a password"),
        ({"journal": ...}, {"journal": "postgresql://me:hush@db/x"}, ("--to", "kuberay"), "carries a password"),
        ({"slurm": ..., "cloud": ..., "storage__claim": ...}, {}, ("--out", "made"), "describes no way to start it"),
        ({}, {}, ("--to", "slurm", "--out", "cluster.toml/slurm.sh"), "cannot be written"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_leaves_nothing(
    cli: Run, tmp_path: Path, changes: dict[str, Any], study: dict[str, Any], words: tuple[str, ...], message: str
) -> None:
    path = written(tmp_path, {**STUDY, **study}, **changes)
    places = [tmp_path / word if before == "--out" else word for before, word in zip(("", *words), words, strict=False)]
    code, out, err = cli("cluster", "render", path, *places)
    line = " ".join(err.split())
    assert code == 2 and not out and "Traceback" not in err and "hush" not in err
    assert line.startswith("error: ") and message in line, line
    assert {entry.name for entry in tmp_path.iterdir()} == {"cluster.toml", "study.toml"}


def test_help_has_an_example_and_is_quick() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom search.__main__ import app\n"
        "result = CliRunner().invoke(app, ['cluster', 'render', '--help'])\n"
        "assert result.exit_code == 0 and 'Example' in result.output\n"
        "assert not {'torch', 'ray', 'yaml'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
