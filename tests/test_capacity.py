"""The capacity ladder: every rung can be served, and a run counts only when it may."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TinyModel
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from bench.serving.capacity import (
    RUNGS,
    CapacityConfig,
    Rung,
    bars,
    binds,
    make_repository,
    meets,
    search,
    served,
    table,
)
from bench.traffic.comments import SYNTHETIC
from bench.traffic.counters import PARTS, cpu_us
from contract import PUBLIC_MODEL
from export.model_config import CONFIG_FILE
from export.repository import verify
from serve import haproxy
from tests.test_bench import RESULT

IDLE = replace(RESULT, latency_ms={**RESULT.latency_ms, "p99": 10.0})


@pytest.fixture
def config(tiny_model: TinyModel, tmp_path: Path) -> CapacityConfig:
    tiny_model.publish(tmp_path / "published")
    return CapacityConfig(
        repository=tmp_path / "published",
        student=tmp_path / "published",
        traced=tiny_model.onnx_path,
        comments=SYNTHETIC,
        out=tmp_path / "out",
        seconds=3,
        steps=1,
        p99_ms=10_000,
    )


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_every_rung_has_a_whole_repository(
    config: CapacityConfig, rung: Rung, tmp_path: Path
) -> None:
    make_repository(config, rung, tmp_path / "rung")
    verify(tmp_path / "rung")
    path = tmp_path / "rung" / PUBLIC_MODEL / CONFIG_FILE
    parsed = text_format.Parse(path.read_text("utf-8"), pb.ModelConfig())
    assert parsed.HasField("dynamic_batching") is rung.batching
    assert parsed.instance_group[0].count == rung.tuning.instances


@pytest.mark.slow
def test_replicas_are_served_and_searched(config: CapacityConfig) -> None:
    if not haproxy.found():
        pytest.skip("haproxy is not installed; `apt-get install haproxy`")
    (rung,) = (rung for rung in RUNGS if rung.replicas)
    with served(config, rung) as server:
        assert len(server.replicas) == rung.replicas
        row = search(replace(config, steps=2), rung, server)
    first, second = row["runs"]
    for run in (first, second):
        assert run["requests"] == run["server_requests"] + run["failures"] > 0  # of both
        assert all(run["cpu_us"][part] > 0 for part in PARTS if part != "application")
    assert second["rate"] == pytest.approx(first["rate"] * (1.25 if first["meets"] else 0.5), 0.01)
    assert row["capacity_rps"] == max((r["rate"] for r in (first, second) if r["meets"]), default=0)
    assert row["cores_for_10k"] > 0
    assert len(table([row]).splitlines()) == 3


def test_meets_needs_a_p99_no_error_and_a_generator_that_kept_up() -> None:
    assert meets(IDLE, 10)
    assert not meets(IDLE, 9.9)
    assert not meets(replace(IDLE, failures=1), 10)
    assert not meets(replace(IDLE, check={**IDLE.check, "invalid": ["late"]}), 10)


def test_what_binds() -> None:
    late = replace(IDLE, check={**IDLE.check, "invalid": ["late"]})
    assert binds(IDLE, replace(late, generator_busy=0.95), 100) == "generator"
    assert binds(IDLE, late, 1).endswith("busy; generator late)")
    assert binds(IDLE, None, 1e9).startswith("encoder (cores")
    assert binds(IDLE, None, 1).startswith("encoder (waits")
    front = replace(IDLE, cpu_us={"generator": 1.0, "server": 9.0, "encoder": 2.0})
    assert binds(front, None, 1e9).startswith("server (cores")


def test_parts_add_up_to_the_cpu_time_of_the_processes() -> None:
    used = {"generator_cpu_s": 1.0, "server_cpu_s": 4.0, "balancer_cpu_s": 0.5}
    used |= {"tokenizer_cpu_us": 5e5, "encoder_cpu_us": 2e6}
    parts = cpu_us(used, requests=1000)
    assert parts == {
        "generator": 1000.0,
        "balancer": 500.0,
        "server": 1500.0,
        "tokenizer": 500.0,
        "encoder": 2000.0,
    }
    assert [*parts] == [part for part in PARTS if part != "application"]
    used["application_cpu_s"] = 0.25
    assert [*cpu_us(used, requests=1000)] == [*PARTS]
    del used["balancer_cpu_s"]
    assert "balancer" not in cpu_us(used, requests=1000)


def test_bars_turn_red() -> None:
    rows = [{"rung": {"name": rung.name}, "capacity_rps": 100.0} for rung in RUNGS[:4]]
    assert not bars(rows)["published_over_traced"]["holds"]
    rows[3]["capacity_rps"] = 500.0
    assert all(bar["holds"] for bar in bars(rows).values())
    rows[0]["capacity_rps"] = 0.0
    assert not bars(rows)["rungs_with_capacity"]["holds"]
