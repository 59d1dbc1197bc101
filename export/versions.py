"""List the published versions, choose the one that serves, sign them.

    python -m export.versions list
    python -m export.versions publish --version 3 --sign-key private.pem   # the newest without it
    python -m export.versions rollback
    python -m export.versions keygen --private-key private.pem --public-key public.pem

`make versions`, `make publish`, `make rollback`. Each change counts whole or not at all, and is
refused for a version that is damaged or carries no passed gates; `make serve` loads what serves
then into the running server.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import ONNX_FILE, PUBLIC_MODEL, SIGNATURE_FILE, BadInput
from export.repository import current, numbered, verify, versions
from export.signing import make_keys
from export.switch import rollback, serve_version

_WHAT: JsonDict = {"group": "Versions"}
_KEYS: JsonDict = {"group": "Signatures"}


@dataclass(frozen=True)
class VersionsConfig:
    """Flags of `python -m export.versions`."""

    action: Literal["list", "publish", "rollback", "keygen"] = Field(
        description="list, publish, rollback or keygen", json_schema_extra=_WHAT
    )
    repository: Path = Field(
        Path("model_repository"), description="published repository", json_schema_extra=_WHAT
    )
    version: int | None = Field(
        None,
        ge=1,
        description="of publish: the version to serve; left out: the newest",
        json_schema_extra=_WHAT,
    )
    sign_key: Path | None = Field(
        None, description="of publish: private key that signs it", json_schema_extra=_KEYS
    )
    require_signature: Path | None = Field(
        None, description="public key that a version must be signed for", json_schema_extra=_KEYS
    )
    private_key: Path | None = Field(
        None, description="of keygen: file to write, for you alone", json_schema_extra=_KEYS
    )
    public_key: Path | None = Field(
        None, description="of keygen: file to write, for servers", json_schema_extra=_KEYS
    )

    @model_validator(mode="after")
    def _flags_are_the_actions(self) -> VersionsConfig:
        for name in ("version", "sign_key"):
            if getattr(self, name) is not None and self.action != "publish":
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} is given with {self.action}, expected publish")
        for name in ("private_key", "public_key"):
            if (getattr(self, name) is None) == (self.action == "keygen"):
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} is for keygen, which needs it, and for nothing else")
        return self


def main() -> None:
    config = parse_config(
        VersionsConfig,
        None,
        prog="python -m export.versions",
        description="List and choose published versions.",
        positional="action",
    )
    if config.action == "keygen":
        assert config.private_key and config.public_key  # the config's own rule
        make_keys(config.private_key, config.public_key)
        print(f"{config.private_key} signs (keep it secret), {config.public_key} verifies")
    elif config.action == "list":
        print(table(listed(config.repository, config.require_signature)))
        current(config.repository)  # raises when none serves
    else:
        if config.action == "publish":
            number = serve_version(
                config.repository,
                config.version,
                sign_key=config.sign_key,
                public_key=config.require_signature,
            )
        else:
            number = rollback(config.repository, public_key=config.require_signature)
        print(
            f"version {number} of {config.repository} serves from the next start on; "
            "`make serve` loads it into the running server"
        )


@plain_dataclass(frozen=True)
class Line:
    """What `list` shows of one version; texts are empty where nothing is known."""

    version: int
    state: str
    """serves, published, or damaged with the reason."""
    precision: str
    graph: str
    """First digits of the graph's sha256."""
    commit: str
    created: str
    signed: str
    size_mb: float


def listed(repository: Path, public_key: Path | None = None) -> list[Line]:
    """Every version with a folder or in serving.json, oldest first, each of them verified."""
    known = versions(repository)
    try:
        serves = current(repository)
    except BadInput:
        serves = None  # config.pbtxt is damaged: nothing serves
    there = {*known, *numbered(repository / PUBLIC_MODEL), *([serves] if serves else [])}
    return [_line(repository, n, n == serves, public_key) for n in sorted(there)]


def _line(repository: Path, version: int, serves: bool, public_key: Path | None) -> Line:
    folder = repository / PUBLIC_MODEL / str(version)
    artifact: dict[str, Any] = {}
    state = "serves" if serves else "published"
    try:
        artifact = verify(repository, version, public_key)
    except BadInput as error:
        state = f"damaged ({error})"
    sizes = [path.stat().st_size for path in folder.glob("*") if path.is_file()]
    return Line(
        version=version,
        state=state,
        precision=artifact.get("precision", ""),
        graph=artifact["files"][ONNX_FILE]["sha256"][:12] if artifact else "",
        commit=(artifact.get("commit") or "")[:12],
        created=artifact.get("created") or "",
        signed="yes" if (folder / SIGNATURE_FILE).is_file() else "no",
        size_mb=round(sum(sizes) / 1e6, 1),
    )


def table(lines: list[Line]) -> str:
    """For people; the state comes last, as the reason of a damage is long."""
    rows = [("version", "precision", "graph", "commit", "created", "signed", "MB", "state")]
    rows += [
        (
            str(line.version),
            *(line.precision, line.graph, line.commit, line.created, line.signed),
            *(f"{line.size_mb:.1f}", line.state),
        )
        for line in lines
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    run(main)
