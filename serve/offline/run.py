"""One run over a file: chunks to workers, their parts counted, a report at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from serve.offline.job import Job, Part
from serve.offline.parts import done_part, done_parts
from serve.offline.progress import progress
from serve.offline.rows import Chunk, Source
from serve.offline.workers import WorkerPool, scored
from storage.remote import Place


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
    threshold: float | None
    """Probability from which rows are flagged; None where none are."""
    resumed_rows: int
    """Done before this run."""
    processes: int
    start_s: float
    """Until a worker was ready."""
    score_s: float
    """From then until the last chunk was."""
    join_s: float
    """From then until the output was there."""
    reader_cpu_s: float
    """Of this process from the start of the scoring on: it reads, and puts the parts together."""
    worker_cpu_s: float
    tokenizer_cpu_s: float
    """Of the workers' seconds, as is `encoder_cpu_s`."""
    encoder_cpu_s: float


class Run:
    """Chunks of a source to parts, and what is known of them."""

    def __init__(
        self,
        job: Job,
        source: Source,
        open_workers: Callable[[], WorkerPool],
        there: Callable[[int], None],
    ) -> None:
        """`there` is told the number of each chunk whose part is there."""
        self.job, self.source, self._open_workers, self._there = job, source, open_workers, there
        self.processes = 0
        self.chunks = 0
        """Of the file, known once it is scored."""
        self._counts: Counter[str] = Counter()
        self._cpu_s: dict[str, float] = dict.fromkeys(("worker", "tokenizer", "encoder"), 0.0)
        self._start_s = self._score_s = self._cpu_before_s = 0.0

    def score(self) -> None:
        """Do all that is not done yet."""
        columns = tuple(dict.fromkeys((self.job.text_column, *(self.job.keep or ()))))
        began, self._cpu_before_s = time.monotonic(), time.process_time()
        with (
            progress(self.source) as advance,
            self._open_workers() as workers,
        ):
            self.processes = workers.count
            spans: dict[int, int] = {}
            names = done_parts(self.job.parts)

            def missing() -> Iterator[Chunk]:
                for chunk in self.source.chunks(columns):
                    self.chunks += 1
                    if part := done_part(self.job.parts, chunk, names):
                        self._count(part)
                        self._counts["resumed_rows"] += part.rows
                        self._there(chunk.number)
                        advance(chunk.span, part.rows, 0)
                    else:
                        spans[chunk.number] = chunk.span
                        yield chunk

            for done in scored(missing(), workers):
                self._count(done.part)
                self._there(done.number)
                self._cpu_s["worker"] += done.cpu_s
                self._cpu_s["tokenizer"] += done.tokenizer_cpu_s
                self._cpu_s["encoder"] += done.encoder_cpu_s
                advance(spans.pop(done.number), done.part.rows, done.part.rows)
            self._start_s = (workers.ready_at or began) - began
        self._score_s = time.monotonic() - began - self._start_s

    def _count(self, part: Part) -> None:
        for name in ("rows", "tokens", "cut", "windowed", "escaped"):
            self._counts[name] += getattr(part, name)
        self._counts["quarantined"] += len(part.quarantine)

    @property
    def done_rows(self) -> int:
        """Rows whose parts are there."""
        return self._counts["rows"]

    def report(self, out: Place, join_s: float) -> Report:
        names = ("rows", "quarantined", "tokens", "cut", "windowed", "escaped", "resumed_rows")
        return Report(
            out=str(out),
            version=int(self.job.version_folder.name),
            threshold=self.job.threshold,
            blank_lines=self.source.blank_lines,
            processes=self.processes,
            start_s=self._start_s,
            score_s=self._score_s,
            join_s=join_s,
            reader_cpu_s=time.process_time() - self._cpu_before_s,
            worker_cpu_s=self._cpu_s["worker"],
            tokenizer_cpu_s=self._cpu_s["tokenizer"],
            encoder_cpu_s=self._cpu_s["encoder"],
            **{name: self._counts[name] for name in names},
        )
