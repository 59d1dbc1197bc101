"""Load the running server at three times its capacity: `make overload CAPACITY=300`.

    python -m bench.serving.overload --capacity 300 --seconds 60

Prints a table and, as its last line, one JSON document. Exit status 1 when a bar does not hold.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.run import BenchConfig, Result, find_server, hardware, load, report_broken_bars
from bench.traffic.comments import default_source
from bench.traffic.counters import memory_bytes
from console.options import make_config, parse_config, run
from contract import HOST, ToxicityError
from serve.client import score_comments
from serve.triton import Server
from train.artifacts import write_json

_FACTOR = 3
_PROBE_S, _GOOD_S = 0.05, 0.05
"""Time between two probes, and the longest answer of one that counts as recovered."""
_MEMORY_S = 1.0
"""Time between two looks at the memory."""


@dataclass(frozen=True)
class OverloadConfig:
    """Flags of `python -m bench.serving.overload`."""

    capacity: float = Field(gt=0, description="requests/s that `make capacity` measured")
    seconds: int = Field(60, ge=3, description="length of the overload")
    processes: int = Field(1, ge=1, description="Locust processes")
    comments: str = Field(default_source(), description="labelled file, or 'synthetic'")
    run_dir: Path = Field(Path("runs/serve"), description="run folder of the server to load")
    out: Path = Field(Path("bench/out"), description="folder of the results")


def main() -> None:
    config = parse_config(
        OverloadConfig,
        None,
        prog="python -m bench.serving.overload",
        description="Overload the server.",
    )
    server = find_server(config.run_dir)
    watch = Watch(server)
    result = load(
        make_config(
            BenchConfig,
            {
                "rate": _FACTOR * config.capacity,
                "seconds": config.seconds,
                "processes": config.processes,
                "comments": config.comments,
                "run_dir": config.run_dir,
                "out": config.out,
            },
        ),
        "http",
        server,
    )
    time.sleep(3)  # longer than the bar of the recovery
    watch.stop()
    held = bars(config, result, watch)
    document = {
        "bench": "overload",
        "capacity": config.capacity,
        "seconds": config.seconds,
        "hardware": hardware(),
        "result": asdict(result),
        "memory_bytes": watch.memory,
        "bars": held,
    }
    write_json(config.out / "overload.json", document)
    for name, bar in held.items():
        print(f"{name:24} {bar['value']:10.3f}  {'holds' if bar['holds'] else 'DOES NOT HOLD'}")
    print(json.dumps(document))
    report_broken_bars(document)


class Watch:
    """Memory of the server (see `memory_bytes`), and probes of one comment, until `stop`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.memory: list[float] = []
        self.good: list[tuple[float, bool]] = []
        """Unix time of the answer, and whether it came within _GOOD_S."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        measured = 0.0
        while not self._stopping.wait(_PROBE_S):
            if time.monotonic() - measured >= _MEMORY_S:
                measured = time.monotonic()
                self.memory.append(memory_bytes(self._server))
            began = time.monotonic()
            try:
                score_comments(["a kind answer"], url=f"{HOST}:{self._server.http_port}")
                good = time.monotonic() - began <= _GOOD_S
            except ToxicityError:
                good = False
            self.good.append((time.time(), good))

    def recovery_s(self, last_send: float) -> float:
        """Seconds from `last_send` to the first good probe; infinite without one."""
        return min(
            (at - last_send for at, good in self.good if good and at > last_send), default=1e9
        )

    def memory_growth(self) -> float:
        """Largest memory of the last tenth over that of the second tenth."""
        tenth = max(1, len(self.memory) // 10)
        return max(self.memory[-tenth:]) / max(self.memory[tenth : 2 * tenth] or self.memory)


def bars(config: OverloadConfig, result: Result, watch: Watch) -> dict[str, dict[str, Any]]:
    """The bars of overload; the rate counts answers that were no refusal."""
    goodput = result.rate_rps / config.capacity
    refusal_ms = result.failed_p50_ms or 0.0
    growth, recovery_s = watch.memory_growth(), watch.recovery_s(result.last_send)
    invalid = len(result.check["invalid"])
    return {
        "goodput_over_capacity": {"value": goodput, "bar": 0.9, "holds": goodput >= 0.9},
        "refusal_median_ms": {"value": refusal_ms, "bar": 20, "holds": refusal_ms < 20},
        "memory_growth": {"value": growth, "bar": 1.05, "holds": growth <= 1.05},
        "recovery_s": {"value": recovery_s, "bar": 2, "holds": recovery_s < 2},
        "generator_faults": {"value": invalid, "bar": 0, "holds": invalid == 0},
    }


if __name__ == "__main__":
    run(main)
