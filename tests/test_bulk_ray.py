"""serve.offline.on_ray: a real cluster of two workers gives the bytes of one machine, also when
one of them is killed in the middle.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import TinyModel

from console.options import make_config
from contract import BadInput, ToxicityError
from export.repository import version_folder
from serve import score_file
from serve.offline.config import ScoreFileConfig
from serve.offline.job import Job
from serve.offline.records import CHUNK_ROWS
from serve.offline.rows import Chunk

ROOT = Path(__file__).parent.parent
CHUNKS = 24
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


@pytest.fixture(scope="module")
def repository(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model_repository"
    tiny_model.publish(folder)
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several chunks, one row of them unreadable."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("long") / "long.csv"
    words = "you are a kind awful person".split()
    lines = [f"{i},{' '.join(rng.choices(words, k=i % 30))}" for i in range(CHUNKS * CHUNK_ROWS)]
    lines[77] += ",one too many"
    path.write_text("id,text\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def alone(file: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one machine writes."""
    out = tmp_path_factory.mktemp("alone") / "alone.csv"
    flags = {"file": str(file), "repository": repository, "processes": 1, "out": out}
    score_file.score_file(make_config(ScoreFileConfig, flags))
    return out.read_bytes()


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that scores nothing, and two workers of one core."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 80 << 20}
    head = {"num_cpus": 0, "include_dashboard": False, **store}
    found = Cluster(initialize_head=True, head_node_args=head)
    try:
        found.workers = [found.add_node(num_cpus=1, **store) for _ in range(2)]
        yield found
    finally:
        found.shutdown()


def command(cluster: Any, file: Path, repository: Path, out: Path) -> subprocess.Popen[str]:
    flags = ["--file", file, "--out", out, "--repository", repository, "--json"]
    flags += ["--engine", "ray", "--ray-address", cluster.address]
    return subprocess.Popen(
        [sys.executable, "-m", "serve.score", *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def wait_for_parts(out: Path, least: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(list(Path(f"{out}.parts").glob("0*"))) < least:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_worker_that_is_killed_changes_no_byte(
    cluster: Any, file: Path, repository: Path, alone: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    process = command(cluster, file, repository, out)
    wait_for_parts(out, 2, process)
    cluster.remove_node(cluster.workers[0], allow_graceful=False)
    done_then = len(list(Path(f"{out}.parts").glob("0*")))
    printed, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert 2 <= done_then < CHUNKS  # it was in the middle
    assert out.read_bytes() == alone
    report = json.loads(printed.splitlines()[-1])
    assert (report["rows"], report["quarantined"]) == (CHUNKS * CHUNK_ROWS, 1)
    assert (report["processes"], report["resumed_rows"]) == (2, 0)
    assert report["encoder_cpu_s"] > 0
    assert json.loads(Path(f"{out}.quarantine.jsonl").read_text())["row"] == 77


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_was_ended_goes_on_with_the_other_engine(
    cluster: Any, file: Path, repository: Path, alone: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    process = command(cluster, file, repository, out)
    wait_for_parts(out, 2, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode and "the same command goes on" in said
    flags = {"file": str(file), "repository": repository, "processes": 1, "out": out}
    report = score_file.score_file(make_config(ScoreFileConfig, flags))
    assert 2 * CHUNK_ROWS <= report.resumed_rows < CHUNKS * CHUNK_ROWS
    assert out.read_bytes() == alone


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_actors_that_fail_or_are_lost_again_and_again_end_it(
    cluster: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.offline import on_ray

    job = Job(version_folder(repository), tmp_path, "csv", ("text",), "text", None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with (
        on_ray.RayWorkers(job, 1, cluster.address, "cpu") as workers,
        pytest.raises(ToxicityError, match="an actor failed: internal error"),
    ):
        while not workers.idle:
            list(workers.wait())
        workers.give(Chunk(0, 0, 1, b"no payload", 1))
        list(workers.wait())

    with (
        on_ray.RayWorkers(job, 1, cluster.address, "cpu") as workers,
        pytest.raises(ToxicityError, match="Ray actors were lost in turn"),
    ):
        for _ in range(20):
            while not workers.idle:
                list(workers.wait())
            for process in psutil.Process().children(recursive=True):
                if "ray::ScoringActor" in " ".join(process.cmdline()):
                    process.kill()
            if not workers.busy:
                workers.give(Chunk(0, 0, CHUNK_ROWS, [["you are kind"]] * CHUNK_ROWS, 1))
            list(workers.wait())


def test_flags_of_ray_are_checked(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "a.txt").write_text("you\n")
    flags = {"file": str(tmp_path / "a.txt"), "repository": repository}
    with pytest.raises(BadInput, match="expected --engine ray; add it"):
        score_file.score_file(make_config(ScoreFileConfig, {**flags, "ray_address": "x:1"}))
    assert not list(tmp_path.glob("*.parts"))


def test_an_address_without_a_cluster_is_one_line(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:  # Ray's own tries take a minute
        raise ConnectionError("ray client connection timeout\nmore")

    monkeypatch.setattr(ray, "init", init)
    (tmp_path / "a.txt").write_text("you\n")
    flags = {"file": str(tmp_path / "a.txt"), "repository": repository, "engine": "ray"}
    with pytest.raises(BadInput, match=r"where no cluster answers \(ray client connection timeout"):
        score_file.score_file(make_config(ScoreFileConfig, {**flags, "ray_address": "x:1"}))
    assert not list(tmp_path.glob("*.parts"))
