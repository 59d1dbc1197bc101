"""API keys of the door: made here, shown once, kept as hashes.

    python -m serve.keys add --name NAME --file keys.json --requests-per-s 100
    python -m serve.keys remove --name NAME --file keys.json
    python -m serve.keys list --file keys.json

`make serve SERVE_ARGS="--keys keys.json"` then asks for one of them: `Authorization: Bearer KEY`.
haproxy compares SHA-256 hashes; a key has 256 random bits, so a slow hash would add nothing.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import BadInput
from storage.files import json_text, read_json, write_atomically

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Key:
    """One client."""

    name: str
    """Also the name of its backend in haproxy's metrics: `proxy="key_<name>"`."""
    sha256: str
    requests_per_s: int = 0
    """Most requests a second, over ten seconds; 0 for no limit."""


@dataclass(frozen=True)
class KeysConfig:
    """Flags of `python -m serve.keys`."""

    action: Literal["add", "remove", "list"] = Field(description="add, remove or list")
    name: str = Field("", description="name of the client; letters, digits, - and _")
    file: Path = Field(Path("keys.json"), description="file of the keys' hashes")
    requests_per_s: int = Field(0, ge=0, description="most requests a second, 0 for no limit")


def main() -> None:
    config = parse_config(
        KeysConfig,
        None,
        prog="python -m serve.keys",
        description="API keys of the server.",
        positional="action",
    )
    keys = {key.name: key for key in read(config.file)} if config.file.exists() else {}
    if config.action == "list":
        for key in keys.values():
            print(f"{key.name:32} {key.requests_per_s or 'no limit':>10}  {key.sha256[:12]}...")
        return
    if not _NAME.fullmatch(config.name):
        raise BadInput(
            f"--name is {config.name!r}, expected 1 to 32 letters, digits, - and _; set it"
        )
    if config.action == "remove":
        if keys.pop(config.name, None) is None:
            raise BadInput(f"{config.file} has no key {config.name}; see `serve.keys list`")
        _write(config.file, keys)
        print(f"removed {config.name}; `make serve` tells the running server")
        return
    if config.name in keys:
        raise BadInput(f"{config.file} has a key {config.name} already; remove it first")
    secret = secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    keys[config.name] = Key(config.name, digest, config.requests_per_s)
    _write(config.file, keys)
    print(f"{secret}\nshown this once; send it as Authorization: Bearer KEY")


def read(path: Path) -> list[Key]:
    """Keys of a file. Raises BadInput when it is none."""
    document = read_json(path, "make one with `python -m serve.keys add`")
    try:
        keys = TypeAdapter(list[Key]).validate_python(document.get("keys"))
    except (ValidationError, AttributeError) as error:
        raise BadInput(f"{path} is not a file of keys; make one with `serve.keys add`") from error
    for key in keys:
        if not _NAME.fullmatch(key.name) or not re.fullmatch("[0-9a-f]{64}", key.sha256):
            raise BadInput(f"{path} has a key of a bad name or hash: {key.name!r}; remove it")
    return keys


def write_map(path: Path, keys: list[Key]) -> None:
    """Write the map that haproxy reads: a hash and its name a line, for the user alone."""
    write_atomically(path, "".join(f"{key.sha256} {key.name}\n" for key in keys), 0o600)


def _write(path: Path, keys: dict[str, Key]) -> None:
    document = {
        "keys": [
            {"name": key.name, "sha256": key.sha256, "requests_per_s": key.requests_per_s}
            for key in keys.values()
        ]
    }
    write_atomically(path, json_text(document), 0o600)


if __name__ == "__main__":
    run(main)
