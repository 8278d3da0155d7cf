"""One test suite for every method: ours and those of plug-ins pass the same.

In the tests of a plug-in:

>>> from my_method.method import METHOD                                          # doctest: +SKIP
>>> from routefront.testing import conformance
>>> TestConformance = conformance(METHOD, {"network": "toy-2"})                  # doctest: +SKIP

pytest then runs every check of `CHECKS` on a small network of that configuration: it is built, trained for a few steps
in every phase, swept over its settings, saved as JSON. What fails says in one line what was found and what the
contract wants (`trainables.method`, `trainables.network`). Give values under which the network is small: a suite that
takes a second is run.

A network's parameters whose names begin with ``router`` are drawn at random before decisions are compared, so that
gates disagree about images as trained ones do.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.method import Method, config_dict
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Batch, Phase
from trainables.execution.macs import counted
from trainables.inference.evaluation import curve, exit_logits

__all__ = ["CHECKS", "Case", "conformance"]

TASK = Task(classes=5, size=16, channels=1)
OTHER_TASKS = (Task(classes=3, size=17, channels=2), Task(size=32))
BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A method and the configuration that is tested. `other_tasks`: what else the network is built for."""

    method: Method
    values: Mapping[str, Any] = field(default_factory=dict)
    task: Task = TASK
    other_tasks: tuple[Task, ...] = OTHER_TASKS

    def configure(self) -> Any:
        """The configuration under test."""
        return self.method.configure(self.values)

    def build(self, task: Task | None = None) -> RoutedNetwork:
        """The network, from seed 0."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.method.build(self.configure(), task or self.task)

    def undecided(self, task: Task | None = None) -> RoutedNetwork:
        """A network in eval mode whose routers disagree about images, as trained ones do."""
        network = self.build(task).eval()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            for name, parameter in network.named_parameters():
                if name.startswith("router"):
                    # a policy network is deep: its activations must keep their size, or every gate is saturated
                    nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 1.0)
        return network

    def images(self, task: Task | None = None, count: int = BATCH) -> Tensor:
        """Images of different contrast, so that routers can tell them apart."""
        shape = (task or self.task).image
        noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
        return noise * torch.logspace(-1, 1, count)[:, None, None, None]

    def knobs(self, network: RoutedNetwork, images: Tensor) -> list[Mapping[str, Any]]:
        """The knobs of every setting of the curve."""
        settings = self.method.settings(network.config)
        if self.method.calibrate is None:
            return list(settings)
        logits = exit_logits(network, images)
        return [self.method.calibrate(setting, logits) for setting in settings]

    def batch(self, config: Any, seed: int = 0) -> Batch:
        """A training batch of noise."""
        generator = torch.Generator().manual_seed(seed)
        views = self.method.views(config)
        images = torch.randn(BATCH, *self.task.image, generator=generator)
        return Batch(images, (torch.arange(BATCH) // views) % self.task.classes, views, generator)

    def train(self, network: RoutedNetwork, phase: Phase, steps: int = 2) -> list[dict[str, float]]:
        """A few steps of a phase, as the training loop takes them; the loss terms of each."""
        optimiser = torch.optim.SGD(_entered(network, phase), lr=0.01, momentum=0.9, weight_decay=1e-3)
        history = []
        for step in range(steps):
            batch = self.batch(network.config, step)
            terms = self.method.objective(network, batch, phase)
            optimiser.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()
            if self.method.adjust_gradients is not None:
                self.method.adjust_gradients(network, batch)
            optimiser.step()
            history.append({name: float(term.detach()) for name, term in terms.items()})
        return history


def _entered(network: RoutedNetwork, phase: Phase) -> list[nn.Parameter]:
    """What the training loop does when a phase begins; the parameters that it trains."""
    network.relaxation = phase.relaxation
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(phase.trains(name))
        parameter.grad = None
    network.train()
    for name, module in network.named_modules():
        if phase.eval_mode and name.startswith(phase.eval_mode):
            module.eval()
    return [p for p in network.parameters() if p.requires_grad]


def must(good: Any, line: str) -> None:
    """Raise `AssertionError` with one line unless `good`."""
    if not bool(good):
        raise AssertionError(line)


@contextmanager
def _refused(pattern: str, line: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        must(re.search(pattern, str(error)), f"{line}; it says {str(error)!r}, and should name {pattern!r}")
        return
    raise AssertionError(f"{line}: raise ValueError that names {pattern!r}")


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal to 1e-5 of the largest value."""
    return bool((one - other).detach().abs().max() <= 1e-5 * other.detach().abs().max())


# -- the checks ------------------------------------------------------------------------------------


def the_network_says_what_it_is_made_of(case: Case) -> None:
    """Units, MACs and parameters are described, and add up."""
    network, method = case.build(), case.method
    names = {unit.name for unit in network.units}
    must(len(network.units) == len(network.unit_macs) == len(names), f"units need names of their own: {sorted(names)}")
    must(0 < network.macs_min <= network.macs_full, f"0 < macs_min {network.macs_min} <= macs_full {network.macs_full}")
    must(network.fixed_macs >= 0, f"fixed MACs are {network.fixed_macs}: call describe_units with what always runs")
    free = [unit.name for unit in network.units if unit.macs <= 0]
    must(not free, f"units that cost nothing are no units: {free}")
    total = network.fixed_macs + int(network.unit_macs.sum())
    must(total >= network.macs_full, f"fixed MACs and all units are {total}, less than macs_full {network.macs_full}")
    counts, parameters = network.params_by_part(), sum(p.numel() for p in network.parameters())
    must(sum(counts.values()) == parameters, f"parts have {sum(counts.values())} of {parameters} parameters")
    variant, name = network.config.variant, network.config.network
    must(variant in method.variants, f"variant {variant!r} is not among the method's: {method.variants}")
    must(name in method.networks, f"network {name!r} is not among the method's: {method.networks}")
    if method.paper_cost is not None:
        json.dumps(method.paper_cost(network), allow_nan=False)


def sizes_need_no_weights(case: Case) -> None:
    """A network on the meta device has the same units and MACs."""
    real = case.build()
    with torch.device("meta"):
        network = case.method.build(real.config, case.task)
    found = (network.units, network.macs_full, network.fixed_macs)
    must(
        found == (real.units, real.macs_full, real.fixed_macs), "on the meta device the network has other units or MACs"
    )


def every_phase_trains_what_it_says_and_nothing_else(case: Case) -> None:
    """Parameters that a phase does not train stay, statistics of modules in eval mode too; losses are finite."""
    network = case.build()
    for phase in case.method.phases(network.config):
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        modes = [n for n, _ in network.named_modules() if phase.eval_mode and n.startswith(phase.eval_mode)]
        statistics = {n: b.clone() for n, b in network.named_buffers() if n.startswith(tuple(modes) or ("?",))}
        history = case.train(network, phase)
        finite = all(torch.tensor(list(terms.values())).isfinite().all() for terms in history)
        must(finite, f"phase {phase.name}: a loss is not finite: {history}")
        must(list(history[0]) == list(history[1]), f"phase {phase.name}: other loss terms from step to step")
        moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
        must(moved, f"phase {phase.name} changes no parameter")
        wrong = sorted(name for name in moved if not phase.trains(name))
        must(not wrong, f"phase {phase.name} changes {wrong}, which it says that it does not train")
        for name, parameter in network.named_parameters():  # a block that every image skipped has zeros
            has = parameter.grad is not None
            said = "has no gradient, though the phase trains it" if phase.trains(name) else "has a gradient"
            must(has is phase.trains(name), f"phase {phase.name}: {name} {said}")
        drifted = [n for n, b in network.named_buffers() if not torch.equal(b, statistics.get(n, b))]
        must(not drifted, f"phase {phase.name}: {drifted} changed in eval mode")


def the_same_seed_trains_the_same(case: Case) -> None:
    """Noise comes from the batch's generator, never from the process's."""
    runs = []
    for _ in range(2):
        network = case.build()
        losses = [case.train(network, phase) for phase in case.method.phases(network.config)]
        runs.append((losses, [p.detach().clone() for p in network.parameters()]))
    line = "two trainings from one seed differ: draw noise from `generator`, not from torch's own"
    must(runs[0][0] == runs[1][0], line)
    must(all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True)), line)


def relaxed_passes_return_what_the_contract_says(case: Case) -> None:
    """Shapes, ranges and a gradient from expected MACs to decisions."""
    network = case.build().train()
    routed = network(case.images(), generator=torch.Generator().manual_seed(0))
    wanted = (BATCH, case.task.classes)
    shapes = {tuple(logits.shape) for logits in (*routed.logits, routed.output)}
    must(shapes == {wanted}, f"logits are {shapes}, and must be {wanted}")
    must(routed.macs.shape == (BATCH,) and len(routed.decisions) == BATCH, "MACs and decisions have a row an image")
    must(((routed.decisions >= 0) & (routed.decisions <= 1)).all(), "decisions leave [0, 1]")
    low, high = float(routed.macs.detach().min()), float(routed.macs.detach().max())
    bounds = f"[{network.macs_min}, {network.macs_full}]"
    must(low >= network.macs_min - 1 and high <= network.macs_full + 1, f"MACs {low} to {high} leave {bounds}")
    if routed.decisions.shape[1]:  # expected MACs can be minimised
        decisions = routed.decisions.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network(case.images(), decisions=decisions).macs.sum(), decisions)
        must((gradient > 0).any(), "expected MACs have no gradient in the decisions")


def hard_passes_cost_and_answer_what_they_say(case: Case) -> None:
    """What is executed is what is charged, and the differentiable pass under the same decisions answers the same."""
    network = case.undecided()
    for count in (1, 7, BATCH):
        images = case.images()[:count]
        for knobs in case.knobs(network, case.images()):
            with counted(network) as tally:
                result = network.infer(images, knobs)
            done, charged = sum(tally.values()), float(result.macs.sum())
            must(done == charged, f"{count} images, {dict(knobs)}: {done} MACs were computed and {charged:.0f} charged")
            must(result.macs.dtype == torch.float64, f"MACs are {result.macs.dtype}; use path_macs(path)")
            shape = (count, len(network.units))
            must(tuple(result.path.shape) == shape, f"path is {tuple(result.path.shape)}, and must be {shape}")
            must(((result.path >= 0) & (result.path <= 1)).all(), "path leaves [0, 1]")
            total = network.fixed_macs + result.path.double() @ network.unit_macs
            must(torch.equal(result.macs, total), "MACs are not fixed_macs + path @ unit_macs")
            inside = (result.macs >= network.macs_min).all() and (result.macs <= network.macs_full).all()
            must(inside, f"MACs leave [{network.macs_min}, {network.macs_full}]")
            routed = network(images, decisions=result.decisions)
            must(
                _close(routed.output, result.logits),
                f"{dict(knobs)}: forward under infer's decisions answers otherwise",
            )
            must(
                torch.equal(routed.macs, result.macs), f"{dict(knobs)}: forward under infer's decisions costs otherwise"
            )


def a_network_of_another_type_counts_the_same(case: Case) -> None:
    """Cast to bfloat16, MACs stay exact."""
    network = case.undecided().bfloat16()
    result = network.infer(case.images().bfloat16(), case.knobs(case.undecided(), case.images())[0])
    total = network.fixed_macs + result.path.double() @ network.unit_macs
    must(torch.equal(result.macs, total), "cast to bfloat16 the network counts other MACs; use path_macs(path)")
    must(network.unit_macs.tolist() == [unit.macs for unit in network.units], "unit_macs lost digits")


def a_sweep_is_a_loop_of_single_passes_that_costs_less(case: Case) -> None:
    """`sweep` answers what `infer` answers setting by setting, and shares work between settings."""
    network, images = case.undecided(), case.images()
    knobs = case.knobs(network, images)
    with counted(network) as tally:
        swept = network.sweep(images, knobs)
    single = [network.infer(images, k) for k in knobs]
    for at, one, other in zip(knobs, swept, single, strict=True):
        must(_close(one.logits, other.logits), f"sweep and infer answer differently at {dict(at)}")
        same = torch.allclose(one.decisions, other.decisions, rtol=0, atol=1e-5) and torch.equal(one.path, other.path)
        must(same, f"sweep and infer decide differently at {dict(at)}")
        must(torch.equal(one.macs, other.macs), f"sweep and infer charge differently at {dict(at)}")
    done, alone = sum(tally.values()), sum(float(each.macs.sum()) for each in single)
    must(done <= alone, f"a sweep computes {done} MACs, its settings one by one {alone:.0f}")
    if len(knobs) > 1:  # the knobs must move something, or this check has no teeth
        means = {float(each.macs.mean()) for each in single}
        must(len(means) > 2, f"{len(knobs)} settings cost {len(means)} different amounts: knobs that change nothing")
        must(done < alone, "a sweep shares no work between settings: override `sweep`, compute what is common once")


def order_and_company_of_images_do_not_matter(case: Case) -> None:
    """An image is decided and answered alike alone, in another order and in another batch."""
    network, images = case.undecided(), case.images()
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(3))
    for knobs in case.knobs(network, images)[::4]:
        whole, shuffled = network.infer(images, knobs), network.infer(images[order], knobs)
        must(torch.equal(shuffled.path, whole.path[order]), f"{dict(knobs)}: paths depend on the order of images")
        near = torch.allclose(shuffled.logits, whole.logits[order], rtol=1e-4, atol=1e-4)
        must(near, f"{dict(knobs)}: answers depend on the order of images")
        alone = torch.cat([network.infer(image[None], knobs).path for image in images])
        must(torch.equal(alone, whole.path), f"{dict(knobs)}: an image takes another path alone than in a batch")


def replay_is_inference_by_arithmetic(case: Case) -> None:
    """Where knobs are calibrated, `replay` gets from logits what `infer` computes."""
    network, images = case.undecided(), case.images()
    if case.method.calibrate is None:
        try:
            network.replay(torch.zeros(1, BATCH, case.task.classes), {})
        except TypeError:
            return
        raise AssertionError("a method without `calibrate` has a network with `replay`")
    logits = exit_logits(network, images)
    for knobs in case.knobs(network, images):
        replayed, executed = network.replay(logits, knobs), network.infer(images, knobs)
        same = torch.equal(replayed.path, executed.path) and torch.equal(replayed.macs, executed.macs)
        must(same, f"{dict(knobs)}: replay takes another path than infer")
        must(_close(replayed.logits, executed.logits), f"{dict(knobs)}: replay answers otherwise than infer")


def other_tasks(case: Case) -> None:
    """Other classes, sizes and channels are counted as they are computed."""
    for task in case.other_tasks:
        network = case.undecided(task)
        images = case.images(task, 3)
        for knobs in case.knobs(network, images)[::5]:
            with counted(network) as tally:
                result = network.infer(images, knobs)
            must(result.logits.shape == (3, task.classes), f"{task}: logits are {tuple(result.logits.shape)}")
            done, charged = sum(tally.values()), float(result.macs.sum())
            must(done == charged, f"{task}: {done} MACs were computed and {charged:.0f} charged")


def curves_have_a_point_for_every_setting(case: Case) -> None:
    """A curve is plain JSON, inside the network's bounds, and leaves the network's mode."""
    network = case.undecided().train()
    labels = torch.arange(20) % case.task.classes
    result = curve(case.method, network, case.images(count=20), labels, batch_size=8)
    settings = case.method.settings(network.config)
    must([p["setting"] for p in result.points] == [dict(s) for s in settings], "the curve lacks a setting")
    must(result.correct.shape == (len(settings), 20), f"correctness is {result.correct.shape}")
    must(network.training, "a curve left the network in eval mode")
    json.dumps(result.points, allow_nan=False)
    macs = [point["macs"] for point in result.points]
    inside = min(macs) >= network.macs_min and max(macs) <= network.macs_full
    must(inside, f"points cost {min(macs)} to {max(macs)}, outside of {network.macs_min} to {network.macs_full}")


def configurations_survive_json(case: Case) -> None:
    """A configuration is plain values, frozen; an unknown name is refused with the nearest."""
    method = case.method
    for config in (method.Config(), case.configure(), method.configure(method.published)):
        back = method.configure(json.loads(json.dumps(config_dict(config), allow_nan=False)))
        must(back == config, f"a configuration comes back from JSON as another one: {back} of {config}")
        must(config.__dataclass_params__.frozen, f"{type(config).__name__} must be a frozen dataclass")
    json.dumps([dict(s) for s in method.settings(method.Config())], allow_nan=False)
    with _refused(r"no parameter 'lrr'.*did you mean 'lr'", "an unknown parameter is taken"):
        method.configure({"lrr": 0.1})


def the_space_holds_configurations(case: Case) -> None:
    """Whatever the space draws can be configured."""
    method = case.method
    fields = {each.name for each in dataclasses.fields(method.Config)}
    unknown = (set(method.space) | set(method.published)) - fields
    must(not unknown, f"space or published setting names {sorted(unknown)}, which Config does not have")
    lacks = {"network", "lr", "weight_decay", "batch_size"} - set(method.space)
    must(not lacks, f"the space lacks {sorted(lacks)}: begin it with spaces.training.with_training")
    rng = random.Random(0)
    for _ in range(50):
        sample = method.space.sample(rng)
        method.space.check(sample)
        config = method.configure(sample)
        must(config.variant in method.variants, f"the space draws the variant {config.variant!r}")
        shares = sum(phase.share for phase in method.phases(config))
        must(abs(shares - 1) < 1e-6, f"the phases take {shares} of the epochs; shares add up to 1")


def shared_mistakes_are_refused(case: Case) -> None:
    """Values that no training can have are refused by their names."""
    for values in ({"lr": 0.0}, {"batch_size": 0}, {"momentum": 1.0}, {"width": 0.0}, {"network": "alexnet"}):
        (name,) = values
        with _refused(name, f"{values} is taken"):
            case.method.configure(values)


CHECKS: tuple[Callable[[Case], None], ...] = (
    the_network_says_what_it_is_made_of,
    sizes_need_no_weights,
    every_phase_trains_what_it_says_and_nothing_else,
    the_same_seed_trains_the_same,
    relaxed_passes_return_what_the_contract_says,
    hard_passes_cost_and_answer_what_they_say,
    a_network_of_another_type_counts_the_same,
    a_sweep_is_a_loop_of_single_passes_that_costs_less,
    order_and_company_of_images_do_not_matter,
    replay_is_inference_by_arithmetic,
    other_tasks,
    curves_have_a_point_for_every_setting,
    configurations_survive_json,
    the_space_holds_configurations,
    shared_mistakes_are_refused,
)
"""What every method is tested for, in the order in which it is useful to mend."""


def conformance(
    method: Method,
    values: Mapping[str, Any] | None = None,
    *,
    task: Task = TASK,
    other_tasks: tuple[Task, ...] = OTHER_TASKS,
) -> type:
    """A class with a test for every one of `CHECKS`, for pytest: assign it to a name that begins with ``Test``.

    `values`: of a configuration with a small network. `task`, `other_tasks`: what the network is built for, where it
    cannot have 16 pixels, one channel, an odd size or two channels.
    """
    case = Case(method=method, values=dict(values or {}), task=task, other_tasks=other_tasks)

    def test(check: Callable[[Case], None]) -> Callable[[Any], None]:
        def run(self: Any) -> None:
            check(case)

        run.__doc__ = check.__doc__
        return run

    return type("Conformance", (), {f"test_{check.__name__}": test(check) for check in CHECKS})
