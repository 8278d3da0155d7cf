"""Models of a registry that somebody else can write into: planted bytecode, changed files, signatures."""

from __future__ import annotations

import base64
import importlib.util
import os
import py_compile
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow.exceptions import MlflowException

from search.errors import InputError
from search.promotion import models, signatures
from search.promotion.versions import DIGEST, folder_digest
from search.tracking.server import quiet
from tests.support.once import registry_in

MODEL = Path(__file__).parents[1] / "fixtures" / "model-7022e79" / "model.tar.xz"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A promoted model's folder, as MLflow stores it."""
    with tarfile.open(MODEL) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "model"


@pytest.fixture
def registry(stored: Path, tmp_path: Path) -> str:
    """A registry of which m/1 is that folder."""
    uri = registry_in(tmp_path)
    client = quiet().MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("m")
    client.create_model_version("m", stored.as_uri(), tags={DIGEST: folder_digest(stored)})
    return uri


@pytest.fixture
def script() -> ModuleType:
    """The file that the registry runs today."""
    path = Path(__file__).parents[2] / "mlflow" / "routed_classifier.py"
    spec = importlib.util.spec_from_file_location("routed_classifier", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plant(source: Path, mark: Path) -> Path:
    """Bytecode that leaves a mark, in the place and with the header of what Python would have written of a source."""
    evil = source.with_name("evil.tmp")
    evil.write_text(f"{source.read_text()}\nopen({str(mark)!r}, 'w').close()\n")
    cache = Path(importlib.util.cache_from_source(str(source)))
    cache.parent.mkdir(exist_ok=True)
    py_compile.compile(
        str(evil), str(cache), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    evil.unlink()
    return cache


def test_planted_bytecode_does_not_run(registry: str, stored: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    planted = [plant(stored / name, mark) for name in ("routed_classifier.py", "code/trainables/network.py")]
    before = {path: path.read_bytes() for path in stored.rglob("*") if path.is_file()}
    loaded = models.load("m/1", registry)
    assert loaded.serving["point_id"] == "t0001-4-8" and not mark.exists()
    assert {path: path.read_bytes() for path in stored.rglob("*") if path.is_file()} == before
    assert all(path.exists() for path in planted)  # the registry's files are not ours to remove


@pytest.mark.parametrize("name", ["code/trainables/extra.py", "code/os.pyc", "artifacts/model/x.so", "conda.yaml"])
def test_files_that_were_not_promoted_are_refused(registry: str, stored: Path, name: str) -> None:
    (stored / name).write_bytes(b"0")
    with pytest.raises(InputError, match="model m version 1 is not what was promoted"):
        models.load("m/1", registry)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_is_refused(stored: Path, kind: str) -> None:
    path = stored / "code" / "__pycache__"
    path.symlink_to("/etc") if kind == "link" else os.mkfifo(path)
    with pytest.raises(InputError, match="__pycache__ is a link or no file"):
        folder_digest(stored)


def test_a_served_model_reads_and_writes_no_bytecode(stored: Path, tmp_path: Path) -> None:
    """MLflow's own loader, without our gate: what the model brought is compiled from its sources."""
    root, mark = Path(__file__).parents[2], tmp_path / "ran"
    shutil.copy(root / "mlflow" / "routed_classifier.py", stored)
    shutil.rmtree(stored / "code")
    for package in ("trainables", "spaces"):  # today's script, and today's code
        shutil.copytree(root / package, stored / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
    planted = plant(stored / "code" / "trainables" / "checkpoints.py", mark)
    says = "import mlflow, sys; mlflow.pyfunc.load_model(sys.argv[1]); print(sys.modules['trainables'].__file__)"
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": ""}
    words = [sys.executable, "-P", "-c", says, str(stored)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert str(stored / "code" / "trainables") in done.stdout, done.stderr[-2000:]
    assert not mark.exists() and list((stored / "code").rglob("*.pyc")) == [planted]


# -- signatures ------------------------------------------------------------------------------------


def key_files(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key and its public one, as openssl writes them."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.touch(mode=0o600)
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


class Store:
    """Takes a signature into the folder itself, as the registry does."""

    model_id = "m-1"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log_model_artifact(self, model_id: str, path: str) -> None:
        shutil.copy(path, self.folder)


def test_a_signature_can_be_demanded(
    registry: str, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: ModuleType
) -> None:
    mine, public = key_files(tmp_path, "mine")
    other, _ = key_files(tmp_path, "other")
    monkeypatch.setenv("ROUTEFRONT_TRUSTED_KEYS", str(public))
    with pytest.raises(InputError, match=r"model m version 1 is not signed by a key of ROUTEFRONT_TRUSTED_KEYS"):
        models.load("m/1", registry)
    with pytest.raises(MlflowException, match="the signature of the model cannot be checked"):
        script.check_signature(stored)
    for key, good in ((other, False), (mine, True)):
        monkeypatch.setenv("ROUTEFRONT_SIGNING_KEY", str(key))
        signatures.sign(Store(stored), Store(stored), stored, folder_digest(stored))
        if good:
            assert models.load("m/1", registry).serving["point_id"] == "t0001-4-8"
            script.check_signature(stored)
        else:
            with pytest.raises(InputError, match="is not signed by a key"):
                models.load("m/1", registry)
            with pytest.raises(MlflowException, match="is not signed by a key"):
                script.check_signature(stored)
    (stored / "code" / "trainables" / "network.py").write_text("")
    client = quiet().MlflowClient(tracking_uri=registry, registry_uri=registry)
    client.set_model_version_tag("m", "1", DIGEST, folder_digest(stored))  # who writes files can write tags
    with pytest.raises(InputError, match="is not signed by a key"):
        models.load("m/1", registry)
    with pytest.raises(MlflowException, match="is not signed by a key"):
        script.check_signature(stored)


def test_both_digests_are_one(stored: Path, script: ModuleType, tmp_path: Path) -> None:
    whole = folder_digest(stored)
    plant(stored / "routed_classifier.py", tmp_path / "ran")
    (stored / "registered_model_meta").write_text("model_name: m\n")
    (stored / "signature.json").write_text("{}")
    assert script.model_digest(stored) == whole


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"signature": 5}', '{"signature": "?"}', "[" * 100_000])
def test_a_damaged_signature_is_none(stored: Path, tmp_path: Path, text: str, monkeypatch: Any, script: Any) -> None:
    (stored / "signature.json").write_text(text)
    _, public = key_files(tmp_path, "mine")
    monkeypatch.setenv("ROUTEFRONT_TRUSTED_KEYS", str(public))
    with pytest.raises(InputError, match="is not signed"):
        signatures.verify(stored, folder_digest(stored), "m")
    with pytest.raises(MlflowException):
        script.check_signature(stored)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: (path.write_text("x"), path.chmod(0o644)), "must be a file that nobody else can read: chmod 600"),
        (lambda path: os.mkfifo(path, 0o600), "must be a file that nobody else can read"),
        (lambda path: (path.write_text(base64.b64encode(b"x").decode()), path.chmod(0o600)), "holds no ed25519 key"),
    ],
)
def test_keys_that_are_none_are_one_line(make: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "key")
    monkeypatch.setenv("ROUTEFRONT_SIGNING_KEY", str(tmp_path / "key"))
    with pytest.raises(InputError, match=says) as error:
        signatures.signing_key()
    assert "\n" not in str(error.value)
