"""Promoted models: loading one from the model registry, classifying images with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search.errors import InputError
from search.promotion import models
from search.studies.roots import root_of, studies_root
from search.tracking.server import default_uri
from trainables.contracts.network import RoutedNetwork, Task
from trainables.data import datasets
from trainables.normalisation import Normalisation

Images = np.ndarray | torch.Tensor | str | Path | Sequence[str | Path]
"""uint8 pixels of shape (n, channels, size, size), or image files and folders of them."""


class _Promoted:
    """What every promoted version says of itself."""

    def __init__(self, registered: models.Registered) -> None:
        serving = registered.serving
        self._registered = registered
        self.name, self.version, self.alias = registered.name, registered.version, registered.alias
        self.study: str = serving["study"]
        self.method: str = serving["method"]
        self.knobs: dict[str, Any] = dict(serving["knobs"])
        self.curve: list[dict[str, Any]] = [dict(setting) for setting in serving["curve"]]
        self.tags: dict[str, str] = dict(registered.tags)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._registered.shown}: {self.method} of study {self.study}>"


class PromotedModel(_Promoted):
    """A version of a promoted model, loaded from the model registry by `load`.

    It runs the code that it was promoted with. `name`, `version`, `alias` (None where it was asked for by version):
    which model this is. `study`, `method`: where it comes from. `classes`: their names. `task`: what images it takes.
    `knobs`: the promoted setting. `curve`: every setting of the checkpoint: knobs, validation accuracy and MACs per
    image. `macs_full`: MACs per image with everything on. `tags`: those of the model version.
    """

    def __init__(self, registered: models.Registered) -> None:
        super().__init__(registered)
        self.classes: tuple[str, ...] = tuple(registered.serving["classes"])
        self.task = Task(**registered.serving["task"])
        self.macs_full = int(registered.serving["macs_full"])

    @property
    def network(self) -> RoutedNetwork:
        """The network in eval mode, prepared for inference; it takes images that `normalise` has normalised.

        Of a model that another release promoted, its class is that release's own.
        """
        return self._registered.model.unwrap_python_model().network

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """A uint8 tensor (n, channels, size, size) as the network takes it: float32, normalised as in training."""
        return Normalisation.of(self._registered.serving["normalisation"]).apply(images)

    def predict(
        self, images: Images, *, knobs: Mapping[str, Any] | None = None, max_macs: float | None = None
    ) -> list[dict[str, Any]]:
        """Classify images: one dictionary an image, in their order.

        `images`: uint8 pixels (n, channels, size, size) in a numpy array or a tensor, or image files and folders of
        them, which are resized. `max_macs`: the most accurate setting of the curve of at most so many MACs per image
        answers (on average over the validation images). `knobs` replace some of the promoted ones. Give one of both.

        Keys: ``label`` (index of the class), ``class`` (its name), ``confidence``, ``probabilities`` (of all
        classes), ``macs``, ``path`` (the executed share of every unit, in [0, 1]); with exits ``exit`` (index of the
        exit taken); of files ``image`` (the path).

        Raises `InputError` for images of another shape or type, a file that is missing or no image, an unknown knob,
        and a budget below the cheapest setting.
        """
        if max_macs is not None and not (_number(max_macs) and max_macs > 0):
            raise InputError(f"max_macs = {max_macs!r}: give a number of MACs per image above 0, for example 5e6")
        given = dict(knobs) if knobs else None
        files = _files(images)
        pixels = np.asarray(images) if files is None else self._read(files)
        rows = list(models.predict(self._registered, pixels, knobs=given, max_macs=max_macs))
        for row, path in zip(rows, files or (), strict=files is not None):
            row["image"] = str(path)
        return rows

    def _read(self, files: list[Path]) -> np.ndarray:
        try:
            return datasets.read_images(files, self.task, self._registered.scale, self._registered.resize)
        except (ValueError, FileNotFoundError) as error:
            raise InputError(str(error)) from None


class PromotedTrainable(_Promoted):
    """A version of a promoted trainable, loaded from the model registry by `load_trainable`.

    It runs the class that it was promoted with. `name`, `version`, `alias`, `study`, `method`, `knobs`, `tags`: as of a
    `PromotedModel`; `method` is the trainable's name in its study. `curve`: every setting of the checkpoint: knobs,
    and merit and cost in the study's own figures.
    """

    def predict(self, inputs: Any, *, knobs: Mapping[str, Any] | None = None, cost: float | None = None) -> Any:
        """What the trainable's own `predict` answers for `inputs`.

        `cost`: the best setting of the curve that is as cheap as this answers, in the study's own figure. `knobs`
        replace some of the promoted ones. Give one of both. Raises `InputError` for a knob or a cost that it does not
        have.
        """
        return models.ask(self._registered, inputs, knobs=dict(knobs) if knobs else None, cost=cost)


def load(model: str, *, uri: str | None = None, studies: str | Path | None = None) -> PromotedModel:
    """The promoted model ``"NAME@ALIAS"`` or ``"NAME/VERSION"``, for example ``load("digits@champion")``.

    `uri`: the MLflow address, ``http://HOST:PORT`` or ``sqlite:///FILE``; by default the database beside the studies,
    as on the command line. `studies`: the folder of studies, by default ``$ROUTEFRONT_STUDIES`` or ``./studies``.

    Before anything of it is read, the model's files are compared with the digest that its promotion has written
    into the registry; nothing is unpickled. Raises `InputError` for a name or an address that is wrong, where there is
    no such model, alias or version, and for files that are not those that were promoted.
    """
    return PromotedModel(models.load(model, _registry(model, uri, studies)))


def load_trainable(model: str, *, uri: str | None = None, studies: str | Path | None = None) -> PromotedTrainable:
    """The promoted trainable ``"NAME@ALIAS"`` or ``"NAME/VERSION"``: as `load`, for what is no network on images.

    The class that it was promoted with runs in this process. Raises `InputError` as `load` does, and for a model that
    is no trainable.
    """
    found = models.load(model, _registry(model, uri, studies), trainables=True)
    return PromotedTrainable(found)


def _registry(model: str, uri: str | None, studies: str | Path | None) -> str:
    """The address to ask; `InputError` for what is no model's name, or no registry."""
    if not isinstance(model, str):
        raise InputError(f"model {model!r}: write NAME@ALIAS or NAME/VERSION, for example digits@champion")
    models.split_name(model)
    if uri is None:
        uri = default_uri(root_of(studies) if isinstance(studies, str) else studies_root(studies))
    if uri == "off":
        raise InputError("uri = 'off': promoted models are in a registry; give http://HOST:PORT or sqlite:///FILE")
    return uri


def predict(
    model: str | PromotedModel,
    images: Images,
    *,
    knobs: Mapping[str, Any] | None = None,
    max_macs: float | None = None,
    uri: str | None = None,
    studies: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Classify images with a promoted model: one dictionary an image, see `PromotedModel.predict`.

    `model`: what `load` returned, or a name for it; by name the model is loaded at every call. `uri` and `studies`: as
    for `load`, by name only.
    """
    if isinstance(model, PromotedModel):
        if uri is not None or studies is not None:
            raise InputError(f"{model!r} is loaded already; uri and studies go with a model's name")
    else:
        model = load(model, uri=uri, studies=studies)
    return model.predict(images, knobs=knobs, max_macs=max_macs)


def _number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def _files(images: Images) -> list[Path] | None:
    """The image files that were named, those of folders included; None where pixels were given."""
    if isinstance(images, str | Path):
        return models.image_files([Path(images)])
    if isinstance(images, list | tuple) and all(isinstance(each, str | Path) for each in images):
        if not images:
            raise InputError("images is an empty list; name at least one image file or folder")
        return models.image_files([Path(each) for each in images])
    return None
