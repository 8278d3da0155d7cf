"""What works on this machine and what does not: one check per thing that routefront needs."""

from __future__ import annotations

import importlib
import os
import platform
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.processors import usable_cpus
from trainables.version import code_version


@dataclass(frozen=True, slots=True)
class Check:
    """A named check; `probe` returns what to say, or raises. `needed`: its absence is a defect."""

    name: str
    probe: Callable[[], str]
    needed: bool = True

    def run(self) -> dict[str, Any]:
        """{name, state: ok | missing | broken, says}."""
        try:
            return {"name": self.name, "state": "ok", "says": self.probe()}
        except Exception as error:  # a doctor reports whatever goes wrong
            says = f"{type(error).__name__}: {error}".splitlines()[0]
            return {"name": self.name, "state": "broken" if self.needed else "missing", "says": says}


def checks() -> Iterator[Check]:
    """All checks, the quick ones first."""
    yield Check("routefront", lambda: f"{code_version()}, Python {platform.python_version()} at {sys.executable}")
    for module in ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow", "moocore", "safetensors", "sklearn"):
        yield Check(module, lambda module=module: _version(module))
    yield Check("devices", _devices)
    yield Check("GPU", _gpus, needed=False)
    yield Check("GPU self-test", _self_test, needed=_has_gpu())
    yield Check("studies", _studies)
    yield Check("SQLite", _sqlite)
    yield Check("PostgreSQL", _postgres, needed=False)
    yield Check("Ray", _ray)
    yield Check("MLflow", _mlflow)
    yield Check("registry", _model_code)
    from trainables.data import datasets

    for entry in datasets.catalogue(datasets.default_root()):
        yield Check(f"data {entry.name}", lambda entry=entry: _dataset(entry), needed=False)


def _version(module: str) -> str:
    from importlib.metadata import version

    importlib.import_module(module)
    return version({"sklearn": "scikit-learn"}.get(module, module))


def _devices() -> str:
    import torch

    from trainables.training.precision import computes_bfloat16

    cores, there = usable_cpus(), os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    fast = computes_bfloat16("cuda" if gpus else "cpu")
    low = "bfloat16" if fast else "bfloat16 only by slow emulation (precision = auto takes float32)"
    limited = f" (of {there}: affinity and cgroup quotas decide)" if cores != there else ""
    return f"{cores} CPU cores{limited}, {', '.join(gpus) if gpus else 'no GPU'}, {low}"


_EVIDENCE = (
    "proven on a simulated GPU only: devices of all tensors, waits, launches, captured steps equal to written ones;"
    " never measured on a card: speed, memory, streams, MPS (`doctor --gpu-report F.json` measures them)"
)
"""What is known of routefront on GPUs, for who decides whether to rely on it."""


def _has_gpu() -> bool:
    import torch

    return torch.cuda.device_count() > 0


def _gpus() -> str:
    from trainables.worker.gpus import described, seen

    return "; ".join(f"{name}: {words}" for name, words in described(seen()).items())


def _self_test() -> str:
    if not _has_gpu():
        raise LookupError(f"no GPU here; {_EVIDENCE}")
    from trainables.worker.gpus import self_test

    row = self_test()
    captured = row["uncaptured"] or f"{row['captured_ms']:.1f} ms"
    return (
        f"{row['method']} on {row['network']}, batch {row['batch']}: a step {row['written_ms']:.1f} ms as written,"
        f" captured {captured}; a hard pass {row['hard_ms']:.1f} ms, the whole network {row['dense_ms']:.1f} ms;"
        f" logits within {row['off']:.1g} of the CPU's; {_EVIDENCE}"
    )


def _studies() -> str:
    from search.studies.roots import shown, stored_names, studies_root

    root = studies_root()
    if shown(root) != str(root):
        return f"{shown(root)} ({len(stored_names(root))} studies), cached in {root}"
    base = root if root.exists() else next(p for p in root.parents if p.exists())
    if not os.access(base, os.W_OK):
        raise PermissionError(f"{base} cannot be written; set ROUTEFRONT_STUDIES to a folder that can")
    return f"{root} ({len(list(root.glob('*/study.toml')))} studies)"


def _sqlite() -> str:
    with tempfile.TemporaryDirectory() as folder:
        from search.journal.database import Journal, sqlite_address

        journal = Journal(sqlite_address(Path(folder) / "control.db"), "doctor", create=True)
        journal.acquire()
        journal.append("probe", {"works": True})
        assert next(journal.events()).payload == {"works": True}
        journal.close()
    return f"{sqlite3.sqlite_version}, journal written and read"


def _postgres() -> str:
    try:
        import psycopg
    except ImportError:
        raise ImportError("no driver; `pip install psycopg[binary]` to keep journals in PostgreSQL") from None
    return f"driver psycopg {psycopg.__version__}; give its address as `journal` in the study file"


def _ray() -> str:
    from cluster.connect import connect

    ray = connect()
    try:
        assert ray.get(ray.remote(lambda: 42).remote(), timeout=60) == 42
        resources = ray.cluster_resources()
        return f"local cluster ran a task: {resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU"
    finally:
        ray.shutdown()


def _mlflow() -> str:
    from search.studies.roots import studies_root
    from search.tracking.server import check_server, chosen_uri, shown

    uri = chosen_uri(None, studies_root())
    check_server(uri)
    why = "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else "beside the studies"
    return f"records to {shown(uri)} ({why}) where neither --tracking nor the study file names another place"


def _model_code() -> str:
    from search.promotion.promotion import model_code

    return f"serving code at {model_code()}"


def _dataset(entry: Any) -> str:
    if not entry.complete:
        raise FileNotFoundError(f"not in {entry.folder}; {entry.how}")
    return f"complete in {entry.folder}"
