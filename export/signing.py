"""Ed25519 signatures of a version's manifest, off unless a key is given.

The signature is over the bytes of artifact.json, which names every other file by its sha256. It
says that the version is from the holder of the private key; which of several signed versions
serves, and how many sessions it gets, is not signed. Keys are PEM files, so that `openssl` reads
them too:

    openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in artifact.json -sigfile artifact.sig

`cryptography` is imported where it is used: most commands need none of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from contract import ARTIFACT_FILE, REQUIRE_SIGNATURE, SIGNATURE_FILE, BadInput
from export.manifest import read_regular
from storage.files import write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_KEYGEN = "make a pair with `python -m export.versions keygen`"


def make_keys(private: Path, public: Path) -> None:
    """Write a new pair, `private` for its owner alone (0600). Raises BadInput where a file is."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for path in (private, public):
        if os.path.lexists(path):
            raise BadInput(f"{path} is there already, expected a new file; name another one")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    shown = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_atomically(private, secret, mode=0o600)
    write_atomically(public, shown)


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """The key that signs. Raises BadInput for anything else in `path`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_regular(path, _KEYGEN), password=None)
    except (ValueError, TypeError) as error:
        raise BadInput(f"{path} holds no private key in PEM; {_KEYGEN}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{path} holds {type(key).__name__}, expected Ed25519; {_KEYGEN}")
    return key


def required_key(given: Path | None) -> Path | None:
    """File of the public key that versions must be signed for: `given`, else the environment's."""
    if given is None and (named := os.environ.get(REQUIRE_SIGNATURE)):
        return Path(named)
    return given


def check_signature(folder: Path, public_key: Path) -> None:
    """Raise BadInput unless the version in `folder` is signed by the owner of `public_key`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(read_regular(public_key, _KEYGEN))
    except ValueError as error:
        raise BadInput(f"{public_key} holds no public key in PEM; {_KEYGEN}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadInput(f"{public_key} holds {type(key).__name__}, expected Ed25519; {_KEYGEN}")
    path, remedy = folder / SIGNATURE_FILE, "sign it with `make publish VERSION=N SIGN_KEY=FILE`"
    if not os.path.lexists(path):
        raise BadInput(f"{folder} is not signed, expected a signature for {public_key}; {remedy}")
    try:
        key.verify(read_regular(path, remedy), read_regular(folder / ARTIFACT_FILE))
    except InvalidSignature as error:
        raise BadInput(
            f"{path} is no signature of {ARTIFACT_FILE} for {public_key}, expected one; {remedy}"
        ) from error
