"""Networks in a person's own file: read without running, run only when trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from spaces import own_networks
from trainables.contracts.network import Task
from trainables.methods import blocks, static
from trainables.networks.backbones import source
from trainables.serving import load_network, trust_source

FILE = """
import torchvision
from torch import nn

open(__file__ + ".ran", "w").close()


def build(classes, channels=1):
    body = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(4, classes))


def wrong(classes):
    return 3


def fails(classes):
    raise RuntimeError("out of ideas")
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE + f"# {tmp_path}\n")
    return path


def test_reading_runs_nothing(mine: Path) -> None:
    name = f"{mine}:build"
    assert own_networks.parts(name) == (str(mine), "build") and own_networks.parts("torchvision:resnet18") is None
    assert own_networks.imports(own_networks.read(name)) == {"torch", "torchvision"}
    static.METHOD.configure({"network": name})
    for wrong, says in {
        f"{mine}:biuld": "defines no biuld; did you mean 'build'",
        f"{mine.parent / 'none.py'}:build": "there is no file",
    }.items():
        with pytest.raises(ValueError, match=says):
            own_networks.read(wrong)
    (mine.parent / "bad.py").write_text("def build(:")
    with pytest.raises(ValueError, match=r"is no Python: .*line 1"):
        own_networks.read(f"{mine.parent / 'bad.py'}:build")
    assert not list(mine.parent.glob("*.ran"))


def test_nothing_is_run_before_it_is_trusted(mine: Path) -> None:
    config, task = static.METHOD.configure({"network": f"{mine}:build"}), Task(classes=3, size=8, channels=1)
    with pytest.raises(ValueError, match="to which nobody has agreed here"):
        static.build(config, task)
    assert not list(mine.parent.glob("*.ran"))
    own_networks.trust_network(f"{mine}:build")
    network = static.build(config, task)
    assert network.macs_full == 64 * 4 * 9 + 12 and list(mine.parent.glob("*.ran"))
    assert source.packages(f"{mine}:build") == ("torchvision",)
    mine.write_text(mine.read_text() + "# changed\n")
    with pytest.raises(ValueError, match="to which nobody has agreed here"):
        static.build(config, task)
    for function, says in {"wrong": "returns int, no torch.nn.Module", "fails": "RuntimeError: out of ideas"}.items():
        own_networks.trust_network(f"{mine}:{function}")
        with pytest.raises(ValueError, match=says):
            static.build(static.METHOD.configure({"network": f"{mine}:{function}"}), task)


def test_a_checkpoint_brings_the_file_along(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainables import checkpoints

    task, name = Task(classes=3, size=8, channels=1), f"{mine}:build"
    own_networks.trust_network(name)
    network = static.build(static.METHOD.configure({"network": name}), task)
    folder = mine.parent / "checkpoint"
    checkpoints.save(folder, checkpoints.network_record(static.METHOD, network), network)
    mine.unlink()
    monkeypatch.setattr(own_networks, "_trusted", set())
    with pytest.raises(ValueError, match="to which nobody has agreed here"):
        load_network(folder)
    trust_source(folder)
    assert load_network(folder)[1].macs_full == network.macs_full


def test_names_in_study_files(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    assert own_networks.absolute(["mine.py:build", "resnet-8"]) == [f"{mine.resolve()}:build", "resnet-8"]
    tables = {"exits": {"network": ["a.py:f", "resnet-8"]}, "blocks": {"network": "b.py:g"}, "static": {}}
    assert list(own_networks.written(tables)) == [
        ("methods.exits.network", "a.py:f"),
        ("methods.blocks.network", "b.py:g"),
    ]
    assert blocks.METHOD.configure({"network": "b.py:g"}).network == "b.py:g"
