"""What `score --file` and its worker processes tell each other. Light to import: no PyTorch."""

from __future__ import annotations

import dataclasses
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from storage.files import write_atomically
from storage.remote import Place, RemotePath

OutputForm = Literal["csv", "parquet", "jsonl"]


@dataclass(frozen=True)
class Job:
    """What holds for all chunks of a file."""

    version_folder: Path
    parts: Place
    form: OutputForm
    names: tuple[str, ...]
    """Columns of the input."""
    text_column: str
    keep: tuple[str, ...] | None
    """Those that go into the output; None for the row's number in their place."""
    threshold: float | None = None
    """Probability from which a row is flagged; None where no decision is written."""


@dataclass(frozen=True)
class Part:
    """What the first line of a part says, behind the checksum."""

    first_row: int
    rows: int
    tokens: int
    cut: int
    windowed: int
    escaped: int
    """Fields of other columns that were not UTF-8: their bytes stand as \\xNN."""
    quarantine: tuple[dict[str, Any], ...]
    """Rows without a score, each with its number and the reason."""


@dataclass(frozen=True)
class Done:
    """Answer for a chunk: CPU seconds of the worker, and what the core had of them."""

    number: int
    part: Part
    cpu_s: float
    tokenizer_cpu_s: float
    encoder_cpu_s: float


def part_path(parts: Place, number: int) -> Place:
    """Where a chunk's part lies once it is done."""
    return parts / f"{number:08}"


def packed(part: Part, rows: bytes | memoryview) -> bytes:
    """Bytes of a part: CRC-32 of what follows in hex, `part` as JSON on a line, `rows`."""
    head = json.dumps(dataclasses.asdict(part), ensure_ascii=True).encode() + b"\n"
    return b"".join((b"%08x " % zlib.crc32(rows, zlib.crc32(head)), head, rows))


def read_part(place: Place) -> tuple[Part, memoryview] | None:
    """What a part says, and its rows; None for one that is not as it was written."""
    with opened(place) as file:
        checksum, data = file.read(9), file.read()
    if checksum != b"%08x " % zlib.crc32(data):
        return None
    end = data.index(b"\n")
    return Part(**json.loads(data[:end])), memoryview(data)[end + 1 :]


def write_part(parts: Place, number: int, data: bytes) -> None:
    """Write a chunk's part. A kill leaves it whole or not there; its checksum tells of the rest."""
    write_whole(part_path(parts, number), data, to_disk=False)


def write_whole(place: Place, data: bytes, *, to_disk: bool = True) -> None:
    """Write a file or an object, whole or not at all; `to_disk` as `write_atomically` has it."""
    if isinstance(place, RemotePath):
        place.write_bytes(data)
    else:
        write_atomically(place, data, to_disk=to_disk)


def opened(place: Place) -> IO[bytes]:
    """A file or an object, to read."""
    return place.open_bytes() if isinstance(place, RemotePath) else place.open("rb")
