"""A second opinion on Locust: wrk, a generator in C of about 15 us a request, in a closed loop.

Optional (`apt-get install wrk`); `bench.serving.capacity` uses it for one rung when it is there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.traffic import arrivals
from bench.traffic.counters import cpu_us, server_counters, settled
from contract import PUBLIC_MODEL, TEXT, ToxicityError
from serve.triton import Server

_SCRIPT = """\
local bodies, at = {}, 0
for line in io.lines("BODIES") do bodies[#bodies + 1] = line end
function request()
  at = at % #bodies + 1
  return wrk.format("POST", nil, {["Content-Type"] = "application/json"}, bodies[at])
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"requests": %d, "seconds": %f, "failures": %d, "p50_ms": %f, ' ..
    '"p99_ms": %f}\\n', summary.requests, summary.duration / 1e6,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


def found() -> bool:
    """Whether wrk is installed."""
    return shutil.which("wrk") is not None


def closed_loop(
    server: Server, texts: Sequence[str], *, users: int, seconds: int
) -> dict[str, Any]:
    """Rate, failures, latencies and CPU time a request by part of `users` connections.

    Sends no comment that is in `texts` as it is. Raises ToxicityError when wrk fails.
    """
    first_pass = int(time.time())
    with tempfile.TemporaryDirectory() as folder:
        bodies, script = Path(folder) / "bodies", Path(folder) / "script.lua"
        bodies.write_text("".join(_body(texts, row, first_pass) for row in range(len(texts))))
        script.write_text(_SCRIPT.replace("BODIES", str(bodies)))
        url = f"{server.http_url}/v2/models/{PUBLIC_MODEL}/infer"
        command = ["wrk", "-t", "1", "-c", str(users), "-d", f"{seconds}s", "-s", str(script), url]
        before, cpu_before = settled(server_counters, server), _cpu_s()
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60 + seconds)
        if ended.returncode != 0:
            raise ToxicityError(f"wrk ended with status {ended.returncode}: {ended.stderr.strip()}")
        after, cpu_after = settled(server_counters, server), _cpu_s()
    measured = json.loads(ended.stdout.strip().splitlines()[-1])
    used = {name: after[name] - before[name] for name in after}
    used["generator_cpu_s"] = cpu_after - cpu_before
    return {
        **measured,
        "rate_rps": round((measured["requests"] - measured["failures"]) / measured["seconds"], 1),
        "cache_hit_share": round(used["cache_hits"] / max(1, used["comments"]), 3),
        "cpu_us": cpu_us(used, measured["requests"]),
    }


def _body(texts: Sequence[str], row: int, first_pass: int) -> str:
    text = arrivals.comment(texts, 0, row, first_pass)
    tensor = {"name": TEXT, "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    return json.dumps({"inputs": [tensor]}) + "\n"


def _cpu_s() -> float:
    """CPU seconds of children of this process that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.children_user + times.children_system)
