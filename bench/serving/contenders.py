"""One encoder in a process of its own, which `bench.model.encoder` starts and asks for passes.

    python -m bench.serving.contenders serving_int8 FOLDER --threads 1

Says on stdout, in JSON lines, that it is ready or why it cannot run. Then it reads names of files
of batches in FOLDER, one a line, warms up, runs all batches of each and answers with the seconds,
the logits and the greatest memory that its process held so far (VmHWM of /proc/self/status: the
interpreter, the runtime, the weights and, for torch.compile, its compiler). The runtimes are
imported where they are used, so that no contender pays for another's.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contract import ATTENTION_MASK, INPUT_IDS, LOGIT, ToxicityError

Feed = tuple[np.ndarray, np.ndarray]
"""input_ids and attention_mask, int64 [B, L]."""
Runner = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A feed -> logits float32 [B]."""
ROOT = Path(__file__).parents[2]
MODEL_CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""What `eager` and `torch_compile` read in FOLDER; the others read `<name>.onnx`."""
OPENVINO = {"openvino_fp32": "traced_fp32", "openvino_int8": "static_int8"}
"""Contender -> the file that OpenVINO reads; it runs the QDQ form of the latter on integers."""
TORCH = ("eager", "torch_compile")
OPTIONAL = (*OPENVINO, "torch_compile")
"""Those that a machine may lack: the package, or a C++ compiler."""


# --- In the child -------------------------------------------------------------------------
def main() -> None:
    parser = argparse.ArgumentParser(description="One contender of bench.model.encoder.")
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sessions", type=int, default=1)
    args = parser.parse_args()
    # Compilers and runtimes write to stdout too: only answers may get through.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        runners = [_runner(args.name, args.folder, args.threads) for _ in range(args.sessions)]
        for runner in runners:
            runner(*_smallest_feed())
    except (ImportError, OSError, RuntimeError) as error:
        if args.name not in OPTIONAL:
            raise
        lines = str(error).strip().splitlines() or [""]
        print(json.dumps({"skipped": f"{type(error).__name__}: {lines[0]}"}), file=answers)
        return
    print(json.dumps({"ready": True}), file=answers)
    warm = set()
    for line in sys.stdin:
        feeds = read_feeds(args.folder / line.strip())
        if line not in warm:
            _warm_up(args.name, runners, feeds)
            warm.add(line)
        began = time.perf_counter()
        logits = run_all(runners, feeds)
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "peak_mib": _peak_mib(), "logits": logits.tolist()}
        print(json.dumps(answer), file=answers)


def run_all(runners: Sequence[Runner], feeds: Sequence[Feed]) -> np.ndarray:
    """float32 logits of all feeds; several runners each run all of them, at once in threads."""

    def run(runner: Runner) -> np.ndarray:
        return np.concatenate([runner(*feed) for feed in feeds])

    if len(runners) == 1:
        return run(runners[0])
    with ThreadPoolExecutor(len(runners)) as pool:
        return list(pool.map(run, runners))[-1]


def _warm_up(name: str, runners: Sequence[Runner], feeds: Sequence[Feed]) -> None:
    """Allocate for the largest batch; those that compile code for each shape see every one."""
    largest = max(feeds, key=lambda feed: feed[0].size)
    for runner in runners:
        for feed in feeds if name in OPTIONAL else [largest]:
            runner(*feed)


def _runner(name: str, folder: Path, threads: int) -> Runner:
    if name in TORCH:
        return _torch_runner(folder, threads, compiled=name == "torch_compile")
    if name in OPENVINO:
        return _openvino_runner(folder / f"{OPENVINO[name]}.onnx", threads)
    return _onnx_runner(folder / f"{name}.onnx", threads)


def _onnx_runner(path: Path, threads: int) -> Runner:
    from export.session import open_session, session_options

    own = path.stem.startswith("serving")
    session = open_session(path, options=session_options(threads, file_order=own))

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        feed = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        return np.asarray(session.run([LOGIT], feed)[0])

    return run


def _torch_runner(folder: Path, threads: int, *, compiled: bool) -> Runner:
    import torch

    from train.artifacts import load_tensors
    from train.model import ModelConfig, ToxicityEncoder

    torch.set_num_threads(threads)
    model: Any = ToxicityEncoder(ModelConfig(**json.loads((folder / MODEL_CONFIG).read_text())))
    model.load_state_dict(load_tensors(folder / WEIGHTS, "run the bench again"))
    model.eval()
    if compiled:
        model = torch.compile(model, dynamic=True)

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = model(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
        return np.asarray(logits.numpy())

    return run


def _openvino_runner(path: Path, threads: int) -> Runner:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # of what is not quantized; bf16 would be inexact
    }
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        feed = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        return np.array(request.infer(feed, share_inputs=True)[LOGIT])

    return run


def _smallest_feed() -> Feed:
    """Two comments of three tokens: an axis of one would be taken for a constant."""
    input_ids = np.full((2, 3), 2, np.int64)
    return input_ids, np.ones_like(input_ids)


def _peak_mib() -> float:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


# --- In the parent ------------------------------------------------------------------------
@dataclass
class Contender:
    """A running child with one session, or several that each run a pass at once.

    `peak_mib` is its greatest memory so far.
    """

    name: str
    sessions: int
    process: subprocess.Popen[str]
    log: Path
    peak_mib: float = 0.0

    def run(self, feeds: str) -> tuple[float, np.ndarray]:
        """Seconds of one pass over the file of that name in its folder, and float32 logits."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # `answer` says why
            print(feeds, file=self.process.stdin, flush=True)
        answer = self.answer()
        self.peak_mib = answer["peak_mib"]
        return answer["seconds"], np.array(answer["logits"], np.float32)

    def answer(self) -> dict[str, Any]:
        """Its next line. Raises ToxicityError with the end of its log when it died."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            last = self.log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise ToxicityError(f"{self.name} ended with status {self.process.wait()}: {last}")
        return dict(json.loads(line))


@contextlib.contextmanager
def running(
    names: Sequence[str], folder: Path, *, threads: int = 1, sessions: int = 1
) -> Iterator[tuple[list[Contender], dict[str, str]]]:
    """Children on the CPUs of this process: those that run, and why the others do not, by name."""
    contenders, skipped = [], {}
    with contextlib.ExitStack() as stack:
        for name in names:
            contender = stack.enter_context(_child(name, folder, threads, sessions))
            first = contender.answer()
            if reason := first.get("skipped"):
                skipped[contender.name] = reason
            else:
                contenders.append(contender)
        yield contenders, skipped


@contextlib.contextmanager
def _child(name: str, folder: Path, threads: int, sessions: int) -> Iterator[Contender]:
    command = [sys.executable, "-m", "bench.serving.contenders", name, str(folder)]
    command += ["--threads", str(threads), "--sessions", str(sessions)]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_"))},
        # Compiled code of this run only, by one compiler at a time.
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    log = Path(tempfile.mkstemp(dir=folder, prefix=f"{name}.", suffix=".log")[1])
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            cwd=ROOT,
            text=True,
        ) as process,
    ):
        try:
            title = f"{name} x{sessions}" if sessions > 1 else name
            yield Contender(title, sessions, process, log)
        finally:
            process.kill()


# --- Files of batches ---------------------------------------------------------------------
def write_feeds(path: Path, feeds: Sequence[Feed]) -> None:
    """Write the batches of one pass; `read_feeds` reads them."""
    arrays = {
        f"{i}_{part}": array for i, feed in enumerate(feeds) for part, array in enumerate(feed)
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_feeds(path: Path) -> list[Feed]:
    """Batches of one pass in their order."""
    with np.load(path, allow_pickle=False) as arrays:
        numbers = itertools.takewhile(lambda i: f"{i}_0" in arrays, itertools.count())
        return [(arrays[f"{i}_0"], arrays[f"{i}_1"]) for i in numbers]


if __name__ == "__main__":
    main()
