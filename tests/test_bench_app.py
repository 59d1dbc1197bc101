"""`toxicity bench app`: its bars and its forms; one short run against the real servers."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Exported

from bench.serving import app
from bench.traffic.bodies import EncodedComments
from serve import haproxy


def visit(rate_rps: float, **more: Any) -> Any:
    run = {"failures": 0, "latency_ms": {"p99": 10.0}, "check": {"invalid": []}, **more}
    result: Any = SimpleNamespace(rate_rps=rate_rps, **run)
    return app.AppVisit(closed={16: result}, open=[result])


def test_bars_turn_red() -> None:
    visits = {app.NATIVE: [visit(1000)], app.APP: [visit(400)], app.FASTAPI: [visit(160)]}
    assert all(bar["holds"] for bar in app.bars(visits, 50, 0).values())
    slow = visits | {app.APP: [visit(399)], app.FASTAPI: [visit(161)]}
    bars = app.bars(slow, 50, 1)
    assert [bar["holds"] for bar in bars.values()] == [False] * 5
    late = visits | {app.APP: [visit(400, latency_ms={"p99": 51.0})]}
    assert app.bars(late, 50, 0)["over_native"]["value"] == 0
    # A rival without a rate within the objective says nothing; it was a ratio of billions.
    failed = visits | {app.FASTAPI: [visit(161, latency_ms={"p99": 51.0})]}
    found = app.bars(failed, 50, 0)
    assert found["over_fastapi"]["value"] is None is found["over_fastapi_closed"]["value"]
    without = {name: visits[name] for name in (app.NATIVE, app.APP)}
    assert app.bars(without, 50, 0)["over_fastapi"]["holds"] is None


def test_a_request_is_json_of_the_comments() -> None:
    texts = ['a "b"\n\\', "ü 😀"]
    comments = EncodedComments(texts, "json")
    items = [comments.item(row, 0, 0) for row in range(2)]
    assert json.loads(app.moderation_body(items)) == {"input": texts}
    assert json.loads(app.moderation_body(items[1:])) == {"input": texts[1]}


def test_a_slow_server_gets_few_connections() -> None:
    assert app.connections_of(app.APP, (16, 64)) == [16, 64]
    assert app.connections_of(app.FASTAPI, (16, 64)) == [4, 8, 16]
    assert app.connections_of(app.FASTAPI, (1,)) == [1]


@pytest.mark.slow
def test_a_short_run(
    trained_run: Path, exported_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    exported: Exported = exported_of("int8")
    flags = {
        "repository": exported[0].repository,
        "checkpoint": trained_run,
        "comments": "synthetic:2000",
        "connections": 8,
        "seconds": 2,
        "rounds": 1,
        "out": tmp_path,
    }
    arguments = [part for k, v in flags.items() for part in (f"--{k}", str(v))]
    monkeypatch.setattr(sys, "argv", ["bench.serving.app", *arguments])
    app.main()
    found = json.loads((tmp_path / "app.json").read_text("utf-8"))
    assert found["bars"]["differing_scores"]["holds"]
    names = {app.NATIVE, app.DOOR, app.APP, *([app.FASTAPI] if find_spec("fastapi") else [])}
    assert found["servers"].keys() == names
    for visits in found["servers"].values():
        assert all(run["requests"] and not run["failures"] for run in visits[0]["closed"].values())
    assert found["servers"][app.APP][0]["closed"]["8"]["cpu_us"]["application"] > 0
