"""Every family as graphs and a program: the runner's paths, logits and MACs are those of our own execution."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainables.contracts.network import RoutedNetwork, Task
from trainables.export.families import program_of
from trainables.export.folder import write
from trainables.export.program import Chain, ExportError, Step
from trainables.export.pt2 import Pt2Runner, pt2_parts
from trainables.export.routefront_runner import Refused, Runner, Single, draws
from trainables.inference.evaluation import exit_logits
from trainables.inference.prepare import prepared
from trainables.networks.gated.gates import image_noise
from trainables.networks.gated.network import GatedResNet
from trainables.normalisation import Normalisation
from trainables.registry import get_method

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'routefront[export]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'routefront[export]'")
torch.set_num_threads(1)

TASK = Task(classes=5, size=16, channels=1)
NORMAL = Normalisation((0.4,), (0.25,))
NARROW = {"width": 0.5}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", {"network": "resnet-8", **NARROW}),
    "densenet": ("static", {"network": "densenet-40", "width": 0.25}),
    "skipnet feed-forward": ("skipnet", {"network": "resnet-8", "gate": "ff2", **NARROW}),
    "skipnet recurrent": ("skipnet", {"network": "resnet-14", "gate": "rnn", **NARROW}),
    "skipnet trailing": ("skipnet", {"network": "resnet-8", "impl": "official", **NARROW}),
    "codinet": ("codinet", {"network": "resnet-8", **NARROW}),
    "aig": ("aig", {"network": "resnet-8", **NARROW}),
    "aig drawn": ("aig", {"network": "resnet-8", "impl": "official", **NARROW}),
    "blockdrop": ("blockdrop", {"network": "resnet-8", **NARROW}),
    "sdv": ("sdv", {"network": "resnet-8", **NARROW}),
    "stochastic depth": ("sdv", {"network": "resnet-8", "variant": "original", **NARROW}),
    "imta": ("imta", {"network": "msdnet-3", "growth": 4, "curve_points": 4}),
    "imta ofa": ("imta", {"network": "msdnet-3", "growth": 4, "curve_points": 4, "variant": "ofa"}),
    "imta all": ("imta", {"network": "msdnet-3", "growth": 4, "curve_points": 4, "variant": "all"}),
    "decide static": ("decide", {"network": "pyramid-static-3", **NARROW}),
    "decide chain": ("decide", {"network": "pyramid-3", "variant": "pragmatic", **NARROW}),
    "decide tree, priced": ("decide", {"network": "pyramid-tree-3", "variant": "actor", "dynamic_k_cpt": True}),
    "act": ("act", {"network": "preact-resnet-14", **NARROW}),
    "sact": ("sact", {"network": "preact-resnet-14", **NARROW}),
    "multipath cc": ("multipath", {"network": "resnet-8-2", **NARROW}),
    "multipath cp": ("multipath", {"network": "resnet-8-2", "variant": "cp", **NARROW}),
    "multipath stitch": ("multipath", {"network": "resnet-8-2", "variant": "stitch", **NARROW}),
    "ensemble": ("ensemble", {"network": "basecnn", "members": 2, "width": 0.25}),
    "exits": ("exits", {"network": "torchvision:mobilenet_v3_small", "exits": 3, "curve_points": 4, "width": 0.25}),
    "blocks": ("blocks", {"network": "torchvision:mobilenet_v3_small", "width": 0.25}),
    "blocks with shortcuts": ("blocks", {"network": "resnet-8"}),
    "static backbone": ("static", {"network": "torchvision:mobilenet_v3_small", "width": 0.25}),
}
STILL = {"static", "densenet", "stochastic depth", "decide static", "multipath stitch", "static backbone"}
"""Families in which nothing is decided."""


def pixels(count: int = 40) -> np.ndarray:
    """Images of different contrast, so that routers can tell them apart."""
    noise = np.random.default_rng(0).random((count, *TASK.image)) * np.logspace(-1, 0, count)[:, None, None, None]
    return (noise * 255).astype(np.uint8)


def network_of(family: str) -> tuple[RoutedNetwork, list[Mapping[str, Any]], Tensor]:
    """A network in eval mode whose routers disagree about images, the knobs of its curve, and normalised images."""
    name, values = FAMILIES[family]
    method, spread = get_method(name), 0.1 if name == "decide" else 1.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = method.build(method.configure(values), TASK).eval()
        for parameter, tensor in network.named_parameters():
            if parameter.startswith("router") and ".norms." not in parameter:
                nn.init.normal_(tensor, std=tensor[0].numel() ** -0.5 if tensor.dim() > 1 else spread)
    inputs = NORMAL.apply(torch.from_numpy(pixels()))
    settings = method.settings(network.config)
    settings = settings[:: max(1, len(settings) // 4)]
    if method.calibrate is None:
        return network, list(settings), inputs
    logits = exit_logits(network, inputs)
    return network, [method.calibrate(setting, logits) for setting in settings], inputs


def exported(network: RoutedNetwork, knobs: list[Mapping[str, Any]], folder: Path) -> Runner:
    folder.mkdir()
    curve = [{"knobs": dict(each), "accuracy": 0.5, "macs": float(i)} for i, each in enumerate(knobs)]
    write(
        folder,
        network,
        program_of(network, knobs),
        settings=curve,
        promoted=knobs[len(knobs) // 2],
        classes=[f"class {k}" for k in range(TASK.classes)],
        normalisation=NORMAL,
        model={"name": "here"},
    )
    return Runner(folder)


def test_paths_of_which_none_is_left_out_are_one_part(tmp_path: Path) -> None:
    network, _, inputs = network_of("multipath cc")
    runner = exported(network, [{}], tmp_path / "out")
    assert len(runner.manifest["parts"]) == 1
    with torch.inference_mode():
        theirs = prepared(network).infer(inputs, {}).logits.numpy()
    assert np.allclose(runner.predict(pixels())["logits"], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_runner_does_what_the_network_does(family: str, tmp_path: Path) -> None:
    network, curve, inputs = network_of(family)
    runner, fast, images = exported(network, curve, tmp_path / "out"), prepared(network), pixels()
    same, seen, paths = 0, 0, []
    for setting, knobs in zip(runner.manifest["settings"], curve, strict=True):
        for count in (len(images), 7, 1):
            mine = runner.predict(images[:count], values=setting["values"])
            with torch.inference_mode():
                theirs = fast.infer(inputs[:count], knobs)
            alike = (np.abs(mine["path"] - theirs.path.double().numpy()) < 1e-9).all(axis=1)
            same, seen = same + alike.sum(), seen + count
            paths.append(mine["path"])
            logits = theirs.logits.numpy()
            assert np.abs(mine["logits"] - logits)[alike].max() <= 1e-5 * np.abs(logits).max()
            assert (mine["macs"] == theirs.macs.numpy())[alike].all()
            if theirs.exits is not None:
                assert (mine["exit"] == theirs.exits.numpy())[alike].all()
    assert same >= 0.999 * seen
    if runner.manifest["single"] is None:
        assert runner.manifest["program"][0]["draw"] > 0
    else:
        _compare_one_by_one(Single(tmp_path / "out"), runner)
    assert (len(np.unique(np.concatenate(paths), axis=0)) == 1) == (family in STILL)


def _compare_one_by_one(single: Single, runner: Runner) -> None:
    """The file with ``If`` nodes gives one image what the runner gives it in a batch."""
    images = pixels()[::8]
    for setting in runner.manifest["settings"]:
        together = runner.predict(images, values=setting["values"])
        for k, image in enumerate(images):
            alone = single.predict(image, setting["values"])
            assert np.abs(alone["path"][0] - together["path"][k]).max() < 1e-9
            assert alone["macs"][0] == together["macs"][k]
            assert np.abs(alone["logits"][0] - together["logits"][k]).max() <= 1e-5 * np.abs(together["logits"]).max()
            assert alone["probabilities"][0] == pytest.approx(together["probabilities"][k], abs=1e-5)
            if "exit" in together:
                assert alone["exit"][0] == together["exit"][k]


def test_a_part_runs_for_the_images_that_need_it_alone(tmp_path: Path) -> None:
    network, curve, _ = network_of("aig")
    runner = exported(network, curve, tmp_path / "out")
    ran: dict[str, int] = {}
    for name, part in runner._parts.items():
        original = part.run

        def counting(given: list[np.ndarray], name: str = name, original: Any = original) -> list[np.ndarray]:
            ran[name] = ran.get(name, 0) + len(given[0])
            return original(given)

        part.run = counting  # type: ignore[method-assign]
    answers = runner.predict(pixels(), values={"threshold": 0.5})
    blocks = [k for k, unit in enumerate(runner.units) if unit.startswith("block")]
    taken = answers["path"][:, blocks].sum(axis=0)
    begun = {name.partition("+")[0]: count for name, count in ran.items()}  # parts are joined to what follows them
    assert begun["stem"] == len(pixels())
    assert [begun.get(runner.units[k], 0) for k in blocks] == taken.tolist()
    assert 0 < taken.sum() < taken.size * len(pixels())


def test_draws_are_those_of_training() -> None:
    inputs = NORMAL.apply(torch.from_numpy(pixels()))
    for seed in (0, 7):
        assert (draws(inputs.numpy(), seed, 5) == image_noise(inputs, seed, 5).numpy()).all()


def test_no_images_and_wrong_images(tmp_path: Path) -> None:
    network, curve, _ = network_of("aig")
    runner = exported(network, curve, tmp_path / "out")
    nothing = runner.predict(pixels()[:0])
    assert nothing["logits"].shape == (0, TASK.classes) and nothing["label"].shape == (0,)
    with pytest.raises(Refused, match=r"float64 of shape \(40, 1, 16, 16\); this model takes uint8"):
        runner.predict(pixels().astype(float))
    with pytest.raises(Refused, match="unknown value 'treshold'; this model has threshold"):
        runner.predict(pixels(), values={"treshold": 1})
    with pytest.raises(Refused, match="max_macs -1: the cheapest setting costs 0 MACs"):
        runner.predict(pixels(), max_macs=-1)


def test_a_folder_that_was_changed_is_refused(tmp_path: Path) -> None:
    network, curve, _ = network_of("static")
    folder = tmp_path / "out"
    exported(network, curve, folder)
    graph, manifest = folder / "network.onnx", folder / "manifest.json"
    content, text = graph.read_bytes(), manifest.read_text()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(Refused, match=r"network\.onnx in .* was changed"):
        Runner(folder)
    graph.write_bytes(content)
    manifest.write_text(text.replace('"class 1"', '"class 7"'))
    with pytest.raises(Refused, match=r"manifest\.json was changed: its digest is"):
        Runner(folder)
    manifest.write_text(text[:-20])
    with pytest.raises(Refused, match=r"manifest\.json cannot be read"):
        Runner(folder)
    with pytest.raises(Refused, match=r"is no exported model: it has no manifest\.json"):
        Runner(tmp_path)


def test_a_part_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    class Strange(nn.Module):
        def forward(self, features: Tensor, *rest: Tensor) -> Tensor:
            return features + torch.linalg.svdvals(features).sum()

    network, curve, _ = network_of("aig")
    program = program_of(network, curve)
    step = next(step for step in program.steps if isinstance(step, Step) and step.part.name.startswith("block-0+"))
    assert isinstance(step.part.module, Chain)
    step.part.module.parts[0] = Strange()
    with pytest.raises(ExportError, match=r"part block-0\+router-1\S* cannot be exported"):
        from trainables.export.graphs import onnx_parts

        onnx_parts(program, network, TASK.image)


def test_a_network_that_nobody_took_apart_is_refused() -> None:
    class Plugged(RoutedNetwork):
        def forward(self, inputs: Tensor, **options: Any) -> Any:
            raise NotImplementedError

        def infer(self, inputs: Tensor, knobs: Any, **options: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(ExportError, match="type Plugged cannot be exported: nothing says what its parts are"):
        program_of(Plugged(None, TASK), [{}])


def test_what_all_images_run_is_joined_to_what_some_ran_before() -> None:
    """One call a block: the block with the next router where it runs, that router alone where it does not."""
    network, curve, _ = network_of("skipnet recurrent")
    steps = [step for step in program_of(network, curve).steps if isinstance(step, Step)]
    assert isinstance(network, GatedResNet)
    gates = len(network.gated)
    assert steps[0].part.name.startswith("stem+router-") and not steps[0].when
    assert len(steps) <= 1 + 2 * gates and all(step.when or step.unless for step in steps[1:])
    for flag in {step.when or step.unless for step in steps[1:]}:
        branches = {bool(step.when): step for step in steps[1:] if flag in (step.when, step.unless)}
        runs, rest = branches[True], branches[False]
        assert runs.part.name.endswith(f"+{rest.part.name}") or rest.part.name.startswith("short")
        assert set(runs.charges) > set(rest.charges)


@pytest.mark.parametrize("family", ["static", "aig", "decide chain"])
def test_parts_of_torch_export_do_what_the_network_does(family: str, tmp_path: Path) -> None:
    network, curve, inputs = network_of(family)
    settings = [{"knobs": dict(each), "accuracy": 0.5, "macs": 1.0} for each in curve[-1:]]
    names = [str(k) for k in range(TASK.classes)]
    how: dict[str, Any] = {"settings": settings, "classes": names, "normalisation": NORMAL, "model": {}}
    write(tmp_path, network, program_of(network, curve), promoted=curve[-1], form="pt2", **how)
    found = Pt2Runner(tmp_path).predict(pixels()[:9])
    alone = Pt2Runner(tmp_path).predict(pixels()[:1])
    with torch.inference_mode():
        theirs = prepared(network).infer(inputs[:9], curve[-1])
    np.testing.assert_allclose(found["logits"], theirs.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(alone["logits"], theirs.logits[:1].numpy(), atol=1e-4)
    assert (found["path"] == theirs.path.numpy()).all() and (found["macs"] == theirs.macs.numpy()).all()


def test_a_part_that_torch_export_does_not_take_is_named(tmp_path: Path) -> None:
    network, curve, _ = network_of("act")
    with pytest.raises(ExportError, match=r"part unit-0 cannot be exported by torch\.export: .* the number of images"):
        pt2_parts(program_of(network, curve), network, TASK.image)
