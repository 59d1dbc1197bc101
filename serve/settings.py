"""How the door is to be started, and how what runs was: flags, and serve.json in the run folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from contract import HOST, BadInput, ToxicityError
from serve import haproxy
from serve.process import refuse_other_flag
from serve.triton import ServeConfig
from storage.files import read_json

STATE_FILE = "serve.json"
MONITOR_FILE = "monitor.json"
"""In the run folder: what a monitor found last, for the page."""
GRPC = "grpc"
"""Name of the server that gRPC has for its own."""
CANARY, MIRROR = "canary", "mirror"
"""Names of the server of a second version, and of what compares its scores."""


@dataclass(frozen=True)
class DoorConfig(ServeConfig):
    """Flags of `python -m serve.door`."""

    replicas: int | None = Field(
        None, ge=1, le=64, description="servers behind haproxy; as many as there are, or one"
    )
    grpc: bool | None = Field(None, description="also serve gRPC, from a server of its own")
    address: str | None = Field(
        None, description="address to listen on, 127.0.0.1 by default; another one needs haproxy"
    )
    metrics_address: str | None = Field(
        None,
        description="address of the metrics port, 127.0.0.1 by default; open it only where a "
        "network keeps strangers out",
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file of certificates and private key: HTTPS, and gRPC over TLS"
    )
    keys: Path | None = Field(
        None, description="file of API keys (`python -m serve.keys`); one is asked for then"
    )
    allow_origin: tuple[str, ...] = Field(
        (), description="origins of web pages that may ask, such as https://site.example"
    )
    labels: Path | None = Field(
        None,
        description="file to which corrections of scores are appended, with their comments; "
        "without it they are refused",
    )
    get_score: bool | None = Field(
        None, description="also answer GET /score?text=; comments in addresses end up in logs"
    )
    haproxy: bool = Field(True, description="put haproxy before the server when it is installed")
    foreground: bool = Field(False, description="stay until a signal, then stop; for systemd")


@dataclass(frozen=True)
class Canary:
    """A second version that serves beside the current one."""

    version: int
    share: float
    """Of the requests that it answers, or of which it is sent a copy; 0 to 1."""
    shadow: bool = False
    """Whether it is sent copies only, and its answers reach nobody."""


@dataclass(frozen=True)
class Settings:
    """How the door was started: serve.json in the run folder."""

    repository: str
    http_port: int
    grpc_port: int
    metrics_port: int
    address: str
    replicas: int
    grpc: bool
    balanced: bool
    tls_certificate: str | None = None
    keys: str | None = None
    allow_origin: tuple[str, ...] = ()
    require_signature: str | None = None
    labels: str | None = None
    get_score: bool = False
    metrics_address: str = HOST
    canary: Canary | None = None
    stop_timeout_s: float = 30

    @property
    def public_key(self) -> Path | None:
        return Path(self.require_signature) if self.require_signature else None


def read_settings(run_dir: Path) -> Settings | None:
    """How what serves from there was started, if something was."""
    try:
        return Settings(**read_json(run_dir / STATE_FILE, "run `make serve`"))
    except (ToxicityError, TypeError, ValueError):
        return None


def settled(config: DoorConfig, before: Settings | None) -> Settings:
    """What to run: the flags, and for those left out what runs already.

    Raises BadInput for a flag that the running door does not have, and for one that needs haproxy
    where it is not in front.
    """
    replicas = config.replicas or (before.replicas if before else 1)
    grpc = config.grpc if config.grpc is not None else bool(before and before.grpc)
    address = config.address or (before.address if before else HOST)
    watched = config.metrics_address or (before.metrics_address if before else HOST)
    certificate, key_file, signed, labels = (
        str(path.resolve()) if path else None
        for path in (config.tls_certificate, config.keys, config.require_signature, config.labels)
    )
    origins = tuple(config.allow_origin)
    get_score = bool(config.get_score)
    if before:
        certificate = certificate or before.tls_certificate
        key_file, origins = key_file or before.keys, origins or before.allow_origin
        signed = signed or before.require_signature
        labels = labels or before.labels
        get_score = before.get_score if config.get_score is None else get_score
    elsewhere = grpc or {address, watched} != {HOST}
    more = (elsewhere, certificate, key_file, origins, labels, get_score)
    needs = replicas > 1 or any(more)
    balanced = before.balanced if before else config.haproxy and haproxy.found() is not None
    if needs and not balanced:
        haproxy.executable()
        raise BadInput(
            "haproxy is not in front, expected it for more than one replica, gRPC, another "
            "address, TLS, keys, origins, labels and GET /score; leave out --no-haproxy, after "
            "`make stop`"
        )
    settings = Settings(
        repository=str(config.repository.resolve()),
        http_port=config.http_port,
        grpc_port=config.grpc_port,
        metrics_port=config.metrics_port,
        address=address,
        replicas=replicas,
        grpc=grpc,
        balanced=balanced,
        tls_certificate=certificate,
        keys=key_file,
        allow_origin=origins,
        require_signature=signed,
        labels=labels,
        get_score=get_score,
        metrics_address=watched,
        canary=before.canary if before else None,
        stop_timeout_s=config.stop_timeout_s,
    )
    ports = ("http_port", "grpc_port", "metrics_port")
    for name in ("repository", *ports, "address", "metrics_address"):
        used = getattr(before or settings, name)
        refuse_other_flag(config.run_dir, name, getattr(settings, name), used)
    return settings


def replica(number: int) -> str:
    """Name of a server behind the door, from 1."""
    return f"replica-{number}"


def server_names(settings: Settings) -> list[str]:
    """Names of the programs that are servers of the current version."""
    names = [replica(number) for number in range(1, settings.replicas + 1)]
    return [*names, GRPC] if settings.grpc else names
