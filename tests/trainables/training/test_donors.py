"""Donors: what is carried over, that a network begins as its donor, what is refused; without a study."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainables import checkpoints
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Optimiser
from trainables.data.datasets import default_root, load
from trainables.data.splits import Data
from trainables.networks.gated.network import GatedResNet
from trainables.networks.resnet.cifar import ZeroPadShortcut
from trainables.networks.resnet.imagenet import imagenet_resnet
from trainables.registry import METHODS, get_method
from trainables.serving import load_network
from trainables.training import donors, stages
from trainables.training.donors import OPEN, DonorError
from trainables.training.partial import Interrupted
from trainables.training.training import Training

BODY = {"network": "resnet-8", "width": 0.5, "batch_size": 32}
PREACT = {"network": "preact-resnet-14", "width": 0.5, "batch_size": 32}
MSDNET = {"network": "msdnet-3", "growth": 4, "batch_size": 32}
COLUMNS = {"network": "pyramid-static-3", "width": 0.5, "batch_size": 32}
DONORS: dict[str, tuple[str, dict[str, Any]]] = {
    "A": ("static", BODY),
    "B": ("static", {**BODY, "shortcut": "B"}),
    "pool": ("static", {**BODY, "shortcut": "pool"}),
    "vanilla": ("act", {**PREACT, "variant": "vanilla"}),
    "exits": ("imta", MSDNET),
    "columns": ("decide", COLUMNS),
}
ALL_OPEN = {"threshold": 0.0}
# donor, method, what differs from the donor's body, the knobs under which everything runs
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "aig": ("A", "aig", BODY, ALL_OPEN),
    "aig A": ("A", "aig", {**BODY, "shortcut": "A"}, ALL_OPEN),
    "aig behind B": ("B", "aig", BODY, ALL_OPEN),
    "aig rnn": ("A", "aig", {**BODY, "gate": "rnn"}, ALL_OPEN),
    "skipnet rnn": ("A", "skipnet", BODY, ALL_OPEN),
    "skipnet ff1": ("A", "skipnet", {**BODY, "gate": "ff1", "transition": "pool"}, ALL_OPEN),
    "skipnet official": ("B", "skipnet", {**BODY, "gate": "linear", "impl": "official"}, ALL_OPEN),
    "codinet": ("A", "codinet", BODY, ALL_OPEN),
    "blockdrop": ("A", "blockdrop", BODY, ALL_OPEN),
    "blockdrop pool": ("pool", "blockdrop", {**BODY, "shortcut": "pool"}, ALL_OPEN),
    "sdv": ("A", "sdv", BODY, {"drop": 0.0}),
    "sdv original": ("A", "sdv", {**BODY, "variant": "original", "drop": 0.0}, {}),
    "act": ("vanilla", "act", PREACT, {"threshold": 1e6}),
    "sact": ("vanilla", "sact", PREACT, {"threshold": 1e6}),
    "imta": ("exits", "imta", {**MSDNET, "variant": "ge"}, {}),
    "imta phases": ("exits", "imta", {**MSDNET, "variant": "all"}, {}),
    "decide": ("columns", "decide", {**COLUMNS, "network": "pyramid-3"}, {"margin": -1e9}),
    "decide critic": (
        "columns",
        "decide",
        {**COLUMNS, "network": "pyramid-3", "variant": "pragmatic"},
        {"margin": -1e9},
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


@pytest.fixture(scope="module")
def digits() -> Data:
    torch.set_num_threads(1)
    return load("digits", root=default_root(), image_size=8, limit=96)


Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def donor(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A checkpoint of a static network that was trained for an epoch, by its name among `DONORS`."""
    root = tmp_path_factory.mktemp("donors")

    def made(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            training = _training(digits, *DONORS[name], epochs=1, seed=7)
            training.step()
            training.save(folder)
        return folder

    return made


def _training(data: Data, method: str, values: dict[str, Any], **options: Any) -> Training:
    found = get_method(method)
    return Training(found, found.configure(values), data, **{"epochs": 3, "seed": 3, **options})


def _begun(
    data: Data, case: tuple[str, str, dict[str, Any], dict[str, Any]], place: Path
) -> tuple[Training, dict[str, Any]]:
    """A training as it is before its first step, and what it took of the donor."""
    _, method, values, _ = case
    training = _training(data, method, values, donor=place)
    return training, donors.begin(training.network, training.method, place)


def _images(task: Task, count: int = 12) -> Tensor:
    return torch.randn(count, *task.image, generator=torch.Generator().manual_seed(1))


def _logits(network: RoutedNetwork, images: Tensor, knobs: dict[str, Any]) -> Tensor:
    return network.eval().infer(images, knobs).logits


@every_case
def test_with_everything_on_a_network_begins_as_its_donor(
    case: tuple[str, str, dict[str, Any], dict[str, Any]], donor: Made, digits: Data
) -> None:
    place = donor(case[0])
    _, network, _ = load_network(place)
    images = _images(digits.task)
    expected = network(images).output.detach()
    training, told = _begun(digits, case, place)
    own = training.network
    if case[2].get("variant") == "all":
        own.become(second=False)  # type: ignore[operator]  # as phase I leaves it
    assert torch.allclose(_logits(own, images, case[3]), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    state, theirs = own.state_dict(), network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.items())
    assert told["tensors"] == len(theirs) and told["digest"] == donors.read(place).digest
    made = tuple(f"{name}." for name in told["as_projection"])
    lacking = [name for name in state if name not in theirs and not (made and name.startswith(made))]
    assert sum(told["kept"].values()) >= len(lacking)  # phase I has no heads in its state
    if case[2].get("variant") != "all":
        assert sum(told["kept"].values()) == len(lacking)


@every_case
def test_the_first_epoch_begins_there_and_says_so(
    case: tuple[str, str, dict[str, Any], dict[str, Any]], donor: Made, digits: Data
) -> None:
    training = _training(digits, case[1], {**case[2], "donor_lr": 0.02}, donor=donor(case[0]))
    first = training.step()
    name = {"exits": "imta msdnet-3", "vanilla": "act preact-resnet-14", "columns": "decide pyramid-static-3"}
    assert first["donor"]["from"] == f"{name.get(case[0], 'static resnet-8')}, epoch 1"
    json.dumps(first, allow_nan=False)
    assert "donor" not in training.step()
    phases = {p.name: p.optimiser.lr for p in training.method.phases(training.config)}
    own = {"curriculum": 1e-3, "finetune": 1e-4, "phase2": 0.1, "stage2": 0.01}
    assert phases == {name: own.get(name, 0.02) for name in phases}
    assert "pretrain" not in phases and "phase1" not in phases


def test_gates_begin_open(donor: Made, digits: Data) -> None:
    images = _images(digits.task)
    for name, case in CASES.items():
        network = _begun(digits, case, donor(case[0]))[0].network.eval()
        if isinstance(network, GatedResNet) and case[1] != "sdv":
            assert torch.allclose(network(images).aux["probabilities"], torch.tensor(OPEN), atol=0.01), name
        elif case[1] == "decide":
            chances = network(images).aux["probabilities"]  # (classify, go on) of two junctions
            assert torch.allclose(chances[:, 1::2], torch.tensor(OPEN), atol=1e-6)


def test_a_skip_convolution_keeps_its_own_beginning(donor: Made, digits: Data) -> None:
    fresh = _training(digits, "codinet", BODY).network.state_dict()
    begun, told = _begun(digits, CASES["codinet"], donor("A"))
    assert told["kept"] == {"router": 12, "skips": 12}
    state = begun.network.state_dict()
    assert all(torch.equal(state[name], fresh[name]) for name in state if name.startswith("skips."))


@pytest.mark.parametrize("size", [16, 17])
def test_a_projection_is_option_a(size: int) -> None:
    torch.manual_seed(0)
    body = imagenet_resnet("resnet-18-imagenet", Task(size=64), width=0.25)  # any projections there are
    for block, shape in zip(body.blocks, body.shapes, strict=False):
        if isinstance(block.shortcut, nn.Identity):
            continue
        nn.init.uniform_(block.shortcut[1].running_mean)  # type: ignore[index]
        images = torch.randn(3, shape[0], size, size)
        out = block.shortcut[0].out_channels  # type: ignore[index]
        donors.as_projection(block.shortcut, "A")
        expected = ZeroPadShortcut(out, 2, average=False)(images)  # type: ignore[arg-type]
        assert torch.allclose(block.shortcut.eval()(images), expected, atol=1e-6)


def test_a_donors_weights_go_on_and_are_read_once(donor: Made, digits: Data, tmp_path: Path) -> None:
    place = tmp_path / "t0007" / "epoch-0001"
    shutil.copytree(donor("A"), place)
    whole, cut = (_training(digits, "aig", BODY, donor=place, evaluate_at=[1]) for _ in range(2))
    expected = [whole.step() for _ in range(3)]
    cut.leaving = lambda: True
    with pytest.raises(Interrupted):
        cut.step()
    cut.save(tmp_path / "part")
    config = cut.config
    shutil.rmtree(place)  # whoever goes on needs it no more
    again = _training(digits, "aig", {**BODY, "donor": config.donor}, donor=place, evaluate_at=[1])
    again.restore(tmp_path / "part")
    reports = [again.step()]
    again.save(tmp_path / "later")
    last = _training(digits, "aig", {**BODY, "donor": config.donor}, evaluate_at=[1])
    last.restore(tmp_path / "later")
    reports += [last.step(), last.step()]
    for one, other in zip(reports, expected, strict=True):
        assert one["losses"] == other["losses"] and one.get("donor") == other.get("donor")
    assert [p["accuracy"] for p in reports[2]["curve"]["points"]] == [
        p["accuracy"] for p in expected[2]["curve"]["points"]
    ]
    _, network, record = load_network(tmp_path / "later")  # to serve needs no donor either
    assert record["donor"] == expected[0]["donor"] and network.config.donor == config.donor


def test_a_file_of_weights_is_a_donor_too(donor: Made, digits: Data, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    shutil.copyfile(donor("A") / checkpoints.NETWORK, file)
    by_config = _training(digits, "aig", {**BODY, "donor": str(file)})
    assert by_config.step()["donor"]["from"] == "a file of weights"
    by_folder = _training(digits, "aig", BODY, donor=donor("A"))
    assert by_folder.step()["losses"] == _training(digits, "aig", BODY, donor=file).step()["losses"]
    shutil.copyfile(donor("pool") / checkpoints.NETWORK, file)  # which pooling it had, nothing tells
    assert _begun(digits, CASES["blockdrop pool"], file)[1]["tensors"] == 44


def test_first_stages_of_other_donors_are_others(donor: Made, digits: Data) -> None:
    a, b = donor("A"), donor("B")
    method = get_method("codinet")
    keys = []
    for place in ("", a, b):
        training = _training(
            digits, "codinet", {**BODY, "shortcut": "B", "donor": "study" if place else ""}, donor=place or None
        )
        keys.append(stages.key_of(training))
    assert len(set(keys)) == 3 and all(keys)
    config = method.configure({**BODY, "donor": "study"})
    named = [stages.key(method, config, epochs=3, seed=1, data_hash="d", donor=each) for each in ("t0/e1", "t0/e2")]
    assert len({*named}) == 2
    # a donor in place of the pretraining makes the curriculum the first phase, which is a later stage
    blockdrop = get_method("blockdrop")
    for value, shared in (("", True), ("study", False)):
        config = blockdrop.configure({**BODY, "donor": value})
        assert (stages.last_epoch(blockdrop, config, 9) is not None) is shared


def test_who_takes_a_donor() -> None:
    takes = {name for name, method in METHODS.items() if method.donor is not None}
    assert takes == set(METHODS) - {"static", "ensemble", "multipath", "exits", "blocks"}
    for method in METHODS.values():
        fields = {field.name for field in dataclasses.fields(method.Config)}
        assert ("donor" in fields) is ("donor_lr" in fields) is (method.name in takes)
        if method.name in takes:
            config = method.configure({"donor": "study", "donor_lr": 0.05})
            assert Optimiser.of(config).lr == 0.05 and Optimiser.of(method.configure({})).lr == config.lr
            assert sum(phase.share for phase in method.phases(config)) == pytest.approx(1)


BAD: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "network": ("A", "aig", {**BODY, "network": "resnet-14"}, "its network is 'resnet-8' and must be 'resnet-14'; "),
    "width": ("A", "skipnet", {**BODY, "width": 1.0}, "its width is 0.5 and must be 1.0"),
    "method": ("vanilla", "codinet", BODY, "its method is 'act' and must be 'static'"),
    "halting": ("A", "act", PREACT, "its method is 'static' and must be 'act'"),
    "growth": ("exits", "imta", {**MSDNET, "growth": 6}, "its growth is 4 and must be 6"),
    "columns": ("columns", "decide", {**COLUMNS, "network": "pyramid-4"}, "its network is 'pyramid-static-3' and"),
    "projections": ("B", "aig", {**BODY, "shortcut": "A"}, "its shortcut is 'B' and must be 'auto' or 'A'"),
    "pooling": ("A", "blockdrop", {**BODY, "shortcut": "pool"}, "its shortcut is 'auto' and must be 'pool'"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
def test_another_body_is_refused_in_one_line(
    bad: tuple[str, str, dict[str, Any], str], donor: Made, digits: Data
) -> None:
    name, method, values, message = bad
    training = _training(digits, method, values, donor=donor(name))
    before = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    with pytest.raises(DonorError) as error:
        training.step()
    assert str(error.value).startswith(f"donor = {str(donor(name))!r}: ") and message in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.network.state_dict().items())


def test_other_images_and_other_classes_are_refused(donor: Made) -> None:
    found = donors.read(donor("A"))
    method = get_method("aig")
    config = method.configure(BODY)
    for task, message in (
        (Task(classes=5, size=8, channels=1), "its classes is 10 and must be 5"),
        (Task(classes=10, size=32, channels=1), "its size is 8 and must be 32"),
        (Task(classes=10, size=8, channels=3), "its channels is 1 and must be 3"),
    ):
        with pytest.raises(DonorError, match=message):
            donors.check(found, method, config, task)


def test_what_is_no_donor_is_refused_in_one_line(donor: Made, digits: Data, tmp_path: Path) -> None:
    good = donor("A")
    (tmp_path / "empty").mkdir()
    damaged = shutil.copytree(good, tmp_path / "damaged")
    file = damaged / checkpoints.NETWORK
    file.write_bytes(file.read_bytes()[:-5])
    torch.save({}, tmp_path / "weights.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08" * 40)
    tensors = dict(donors.read(good).tensors)
    save_file({**tensors, "blocks.9.conv1.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    save_file({n: t for n, t in tensors.items() if n != "blocks.1.bn1.bias"}, tmp_path / "less.safetensors")
    save_file({**tensors, "classifier.fc.weight": torch.zeros(7, 32)}, tmp_path / "classes.safetensors")
    for name, message in {
        "nowhere": "there is no such checkpoint folder or file",
        "empty": "state.json is missing",
        "damaged": "was cut off or changed",
        "weights.pth": r"must be a checkpoint folder or a \.safetensors file",
        "cut.safetensors": "no weights could be read",
        "more.safetensors": r"another network than resnet-8: blocks\.9\.conv1\.weight has shape .* no counterpart",
        "less.safetensors": r"is of another network than resnet-8: it lacks blocks\.1\.bn1\.bias",
        "classes.safetensors": r"classifier\.fc\.weight has shape \(7, 32\) there and \(10, 32\) here",
    }.items():
        with pytest.raises(DonorError, match=message) as error:
            _training(digits, "aig", BODY, donor=tmp_path / name).step()
        assert str(error.value).startswith(f"donor = {str(tmp_path / name)!r}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("aig", {"donor_lr": 0.0}, r"donor_lr = 0\.0: a learning rate lies above 0 and below 100"),
        ("aig", {"donor": "x", "pretrained": "y.pth", "network": "resnet-18-imagenet"}, "donor = 'x': .*one of both"),
        ("act", {"variant": "vanilla", "donor": "x"}, "donor = 'x': the vanilla variant does not halt"),
        ("decide", {"network": "pyramid-static-2", "donor": "x"}, "donor = 'x': pyramid-static-2 decides nothing"),
        ("imta", {"variant": "all", "donor": "x", "phase1": "y"}, "phase1 = 'y': a donor is the network of phase I"),
        ("static", {"donor": "x"}, "static has no parameter 'donor'"),
        ("multipath", {"donor": "x"}, "multipath has no parameter 'donor'"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(method: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        get_method(method).configure(values)
    assert "\n" not in str(error.value)


def test_only_a_study_has_a_best_static_network(digits: Data, donor: Made) -> None:
    with pytest.raises(DonorError, match="donor = 'study': only a study"):
        _training(digits, "aig", {**BODY, "donor": "study"}).step()
    with pytest.raises(ValueError, match=r"static begins with no other network's weights"):
        _training(digits, "static", BODY, donor=donor("A"))
    with pytest.raises(ValueError, match="pyramid-tree forks"):
        _training(digits, "decide", {"network": "pyramid-tree", "donor": str(donor("columns"))}).step()
