"""Run an image as a fleet does and ask it: does it score, as the host does, confined?

    .venv/bin/python deploy/images/smoke.py toxicity-serving:0.1.0 --repository model_repository
    ... --engine "podman --runtime runc"      # where crun cannot be had

As nobody, with a read-only root, no capability and no new privilege; the repository is mounted read
only. Ends with one JSON document, and with status 1 and one line when something is not so.
"""

from __future__ import annotations

import argparse
import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np

from contract import FP32_LOGIT_ATOL, HOST
from export.repository import load_scorer, read_artifact
from serve.client import score_comments
from train.data.synthetic import generate

CONFINED = (
    *("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
    *("--tmpfs", "/tmp:size=64m", "--memory", "2g", "--no-healthcheck", "--network", "host"),
    # Below what the engine would ask for, which not every host may give.
    *("--ulimit", "nofile=16384:16384", "--ulimit", "nproc=4096:4096"),
)
_READY_S = 180


class Engine:
    """podman, or what takes the same commands."""

    def __init__(self, command: str) -> None:
        self.command = shlex.split(command)

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise AssertionError(f"{' '.join(arguments)}: {done.stderr.strip() or done.stdout}")
        return done.stdout.strip()

    def status(self, *arguments: str) -> int:
        return subprocess.run([*self.command, *arguments], capture_output=True).returncode


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def require(true: bool, words: str) -> None:
    if not true:
        raise AssertionError(words)


def wait_ready(engine: Engine, name: str, port: int) -> float:
    """Seconds until /ready of the metrics port is 200."""
    began = time.monotonic()
    while time.monotonic() - began < _READY_S:
        running = engine("inspect", "-f", "{{.State.Running}}", name)
        require(running == "true", f"the container ended: {engine('logs', name)}")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/ready", timeout=5) as answer:
                if answer.status == 200:
                    return time.monotonic() - began
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the container is not ready after {_READY_S} s")


def confined(engine: Engine, name: str) -> None:
    """The container is nobody's and its root cannot be written."""
    code = "import os; assert os.getuid() == 10001; open('/opt/toxicity/x', 'w')"
    done = subprocess.run(
        [*engine.command, "exec", name, "python", "-c", code], capture_output=True, text=True
    )
    require("Read-only file system" in done.stderr, f"the root can be written: {done.stderr}")
    check = ("exec", name, "python", "-m", "serve.check", "--run-dir", "/run/toxicity/serve")
    require(engine(*check) == "scores", "the image's own check fails")


def largest_difference(repository: Path, address: str, comments: list[str]) -> tuple[float, float]:
    """Largest difference of the container's logits from the host's, and what may be."""
    asked = score_comments(comments, url=address).logit
    here = load_scorer(repository).score(comments).logit
    bound = 0.0 if read_artifact(repository)["precision"] == "int8" else FP32_LOGIT_ATOL
    return float(np.max(np.abs(asked - np.asarray(here)))), bound


def smoke(engine: Engine, image: str, repository: Path, count: int) -> dict[str, object]:
    http, metrics = free_port(), free_port()
    name = f"toxicity-smoke-{http}"
    mount = ("-v", f"{repository.resolve()}:/models:ro")
    ports = ("--address", HOST, "--http-port", str(http), "--metrics-port", str(metrics))
    engine("run", "-d", "--name", name, *CONFINED, *mount, image, "serve", "--foreground", *ports)
    try:
        ready_s = wait_ready(engine, name, metrics)
        confined(engine, name)
        comments, _ = generate(count)
        difference, bound = largest_difference(repository, f"{HOST}:{http}", comments)
        require(difference <= bound, f"logits differ by {difference}, expected at most {bound}")
        engine("stop", "-t", "60", name)
        status = int(engine("inspect", "-f", "{{.State.ExitCode}}", name))
        require(status == 0, f"it stopped with status {status}: {engine('logs', name)}")
    finally:
        engine.status("rm", "-f", "-v", name)
    return {
        "image": image,
        "bytes": int(engine("image", "inspect", "-f", "{{.Size}}", image)),
        "ready_s": round(ready_s, 1),
        "comments": len(comments),
        "largest_logit_difference": difference,
        "bill_of_materials": parts(engine, image),
    }


def parts(engine: Engine, image: str) -> int:
    """How many components the image's bill of materials lists."""
    text = engine(
        *("run", "--rm", *CONFINED, "--entrypoint", "cat", image), "/usr/share/toxicity/sbom.json"
    )
    document = json.loads(text)
    require(document["bomFormat"] == "CycloneDX", "the bill of materials is not CycloneDX")
    return len(document["components"])


def main() -> int:
    parser = argparse.ArgumentParser(description="Run an image and ask it for scores.")
    parser.add_argument("image")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--engine", default="podman", help="podman and its own flags")
    parser.add_argument("--comments", type=int, default=500, help="synthetic comments to compare")
    arguments = parser.parse_args()
    engine = Engine(arguments.engine)
    try:
        found = smoke(engine, arguments.image, arguments.repository, arguments.comments)
    except AssertionError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
