"""Models of the registry: finding one by name, loading it, predicting with it.

Images are given as an array, as files, or as a split of the model's own data set.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from search.errors import InputError
from search.promotion.ledger import LOCK, answering
from search.promotion.signatures import verify
from search.promotion.versions import DIGEST, fetched, folder_digest
from search.spec.study import StudySpec
from search.studies.roots import studies_root
from search.tracking.server import check_server, chosen_uri, is_server, quiet, shown, using
from spaces.space import nearest
from trainables.contracts.network import Task
from trainables.data import datasets, layout
from trainables.data.depth import Scale
from trainables.data.errors import DataError
from trainables.data.splits import Data

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff")

_ROWS = 1024


@dataclass(slots=True)
class Registered:
    """A model of the registry, loaded. `serving`: what it was promoted with (``serving.json``).

    `files`: the folder that it runs from, gone when this object is.
    """

    name: str
    version: str
    alias: str | None
    serving: dict[str, Any]
    tags: dict[str, str] = field(default_factory=dict)
    model: Any = None
    files: tempfile.TemporaryDirectory[str] | None = None

    @property
    def resize(self) -> str:
        """The rule by which files become of the model's size (`trainables.data.resizing`)."""
        return self.serving["data"].get("resize") or "fit"

    @property
    def scale(self) -> Scale | None:
        """How files of more than eight bits a pixel become bytes, as in training."""
        return Scale.of(self.serving["data"].get("scale"))

    @property
    def shown(self) -> str:
        """``name@alias (version 3)`` or ``name/3``."""
        return f"{self.name}@{self.alias} (version {self.version})" if self.alias else f"{self.name}/{self.version}"


def no_registry(uri: str) -> bool:
    """Whether an address is that of a file which does not exist yet."""
    if is_server(uri):
        return False
    url = sa.make_url(uri)
    return url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists()


def client_at(uri: str, *, must_exist: bool = True) -> Any:
    """An `MlflowClient`; `InputError` where nothing answers (or, for a file, where there is none yet)."""
    check_server(uri, reading=must_exist)  # what is to be there already is asked, or refuses by itself
    if must_exist and no_registry(uri):
        raise InputError(f"no model registry at {shown(uri)}; nothing was promoted there yet")
    mlflow = quiet()
    with answering(uri, asked=True):
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def check_names(model: str, alias: str) -> None:
    """Raise `InputError` for a name or an alias that the registry would refuse."""
    if model.endswith(LOCK):
        raise InputError(f"model name {model!r} is not possible: names that end with {LOCK!r} are the registry's locks")
    if not re.fullmatch(r"[^/:@\s][^/:@']*", model) or not model.isprintable():
        raise InputError(
            f"model name {model!r} is not possible: it must not be empty or hold / : @, quotes or control characters"
        )
    reserved = re.fullmatch(r"v\d+|latest", alias, re.IGNORECASE)
    if reserved or not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", alias) or alias.isdigit():
        raise InputError(f"alias {alias!r} is not possible: letters, digits, '_' and '-', and no version such as v1")


# -- asking ----------------------------------------------------------------------------------------


def resolve(client: Any, name: str, *, version: str | None = None, alias: str | None = None) -> Any:
    """MLflow's model version; `InputError` with the nearest names where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise InputError(f"the model registry refuses: {(error.message.splitlines() or [''])[0]}") from None
    try:
        model = client.get_registered_model(name)
    except MlflowException:
        known = [found.name for found in client.search_registered_models() if not found.name.endswith(LOCK)]
        hint = nearest(name, known) if known else "; nothing was promoted yet"
        raise InputError(f"no registered model {name!r}{hint}") from None
    if alias is not None:
        hint = nearest(alias, list(model.aliases)) if model.aliases else "; it has no alias"
        raise InputError(f"model {name!r} has no alias {alias!r}{hint}")
    versions = sorted(int(found.version) for found in client.search_model_versions(f"name='{name}'"))
    raise InputError(f"model {name!r} has no version {version!r}; it has {', '.join(map(str, versions)) or 'none'}")


def split_name(model: str) -> tuple[str, str | None, str | None]:
    """(name, version, alias) of ``NAME@ALIAS`` or ``NAME/VERSION``."""
    match = re.fullmatch(r"([^/@:\s]+)(?:@([^/@:\s]+)|/(\d+))", model)
    if match is None:
        raise InputError(f"model {model!r}: write NAME@ALIAS or NAME/VERSION, for example digits@champion")
    return match[1], match[3], match[2]


def load(model: str, uri: str, *, trainables: bool = False) -> Registered:
    """The model behind ``NAME@ALIAS`` or ``NAME/VERSION``; `InputError` where there is none or it is damaged.

    A promoted trainable takes no images, and is refused; with `trainables` everything else is.
    """
    name, version, alias = split_name(model)
    client = client_at(uri)
    with answering(uri, asked=True):
        found = resolve(client, name, version=version, alias=alias)
    scratch = tempfile.TemporaryDirectory(prefix="routefront-", ignore_cleanup_errors=True)
    if (found.tags.get("kind") == "trainable") != trainables:
        raise InputError(
            f"model {name} version {found.version} takes images: load it with routefront.load"
            if trainables
            else f"model {name} version {found.version} is a trainable and takes no images: load it with"
            " routefront.load_trainable, or serve it with mlflow models serve"
        )
    with using(uri) as mlflow, warnings.catch_warnings(record=True):  # it would have type hints
        folder = checked(mlflow, name, found, Path(scratch.name))
        try:
            loaded = mlflow.pyfunc.load_model(str(folder))
        except Exception as error:  # code, weights: whatever comes out, it is this model
            raise _not_loaded(name, found.version, error) from error
    serving = loaded.metadata.metadata or {}
    return Registered(name, str(found.version), alias, serving, dict(found.tags), loaded, scratch)


def checkpoint_of(model: str, uri: str, scratch: Path) -> Path:
    """The checkpoint folder of ``NAME@ALIAS`` or ``NAME/VERSION`` below an empty folder; its files are those promoted.

    Raises `InputError` where there is no such model or it is damaged. Nothing of it is run.
    """
    name, version, alias = split_name(model)
    client = client_at(uri)
    with answering(uri, asked=True):
        found = resolve(client, name, version=version, alias=alias)
    with using(uri) as mlflow:
        return checked(mlflow, name, found, scratch) / "artifacts" / "model"


def donor_of(spec: StudySpec, root: Path | None, option: str, scratch: Path) -> Path:
    """The checkpoint folder of a registered model that a study file names as a donor: see `checkpoint_of`."""
    uri = chosen_uri(spec.tracking.uri, studies_root(root))
    if uri == "off":
        raise InputError(f"donor = {option!r}: a registered model needs tracking.uri, which is off")
    return checkpoint_of(option.removeprefix("models:/"), uri, scratch)


def _not_loaded(name: str, version: Any, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"model {name} version {version} cannot be loaded: {reason}")


def checked(mlflow: Any, name: str, found: Any, scratch: Path, *, signed: bool = True) -> Path:
    """The files of a version in a folder of our own, if they are those that were promoted.

    They hold code that loading runs, so they are compared before anything reads them. Raises
    `InputError` where they or the version's source were changed, cannot be fetched, or lack a signature that is
    asked for (`search.promotion.signatures`; not with `signed` false, for who is about to sign).
    """
    promoted = found.tags.get(DIGEST)
    if promoted is None:
        raise InputError(f"model {name} version {found.version} was not promoted by routefront")
    try:
        folder = fetched(mlflow, f"models:/{name}/{found.version}", scratch / "model")
        digest = folder_digest(folder)
    except Exception as error:  # a download fails in many ways
        raise _not_loaded(name, found.version, error) from error
    if digest != promoted:
        raise InputError(
            f"model {name} version {found.version} is not what was promoted: the files at its source have digest"
            f" {digest[:12]}, promoted was {promoted[:12]}; roll back, or promote again"
        )
    if signed:
        verify(folder, digest, f"{name} version {found.version}")
    return folder


def predict(
    registered: Registered,
    images: np.ndarray,
    *,
    knobs: dict[str, Any] | None = None,
    max_macs: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows for uint8 `images` (n, channels, size, size).

    label, class, confidence, probabilities (of all classes), macs, path (executed share of every unit)
    and, with exits, exit. `knobs` replace some of the promoted ones (all, where the curve's settings hold them
    and the promoted one does not); with `max_macs` the model's most accurate setting of at most so many MACs
    per image answers. Raises `InputError` for a wrong shape or knob, and for a budget below the cheapest setting.
    """
    from mlflow.exceptions import MlflowException

    shape = Task(**registered.serving["task"]).image
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(
            f"{registered.shown} takes uint8 images of shape (n, {', '.join(map(str, shape))}),"
            f" not {images.dtype} of shape {images.shape}"
        )
    params: dict[str, Any] = {"knobs": json.dumps(knobs)} if knobs else {}
    if max_macs is not None:
        params["max_macs"] = float(max_macs)
    for start in range(0, len(images), _ROWS):
        try:
            table = registered.model.predict(images[start : start + _ROWS], params=params)
        except MlflowException as error:
            raise InputError(f"{registered.shown}: {error.message.splitlines()[0]}") from None
        yield from table.to_dict("records")


def ask(registered: Registered, inputs: Any, *, knobs: dict[str, Any] | None, cost: float | None) -> Any:
    """What a promoted trainable answers. Raises `InputError` for a knob or a cost that it does not have."""
    from mlflow.exceptions import MlflowException

    params: dict[str, Any] = {"knobs": json.dumps(knobs)} if knobs else {}
    if cost is not None:
        params["cost"] = float(cost)
    try:
        return registered.model.predict(inputs, params=params)
    except MlflowException as error:
        raise InputError(f"{registered.shown}: {error.message.splitlines()[0]}") from None


def _record(
    model: Registered, names: list[str], images: np.ndarray, truth: list[str] | None, max_macs: float | None
) -> dict[str, Any]:
    rows = list(predict(model, images, max_macs=max_macs))
    for row, name, label in zip(rows, names, truth or [None] * len(names), strict=True):
        row["image"] = name
        row["truth"] = label
    hits = [row["class"] == row["truth"] for row in rows] if truth is not None else None
    return {
        "model": model.shown,
        "count": len(rows),
        "macs": float(np.mean([row["macs"] for row in rows])),
        "macs_full": float(model.serving.get("macs_full") or 0),
        "accuracy": float(np.mean(hits)) if hits is not None else None,
        "predictions": rows,
    }


def predict_split(
    model: str,
    split: str,
    *,
    uri: str,
    root: Path | None = None,
    limit: int | None = None,
    max_macs: float | None = None,
) -> dict[str, Any]:
    """Classify a split ("validation" or "test") of the data set that the model was trained on.

    `max_macs`: as in `search.promotion.models.predict`. Raises `InputError` where the images at hand are not
    those of the promotion.
    """
    if split not in ("validation", "test"):
        raise InputError(f"--split {split!r}: it takes validation or test")
    registered = load(model, uri)
    data = own_data(registered, root)
    chosen = getattr(data, split)
    if not len(chosen):
        raise InputError(f"{data.name} has no {split} split; take --split validation, or --images with other images")
    images, labels = chosen.images[:limit], chosen.labels[:limit]
    names = [f"{split} {i}" for i in range(len(labels))]
    return _record(registered, names, images, [data.classes[label] for label in labels], max_macs)


def own_data(registered: Registered, root: Path | None = None) -> Data:
    """The data set that a model was trained on.

    Raises `InputError` where it is not to be had, or the images at hand are not those of the promotion.
    """
    made_of = registered.serving["data"]
    try:
        data = datasets.load(
            made_of["name"],
            root=root or datasets.default_root(),
            image_size=registered.serving["task"]["size"],
            resize=made_of.get("resize"),
            limit=made_of.get("limit"),
        )
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None
    if data.hash != made_of["hash"]:
        raise InputError(
            f"{made_of['name']!r} here holds other images than the model was trained on"
            f" (digest {data.hash[:12]}, then {made_of['hash'][:12]}); classify files with --images"
        )
    return data


def predict_images(
    model: str, given: list[Path], *, uri: str, limit: int | None = None, max_macs: float | None = None
) -> dict[str, Any]:
    """Classify image files; in folders, the name of an image's folder is its class where the model knows it."""
    paths = image_files(given)[:limit]
    registered = load(model, uri)
    try:
        images = datasets.read_images(paths, Task(**registered.serving["task"]), registered.scale, registered.resize)
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None
    classes = set(registered.serving["classes"])
    folders = [path.parent.name for path in paths]
    truth = folders if all(folder in classes for folder in folders) else None
    return _record(registered, [str(path) for path in paths], images, truth, max_macs)


def image_files(given: list[Path]) -> list[Path]:
    """The image files among paths and below folders, in order; `InputError` where there are none."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            try:
                inside = [file for file in layout.files(path) if file.suffix.lower() in SUFFIXES]
            except DataError as error:
                raise InputError(str(error)) from None
            if not inside:
                raise InputError(f"{path} holds no image ({', '.join(SUFFIXES)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"no image at {path}")
    return found
