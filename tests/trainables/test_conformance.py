"""One suite for every method of the registry: registering a method tests it."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.contracts.method import Method, config_dict
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Batch, Phase
from trainables.execution.macs import counted
from trainables.inference.evaluation import curve, exit_logits
from trainables.registry import METHODS, get_method

torch.set_num_threads(1)

TINY: dict[str, dict[str, Any]] = {
    "imta": {"network": "msdnet-3", "growth": 4, "curve_points": 4},
    "decide": {"network": "pyramid-static-3"},  # without a variant; with one:
    **{f"decide {v}": {"network": "pyramid-3"} for v in METHODS["decide"].variants if v},
    "act": {"network": "preact-resnet-14"},
    "sact": {"network": "preact-resnet-14"},
    "multipath": {"network": "resnet-8-2", "width": 0.5},
    "exits": {"network": "resnet-8", "exits": 3, "curve_points": 4},
    "blocks": {"network": "resnet-8"},
}
DEFAULT = {"network": "resnet-8"}
TASK = Task(classes=5, size=16, channels=1)
BATCH = 8
ROOT = Path(__file__).resolve().parents[2]

# every method in every variant: the one under test comes first among its record's variants
CASES = {
    " ".join(filter(None, (name, variant))): dataclasses.replace(method, variants=(variant, *method.variants))
    for name, method in METHODS.items()
    for variant in method.variants
}
every_method = pytest.mark.parametrize("method", CASES.values(), ids=list(CASES))


def configure(method: Method) -> Any:
    variant = method.variants[0]
    tiny = TINY.get(f"{method.name} {variant}", TINY.get(method.name, DEFAULT))
    return method.configure({**tiny, "variant": variant})


def build(method: Method, task: Task = TASK) -> RoutedNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return method.build(configure(method), task)


def images_of(task: Task = TASK, count: int = BATCH) -> Tensor:
    """Images of different contrast, so that routers can tell them apart."""
    noise = torch.randn(count, task.channels, task.size, task.size, generator=torch.Generator().manual_seed(1))
    return noise * torch.logspace(-1, 1, count)[:, None, None, None]


def undecided(method: Method, task: Task = TASK) -> RoutedNetwork:
    """A network in eval mode whose routers disagree about images, as trained ones do."""
    network = build(method, task).eval()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for name, parameter in network.named_parameters():
            if name.startswith("router"):
                # a policy network is deep: its activations must keep their size, or every gate is saturated
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 1.0)
    return network


def knobs_of(method: Method, network: RoutedNetwork, images: Tensor) -> list[Mapping[str, Any]]:
    settings = method.settings(network.config)
    if method.calibrate is None:
        return list(settings)
    logits = exit_logits(network, images)
    return [method.calibrate(setting, logits) for setting in settings]


def batch_of(method: Method, config: Any, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = method.views(config)
    images = torch.randn(BATCH, TASK.channels, TASK.size, TASK.size, generator=generator)
    return Batch(images, (torch.arange(BATCH) // views) % TASK.classes, views, generator)


def enter(network: RoutedNetwork, phase: Phase) -> list[nn.Parameter]:
    """What `fit` does when a phase begins; the parameters that it trains."""
    network.relaxation = phase.relaxation
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(phase.trains(name))
        parameter.grad = None
    network.train()
    for name, module in network.named_modules():
        if phase.eval_mode and name.startswith(phase.eval_mode):
            module.eval()
    return [p for p in network.parameters() if p.requires_grad]


def train(method: Method, network: RoutedNetwork, phase: Phase, steps: int = 2) -> list[dict[str, float]]:
    optimiser = torch.optim.SGD(enter(network, phase), lr=0.01, momentum=0.9, weight_decay=1e-3)
    history = []
    for step in range(steps):
        batch = batch_of(method, network.config, step)
        terms = method.objective(network, batch, phase)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        if method.adjust_gradients is not None:
            method.adjust_gradients(network, batch)
        optimiser.step()
        history.append({name: float(term.detach()) for name, term in terms.items()})
    return history


def close(one: Tensor, other: Tensor) -> bool:
    """Equal to 1e-5 of the largest value."""
    return bool((one - other).detach().abs().max() <= 1e-5 * other.detach().abs().max())


def test_every_file_is_registered_and_tested() -> None:
    files = {path.stem for path in (ROOT / "trainables" / "methods").glob("*.py")} - {"__init__"}
    assert files == {method.build.__module__.rpartition(".")[2] for method in METHODS.values()}  # a paper each
    for name in METHODS:
        assert (ROOT / "spaces" / f"{name}.py").is_file()
        assert (ROOT / "tests" / "trainables" / "methods" / f"test_{name}.py").is_file()
    with pytest.raises(ValueError, match="did you mean 'static'"):
        get_method("statc")


@every_method
def test_the_network_says_what_it_is_made_of(method: Method) -> None:
    network = build(method)
    assert len(network.units) == len(network.unit_macs) == len({unit.name for unit in network.units})
    assert 0 < network.macs_min <= network.macs_full
    assert network.fixed_macs >= 0 and all(unit.macs > 0 for unit in network.units)
    assert network.fixed_macs + int(network.unit_macs.sum()) >= network.macs_full
    assert sum(network.params_by_part().values()) == sum(p.numel() for p in network.parameters())
    assert network.config.variant in method.variants and network.config.network in method.networks
    if method.paper_cost is not None:
        json.dumps(method.paper_cost(network), allow_nan=False)


@every_method
def test_sizes_need_no_weights(method: Method) -> None:
    real = build(method)
    with torch.device("meta"):
        network = method.build(real.config, TASK)
    assert (network.units, network.macs_full, network.fixed_macs) == (real.units, real.macs_full, real.fixed_macs)


@every_method
def test_every_phase_trains_what_it_says_and_nothing_else(method: Method) -> None:
    network = build(method)
    for phase in method.phases(network.config):
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        modes = [n for n, _ in network.named_modules() if phase.eval_mode and n.startswith(phase.eval_mode)]
        statistics = {n: b.clone() for n, b in network.named_buffers() if n.startswith(tuple(modes) or ("?",))}
        history = train(method, network, phase)
        assert all(torch.tensor(list(terms.values())).isfinite().all() for terms in history)
        assert [list(terms) for terms in history] == [list(history[0])] * 2
        moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
        assert moved and all(phase.trains(name) for name in moved)
        for name, parameter in network.named_parameters():  # a block that every image skipped has zeros
            assert (parameter.grad is not None) is phase.trains(name), name
        assert all(torch.equal(b, statistics.get(n, b)) for n, b in network.named_buffers())


@every_method
def test_the_same_seed_trains_the_same(method: Method) -> None:
    runs = []
    for _ in range(2):
        network = build(method)
        losses = [train(method, network, phase) for phase in method.phases(network.config)]
        runs.append((losses, [p.detach().clone() for p in network.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


@every_method
def test_relaxed_passes_return_what_the_contract_says(method: Method) -> None:
    network = build(method).train()
    routed = network(images_of(), generator=torch.Generator().manual_seed(0))
    assert all(logits.shape == (BATCH, TASK.classes) for logits in (*routed.logits, routed.output))
    assert routed.macs.shape == (BATCH,) and len(routed.decisions) == BATCH
    assert ((routed.decisions >= 0) & (routed.decisions <= 1)).all()
    assert (routed.macs >= network.macs_min - 1).all() and (routed.macs <= network.macs_full + 1).all()
    if routed.decisions.shape[1]:  # expected MACs can be minimised
        decisions = routed.decisions.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network(images_of(), decisions=decisions).macs.sum(), decisions)
        assert (gradient > 0).any()


@every_method
@pytest.mark.parametrize("count", [1, 7, BATCH])
def test_hard_pass_costs_and_answers_what_it_says(method: Method, count: int) -> None:
    network = undecided(method)
    images = images_of()[:count]
    for knobs in knobs_of(method, network, images_of()):
        with counted(network) as tally:
            result = network.infer(images, knobs)
        assert sum(tally.values()) == float(result.macs.sum()), knobs
        assert result.macs.dtype == torch.float64 and result.path.shape == (count, len(network.units))
        assert ((result.path >= 0) & (result.path <= 1)).all()
        assert torch.equal(result.macs, network.fixed_macs + result.path.double() @ network.unit_macs)
        assert (result.macs >= network.macs_min).all() and (result.macs <= network.macs_full).all()
        routed = network(images, decisions=result.decisions)
        assert close(routed.output, result.logits)
        assert torch.equal(routed.macs, result.macs)


@every_method
def test_a_network_of_another_type_counts_the_same(method: Method) -> None:
    network = undecided(method).bfloat16()
    result = network.infer(images_of().bfloat16(), knobs_of(method, undecided(method), images_of())[0])
    assert torch.equal(result.macs, network.fixed_macs + result.path.double() @ network.unit_macs)
    assert network.unit_macs.tolist() == [unit.macs for unit in network.units]


@every_method
def test_a_sweep_is_a_loop_of_single_passes_that_costs_less(method: Method) -> None:
    network, images = undecided(method), images_of()
    knobs = knobs_of(method, network, images)
    with counted(network) as tally:
        swept = network.sweep(images, knobs)
    single = [network.infer(images, k) for k in knobs]
    for one, other in zip(swept, single, strict=True):
        assert close(one.logits, other.logits)
        assert torch.allclose(one.decisions, other.decisions, rtol=0, atol=1e-5) and torch.equal(one.path, other.path)
        assert torch.equal(one.macs, other.macs)
    assert sum(tally.values()) <= sum(float(each.macs.sum()) for each in single)
    if len(knobs) > 1:  # the knobs must move something, or this test has no teeth
        assert len({float(each.macs.mean()) for each in single}) > 2
        assert sum(tally.values()) < sum(float(each.macs.sum()) for each in single)


@every_method
def test_order_and_company_of_images_do_not_matter(method: Method) -> None:
    network, images = undecided(method), images_of()
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(3))
    for knobs in knobs_of(method, network, images)[::4]:
        whole, shuffled = network.infer(images, knobs), network.infer(images[order], knobs)
        assert torch.equal(shuffled.path, whole.path[order])
        assert torch.allclose(shuffled.logits, whole.logits[order], rtol=1e-4, atol=1e-4)
        alone = torch.cat([network.infer(image[None], knobs).path for image in images])
        assert torch.equal(alone, whole.path)


@every_method
def test_replay_is_inference_by_arithmetic(method: Method) -> None:
    network, images = undecided(method), images_of()
    if method.calibrate is None:
        with pytest.raises(TypeError, match="no exits"):
            network.replay(torch.zeros(1, BATCH, TASK.classes), {})
        return
    logits = exit_logits(network, images)
    for knobs in knobs_of(method, network, images):
        replayed, executed = network.replay(logits, knobs), network.infer(images, knobs)
        assert torch.equal(replayed.path, executed.path) and torch.equal(replayed.macs, executed.macs)
        assert close(replayed.logits, executed.logits)


@every_method
@pytest.mark.parametrize("task", [Task(classes=3, size=17, channels=2), Task(size=32)], ids=["odd", "cifar"])
def test_other_tasks(method: Method, task: Task) -> None:
    network = undecided(method, task)
    images = images_of(task, 3)
    for knobs in knobs_of(method, network, images)[::5]:
        with counted(network) as tally:
            result = network.infer(images, knobs)
        assert result.logits.shape == (3, task.classes)
        assert sum(tally.values()) == float(result.macs.sum())


@every_method
def test_curves_have_a_point_for_every_setting(method: Method) -> None:
    network = undecided(method).train()
    result = curve(method, network, images_of(count=20), torch.arange(20) % TASK.classes, batch_size=8)
    settings = method.settings(network.config)
    assert [point["setting"] for point in result.points] == [dict(s) for s in settings]
    assert result.correct.shape == (len(settings), 20)
    assert network.training
    json.dumps(result.points, allow_nan=False)
    macs = [point["macs"] for point in result.points]
    assert min(macs) >= network.macs_min and max(macs) <= network.macs_full


@every_method
def test_configurations_survive_json(method: Method) -> None:
    for config in (method.Config(), configure(method), method.configure(method.published)):
        assert method.configure(json.loads(json.dumps(config_dict(config), allow_nan=False))) == config
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.lr = 1.0
    json.dumps([dict(s) for s in method.settings(method.Config())], allow_nan=False)
    with pytest.raises(ValueError, match=r"no parameter 'lrr'.*did you mean 'lr'"):
        method.configure({"lrr": 0.1})


@every_method
def test_the_space_holds_configurations(method: Method) -> None:
    fields = {field.name for field in dataclasses.fields(method.Config)}
    assert set(method.space) <= fields and set(method.published) <= fields
    assert {"network", "lr", "weight_decay", "batch_size"} <= set(method.space)
    rng = random.Random(0)
    for _ in range(50):
        sample = method.space.sample(rng)
        method.space.check(sample)
        config = method.configure(sample)
        assert config.variant in method.variants
        assert sum(phase.share for phase in method.phases(config)) == pytest.approx(1)


@every_method
def test_shared_mistakes_are_refused(method: Method) -> None:
    for values in ({"lr": 0.0}, {"batch_size": 0}, {"momentum": 1.0}, {"width": 0.0}, {"network": "alexnet"}):
        (name,) = values
        with pytest.raises(ValueError, match=name):
            method.configure(values)
