"""bench.serving.offline: the real command is timed and compared, bars can fail, JSON only when
asked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyModel

from bench.serving import offline
from bench.serving.offline import OfflineBenchConfig, bars, measure, read_texts
from contract import MAX_COMMENT_BYTES, BadInput, ToxicityError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
CORES = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def repository(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model_repository"
    tiny_model.publish(folder)
    return folder


@pytest.fixture
def comments(tmp_path: Path) -> Path:
    lines = [b"id,text", *(b"%d,you are a kind person" % i for i in range(200)), b"200,\xff"]
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines) + b"\n")
    return tmp_path / "a.csv"


def test_the_real_command_is_timed(repository: Path, comments: Path, tmp_path: Path) -> None:
    flags: list[Any] = [
        "--repository",
        repository,
        "--comments",
        comments,
        "--out",
        tmp_path / "out",
    ]
    flags += ["--processes", 2, "--rounds", 1, "--json", "--check"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.serving.offline", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    # The tiny model costs less than reading does: that bar breaks, and says so.
    assert done.returncode == 1 and "overhead_cpu_share_at_1 is" in done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document == json.loads((tmp_path / "out/offline.json").read_text())
    assert document["bars"]["scores_that_differ"]["holds"]
    assert [row["processes"] for row in document["results"]] == [1, 1, 2]
    for row in document["results"]:
        numbers = [value for name, value in row.items() if name not in ("name", "engine")]
        assert all(value > 0 for value in numbers), row
    assert document["comments"]["rows"] == 200
    assert document["hardware"]["cores"] and document["versions"]["pyarrow"]


def test_rows_are_made_and_memory_is_compared_with_a_tenth(repository: Path) -> None:
    config = OfflineBenchConfig(
        repository=repository, comments="synthetic:6000", processes=1, rounds=1
    )
    found = measure(config)
    assert (found["comments"]["rows"], found["comments"]["name"]) == (6000, "synthetic")
    assert found["bars"]["scores_that_differ"]["holds"] and found["peak_mib_of_a_tenth"] > 0
    assert found["bars"]["memory_for_ten_times_the_rows"]["value"] == pytest.approx(
        found["results"][1]["peak_mib"] / found["peak_mib_of_a_tenth"], abs=1e-4
    )


@pytest.mark.parametrize("comments", ["synthetic:", "synthetic:0", "synthetic:many"])
def test_rows_that_are_no_number_are_refused(repository: Path, comments: str) -> None:
    with pytest.raises(BadInput, match=f"--comments is {comments}, expected synthetic:ROWS"):
        measure(OfflineBenchConfig(repository=repository, comments=comments))


def test_the_command_on_ray_is_timed(repository: Path, comments: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    config = OfflineBenchConfig(
        repository=repository, comments=str(comments), processes=1, rounds=1, ray=True
    )
    found = measure(config)
    assert found["results"][-1]["name"] == "score --file --engine ray, 1 actor"
    assert found["bars"]["scores_that_differ"]["holds"] and found["versions"]["ray"]
    assert found["bars"]["ray_rate_over_processes_at_1"]["value"] > 0


def test_comments_are_those_that_have_a_score(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"you\n\xff\n" + b"a" * (MAX_COMMENT_BYTES + 1) + b"\n\n")
    assert list(read_texts(path, None)) == [["you", ""]]


def test_another_score_is_noticed(
    repository: Path, comments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = offline._logits
    monkeypatch.setattr(offline, "_logits", lambda out: right(out) + 1e-6)
    config = OfflineBenchConfig(
        repository=repository, comments=str(comments), processes=1, rounds=1
    )
    assert measure(config)["bars"]["scores_that_differ"] == {
        "value": 200,
        "wanted": "exactly",
        "bar": 0,
        "holds": False,
    }


def test_a_command_that_fails_ends_the_bench(repository: Path, comments: Path) -> None:
    config = OfflineBenchConfig(repository=repository, comments=str(comments), text_column="x")
    with pytest.raises(ToxicityError, match="expected 'x' for the text"):
        offline._command(config, comments, comments.with_name("out.csv"), 1)


def test_bars_can_fail() -> None:
    def results(**changed: float) -> list[dict[str, Any]]:
        road = {"processes": 2, "core_cpu_us": 100.0, "reader_cpu_us": 2, "worker_rest_cpu_us": 2}
        road |= {"comments_per_s": 19.0 * min(2, CORES), "engine": "processes", "peak_mib": 100}
        ray = {"engine": "ray", "processes": 2, "comments_per_s": changed.pop("ray", 17.0 * CORES)}
        return [{"core_cpu_us": 100.0, "comments_per_s": 20.0}, {**road, **changed}, ray]

    assert all(bar["holds"] for bar in bars(results(), 0, 95.0).values())
    assert bars(results(), 0)["memory_for_ten_times_the_rows"]["holds"] is None
    assert not bars(results(peak_mib=110), 0, 95.0)["memory_for_ten_times_the_rows"]["holds"]
    slow = bars(results(comments_per_s=17.0 * min(2, CORES)), 0)
    assert not slow["rate_over_cores_at_2"]["holds"]
    assert not bars(results(ray=14), 0)["ray_rate_over_processes_at_2"]["holds"]
    assert not bars(results(), 1)["scores_that_differ"]["holds"]
    assert not bars(results(reader_cpu_us=9), 0)["overhead_cpu_share_at_2"]["holds"]
    assert not bars(results(core_cpu_us=130), 0)["core_cpu_over_alone_at_2"]["holds"]
