"""`mlflow run mlflow -e search`, as MLflow runs it; the compose file, as far as reading it goes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.spec.toml import to_toml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "mlflow"


def script(name: str) -> Any:
    """A file of mlflow/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"mlflow_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SPEC: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "digits", "image_size": 8, "limit": 256},
    "budget": {"trials": 1, "epochs": 1},
    "diagnostics": False,
    "methods": {"static": {"network": "resnet-8", "width": 0.25, "batch_size": 64}},
}


def test_mlflow_runs_a_search(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(to_toml(SPEC))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": uri,
        "ROUTEFRONT_STUDIES": str(tmp_path / "studies"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    words = ["-e", "search", "--env-manager", "local", "-P", f"file={tmp_path / 'study.toml'}"]
    ran = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(FOLDER), *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    from search.tracking.server import quiet

    client = quiet().MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("routefront")
    runs = client.search_runs([experiment.experiment_id])
    trial = next(run for run in runs if run.data.tags["routefront.kind"] == "trial")
    assert trial.info.status == "FINISHED" and 0 < trial.data.metrics["accuracy"] <= 1
    assert trial.data.metrics["system/cpu_seconds"] > 0 and trial.data.metrics["system/memory_megabytes"] > 100


def test_the_words_of_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    project = script("project")
    monkeypatch.delenv("ROUTEFRONT_STUDIES", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    words = ["search", "--file=", "--preset=digits", "--name=", "--trials=3"]
    made = project.command_line(words, Path("/checkout"))
    assert made == [
        "search", "--preset=digits", "--trials=3", "--studies=/checkout/studies", "--tracking=http://127.0.0.1:5000"
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="set ROUTEFRONT_STUDIES to the folder"):
        project.command_line(words, None)
    monkeypatch.setenv("ROUTEFRONT_STUDIES", "/studies")
    assert project.command_line(["search", "--file=/s.toml", "--preset=digits"], None)[:2] == ["search", "/s.toml"]
    assert project.command_line(["report", "night", "--out="], None) == ["report", "night"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(SystemExit, match=r"sqlite:///mlflow.db is relative .* write sqlite:////"):
        project.command_line(["report", "night"], None)


def test_every_entry_point_is_a_command_of_ours() -> None:
    from typer.main import get_command

    from search.__main__ import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    entries = yaml.safe_load((FOLDER / "MLproject").read_text())["entry_points"]
    assert set(entries) >= {"search", "report", "promote"}
    for name, entry in entries.items():
        options = {option for parameter in commands[name].params for option in parameter.opts}
        given = set(re.findall(r"(--[a-z-]+)=", entry["command"])) - {"--file"}
        assert given <= options
        assert set(re.findall(r"\{(\w+)\}", entry["command"])) == set(entry["parameters"])


_SERVICE = set("image build environment volumes healthcheck restart depends_on configs command ports".split())


def test_the_compose_file_hangs_together() -> None:
    """Read, not run: containers are not available to the tests."""
    text = (FOLDER / "compose.yaml").read_text()
    compose = yaml.safe_load(text)
    assert set(compose) == {"name", "services", "volumes", "configs"}
    for service in compose["services"].values():
        assert set(service) <= _SERVICE
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(compose["volumes"])
        assert {config["source"] for config in service.get("configs", [])} <= set(compose["configs"])
        assert set(service.get("depends_on", {})) <= set(compose["services"])
        assert ("image" in service) != ("build" in service)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    server = compose["services"]["mlflow"]
    version = importlib.metadata.version("mlflow")
    assert f'"mlflow[auth]=={version}"' in server["build"]["dockerfile_inline"]
    used = set(re.findall(r"\$\{([A-Z_]+)(?=[:}])", text))
    explained = {name for name in used if re.search(rf"\$\{{{name}:[?-]", text)}
    assert used == explained  # every variable has a default, or a message that says what to set it to


def test_the_servers_options_and_settings_are_those_of_the_installed_mlflow() -> None:
    """Looked up in the text of the installed mlflow; importing its command line would take ten times as long."""
    origin = importlib.util.find_spec("mlflow").origin  # type: ignore[union-attr]
    installed = Path(str(origin)).parent
    options = (installed / "cli" / "__init__.py").read_text()
    options += (installed / "utils" / "cli_args.py").read_text()
    variables = (installed / "environment_variables.py").read_text()
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    server = compose["services"]["mlflow"]
    ours = r'"(--(?:host|port|workers|app-name|allowed-hosts|artifacts-destination))"'
    used = set(re.findall(ours, (FOLDER / "server.py").read_text().split("def run(")[0]))
    assert len(used) >= 5
    for option in used | set(re.findall(r"--[a-z-]+", server["command"])):
        assert f'"{option}"' in options, option
    for name in server["environment"]:
        if name.startswith("MLFLOW_"):
            assert f"\n{name} = " in variables or f'"{name}"' in options, name
    packaged = (installed / "server" / "auth" / "basic_auth.ini").read_text()
    for line in compose["configs"]["users"]["content"].splitlines()[1:]:
        assert f"\n{line.split(' =')[0]} =" in packaged


def test_mlflow_run_finds_its_files_beside_an_installed_routefront() -> None:
    """`test_packaging` looks into the wheel; here: what pyproject.toml lists is the whole folder."""
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    (files,) = [names for place, names in listed.items() if place.startswith("share/routefront")]
    here = {f"mlflow/{path.name}" for path in FOLDER.iterdir() if path.is_file()}
    assert set(files) == here
