"""A cluster described once, in TOML: what every manifest is rendered from.

Nothing secret stands in a description. It names secrets (of Kubernetes), or a file of environment
variables (for Slurm), and an address that carries a password is refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cluster.manifests.quantities import memory_bytes
from cluster.manifests.wording import (
    Export,
    Folder,
    Image,
    Label,
    LabelKey,
    LabelValue,
    Memory,
    Name,
    Seconds,
    Word,
    bucket,
    first_complaint,
    folder,
    refuse_secrets,
)

Labels = dict[LabelKey, LabelValue]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Head(_Part):
    """The head node: Ray's own processes and the driver of the search; no trial runs on it."""

    cpus: int = Field(default=4, ge=1)
    memory: Memory = memory_bytes("16Gi")
    selector: Labels = {}
    instance: Word | None = None


class WorkerGroup(_Part):
    """Nodes that are alike: `replicas` of them at the beginning, from `min` to `max` later.

    `cpus`, `memory` and `gpus` are of one node. `spot`: the provider may take them back.
    `selector` chooses nodes of Kubernetes by label, `instance` is a machine type of the cloud.
    """

    min: int = Field(default=0, ge=0)
    max: int = Field(ge=0)
    replicas: int | None = Field(default=None, ge=0)
    cpus: int = Field(ge=1)
    memory: Memory
    gpus: int = Field(default=0, ge=0)
    spot: bool = False
    selector: Labels = {}
    instance: Word | None = None

    @model_validator(mode="after")
    def _in_order(self) -> WorkerGroup:
        if self.max < self.min:
            raise ValueError(f"min = {self.min} is more than max = {self.max}")
        if not self.min <= self.start <= self.max:
            raise ValueError(f"replicas = {self.start} lies outside min = {self.min} and max = {self.max}")
        return self

    @property
    def start(self) -> int:
        """How many nodes there are at the beginning: one, where nothing else is said."""
        return min(max(self.min, 1), self.max) if self.replicas is None else self.replicas


class Storage(_Part):
    """What all nodes share: a folder (`studies/` and `data/` lie in it), or an address of object storage.

    `claim` is the PersistentVolumeClaim that Kubernetes mounts there, `nfs` (``"server:/export"``)
    what cloud machines mount, `secret` holds the keys of object storage (AWS_ACCESS_KEY_ID ...).
    """

    path: str
    data: Folder | None = None
    claim: Name | None = None
    nfs: Export | None = None
    secret: Name | None = None

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if "://" not in value:
            return folder(value).rstrip("/")
        refuse_secrets(value, "storage.path")
        return bucket(value).rstrip("/")

    @property
    def remote(self) -> bool:
        """Whether it is object storage."""
        return "://" in self.path


class JournalPart(_Part):
    """The journal's database. What the address leaves out comes from the secret.

    Every key of `secret` becomes an environment variable of the driver: PGHOST, PGUSER, PGPASSWORD
    and PGDATABASE are libpq's, so that the bare default address is enough.
    """

    address: str = "postgresql+psycopg://"
    secret: Name | None = None

    @field_validator("address")
    @classmethod
    def _postgres(cls, value: str) -> str:
        refuse_secrets(value, "journal.address")
        if not value.startswith("postgresql+psycopg://"):
            raise ValueError(f"{value!r} is no PostgreSQL address; write 'postgresql+psycopg://USER@HOST/DATABASE'")
        return value

    @model_validator(mode="after")
    def _somewhere(self) -> JournalPart:
        if not urlsplit(self.address).hostname and self.secret is None:
            raise ValueError(
                "journal says neither host nor secret; write address = 'postgresql+psycopg://USER@HOST/DATABASE'"
            )
        return self


class TrackingPart(_Part):
    """The MLflow server: an address, or a secret with MLFLOW_TRACKING_URI (and _USERNAME, _PASSWORD)."""

    address: str | None = None
    secret: Name | None = None

    @model_validator(mode="after")
    def _somewhere(self) -> TrackingPart:
        if self.address is None and self.secret is None:
            raise ValueError("tracking says neither address nor secret; write address = 'http://HOST:5000'")
        if self.address is not None and self.address != "off":
            refuse_secrets(self.address, "tracking.address")
            if urlsplit(self.address).scheme not in ("http", "https"):
                raise ValueError(f"{self.address!r} is no MLflow server that all nodes reach; write 'http://HOST:5000'")
        return self


class Kubernetes(_Part):
    """What only Kubernetes is told. Without `token_secret` the operator makes Ray's token itself.

    `spot_selector`: the label of spot nodes there, which carry a taint of the same name as a rule.
    `retries`: how often a failed job gets a new cluster, on which the study goes on.
    """

    namespace: Name = "default"
    token_secret: Name | None = None
    pull_secret: Name | None = None
    service_account: Name | None = None
    spot_selector: Labels = {}
    gpu_resource: Word = "nvidia.com/gpu"
    retries: int = Field(default=3, ge=0)
    keep_cluster: Seconds = 600


class Cloud(_Part):
    """What only `ray up` is told: Amazon's machines, or machines of one's own by their addresses."""

    provider: Literal["aws", "local"]
    ssh_user: Word = "ubuntu"
    region: Word | None = None
    zones: Word | None = None
    disk: int = Field(default=128, ge=32)
    head_ip: Word | None = None
    worker_ips: list[Word] = []


class Slurm(_Part):
    """One job of `nodes` nodes, each with `cpus`, `memory` and `gpus`; trials run on the first one too.

    `environment`: a file of shell assignments (PGPASSWORD ...) that only the first node reads.
    `temp`: a folder on every node's own disk, short because of Unix sockets. `port`: where heads' ports begin (Ray's
    workers take 10002 to 19999). `requeue`: at the end of its time
    the job stops the search gently and queues again.
    """

    nodes: int = Field(ge=1)
    cpus: int = Field(ge=1)
    memory: Memory
    gpus: int = Field(default=0, ge=0)
    gpu_type: Word | None = None
    time: Seconds = 86400
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    modules: list[Word] = []
    venv: Folder | None = None
    environment: Folder | None = None
    temp: Annotated[Folder, Field(max_length=30)] = "/tmp"
    port: int = Field(default=26000, ge=20000, le=60000)
    requeue: bool = True


class Description(_Part):
    """One cluster and the study that runs on it; `study` is a file beside the description, or `preset` a name."""

    name: Label
    image: Image | None = None
    study: str | None = None
    preset: str | None = None
    idle_timeout: Seconds = 300
    head: Head = Head()
    workers: dict[Label, WorkerGroup] = {}
    storage: Storage
    journal: JournalPart | None = None
    tracking: TrackingPart | None = None
    kubernetes: Kubernetes = Kubernetes()
    cloud: Cloud | None = None
    slurm: Slurm | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Description:
        if (self.study is None) == (self.preset is None):
            raise ValueError("say which study runs: either study = 'study.toml' or preset = 'digits'")
        if not self.slurm and not sum(group.max for group in self.workers.values()):
            raise ValueError(
                "zero workers: write a group such as [workers.cpu] with max = 4, or [slurm] with nodes = 4"
            )
        if self.storage.remote and self.journal is None:
            raise ValueError(
                f"storage.path = {self.storage.path!r} needs a [journal] in PostgreSQL:"
                " SQLite cannot lie on object storage"
            )
        return self

    @property
    def data(self) -> str:
        """Where data sets lie on every node."""
        return self.storage.data or ("/data" if self.storage.remote else f"{self.storage.path}/data")

    @property
    def studies(self) -> str:
        """Where studies lie."""
        return f"{self.storage.path}/studies"

    @classmethod
    def parse(cls, values: Mapping[str, Any], origin: str = "description") -> Description:
        """A description from plain values. Raises `ValueError` with one line where something is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{origin}: {first_complaint(error, cls)}") from None

    @classmethod
    def read(cls, path: Path) -> Description:
        """A description from a TOML file. Raises `ValueError` with one line where something is wrong."""
        try:
            values = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise ValueError(f"no description of a cluster at {path}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid TOML: {error}") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        return cls.parse(values, str(path))
