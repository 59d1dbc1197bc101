"""Objects below a prefix of an S3 bucket, read by obstore: small ones whole, large ones in pieces.

Credentials, region and endpoint are what obstore finds: AWS_ACCESS_KEY_ID and its like in the
environment (AWS_ENDPOINT_URL names a store that is not Amazon's), a web identity, or the role of
the machine. It asks again by itself when a connection ends or the store says that it is busy.
"""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from contract import BadInput

SCHEME, ENDPOINT = "s3", "AWS_ENDPOINT_URL"
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 20
_TRIES = 4
_MOST_REASON = 120


class StoreBroken(BadInput):
    """The connection ended or the store failed: what has come so far is good, and may go on."""


@dataclass(frozen=True)
class ObjectStore:
    """What lies below `prefix` of `bucket`; nothing is asked before the first read."""

    bucket: str
    prefix: str

    @classmethod
    def of(cls, address: str) -> ObjectStore:
        """The store at s3://bucket/prefix. Raises BadInput for any other address."""
        parts = urlsplit(address)
        plain = not (parts.query or parts.fragment or "@" in parts.netloc)
        if parts.scheme != SCHEME or not parts.netloc or not plain:
            raise BadInput(
                f"the source is {address!r}, expected s3://bucket/prefix; give where the filled "
                "repository was copied to"
            )
        return cls(parts.netloc, parts.path.strip("/"))

    def address(self, name: str) -> str:
        """The object of this name, as people write it."""
        return f"{SCHEME}://{self.bucket}/{self._key(name)}"

    def read(self, name: str, most_bytes: int) -> bytes:
        """A whole object. Raises BadInput for a longer one and for none."""
        data = b""
        for chunk in self.chunks(name):
            data += chunk
            if len(data) > most_bytes:
                raise BadInput(
                    f"{self.address(name)} is longer than {most_bytes} bytes, expected less; "
                    "copy the repository there again"
                )
        return data

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name. Raises BadInput when the store does not say."""
        with self._refusing(name):
            client = self._client  # which says when obstore is not there
            import obstore
            from obstore.exceptions import NotFoundError

            with contextlib.suppress(FileNotFoundError, NotFoundError):
                obstore.head(client, self._key(name))
                return True
        return False

    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        """Bytes of an object from offset `start` on.

        Raises StoreBroken when they end early for a reason that may pass, else BadInput.
        """
        with self._refusing(name):
            client = self._client  # which says when obstore is not there
            import obstore

            options: Any = {"range": {"offset": start}} if start else None
            answer = obstore.get(client, self._key(name), options=options)
            for chunk in answer.stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(chunk)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @cached_property
    def _client(self) -> Any:
        try:
            from obstore.store import S3Store
        except ImportError as error:
            raise BadInput(
                "obstore is not installed, expected it to read an object store; run "
                "`pip install 'toxicity-serving[s3]'`"
            ) from error
        wait = timedelta(seconds=_TIMEOUT_S)
        return S3Store(
            self.bucket,
            client_options={
                "connect_timeout": wait,
                "timeout": 10 * wait,  # of a whole answer
                "allow_http": os.environ.get(ENDPOINT, "").startswith("http://"),
            },
            retry_config={"max_retries": _TRIES, "retry_timeout": wait},
        )

    @contextlib.contextmanager
    def _refusing(self, name: str) -> Iterator[None]:
        """Make BadInput of what obstore raises."""
        _ = self._client  # which says when obstore is not there
        from obstore.exceptions import (
            BaseError,
            NotFoundError,
            PermissionDeniedError,
            UnauthenticatedError,
        )

        where = self.address(name)
        try:
            yield
        except (FileNotFoundError, NotFoundError) as error:
            raise BadInput(
                f"{where} is not there, expected an object; check bucket and prefix, {ENDPOINT}, "
                "or copy the repository there first"
            ) from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise BadInput(
                f"{where} is refused by the store, expected leave to read it; check the "
                "credentials, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except (BaseError, OSError) as error:
            why = textwrap.shorten(" ".join(str(error).split()), _MOST_REASON, placeholder=" ...")
            raise StoreBroken(
                f"{where} did not come whole ({why}), expected all of it; run the same command "
                "again, which goes on where this one stopped"
            ) from error
