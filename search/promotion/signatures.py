"""Signatures of promoted models: who promoted the files of a version.

The digest in a version's tags shows that its files are those of the promotion; who can write into the registry can
write tags, too. A signature (ed25519, RFC 8032) needs a key that is elsewhere. `sign` puts it into the stored model as
``signature.json``; `verify` asks for one of a key that the person trusts, and so does the served model itself
(``mlflow/routed_classifier.py``). Keys are PEM files, as ``openssl genpkey -algorithm ed25519`` writes them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import InputError, RunError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNING_KEY = "ROUTEFRONT_SIGNING_KEY"
"""The variable that names the private key by which `promote` signs."""
TRUSTED_KEYS = "ROUTEFRONT_TRUSTED_KEYS"
"""The variable that names public keys (divided like PATH); where it is set, nothing unsigned is loaded."""
SIGNATURE = "signature.json"


def message(digest: str) -> bytes:
    """What is signed: a line that says of what, and the digest of the model's files."""
    return f"routefront model\n{digest}\n".encode()


def signing_key() -> Ed25519PrivateKey | None:
    """The key that ROUTEFRONT_SIGNING_KEY names; None without. `InputError` where it is none or others can read it."""
    name = os.environ.get(SIGNING_KEY)
    if not name:
        return None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            seen = os.fstat(file.fileno())
            if not stat.S_ISREG(seen.st_mode) or seen.st_mode & 0o077:
                raise InputError(f"{SIGNING_KEY}: {name} must be a file that nobody else can read: chmod 600 {name}")
            key = load_pem_private_key(file.read(), None)
    except OSError as error:
        raise InputError(f"{SIGNING_KEY}: {name} cannot be read: {error.strerror}") from None
    except InputError:
        raise
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(
            f"{SIGNING_KEY}: {name} holds no ed25519 key without a passphrase;"
            " openssl genpkey -algorithm ed25519 makes one"
        )
    return key


def trusted_keys() -> list[Ed25519PublicKey] | None:
    """The keys that ROUTEFRONT_TRUSTED_KEYS names; None where it is not set, and no signature is asked for."""
    names = os.environ.get(TRUSTED_KEYS)
    if not names:
        return None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = []
    for name in filter(None, names.split(os.pathsep)):
        try:
            key = load_pem_public_key(Path(name).read_bytes())
        except OSError as error:
            raise InputError(f"{TRUSTED_KEYS}: {name} cannot be read: {error.strerror}") from None
        except ValueError:
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise InputError(f"{TRUSTED_KEYS}: {name} holds no public ed25519 key; openssl pkey -pubout writes it")
        keys.append(key)
    return keys


def sign(client: Any, stored: Any, folder: Path, digest: str) -> None:
    """Put a signature into a stored model, where there is a key and the model has none by it yet.

    `stored`: MLflow's record of the model or of its version. `folder`: its files, fetched; `digest`: theirs.
    """
    key = signing_key()
    if key is None or by_one_of([key.public_key()], folder, digest):
        return
    model_id = stored.model_id or _model_in(getattr(stored, "source", ""))
    if not model_id:
        raise RunError("the version was stored by an older MLflow, which takes no signature; promote another point")
    signature = base64.b64encode(key.sign(message(digest))).decode()
    record = {"algorithm": "ed25519", "sha256": digest, "signature": signature}
    with tempfile.TemporaryDirectory(prefix="routefront-") as scratch:
        file = Path(scratch) / SIGNATURE
        file.write_text(json.dumps(record, indent=1))
        client.log_model_artifact(model_id, str(file))


def _model_in(source: str) -> str:
    """The logged model that a version's source names (``models:/m-...``); not every store keeps it beside."""
    found = re.fullmatch(r"models:/(m-\w+)", source)
    return found[1] if found else ""


def verify(folder: Path, digest: str, shown: str) -> None:
    """Raise `InputError` where a signature is asked for and the model's files have none by a trusted key."""
    keys = trusted_keys()
    if keys is not None and not by_one_of(keys, folder, digest):
        raise InputError(
            f"model {shown} is not signed by a key of {TRUSTED_KEYS}; promote it with {SIGNING_KEY}, or ask who did"
        )


def by_one_of(keys: list[Ed25519PublicKey], folder: Path, digest: str) -> bool:
    """Whether a model's folder holds a signature of its files by one of these keys."""
    from cryptography.exceptions import InvalidSignature

    try:
        signature = base64.b64decode(json.loads((folder / SIGNATURE).read_text())["signature"], validate=True)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    for key in keys:
        try:
            key.verify(signature, message(digest))
            return True
        except InvalidSignature:
            continue
    return False
