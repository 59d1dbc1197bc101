"""Score the rows of a file without a server: `score --file comments.csv.gz`.

score --file comments.parquet --out scored.parquet
score --file comments.parquet --engine ray --ray-address 10.0.0.1:6379
score --file s3://bucket/comments.jsonl.gz --out s3://bucket/scored.parquet
score --file - --out scored.jsonl < lines        # one comment a line

The published version itself runs here: the core on its graph, as the server has it, in a process
of its own on every core. Row i of the output is row i of the input; one without a score is named,
with the reason, in `<out>.quarantine.jsonl` or --quarantine. What is done lies in `<out>.parts`,
chunk by chunk, so that the same command goes on after Ctrl-C or a crash and ends with the same
bytes; the output itself appears whole or not at all. Memory does not grow with the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial

from console.options import parse_config
from contract import BadInput, ToxicityError
from export.manifest import decision_threshold
from export.repository import verify, version_folder
from serve.offline.config import (
    ScoreFileConfig,
    check_engine,
    checked_out,
    checked_quarantine,
    chosen_columns,
    default_processes,
    form_of,
)
from serve.offline.forms import parquet_schema
from serve.offline.job import Job
from serve.offline.join import Output
from serve.offline.parts import alone, beside, drop, go_on_or_begin, stamp
from serve.offline.rows import STDIN, open_source
from serve.offline.run import Report, Run
from serve.offline.workers import WorkerPool, Workers
from storage.remote import place_of
from storage.system_errors import explained


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
    check_engine(config)
    out = checked_out(config)
    bad = checked_quarantine(config, out)
    with open_source(config.file) as source:
        text_column, keep = chosen_columns(config, source)
        artifact = verify(config.repository, config.version)
        folder = version_folder(config.repository, artifact["version"])
        parts = beside(out, ".parts")
        threshold = config.threshold
        if config.decide and threshold is None:
            threshold = decision_threshold(artifact)
        job = Job(folder, parts, form_of(out), source.names, text_column, keep, threshold)
        with alone(config, out, bad, job):
            before = stamp(config.file)
            go_on_or_begin(config, job, artifact)
            with Output(job, out, bad, parquet_schema(job, source.types)) as output:
                opened = partial(_workers, config, job, artifact["device"])
                run = Run(job, source, opened, output.add)
                with _saying_how_to_go_on(run, config):
                    run.score()
                    if stamp(config.file) != before:
                        raise BadInput(
                            f"{config.file} changed while it was read, expected it to stay as it "
                            "is; run the command again with --overwrite"
                        )
                    scored = time.monotonic()
                    output.finish(run.chunks)
                report = run.report(out, time.monotonic() - scored)
            drop(job.parts)
    return report


def _workers(config: ScoreFileConfig, job: Job, device: str) -> WorkerPool:
    if config.engine == "ray":
        from serve.offline.on_ray import RayWorkers

        return RayWorkers(job, config.processes, config.ray_address, device)
    return Workers(job, config.processes or default_processes(device))


@contextlib.contextmanager
def _saying_how_to_go_on(run: Run, config: ScoreFileConfig) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        kept = config.file != STDIN and run.done_rows
        if not kept:
            drop(run.job.parts)
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


def _told(report: Report, config: ScoreFileConfig) -> str:
    new, seconds = report.rows - report.resumed_rows, report.score_s + report.join_s
    lines = [
        f"{report.rows:,} rows of {config.file} by version {report.version}, {new:,} of them now "
        f"in {seconds:.1f} s ({new / max(1e-9, seconds):,.0f}/s): {report.out}"
    ]
    if report.threshold is not None:
        lines.append(f"flagged from {report.threshold:g} on")
    if report.quarantined:
        lines.append(
            f"{report.quarantined:,} rows have no score; "
            f"{checked_quarantine(config, place_of(report.out))} says which, and why"
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
