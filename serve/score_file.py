"""Score the rows of a file without a server: `score --file comments.csv.gz`.

score --file comments.parquet --out scored.parquet
score --file - --out scored.jsonl < lines        # one comment a line

The published version itself runs here: the core on its graph, as the server has it, in a process
of its own on every core. Row i of the output is row i of the input; one without a score is named,
with the reason, in `<out>.quarantine.jsonl`. What is done lies in `<out>.parts`, chunk by chunk,
so that the same command goes on after Ctrl-C or a crash and ends with the same bytes; the output
itself appears whole or not at all. Memory does not grow with the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from pydantic import Field
from pydantic import dataclasses as pydantic_dataclasses

from console.options import parse_config
from contract import ARTIFACT_FILE, ONNX_FILE, BadInput, ToxicityError
from export.repository import verify, version_folder
from serve.offline_rows import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    STDIN,
    Chunk,
    Source,
    open_source,
)
from serve.offline_worker import (
    SCORES,
    Done,
    Form,
    Job,
    Part,
    csv_line,
    output_names,
    parquet_schema,
    part_path,
    work,
    write_durably,
)
from storage.system_errors import explained, naming
from train.artifacts import read_json, sha256_of
from train.data.load import TEXT_COLUMNS
from train.data.tables import find_column, is_text, shown_names

STATE_FILE = "state.json"
_FORMS: dict[str, Form] = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl"}
_INPUT_SUFFIXES = (".csv.gz", ".txt.gz", ".csv", ".zip", ".parquet", ".txt")
_SECONDS_BETWEEN_LINES = 10.0
_BEGIN_AGAIN = "give another --out, or --overwrite to begin again"


@pydantic_dataclasses.dataclass(frozen=True)
class ScoreFileConfig:
    """Flags of `score --file`."""

    file: str = Field(
        STDIN,
        description="comments: .csv, .csv.gz, .zip (one CSV inside), .parquet, .txt or .txt.gz "
        "(one a line), or '-' for lines from stdin",
    )
    out: Path | None = Field(
        None, description=".csv, .parquet or .jsonl file to write; default: <file>.scored.csv"
    )
    text_column: str | None = Field(
        None, description=f"column of the comment; default: the first of {', '.join(TEXT_COLUMNS)}"
    )
    keep_columns: tuple[str, ...] = Field(
        (), description="columns of the input to write beside the scores; default: all"
    )
    ids_only: bool = Field(
        False, description="write the number of the row, from 0, in place of the input's columns"
    )
    repository: Path = Field(Path("model_repository"), description="published model")
    version: int | None = Field(None, ge=1, description="its version; default: the newest")
    processes: int | None = Field(
        None, ge=1, description="default: one a core, or a single one for a GPU"
    )
    overwrite: bool = Field(
        False, description="begin again: replace the output and what an earlier command left"
    )
    json: bool = Field(False, description="end with the counts as one JSON object, not in words")


@dataclass(frozen=True)
class Report:
    """What a command did. CPU seconds are of this run, counts of the whole file."""

    out: str
    version: int
    rows: int
    quarantined: int
    tokens: int
    cut: int
    windowed: int
    escaped: int
    """Fields of other columns that were not UTF-8: their bytes stand as \\xNN."""
    blank_lines: int
    resumed_rows: int
    """Done before this run."""
    processes: int
    start_s: float
    """Until a worker was ready."""
    score_s: float
    """From then until the last chunk was."""
    join_s: float
    """Parts into the output."""
    reader_cpu_s: float
    """Of this process between start and end of the scoring."""
    worker_cpu_s: float
    tokenizer_cpu_s: float
    """Of the workers' seconds, as is `encoder_cpu_s`."""
    encoder_cpu_s: float


def main(argv: Sequence[str]) -> None:
    """`score` with --file; called within `console.options.run`."""
    config = parse_config(
        ScoreFileConfig, argv, prog="score", description="Score a file without a server."
    )
    report = score_file(config)
    print(json.dumps(dataclasses.asdict(report)) if config.json else _told(report, config))


def score_file(config: ScoreFileConfig) -> Report:
    """Score a file; see the module. Raises BadInput, and ToxicityError when a worker dies."""
    # Both end it in order; a background job starts deaf to Ctrl-C.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    out = _checked_out(config)
    with open_source(config.file) as source:
        text_column, keep = _columns(config, source)
        artifact = verify(config.repository, config.version)
        folder = version_folder(config.repository, artifact["version"])
        parts = _beside(out, ".parts")
        job = Job(folder, parts, _form(out), source.names, text_column, keep)
        processes = config.processes or _default_processes(artifact["device"])
        with _alone(config, out, job):
            before = _stamp(config.file)
            _go_on_or_begin(config, job, artifact)
            run = _Run(job, source, processes)
            _score(run, config)
            if _stamp(config.file) != before:
                raise BadInput(
                    f"{config.file} changed while it was read, expected it to stay as it is; "
                    "run the command again with --overwrite"
                )
            joined = time.monotonic()
            _join(job, out, run.chunks, parquet_schema(job, source.types))
            report = run.report(out, time.monotonic() - joined)
            _drop(job.parts)
    return report


def _score(run: _Run, config: ScoreFileConfig) -> None:
    """Score, or say how to go on."""
    try:
        run.score()
    except BaseException as error:
        kept = config.file != STDIN and run.done_rows
        if not kept:
            _drop(run.job.parts)
        how = (
            f"{run.done_rows:,} rows are done and kept in {run.job.parts}; the same command goes on"
            if kept
            else "nothing is kept; begin again"
        )
        if isinstance(error, KeyboardInterrupt):
            print(how, file=sys.stderr)
        elif isinstance(error, OSError) and (words := explained(error)):
            raise BadInput(f"{words}; {how}") from error
        elif isinstance(error, ToxicityError) and not isinstance(error, BadInput):
            raise ToxicityError(f"{error}; {how}") from error
        raise


# --- What is asked -----------------------------------------------------------------------
def _checked_out(config: ScoreFileConfig) -> Path:
    if config.out is None:
        if config.file == STDIN:
            raise BadInput("--out is missing, expected it with lines from stdin; add --out FILE")
        name = Path(config.file).name
        suffix = next((s for s in _INPUT_SUFFIXES if name.lower().endswith(s)), "")
        return Path(config.file).with_name(f"{name[: len(name) - len(suffix)]}.scored.csv")
    _form(config.out)
    if config.out.is_dir():
        raise BadInput(f"--out is {config.out}, a folder, expected a file; set another")
    if config.file != STDIN and config.out.resolve() == Path(config.file).resolve():
        raise BadInput(f"--out is {config.out}, expected another file than --file; set another")
    return config.out


def _form(out: Path) -> Form:
    if form := _FORMS.get(out.suffix.lower()):
        return form
    raise BadInput(f"--out is {out}, expected a name that ends in {', '.join(_FORMS)}; set another")


def _columns(config: ScoreFileConfig, source: Source) -> tuple[str, tuple[str, ...] | None]:
    """The column of the text and the kept ones, checked."""
    text_column = find_column(
        source.names,
        config.file,
        "text",
        asked=config.text_column,
        known=TEXT_COLUMNS,
        flag="--text-column",
    )
    if source.types and not is_text(source.types[text_column]):
        raise BadInput(
            f"column {text_column!r} of {config.file} holds {source.types[text_column]}, expected "
            "text; name another with --text-column"
        )
    if config.ids_only and config.keep_columns:
        raise BadInput("--ids-only keeps no columns, expected it without --keep-columns; drop one")
    if unknown := [name for name in config.keep_columns if name not in source.names]:
        raise BadInput(
            f"--keep-columns names {unknown[0]!r}, expected columns of {config.file}; "
            f"{shown_names(config.file, source.names)}"
        )
    keep = None if config.ids_only else config.keep_columns or source.names
    counts = Counter((text_column, *source.names))
    for name in keep or ():
        if name in SCORES:
            raise BadInput(
                f"{config.file} has a column {name!r} already, expected none of "
                f"{', '.join(SCORES)}; leave it out with --keep-columns or --ids-only"
            )
        if counts[name] > 1 + (name == text_column):
            raise BadInput(
                f"{config.file} has {counts[name]} columns {name!r}, expected one; rename them, or "
                "leave them out with --keep-columns or --ids-only"
            )
    return text_column, keep


def _default_processes(device: str) -> int:
    return 1 if device == "cuda" else len(os.sched_getaffinity(0))


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def _stamp(name: str) -> tuple[int, int] | None:
    if name == STDIN:
        return None
    stat = Path(name).stat()
    return stat.st_size, stat.st_mtime_ns


# --- Parts of an earlier run -------------------------------------------------------------
@contextlib.contextmanager
def _alone(config: ScoreFileConfig, out: Path, job: Job) -> Iterator[None]:
    """Let no other command write the same output."""
    job.parts.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.lock")
    with _locked(path, out):
        try:
            if not config.overwrite and out.exists() and not job.parts.exists():
                raise BadInput(f"{out} is there already, expected no file; {_BEGIN_AGAIN}")
            if config.overwrite or config.file == STDIN:
                _drop(job.parts)
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    while True:
        with naming(out):
            opened = path.open("w")
        with opened as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BadInput(
                    f"another command writes {out}, expected none; wait for it, or give another "
                    "--out"
                ) from error
            # Whoever had it may have removed it meanwhile.
            if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                yield
                return


def _go_on_or_begin(config: ScoreFileConfig, job: Job, artifact: dict[str, Any]) -> None:
    """Check that the parts which are there are of this very command, or begin."""
    state = {
        "input": _fingerprint(config.file),
        "text_column": job.text_column,
        "columns": job.keep,
        "version": artifact["version"],
        "artifact_sha256": sha256_of(job.version_folder / ARTIFACT_FILE),
        "onnx_sha256": artifact["files"][ONNX_FILE]["sha256"],
        "form": job.form,
        "chunk": {"rows": CHUNK_ROWS, "bytes": CHUNK_BYTES},
    }
    state = json.loads(json.dumps(state))
    path = job.parts / STATE_FILE
    if path.is_file():
        began = read_json(path, f"{_BEGIN_AGAIN}")
        for name, expected in began.items():
            if state.get(name) != expected:
                raise BadInput(
                    f"{job.parts} was begun with {name} {json.dumps(expected)}, and now it is "
                    f"{json.dumps(state.get(name))}; give what it was begun with to go on, "
                    f"{_BEGIN_AGAIN}"
                )
        return
    _drop(job.parts)
    job.parts.mkdir(parents=True)
    write_durably(path, [json.dumps(state, indent=2).encode() + b"\n"])


def _fingerprint(name: str) -> dict[str, Any] | None:
    if name == STDIN:
        return None
    path = Path(name)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _drop(parts: Path) -> None:
    """Remove the parts, of which none counts from the first moment on."""
    old = parts.with_name(f".{parts.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        parts.rename(old)
    shutil.rmtree(old, ignore_errors=True)


# --- Scoring -----------------------------------------------------------------------------
class _Run:
    """Chunks of a source to parts, and what is known of them."""

    def __init__(self, job: Job, source: Source, processes: int) -> None:
        self.job, self.source, self.processes = job, source, processes
        self.chunks = 0
        self._counts: Counter[str] = Counter()
        self._cpu_s: dict[str, float] = dict.fromkeys(("worker", "tokenizer", "encoder"), 0.0)
        self._start_s = self._score_s = self._reader_cpu_s = 0.0

    def score(self) -> None:
        """Do all that is not done yet."""
        columns = tuple(dict.fromkeys((self.job.text_column, *(self.job.keep or ()))))
        began, cpu = time.monotonic(), time.process_time()
        with (
            _progress(self.source) as advance,
            Workers(self.job, self.processes) as workers,
        ):
            spans: dict[int, int] = {}

            def missing() -> Iterator[Chunk]:
                for chunk in self.source.chunks(columns):
                    self.chunks += 1
                    if part := _done_part(self.job.parts, chunk):
                        self._count(part)
                        self._counts["resumed_rows"] += part.rows
                        advance(chunk.span, part.rows, 0)
                    else:
                        spans[chunk.number] = chunk.span
                        yield chunk

            for done in scored(missing(), workers):
                self._count(done.part)
                self._cpu_s["worker"] += done.cpu_s
                self._cpu_s["tokenizer"] += done.tokenizer_cpu_s
                self._cpu_s["encoder"] += done.encoder_cpu_s
                advance(spans.pop(done.number), done.part.rows, done.part.rows)
            self._start_s = (workers.ready_at or began) - began
        self._score_s = time.monotonic() - began - self._start_s
        self._reader_cpu_s = time.process_time() - cpu

    def _count(self, part: Part) -> None:
        for name in ("rows", "tokens", "cut", "windowed", "escaped"):
            self._counts[name] += getattr(part, name)
        self._counts["quarantined"] += len(part.quarantine)

    @property
    def done_rows(self) -> int:
        """Rows whose parts are there."""
        return self._counts["rows"]

    def report(self, out: Path, join_s: float) -> Report:
        names = ("rows", "quarantined", "tokens", "cut", "windowed", "escaped", "resumed_rows")
        return Report(
            out=str(out),
            version=int(self.job.version_folder.name),
            blank_lines=self.source.blank_lines,
            processes=self.processes,
            start_s=self._start_s,
            score_s=self._score_s,
            join_s=join_s,
            reader_cpu_s=self._reader_cpu_s,
            worker_cpu_s=self._cpu_s["worker"],
            tokenizer_cpu_s=self._cpu_s["tokenizer"],
            encoder_cpu_s=self._cpu_s["encoder"],
            **{name: self._counts[name] for name in names},
        )


def scored(chunks: Iterable[Chunk], workers: Workers) -> Iterator[Done]:
    """Every chunk's `Done`, in the order in which they come.

    A chunk is taken when the one before has its worker, so that no more are held than one a
    worker, and one.
    """
    for chunk in chunks:
        while not workers.idle:
            yield from workers.wait()
        workers.give(chunk)
    while workers.busy:
        yield from workers.wait()


class Workers:
    """Processes that each score a chunk at a time. When this one dies, they end too."""

    def __init__(self, job: Job, count: int) -> None:
        self._job, self._count = job, count
        self._processes: dict[Any, Any] = {}
        self.idle: list[Any] = []
        self.busy = 0
        self.ready_at: float | None = None
        """When the first could begin."""

    def __enter__(self) -> Workers:
        context = multiprocessing.get_context("spawn")
        # Ctrl-C goes to all of a terminal's processes; they inherit that this one deals with it.
        resource_tracker.ensure_running()  # its start would unblock the signal
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(self._count):
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(theirs, self._job), daemon=True)
                process.start()
                theirs.close()
                self._processes[ours] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return self

    def __exit__(self, *_: Any) -> None:
        # A part is whole or not there; one that is still starting is not worth the wait.
        for pipe, process in self._processes.items():
            process.kill()
            process.join()
            pipe.close()

    def give(self, chunk: Chunk) -> None:
        """Send a chunk to an idle worker."""
        pipe = self.idle.pop()
        try:
            pipe.send(chunk)
        except BrokenPipeError as error:
            raise self._lost(pipe) from error
        self.busy += 1

    def wait(self) -> Iterator[Done]:
        """Wait for one or more of them: what they did, nothing when they have just started."""
        ready: list[Any] = connection.wait(list(self._processes))
        for pipe in ready:
            try:
                answer = pipe.recv()
            except (EOFError, ConnectionResetError) as error:
                raise self._lost(pipe) from error
            if isinstance(answer, Exception):
                raise answer
            self.idle.append(pipe)
            if answer is None:
                self.ready_at = self.ready_at or time.monotonic()
            else:
                self.busy -= 1
                yield answer

    def _lost(self, pipe: Any) -> ToxicityError:
        process = self._processes[pipe]
        process.join()
        return ToxicityError(
            f"a worker ended with status {process.exitcode}, expected it to go on; when the "
            "machine ran out of memory, give fewer --processes"
        )


def _done_part(parts: Path, chunk: Chunk) -> Part | None:
    path = part_path(parts, chunk.number)
    if not path.is_file():
        return None
    part = _head(path)
    if (part.first_row, part.rows) != (chunk.first_row, chunk.rows):
        raise BadInput(
            f"{path} holds rows {part.first_row} to {part.first_row + part.rows - 1}, expected "
            f"{chunk.first_row} to {chunk.first_row + chunk.rows - 1}: another release cuts the "
            f"file otherwise; {_BEGIN_AGAIN}"
        )
    return part


def _head(path: Path) -> Part:
    with path.open("rb") as file:
        return Part(**json.loads(file.readline()))


# --- The output --------------------------------------------------------------------------
def _join(job: Job, out: Path, chunks: int, schema: Any) -> None:
    """Parts into the output and the quarantine file, each under a temporary name at first."""
    staged = out.with_name(f".{out.name}.partial")
    bad, bad_staged = (_beside(path, ".quarantine.jsonl") for path in (out, staged))
    paths = [part_path(job.parts, number) for number in range(chunks)]
    try:
        with (
            naming(out),
            staged.open("wb") as file,
            bad_staged.open("w", encoding="utf-8") as quarantine,
        ):
            copy = _copier(job, file, schema)
            for path in paths:
                with path.open("rb") as part:
                    for entry in json.loads(part.readline())["quarantine"]:
                        quarantine.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    copy(part)
            copy(None)
            for written in (file, quarantine):
                written.flush()
                os.fsync(written.fileno())
        if bad_staged.stat().st_size:
            bad_staged.replace(bad)
        else:
            bad_staged.unlink()
            bad.unlink(missing_ok=True)
        staged.replace(out)
    except BaseException:
        for left in (staged, bad_staged):
            left.unlink(missing_ok=True)
        raise


def _copier(job: Job, file: Any, schema: Any) -> Callable[[Any], None]:
    """What takes an open part behind its first line, and None at the end."""
    if job.form == "parquet":
        writer = pq.ParquetWriter(file, schema)

        def copy_table(part: Any) -> None:
            try:
                if part is None:
                    writer.close()
                else:
                    writer.write_table(pq.read_table(pa.BufferReader(part.read())).cast(schema))
            except BaseException:
                writer.is_open = False  # else it would try again when it is collected
                raise

        return copy_table
    if job.form == "csv":
        file.write(csv_line(output_names(job.keep)).encode())

    def copy(part: Any) -> None:
        if part is not None:
            shutil.copyfileobj(part, file)

    return copy


# --- Telling -----------------------------------------------------------------------------
@contextlib.contextmanager
def _progress(source: Source) -> Iterator[Callable[[int, int, int], None]]:
    """A bar on a terminal, a plain line now and then otherwise; both on stderr."""
    began = last = time.monotonic()
    rows = read = new = 0
    on_terminal = sys.stderr.isatty()
    bar = tqdm.tqdm(
        total=source.total,
        unit=source.unit,
        unit_scale=True,
        dynamic_ncols=True,
        disable=not on_terminal,
    )

    def advance(span: int, more: int, more_new: int) -> None:
        nonlocal last, rows, read, new
        rows, read, new, now = rows + more, read + span, new + more_new, time.monotonic()
        text = f"{rows:,} rows, {new / max(1e-9, now - began):,.0f}/s"
        bar.set_postfix_str(text, refresh=False)
        bar.update(span)
        if not on_terminal and now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            share = f"  {100 * read / source.total:.0f} %" if source.total else ""
            print(f"{text}{share}", file=sys.stderr, flush=True)

    with bar:
        yield advance


def _told(report: Report, config: ScoreFileConfig) -> str:
    new, seconds = report.rows - report.resumed_rows, report.score_s + report.join_s
    lines = [
        f"{report.rows:,} rows of {config.file} by version {report.version}, {new:,} of them now "
        f"in {seconds:.1f} s ({new / max(1e-9, seconds):,.0f}/s): {report.out}"
    ]
    if report.quarantined:
        lines.append(
            f"{report.quarantined:,} rows have no score; "
            f"{_beside(Path(report.out), '.quarantine.jsonl')} says which, and why"
        )
    for count, what in (
        (report.cut, "comments cut at the model's length"),
        (report.windowed, "comments read in several windows"),
        (report.escaped, "fields of other columns that are not UTF-8, their bytes now \\xNN"),
        (report.blank_lines, "blank lines, which are no rows"),
    ):
        if count:
            lines.append(f"{what}: {count:,}")
    return "\n".join(lines)
