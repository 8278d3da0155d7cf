"""The public names of routefront. Everything else may move or change in any release.

>>> import routefront
>>> spec = routefront.StudySpec.read(Path("study.toml"))            # doctest: +SKIP
>>> study = routefront.Study.create(spec)                           # doctest: +SKIP
>>> study.launch()                                                  # doctest: +SKIP
>>> study.frontier(max_macs=20e6)                                   # doctest: +SKIP
>>> model = routefront.load("digits@champion")                      # doctest: +SKIP
>>> routefront.predict(model, ["photo.png"], max_macs=5e6)          # doctest: +SKIP

===================== ==========================================================================================
`Study`               a study: create, load, launch, ask for its frontier, promote from it
`StudySpec`           the study file, validated; its fields are the file's tables and keys
`Method`              what a routing method consists of: search space, network, training phases, objective
`Space`               a search space: parameters by name and the conditions between them
`Range`, `LogRange`   a number between two bounds, drawn uniformly, or uniformly in its logarithm
`Choice`, `Fixed`     one of several values; one value that does not vary
`When`                the condition under which a parameter exists
`SurrogateSampler`    the search's own sampler for `optuna.create_study`, for studies that routefront knows nothing of
`RoutedNetwork`       the base class of networks whose path depends on the image
`Task`                what a network is built for: number of classes, size and channels of images
`InputError`          raised where something given is wrong: one line with the value and what would be right
`load`                load a promoted model from the model registry: a `PromotedModel`
`load_trainable`      load a promoted trainable (`trainables.external`): a `PromotedTrainable`
`predict`             classify images with a promoted model
`trust_network`       let this process build the network of a person's own file, ``mine.py:build``
`PromotedModel`       a promoted model: what it was promoted with, its network, `predict`
`PromotedTrainable`   a promoted trainable: what it was promoted with, `predict`
``__version__``       the release, for example ``0.1.0``
===================== ==========================================================================================

A name is imported when it is first used, so ``import routefront`` loads neither torch, Ray, Optuna, MLflow nor numpy.
`InputError` is a `ValueError`. A plug-in's method is made of further classes, which `trainables.method` and
`trainables.network` hold for plug-ins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` imports, for editors and type checkers
    from routefront.promoted import PromotedModel, PromotedTrainable, load, load_trainable, predict
    from search.errors import InputError
    from search.sampling.optuna_surrogate import SurrogateSampler
    from search.spec.study import StudySpec
    from search.study import Study
    from spaces.own_networks import trust_network
    from spaces.space import Choice, Fixed, LogRange, Range, Space, When
    from trainables.contracts.method import Method
    from trainables.contracts.network import RoutedNetwork, Task
    from trainables.version import VERSION as __version__

__all__ = [
    "Choice",
    "Fixed",
    "InputError",
    "LogRange",
    "Method",
    "PromotedModel",
    "PromotedTrainable",
    "Range",
    "RoutedNetwork",
    "Space",
    "Study",
    "StudySpec",
    "SurrogateSampler",
    "Task",
    "When",
    "__version__",
    "load",
    "load_trainable",
    "predict",
    "trust_network",
]

_PLACES = {
    "Choice": "spaces.space",
    "Fixed": "spaces.space",
    "InputError": "search.errors",
    "LogRange": "spaces.space",
    "Method": "trainables.contracts.method",
    "PromotedModel": "routefront.promoted",
    "PromotedTrainable": "routefront.promoted",
    "Range": "spaces.space",
    "RoutedNetwork": "trainables.contracts.network",
    "Space": "spaces.space",
    "Study": "search.study",
    "StudySpec": "search.spec.study",
    "SurrogateSampler": "search.sampling.optuna_surrogate",
    "Task": "trainables.contracts.network",
    "When": "spaces.space",
    "__version__": "trainables.version:VERSION",
    "load": "routefront.promoted",
    "load_trainable": "routefront.promoted",
    "predict": "routefront.promoted",
    "trust_network": "spaces.own_networks",
}
"""The module that defines a public name, with the name there where it is another one."""


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used; `AttributeError` for any other."""
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module 'routefront' has no public name {name!r}; it has {', '.join(__all__)}")
    module, _, there = _PLACES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), there or name)
    return value


def __dir__() -> list[str]:
    """The public names."""
    return list(__all__)
