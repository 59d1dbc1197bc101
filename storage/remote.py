"""Objects of S3 by their URL, with what of `pathlib.Path` reading and writing a file needs.

Arrow's own client, which comes with pyarrow, finds credentials and region as the AWS command line
does; AWS_ENDPOINT_URL names another store that speaks S3. An object appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from contract import BadInput

_SCHEME = "s3://"
_URL = re.compile("s3:/{1,2}")
"""A `Path` of the URL has one of its slashes left."""
_RETRIES_S = 10


@dataclass(frozen=True)
class Stat:
    """As os.stat_result has it."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True)
class RemotePath:
    """An object, or what the names of several begin with. Methods raise BadInput, as said here."""

    path: str
    """Bucket and key, with a slash between."""

    def __str__(self) -> str:
        return _SCHEME + self.path

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.path}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    def with_name(self, name: str) -> RemotePath:
        return RemotePath(str(PurePosixPath(self.path).with_name(name)))

    def is_file(self) -> bool:
        return self._info().is_file

    def exists(self) -> bool:
        """Whether it is an object; what is only the beginning of names does not count."""
        return self.is_file()

    def stat(self) -> Stat:
        """Size in bytes, and time of the last change in ns. Raises BadInput without the object."""
        info = self._info()
        if not info.is_file:
            raise BadInput(f"no object at {self}, expected one; give another")
        return Stat(info.size, info.mtime_ns or 0)

    def open_bytes(self) -> Any:
        """A file to read from and to seek in."""
        with _told(self):
            return io.BufferedReader(_store(self._bucket).open_input_file(self.path), 1 << 20)

    def read_bytes(self) -> bytes:
        with self.open_bytes() as file:
            return file.read()

    def write_bytes(self, data: bytes) -> None:
        self.upload(io.BytesIO(data))

    def upload(self, file: Any) -> None:
        """Write what is left to read of a file."""
        with _told(self):
            stream = _store(self._bucket).open_output_stream(self.path, compression=None)
            try:
                shutil.copyfileobj(file, stream, 8 << 20)
            except BaseException:
                with contextlib.suppress(OSError):
                    stream.close()  # which keeps what came so far
                    self.unlink()
                raise
            stream.close()

    def unlink(self) -> None:
        with _told(self), contextlib.suppress(FileNotFoundError):
            _store(self._bucket).delete_file(self.path)

    def names(self) -> list[str]:
        """Of the objects right below it."""
        from pyarrow import fs

        with _told(self):
            below = fs.FileSelector(self.path, allow_not_found=True)
            return [info.base_name for info in _store(self._bucket).get_file_info(below)]

    def remove_all(self) -> None:
        """Remove the objects below it."""
        for name in self.names():
            (self / name).unlink()

    @property
    def _bucket(self) -> str:
        return self.path.partition("/")[0]

    def _info(self) -> Any:
        with _told(self):
            return _store(self._bucket).get_file_info(self.path)


Place = Path | RemotePath


def is_remote(name: str | Path) -> bool:
    """Whether a name is a URL of S3."""
    return bool(_URL.match(str(name)))


def place_of(name: str | Path) -> Place:
    """What a path or a URL names. Raises BadInput for a URL without bucket or key."""
    if not is_remote(name):
        return Path(name)
    path = _URL.sub("", str(name), count=1)
    if not re.fullmatch("[^/]+/.*[^/]", path):
        raise BadInput(f"{_SCHEME}{path} names no object, expected s3://BUCKET/KEY; set another")
    return RemotePath(path)


@contextlib.contextmanager
def _told(place: RemotePath) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise BadInput(f"no object at {place}, expected one; give another") from None
    except OSError as error:
        words = " ".join(str(error).split())
        raise BadInput(
            f"{place} cannot be used ({words}), expected a store that answers; look at the bucket, "
            "the credentials and AWS_ENDPOINT_URL"
        ) from error


@functools.cache
def _store(bucket: str) -> Any:
    from pyarrow import fs

    flags: dict[str, Any] = {"connect_timeout": _RETRIES_S, "request_timeout": 6 * _RETRIES_S}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if url := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        parts = urlsplit(url)
        flags |= {"scheme": parts.scheme, "endpoint_override": parts.netloc}
    elif not region:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(region=region or "us-east-1", **flags)
