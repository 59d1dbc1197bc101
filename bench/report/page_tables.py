"""The tables of the pages, made from the JSON documents of the benches: load and speed.

Each function takes one parsed document and returns rows of cells, the first row being the head.
`bench.report.figures` writes them into the pages; `bench.report.quality_tables` has the tables of
quality, `bench.report.operation_tables` those of the door, what watches it and large files. A
figure that a document lacks is "-".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Document = dict[str, Any]
Rows = list[list[str]]
Render = Callable[[Document], Rows]

MISSING = "-"


def number(value: float | None, digits: int = 0) -> str:
    """With thousands separated, or MISSING."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 0) -> str:
    """A share of 1 as per cent, or MISSING."""
    return MISSING if share is None else f"{100 * share:.{digits}f} %"


def each(values: list[float], digits: int = 0) -> str:
    """One figure a repetition, in the order of the runs."""
    return ", ".join(number(value, digits) for value in values) or MISSING


def compact(value: Any) -> str:
    """A value of any size in at most four significant digits."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return MISSING if value is None else str(value)
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def targets(document: Document) -> Rows:
    """What the bench itself judges: measured, wanted, met."""
    words = {True: "yes", False: "**no**", None: "not measured"}
    rows = [["target", "measured", "wanted", "met"]]
    for name, judged in document["bars"].items():
        measured = compact(judged["value"])
        if judged.get("spread"):
            measured += " [{}, {}]".format(*map(compact, judged["spread"]))
        wanted = f"{judged.get('wanted', '')} {compact(judged['bar'])}".strip()
        rows.append([f"`{name}`", measured, wanted, words[judged["holds"]]])
    return rows


def setting(document: Document, name: str) -> Any:
    """A flag of the bench, wherever its document has it."""
    return document[name] if name in document else document["config"][name]


# --- Servers under load --------------------------------------------------------------------
def _cpu(run: Document) -> float:
    """CPU time of a request in us, the generator's left out."""
    return sum(us for part, us in run["cpu_us"].items() if part != "generator")


def _capacity_row(rung: Document) -> list[str]:
    run = rung["result"]
    return [
        number(rung["capacity_rps"]),
        number(run and run["latency_ms"]["p99"]),
        number(run and _cpu(run)),
    ]


def peers(document: Document) -> Rows:
    """Each server at its highest rate within the objective, the fastest first."""
    rows = [["server", "requests/s", "p99 in ms", "CPU a request in us"]]
    ranked = sorted(document["peers"], key=lambda peer: -peer["capacity_rps"])
    for peer in ranked:
        name = peer["rung"]["name"]
        ours = name.startswith("ours")
        cells = _capacity_row(peer)
        if ours:
            name, cells[0] = f"**{name}**", f"**{cells[0]}**"
        rows.append([name, *cells])
    return rows


def capacity(document: Document) -> Rows:
    """Each way to serve the same weights at its highest rate within the objective."""
    head = ["served as", "requests/s", "p99 in ms", "CPU a request in us", "closed loop", "limit"]
    rows = [head]
    for rung in document["rungs"]:
        closed = number(rung["closed_loop_rps"])
        rows.append([rung["rung"]["name"], *_capacity_row(rung), closed, rung["binds"]])
    return rows


def tune(document: Document) -> Rows:
    """Each setting at its highest rate within the objective; the chosen one in bold."""
    rows = [["instances", "window in ms", "largest batch", "requests/s", "p99 in ms"]]
    for row in document["rows"]:
        setting = row["rung"]["tuning"]
        cells = [compact(setting[name]) for name in ("instances", "window_ms", "max_batch")]
        rate, p99, _ = _capacity_row(row)
        chosen = setting == document["chosen"]
        rows.append([*cells, f"**{rate}**" if chosen else rate, p99])
    return rows


_SERVERS = {
    "native": "**native**",
    "door": "native behind haproxy",
    "python": "Python backend",
    "noop": "does nothing",
}


def road(document: Document) -> Rows:
    """Closed loops at each number of connections, one figure a visit."""
    rows = [["server", "load", "requests/s", "p99 in ms", "CPU a request in us"]]
    rows[0] += ["server + tokenizer + encoder", "memory in MiB"]
    for server, name in _SERVERS.items():
        visits = document["servers"].get(server) or []
        memory = each([visit["memory_mib"] for visit in visits])
        closed = visits[0]["closed"] if visits else ()
        loads = {f"{count} connections": [v["closed"][count] for v in visits] for count in closed}
        loads["half of the comments repeated"] = [v["repeats"] for v in visits if v["repeats"]]
        loads["all repeated"] = [v["hits"] for v in visits if v["hits"]]
        for load, runs in loads.items():
            if runs:
                rate = each([run["rate_rps"] for run in runs])
                p99 = each([run["latency_ms"]["p99"] for run in runs])
                cpu = each([_cpu(run) for run in runs])
                rows.append([name, load, rate, p99, cpu, _parts(runs), memory])
    return rows


def _parts(runs: list[Document]) -> str:
    parts = ("server", "tokenizer", "encoder")
    return ", ".join(" + ".join(number(run["cpu_us"].get(p, 0)) for p in parts) for run in runs)


def road_open(document: Document) -> Rows:
    """Open loops of the native server, in the order in which the search made them."""
    rows = [["visit", "requests/s", "p99 in ms", "within the objective", "generator"]]
    limit = (document.get("objective") or document["config"])["p99_ms"]
    for visit, measured in enumerate(document["servers"]["native"], 1):
        for run in measured["open"]:
            p99, faults = run["latency_ms"]["p99"], run["check"]["invalid"]
            met = "yes" if p99 <= limit and not run["failures"] else "**no**"
            valid = "; ".join(faults) or "valid"
            rows.append([str(visit), number(run["rate_rps"]), number(p99), met, valid])
    return rows


_APP_SERVERS = {
    "native": "native, KServe",
    "door": "native behind haproxy, KServe",
    "moderations": "**`/v1/moderations`**",
    "fastapi": "FastAPI + PyTorch",
}


def app(document: Document) -> Rows:
    """Open loops that met the objective, one figure a visit; the last one of each if none did."""
    rows = [["asked", "requests/s", "p99 in ms", "CPU a request in us", "of the application"]]
    limit = document["objective"]["p99_ms"]
    for server, name in _APP_SERVERS.items():
        runs = []
        for visit in document["servers"].get(server) or []:
            met = (
                run
                for run in visit["open"]
                if not run["failures"]
                and not run["check"]["invalid"]
                and run["latency_ms"]["p99"] <= limit
            )
            runs.append(next(met, visit["open"][-1]))
        if runs:
            own = [run["cpu_us"].get("application", 0) for run in runs]
            cells = [each([run["rate_rps"] for run in runs])]
            cells += [each([run["latency_ms"]["p99"] for run in runs])]
            cells += [each([_cpu(run) for run in runs]), each(own) if any(own) else "-"]
            rows.append([name, *cells])
    return rows


def cache(document: Document) -> Rows:
    """With and without the cache, by the share of repeated comments."""
    rows = [["repeats", "found", "requests/s with, without", "p99 in ms with, without"]]
    rows[0] += ["CPU a request in us with, without", "ratio"]
    by_share: dict[int, dict[bool, Document]] = {}
    for result in document["results"]:
        by_share.setdefault(result["repeats_percent"], {})[result["cache"]] = result
    for share, pair in by_share.items():
        both = pair[True], pair[False]
        judged = document["bars"].get(f"cpu_at_{share}_percent") or {}
        rows.append(
            [
                f"{share} %",
                percent(pair[True]["hit_share"]),
                each([result["rate_rps"] for result in both]),
                each([result["p99_ms"] for result in both]),
                each([result["cpu_us"] for result in both]),
                number(judged.get("value"), 3),
            ]
        )
    return rows


def load(document: Document) -> Rows:
    """Locust's own view of the running server, one row a protocol."""
    rows = [["protocol", "load", "requests/s", "p50 in ms", "p99 in ms", "failed"]]
    for run in document["results"]:
        latency = run["latency_ms"]
        said = document.get("load") or f"{setting(document, 'users')} users, closed loop"
        rows.append(
            [
                run["protocol"],
                said,
                number(run["rate_rps"]),
                number(latency["p50"]),
                number(latency["p99"]),
                number(run["failures"]),
            ]
        )
    return rows


# --- Speed of the graph and of text -> ids -------------------------------------------------
_CONTENDERS = {
    "serving_int8": "**serving graph, INT8**",
    "serving_fp32": "serving graph, FP32",
    "traced_fp32": "traced graph, FP32",
    "dynamic_int8": "traced graph, dynamic INT8",
    "static_int8": "traced graph, static INT8",
    "eager": "PyTorch eager",
    "torch_compile": "`torch.compile`",
    "openvino_fp32": "OpenVINO, FP32",
    "openvino_int8": "OpenVINO, INT8",
    "serving_int8_student": "serving graph, INT8, 96 x 2",
}
_JUDGED = "batch 32, random"


def encoder(document: Document) -> Rows:
    """Every runtime at batch 32 in random order, on one thread."""
    section = document["one_thread"]
    result = next(found for found in section["results"] if found["name"] == _JUDGED)
    rows = [["runtime", "comments/s", "the INT8 serving graph is", "peak memory in MiB"]]
    rows[0] += ["largest logit difference from PyTorch"]
    ours = result["comments_per_s"]["serving_int8"]
    for name, rate in result["comments_per_s"].items():
        gain = "" if name == "serving_int8" else f"x{ours / rate:.2f}"
        memory = number(section["peak_memory_mib"].get(name))
        gap = f"{result['logit_gap'][name]['max']:.1e}"
        rows.append([_CONTENDERS.get(name, name), number(rate), gain, memory, gap])
    return rows


def encoder_batches(document: Document) -> Rows:
    """Comments a second by batch and order, on one thread and on all cores."""
    results = document["one_thread"]["results"]
    rows = [["runtime", "threads", *(found["name"].replace("batch ", "B") for found in results)]]
    for section in ("one_thread", "all_cores"):
        found = document[section]
        for name in found["results"][0]["comments_per_s"]:
            rates = [number(result["comments_per_s"].get(name)) for result in found["results"]]
            rows.append([_CONTENDERS.get(name, f"`{name}`"), str(found["threads"]), *rates])
    return rows


def encoder_operators(document: Document) -> Rows:
    """Where the INT8 serving graph spends its time, from 1 % on."""
    rows = [["operator", "nodes", "share of the time"]]
    for row in document["profile"]:
        if (row["share"] or 0) >= 0.01:
            rows.append([f"`{row['op']}`", str(row["nodes"]), percent(row["share"], 1)])
    return rows


def length(document: Document) -> Rows:
    """Milliseconds a comment by its length, FP32 and INT8."""
    rows = [["tokens", "softmax", "linear", "softmax / linear", "softmax in windows"]]
    for cost in document["costs"]:
        us = cost["us"]
        both = {
            form: [us[f"{form}_{precision}"] / 1000 for precision in ("fp32", "int8")]
            for form in ("softmax", "linear", "windows")
        }
        ratio = [a / b for a, b in zip(both["softmax"], both["linear"], strict=True)]
        rows.append(
            [
                number(cost["tokens"]),
                each(both["softmax"], 1),
                each(both["linear"], 1),
                each(ratio, 2),
                each(both["windows"], 1),
            ]
        )
    return rows


def tokenizer(document: Document) -> Rows:
    """Microseconds for 85 tokens, the fastest first."""
    us = document["us_per_85_tokens"]
    rows = [["implementation", "us", "ours is"]]
    for name, spent in sorted(us.items(), key=lambda item: item[1]):
        gain = "" if name == "ours" else f"x{spent / us['ours']:.1f}"
        rows.append([f"**{name}**" if name == "ours" else name, number(spent, 1), gain])
    return rows


def offline(document: Document) -> Rows:
    """The core alone beside `score --file`."""
    rows = [["", "comments/s", "with the start", "CPU of the core a comment in us"]]
    rows[0] += ["of reading, of writing and the rest in us", "peak memory in MiB"]
    for result in document["results"]:
        around = [result.get("reader_cpu_us"), result.get("worker_rest_cpu_us")]
        rows.append(
            [
                result["name"],
                number(result["comments_per_s"]),
                number(result.get("comments_per_s_with_start")),
                number(result["core_cpu_us"], 1),
                each([us for us in around if us is not None], 1),
                number(result.get("peak_mib")),
            ]
        )
    return rows


# --- Agreement -----------------------------------------------------------------------------
def agreement(document: Document) -> Rows:
    """Texts whose ids the core and the reference were compared on."""
    rows = [["texts", "compared"]]
    rows += [[name, number(count)] for name, count in document["comments"].items()]
    rows.append(["generated", number(document["generated"])])
    rows.append(["**differences**", f"**{number(document['differences'])}**"])
    return rows


def fuzz(document: Document) -> Rows:
    """Inputs that ended without a report of the sanitizers."""
    rows = [["target", "inputs", "crash"]]
    for name, found in document["targets"].items():
        rows.append([f"`{name}`", number(found["inputs"]), str(found["crash"] or "none")])
    rows.append(["all", number(document["inputs"]), ""])
    return rows
