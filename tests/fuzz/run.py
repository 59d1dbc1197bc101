"""Fuzz the core with its sanitizers: `python -m tests.fuzz.run --runs 10000000`.

Builds tests/fuzz/*.cpp with clang, libFuzzer and the sanitizers, gives each target its share of
the inputs, bounded in time, and writes the counts as JSON. Exit status 1 names the input that
crashed. Seeds are real comments where `--comments` names some, and generated ones.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.traffic.comments import default_source, load_pool
from contract import BadInput, ToxicityError
from core import build
from train.artifacts import write_json

SANITIZERS = "address,undefined"
SHARES = {"text_to_ids": 0.24, "request": 0.75, "tokenizer_file": 0.01}
"""Of the inputs: a tokenizer file takes a hundred times as long as a request."""
_LONGEST = {"text_to_ids": 256, "request": 512, "tokenizer_file": 512}
"""Bytes of an input: short ones cover the same code, and many more of them fit into the time."""
_SEEDS = 400
_MOST_MB = 2048
"""Memory that a target may take, far above what any needs."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000_000, help="inputs of all targets")
    parser.add_argument("--seconds", type=int, default=900, help="most seconds of one target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--comments", default=default_source(), help="for the seeds")
    parser.add_argument("--out", type=Path, default=Path("bench/out/fuzz.json"))
    arguments = parser.parse_args()
    try:
        document = fuzz(
            arguments.runs, arguments.seconds, arguments.seed, comments=arguments.comments
        )
    except ToxicityError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    write_json(arguments.out, document)
    print(document)
    return int(any(target["crash"] for target in document["targets"].values()))


def fuzz(
    runs: int,
    seconds: int,
    seed: int,
    *,
    comments: str,
    names: Sequence[str] = tuple(SHARES),
    programs: Path | None = None,
) -> dict[str, Any]:
    """Counts and coverage of each target, built first unless `programs` holds them.

    Raises BadInput without clang.
    """
    clang = shutil.which("clang++")
    if clang is None:
        raise BadInput(
            "clang++ is not on PATH, expected it for libFuzzer; run `apt-get install clang`"
        )
    programs = programs or build.build_sanitized(build.CORE / "sanitized", SANITIZERS)
    texts = [text.encode("utf-8", "replace") for text in load_pool(comments, size=_SEEDS).texts]
    targets: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            corpus = Path(folder) / name
            corpus.mkdir()
            for number, data in enumerate(_seeds(name, texts)):
                (corpus / f"seed-{number}").write_bytes(data)
            targets[name] = _run(programs / name, corpus, int(SHARES[name] * runs), seconds, seed)
            print(f"{name}: {targets[name]}", flush=True)
    version = subprocess.run([clang, "--version"], capture_output=True, text=True, check=True)
    return {
        "sanitizers": SANITIZERS,
        "compiler": version.stdout.splitlines()[0],
        "machine": platform.machine(),
        "seed": seed,
        "inputs": sum(target["inputs"] for target in targets.values()),
        "targets": targets,
    }


def _seeds(name: str, texts: Sequence[bytes]) -> Iterator[bytes]:
    for text in texts:
        if name == "request":
            yield struct.pack(">H", 1) + struct.pack("<I", len(text)) + text
            yield struct.pack(">H", 2) + 2 * (struct.pack("<I", len(text[:40])) + text[:40])
        else:
            yield b"\x10" + text[:240]
    if name == "tokenizer_file":
        yield b'{"format_version":2,"max_len":4,"vocabulary":["[PAD]"]}'


def _run(program: Path, corpus: Path, runs: int, seconds: int, seed: int) -> dict[str, Any]:
    command = [str(program), str(corpus), f"-runs={runs}", f"-max_total_time={seconds}"]
    command += [f"-seed={seed}", "-print_final_stats=1", "-timeout=10"]
    # libFuzzer's own limit is on the peak, which a process takes over from the one that began it.
    command += ["-rss_limit_mb=0", f"-malloc_limit_mb={_MOST_MB}"]
    command += [f"-max_len={_LONGEST[program.name]}", f"-artifact_prefix={corpus}/crash-"]
    environment = {**os.environ, "ASAN_OPTIONS": f"hard_rss_limit_mb={_MOST_MB}"}
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=environment
    )
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", done.stderr)
    inputs = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    crash = None
    if done.returncode:
        found = sorted(corpus.glob("crash-*"))
        said = [line for line in done.stderr.splitlines() if "ERROR" in line or "SUMMARY" in line]
        crash = {
            "said": said or done.stderr[-2000:],
            "inputs": {path.name: path.read_bytes().hex() for path in found},
        }
    edges, features, kept = (map(int, covered[-1])) if covered else (0, 0, 0)
    return {
        "inputs": int(inputs[1]) if inputs else 0,
        "edges": edges,
        "features": features,
        "corpus": kept,
        "crash": crash,
    }


if __name__ == "__main__":
    sys.exit(main())
