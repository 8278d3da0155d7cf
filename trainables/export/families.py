"""The program of a network, by its family."""

from __future__ import annotations

from collections.abc import Sequence

from trainables.contracts.network import Knobs, RoutedNetwork
from trainables.export import blocks, columns, exits, gated, halting, multipath
from trainables.export.program import ExportError, Program, whole
from trainables.methods.ensemble import Ensemble
from trainables.networks.backbones.network import GatedBackbone, StaticBackbone
from trainables.networks.columns.network import ColumnNetwork
from trainables.networks.gated.network import GatedResNet
from trainables.networks.halting.network import HaltingNetwork
from trainables.networks.msdnet.exits import ExitNetwork
from trainables.networks.multipath.network import MultiPathNetwork
from trainables.networks.resnet.cifar import StaticResNet
from trainables.networks.resnet.densenet import DenseNet


def program_of(network: RoutedNetwork, curve: Sequence[Knobs]) -> Program:
    """The parts and steps of a trained network in eval mode, for the knobs of its `curve`.

    Raises `ExportError` for a network of a kind that nobody has taken apart: a plug-in's.
    """
    if isinstance(network, StaticResNet | DenseNet | StaticBackbone):
        return whole(network, "nothing is decided")
    if isinstance(network, GatedResNet):
        return gated.program_of(network, curve)
    if isinstance(network, GatedBackbone):
        return blocks.program_of(network)
    if isinstance(network, ExitNetwork):
        return exits.program_of(network)
    if isinstance(network, ColumnNetwork):
        return columns.program_of(network)
    if isinstance(network, HaltingNetwork):
        return halting.program_of(network)
    if isinstance(network, MultiPathNetwork):
        return multipath.program_of(network, curve)
    if isinstance(network, Ensemble):
        return multipath.ensemble_program_of(network)
    name = type(network).__name__
    raise ExportError(f"a network of type {name} cannot be exported: nothing says what its parts are; use the registry")
