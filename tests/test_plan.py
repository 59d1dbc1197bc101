"""Planning: the arithmetic keeps its laws, the simulation those of queues; nothing is invented."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy
from conftest import TinyModel
from hypothesis import given
from hypothesis import strategies as st

from bench.report import plan_tables
from bench.serving import simulation, stalls
from bench.traffic.comments import SYNTHETIC
from contract import (
    CALM_WAIT_S,
    MAX_REQUEST_COMMENTS,
    OVERLOADED_REQUESTS,
    OVERLOADED_SAME_MS,
    OVERLOADED_STEP_MS,
    OVERLOADED_STEPS,
    BadInput,
)
from fleet import __main__ as command
from fleet.arithmetic import plan
from fleet.config import PlanConfig
from fleet.cores import Cores, Steps
from fleet.machine import DoorBound, Shape
from fleet.measured import PARTS, MeasuredServer, Stalls, read_beside, read_measured
from fleet.requests import lognormal
from fleet.scenarios import Scenarios, shape_of
from fleet.service_times import ServiceTimes, fit, fit_outside
from fleet.simulation import FleetIncident, Setting, simulate
from fleet.training import project
from serve import haproxy
from tests.test_bench import RESULT

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"
SECONDS = 0.001
"""Of one comment in the queues with a formula."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> MeasuredServer:
    """Of road.json alone."""
    return read_measured(changed(tmp_path_factory.mktemp("results"), dict), "int8", 50)


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A folder of results whose road.json is another."""
    road = json.loads((RESULTS / "road/road.json").read_text("utf-8"))
    change(road)
    (folder / "road").mkdir(parents=True)
    (folder / "road/road.json").write_text(json.dumps(road), "utf-8")
    return folder


# --- What was measured -------------------------------------------------------------------
def test_figures_are_those_of_the_result_file(measured: MeasuredServer) -> None:
    road = json.loads((RESULTS / "road/road.json").read_text("utf-8"))
    opened = [run for visit in road["servers"]["door"] for run in visit["open"]]
    (best,) = [run for run in opened if run["rate_rps"] == measured.rate_rps]
    assert not best["check"]["invalid"] and best["latency_ms"]["p99"] <= 50
    assert measured.cpu_us["server"] == best["cpu_us"]["server"]
    miss = measured.cpu_us["encoder"] * (1 - best["cache_hit_share"])
    assert miss == pytest.approx(best["cpu_us"]["encoder"])
    used = sum(best["cpu_us"].values()) * best["rate_rps"] / 1e6
    assert measured.utilisation == pytest.approx(used / road["hardware"]["cores"])
    costliest = plan(PlanConfig(rps=1e6), measured)
    assert costliest.cores == pytest.approx(max(costliest.visits))
    assert min(costliest.visits) < costliest.cores
    assert len(costliest.visits) == len(road["servers"]["door"])
    assert road["artifact"]["onnx_sha256"].startswith(measured.artifact)
    assert measured.request_bytes is None  # no bench has counted them here


def _no_door(road: dict[str, Any]) -> None:
    road["servers"]["door"] = []


def _all_invalid(road: dict[str, Any]) -> None:
    for visit in road["servers"]["door"]:
        for run in visit["open"]:
            run["check"]["invalid"] = ["late"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda road: road.pop("artifact"), "lacks 'artifact'"),
        (lambda road: road["hardware"].pop("cores"), "lacks 'cores'"),
        (lambda road: road["artifact"].update(precision="fp32"), "--precision is int8"),
        (_no_door, "no run behind haproxy"),
        (_all_invalid, "no valid open loop"),
    ],
)
def test_a_missing_figure_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    with pytest.raises(BadInput, match=words) as refused:
        read_measured(changed(tmp_path, change), "int8", 50)
    assert "\n" not in str(refused.value) and "; " in str(refused.value)


def test_a_missing_document_and_an_objective_that_nothing_held_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"road\.json is missing"):
        read_measured(tmp_path, "int8", 50)
    with pytest.raises(BadInput, match=r"--p99-ms is 1, expected at least \d"):
        read_measured(RESULTS, "int8", 1)


def test_figures_of_other_artifacts_are_told_and_not_planned_with(
    measured: MeasuredServer, tmp_path: Path
) -> None:
    peers = json.loads((RESULTS / "peers/peers.json").read_text("utf-8"))
    capacity = json.loads((RESULTS / "capacity/capacity.json").read_text("utf-8"))
    del capacity["artifact"]
    for digest, words in (
        (measured.artifact, "same artifact"),
        ("0" * 64, "artifact 000000000000"),
    ):
        peers["artifact"]["onnx_sha256"] = digest
        for name, found in (("peers", peers), ("capacity", capacity)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{name}.json").write_text(json.dumps(found))
        beside = read_beside(tmp_path, measured)
        assert words in beside["open loop, ours: published version"].source
        assert "artifact not named" in beside["open loop, published, a replica a core"].source
    assert not read_beside(ROOT / "docs", measured)


@pytest.mark.parametrize(
    "values",
    [{}, {"train_rows": 5, "simulate": True}, {"train_rows": 5, "plot": Path("a.png")}],
)
def test_what_cannot_be_planned_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="give --rps"):
        PlanConfig(**values)


def test_the_tables_of_the_page_are_those_of_the_command_and_empty_without_a_run(
    measured: MeasuredServer,
) -> None:
    road = json.loads((RESULTS / "road/road.json").read_text("utf-8"))
    tables = (plan_tables.plans, plan_tables.limits, plan_tables.drivers)
    last = plan_tables.plans(road)[-1]
    found = plan(PlanConfig(rps=1e6, repeats=0.3), measured)
    assert last[0] == "1,000,000" and f"{found.machines:,}" in last
    assert all(len(table(road)) > 1 for table in tables)
    _all_invalid(road)
    assert all(len(table(road)) == 1 for table in tables)


def test_a_quicker_visit_does_not_make_the_plan_smaller(tmp_path: Path) -> None:
    def quicker(road: dict[str, Any]) -> None:
        for run in road["servers"]["door"][0]["open"]:
            run["cpu_us"] = {part: us / 2 for part, us in run["cpu_us"].items()}

    def slower(road: dict[str, Any]) -> None:
        for run in road["servers"]["door"][0]["open"]:
            run["rate_rps"] /= 10

    before = plan(PlanConfig(rps=1e6), read_measured(RESULTS, "int8", 50)).cores
    one = read_measured(changed(tmp_path / "quicker", quicker), "int8", 50)
    other = read_measured(changed(tmp_path / "slower", slower), "int8", 50)
    assert plan(PlanConfig(rps=1e6), one).cores == pytest.approx(before)
    assert plan(PlanConfig(rps=1e6), other).cores > 2 * before


# --- Arithmetic --------------------------------------------------------------------------
LOADS = st.floats(1, 1e7)
ZONES = st.integers(1, 9)
CORES = st.integers(1, 128)


@given(LOADS, LOADS, ZONES, CORES, st.floats(0, 1))
def test_more_load_never_needs_less(
    measured: MeasuredServer, one: float, other: float, zones: int, cores: int, repeats: float
) -> None:
    fleet = {"zones": zones, "cores_per_machine": cores, "repeats": repeats}
    less, more = (plan(PlanConfig(rps=rps, **fleet), measured) for rps in sorted((one, other)))
    assert less.cores <= more.cores
    assert less.machines <= more.machines
    assert less.replicas <= more.replicas
    assert less.memory_gib <= more.memory_gib


@given(LOADS, st.integers(2, 9), CORES)
def test_a_lost_zone_is_covered(
    measured: MeasuredServer, rps: float, zones: int, cores: int
) -> None:
    found = plan(PlanConfig(rps=rps, zones=zones, cores_per_machine=cores), measured)
    left = found.machines_a_zone * (zones - 1)
    busy = rps * sum(found.cpu_us.values()) / 1e6
    assert busy / (left * cores) <= measured.utilisation + 1e-9
    assert found.utilisation_lost == pytest.approx(busy / (left * cores))
    # Without one machine of each zone it were not.
    if found.machines_a_zone > 1:
        assert busy / ((left - zones + 1) * cores) > measured.utilisation - 1e-6


@given(LOADS, st.floats(0, 1), st.floats(0, 1))
def test_what_the_cache_knows_saves_the_encoder_alone(
    measured: MeasuredServer, rps: float, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    less, more = (plan(PlanConfig(rps=rps, repeats=share), measured) for share in (high, low))
    assert less.cores <= more.cores
    known = plan(PlanConfig(rps=rps, repeats=1), measured)
    assert known.cpu_us == {**measured.cpu_us, "encoder": 0}


def test_units(measured: MeasuredServer) -> None:
    config = PlanConfig(
        rps=100_000,
        request_bytes=600,
        response_bytes=400,
        price_per_core_hour=0.05,
        machine_memory_gib=64,
        machine_gbits=10,
    )
    found = plan(config, measured)
    cpu_s = sum(measured.cpu_us[part] for part in PARTS) / 1e6
    assert found.cores == pytest.approx(100_000 * cpu_s / measured.utilisation)
    assert found.network_bits == 100_000 * 1000 * 8
    assert found.cost_hour == pytest.approx(found.machines * 16 * 0.05)
    assert found.cost_a_million == pytest.approx(found.cost_hour / 360)
    each = 8 * measured.replica_mib + measured.beside_mib
    assert found.memory_gib == pytest.approx(found.machines * each / 1024)
    assert sum(found.drivers.values()) == pytest.approx(1)
    limits = {one.name: one for one in found.limits}
    left = found.machines * 2 / 3
    assert limits["network"].share == pytest.approx(100_000 * 8000 / left / 1e10)
    in_flight = 100_000 / left * measured.mean_ms / 1e3
    assert limits["connections in flight"].used == pytest.approx(in_flight)
    shares = [one.share for one in found.limits]
    assert shares == sorted(shares, reverse=True)


def test_what_is_not_measured_is_not_known(measured: MeasuredServer) -> None:
    found = plan(PlanConfig(rps=1e6), measured)
    assert found.network_bits is None and found.cost_hour is None and found.cost_month is None
    assert {one.name for one in found.limits}.isdisjoint({"network", "memory"})
    sources = [one.source for one in found.assumptions.values()]
    assert all("road.json" in one or one.startswith("--") for one in sources)


def test_training_is_rows_by_tokens_by_epochs_over_speed(tmp_path: Path) -> None:
    for name, document in (
        ("metrics", {"real_tokens_per_second": 1000, "training_seconds": 60, "history": [{}, {}]}),
        (
            "config",
            {
                "model": {"d_model": 64, "n_layers": 1},
                "train": {"epochs": 3},
                "data": {"name": "some.csv"},
                "device": "cpu",
            },
        ),
        ("split", {"train": 600}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(document), "utf-8")
    config = PlanConfig(train_rows=7200, train_run=tmp_path)
    found = project(config)
    assert found.assumptions["mean tokens a comment"].value == 50
    assert found.hours == pytest.approx(7200 * 50 * 3 / 1000 / 3600)
    assert found.cost is None
    paid = project(replace(config, train_cores=4, price_per_core_hour=0.5, train_tokens=100))
    assert paid.cost == pytest.approx(2 * found.hours * 4 * 0.5)
    assert project(replace(config, train_epochs=6)).hours == pytest.approx(2 * found.hours)
    (tmp_path / "metrics.json").write_text("{}", "utf-8")
    with pytest.raises(BadInput, match="expected a finished training"):
        project(config)


# --- Simulation --------------------------------------------------------------------------
LENGTHS = lognormal(44, 84, 256)
QUEUE = Shape(
    cores=1,
    replicas=1,
    instances=1,
    window_s=0,
    service=ServiceTimes(SECONDS, 0, 0),
    in_s=0,
    out_s=0,
    most_comments=1,
)
FLEET = Shape(
    cores=4,
    replicas=2,
    instances=1,
    window_s=0.002,
    service=ServiceTimes(2e-5, 5e-6, 4e-7),
    in_s=6e-5,
    out_s=6e-5,
    start_s=0.1,
)


@pytest.mark.parametrize("load", [0.4, 0.8])
def test_waits_are_those_of_m_d_1(load: float) -> None:
    """Mean wait = load x service / (2 (1 - load)) (Pollaczek and Khinchine; Kleinrock, "Queueing
    Systems" 1, 1975, section 5.6).
    """
    found = simulate(Setting(QUEUE, load / SECONDS, 30, LENGTHS))
    expected = load * SECONDS / (2 * (1 - load))
    assert np.mean(found.outcomes.waits_s) == pytest.approx(expected, rel=0.1)
    assert found.core_use == pytest.approx(load, rel=0.03)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.6), (3, 0.7)])
def test_waits_are_those_of_m_m_c(servers: int, load: float) -> None:
    """Mean wait = C(c, a) x service / (c (1 - load)), Erlang's C (Kleinrock, the same, 3.5)."""
    offered = servers * load
    last = offered**servers / math.factorial(servers) / (1 - load)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)
    shape = replace(QUEUE, cores=servers, instances=servers, service=ServiceTimes(0, 0, SECONDS))
    exponential = lambda rng, count: rng.exponential(1, count)  # noqa: E731
    found = simulate(Setting(shape, offered / SECONDS, 15, exponential))
    expected = waits * SECONDS / (servers * (1 - load))
    assert np.mean(found.outcomes.waits_s) == pytest.approx(expected, rel=0.12)


INCIDENTS = [
    (),
    (FleetIncident("replica killed", 0.1),),
    (FleetIncident("replica killed", 0.1), FleetIncident("replica killed", 0.15)),
    (FleetIncident("rollout", 0.1),),
    (FleetIncident("zone lost", 0.1),),
    (
        FleetIncident("zone lost", 0.1),
        FleetIncident("zone lost", 0.2, 1),
        FleetIncident("zone lost", 0.3, 2),
    ),
]


@pytest.mark.parametrize("incidents", INCIDENTS, ids=lambda them: "+".join(i.kind for i in them))
@pytest.mark.parametrize("rate", [3000, 120_000])
def test_every_request_ends_once(incidents: tuple[FleetIncident, ...], rate: float) -> None:
    seconds = 0.4 if rate < 10_000 else 0.15
    found = simulate(
        Setting(FLEET, rate, seconds, LENGTHS, machines=3, incidents=incidents, detect_s=0.05)
    )
    outcomes = found.outcomes
    ends = (outcomes.answered_at_s, outcomes.refused_at_s, outcomes.failed_at_s)
    assert outcomes.sent == sum(map(len, ends)) > 0.9 * rate * seconds
    assert len(set().union(*ends)) == outcomes.sent
    assert all(took > 0 for took in outcomes.latencies_s)
    lost = any(one.kind == "zone lost" for one in incidents)
    assert bool(outcomes.failed_at_s) is lost


def test_a_killed_replica_costs_retries_and_no_request() -> None:
    kill = (FleetIncident("replica killed", 0.2),)
    calm, killed = (
        simulate(Setting(FLEET, 15_000, 0.6, LENGTHS, incidents=them)) for them in ((), kill)
    )
    assert killed.outcomes.retried > 0 == calm.outcomes.retried
    assert not killed.outcomes.failed_at_s
    longest = [
        max(took for at, took in zip(*of, strict=True) if 0.19 < at < 0.2)
        for of in ((o.answered_at_s, o.latencies_s) for o in (calm.outcomes, killed.outcomes))
    ]
    assert longest[1] > longest[0]  # of those that were there then


def test_a_lost_zone_fails_what_is_sent_there_until_it_is_known() -> None:
    lost = (FleetIncident("zone lost", 0.2),)
    setting = Setting(FLEET, 9000, 0.6, LENGTHS, machines=3, incidents=lost, detect_s=0.1)
    found = simulate(setting)
    assert found.failed_share == pytest.approx(0.1 / 0.6 / 3, rel=0.2)
    assert max(found.outcomes.failed_at_s) <= 0.3
    sooner = simulate(replace(setting, detect_s=0.02))
    assert sooner.failed_share < found.failed_share / 2


def test_the_same_seed_is_the_same_run_and_another_is_not() -> None:
    setting = Setting(
        FLEET, 20_000, 0.3, LENGTHS, machines=2, hits=0.3, stalls=Stalls(20, (0.001, 0.004))
    )
    one, again = simulate(setting), simulate(setting)
    assert one.outcomes.latencies_s == again.outcomes.latencies_s
    assert one.to_json() == again.to_json()
    assert simulate(replace(setting, seed=1)).outcomes.latencies_s != one.outcomes.latencies_s


def test_more_load_than_the_model_has_is_refused_and_what_is_answered_waits_little() -> None:
    """By the server's own rule: nobody who was taken on waited long after it began to refuse."""
    slow = replace(FLEET, replicas=1, in_s=0, out_s=0, service=ServiceTimes(0, 1e-4, 0))
    found = simulate(Setting(slow, 30_000, 1.5, LENGTHS))
    assert found.refused_share == pytest.approx(2 / 3, abs=0.15)
    most = (2 * CALM_WAIT_S + 3 * MAX_REQUEST_COMMENTS * 1e-4) * 3
    assert max(found.outcomes.waits_s) <= most
    late = np.array(found.outcomes.answered_at_s) > 1
    assert np.median(np.array(found.outcomes.latencies_s)[late]) < CALM_WAIT_S
    calm = simulate(Setting(slow, 5000, 0.5, LENGTHS))
    assert calm.refused_share == 0 and calm.rate_rps == pytest.approx(5000, rel=0.05)


def test_the_door_bounds_what_reaches_a_server_that_refuses() -> None:
    """As serve/overload_rules.py has haproxy do it."""
    least, most = OVERLOADED_REQUESTS
    step, same = OVERLOADED_STEP_MS / 1e3, OVERLOADED_SAME_MS / 1e3
    door = DoorBound(replicas=2)
    assert door.bound(0) == math.inf
    door.note_refusal(1)
    assert door.bound(1) == 2 * most
    door.note_refusal(1 + 0.9 * same)  # the same one
    assert door.bound(1 + 0.9 * step) == 2 * most
    assert door.bound(1 + 1.1 * step) == 4 * most
    door.note_refusal(1 + 1.1 * step)  # half of what it was by then
    assert door.bound(2) == math.inf or door.bound(2) > 2 * most
    now = 1 + 1.1 * step
    for _ in range(10):
        now += 1.1 * same
        door.note_refusal(now)
    assert door.bound(now) == 2 * least
    assert door.bound(now + 1.01 * OVERLOADED_STEPS * step) == math.inf


def test_turning_away_leaves_more_to_answer_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace(FLEET, service=ServiceTimes(2e-5, 4e-5, 2e-6))
    setting = Setting(slow, 20_000, 2, LENGTHS)
    soon = [int((simulate(setting).latencies_ms < 200).sum())]
    monkeypatch.setattr(DoorBound, "bound", lambda *_: math.inf)
    soon.append(int((simulate(setting).latencies_ms < 200).sum()))
    assert soon[0] > 1.5 * soon[1] > 0


def test_a_core_that_is_taken_away_makes_the_tail_longer() -> None:
    setting = Setting(FLEET, 15_000, 0.6, LENGTHS)
    quiet = simulate(setting)
    stalled = simulate(replace(setting, stalls=Stalls(10, (0.02,))))
    assert stalled.percentiles_ms["p99"] > 2 * quiet.percentiles_ms["p99"]


def ends_of(
    pieces: Sequence[tuple[float, float]], pause: tuple[int, float, float] | None = None
) -> list[float]:
    """When each thread's piece of work, begun at a time for so long, ends; threads 0, 2, ... are on
    core 1 of two, the others on core 0. `pause`: core, from when, for how long.
    """
    env = simpy.Environment()
    cores, ended = Cores(env, 2), [0.0] * len(pieces)

    def one(number: int, at_s: float, for_s: float) -> Steps:
        thread = cores.thread()
        yield env.timeout(at_s)
        yield from thread.work(for_s)
        ended[number] = env.now

    if pause:
        env.process(cores.stall(pause[0], [pause[1]], [pause[2]]))
    for number, piece in enumerate(pieces):
        env.process(one(number, *piece))
    env.run()
    assert cores.busy_s == pytest.approx(sum(for_s for _, for_s in pieces))
    return ended


def test_what_is_on_a_core_that_is_away_waits_for_it() -> None:
    away = (0, 0.05, 1.0)
    assert ends_of([(0, 0.1), (0, 0.1)], away) == pytest.approx([0.1, 1.1])
    assert ends_of([(0.2, 0.1), (0.2, 0.1)], away) == pytest.approx([0.3, 1.15])
    assert ends_of([(1.2, 0.1), (1.2, 0.1)], away) == pytest.approx([1.3, 1.3])


def test_an_idle_core_takes_nothing_from_the_line_of_another() -> None:
    long, _, third = ends_of([(0, 0.1), (0, 0.01), (0.001, 0.05)])
    assert long == pytest.approx(0.15) and third == pytest.approx(0.1, abs=0.003)  # in slices
    assert ends_of([(0, 0.1), (0, 0.01), (0.02, 0.05)])[2] == pytest.approx(0.07)  # idle when woken


def test_lengths_have_the_median_and_mean_that_were_measured() -> None:
    drawn = lognormal(44, 84.4, 1 << 20)(np.random.default_rng(0), 200_000)
    assert np.median(drawn) == pytest.approx(44, rel=0.02)
    assert drawn.mean() == pytest.approx(84.4, rel=0.03)
    assert lognormal(44, 84.4, 256)(np.random.default_rng(0), 1000).max() == 256


def test_times_of_a_call_are_found_again() -> None:
    true = ServiceTimes(5e-5, 6e-6, 3e-7)
    runs = []
    for batch, tokens in ((1.0, 70.0), (8.0, 60.0), (30.0, 35.0), (60.0, 70.0), (90.0, 20.0)):
        us = 1e6 * (true.call_s / batch + true.comment_s + true.token_s * tokens)
        parts = {"tokenizer": 0.2 * us, "encoder": 0.8 * us}
        runs.append({"mean_batch": batch, "tokens": tokens, "cpu_us": parts})
    found = fit(runs)
    assert asdict(found) == pytest.approx(
        {**asdict(true), "error": 0, "runs": 5}, rel=1e-6, abs=1e-9
    )
    with pytest.raises(BadInput, match="2 runs have batches"):
        fit(runs[:2])


def test_times_outside_of_the_model_are_found_again() -> None:
    runs = [
        {"mean_batch": batch, "cpu_us": {"balancer": 120, "server": 80 + 700 / batch}}
        for batch in (2.0, 3.5, 5.0)
    ]
    found = fit_outside(runs)
    assert (found.request_s, found.call_s) == pytest.approx((2e-4, 7e-4), rel=1e-6)
    assert found.error < 1e-6
    with pytest.raises(BadInput, match="1 runs have batches"):
        fit_outside(runs[:1])


def test_what_breaks_first_is_found(measured: MeasuredServer) -> None:
    shape = shape_of(measured, 2, fit(measured.runs))
    rate = measured.cores * 1e6 / measured.total_us
    runs = {factor: simulate(Setting(shape, factor * rate, 0.5, LENGTHS)) for factor in (0.3, 2.5)}
    found = Scenarios(runs[0.3], shape.service, 2, {}, runs, stalls=False).breaks(p99_ms=50)
    assert found["p99 above the objective"] == found["fewer answers than requests"] == 2.5
    assert Scenarios(runs[0.3], shape.service, 2, {}, {0.3: runs[0.3]}, False).breaks(
        50
    ) == dict.fromkeys(found)


# --- The command -------------------------------------------------------------------------
def test_the_command_prints_a_document_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--rps=3000", "--cores-per-machine=2", "--simulate", "--simulate-s=1", "--json"]
    monkeypatch.setattr(sys, "argv", ["plan", *flags, f"--plot={tmp_path / 'plan.png'}"])
    monkeypatch.chdir(ROOT)
    command.main()
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["machines"] == found["plan"]["replicas"] >= 3
    assert found["measured"]["artifact"] == read_measured(RESULTS, "int8", 50).artifact
    planned = found["simulated"]["runs"]["as planned"]
    assert planned["sent"] == planned["answered"] and planned["latency_ms"]["p99"] > 0
    assert found["simulated"]["runs"]["a zone lost"]["failed"] > 0
    again = found["simulated"]["measured_run_again"]
    assert again["rate"] == pytest.approx(found["measured"]["rate_rps"], abs=0.1)
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_names_artifact_machine_and_every_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["plan", "--rps=1e6", "--repeats=0.3"])
    monkeypatch.chdir(ROOT)
    command.main()
    out = capsys.readouterr().out
    found = read_measured(RESULTS, "int8", 50)
    assert f"artifact {found.artifact}, int8, measured on {found.machine}" in out
    assert "not known" in out
    rests = out.partition("rests on")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(rests) > 10 and all(".json" in line or "--" in line for line in rests)


def test_a_missing_document_is_one_line_and_status_2(tmp_path: Path) -> None:
    flags = ["--rps=1000", f"--results={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "toxicity", "plan", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and "toxicity bench road" in done.stderr


# --- Beside the real server --------------------------------------------------------------
def test_the_probe_sees_a_core_that_is_taken_away() -> None:
    """Whatever the machine does, no pause is longer than the probe or shorter than its bound."""
    found = stalls.probe(0.1)
    assert all(pause > 0.0002 for pause in found.pauses_s)
    assert found.a_second >= 0


def test_bars_turn_red_when_the_simulation_is_off() -> None:
    found = simulate(Setting(QUEUE, 300, 2, LENGTHS))
    shown = found.percentiles_ms
    real = replace(RESULT, rate_rps=found.rate_rps, latency_ms={**RESULT.latency_ms, **shown})
    assert all(bar["holds"] for bar in simulation.bars([(real, found)]).values())
    off = replace(real, latency_ms={**shown, "p99": 1.3 * shown["p99"]})
    held = {name: bar["holds"] for name, bar in simulation.bars([(off, found)]).items()}
    assert held.pop("p99_difference") is False and all(held.values())
    late = replace(real, check={"invalid": ["late"]})
    assert not simulation.bars([(late, found)])["invalid_runs"]["holds"]


@pytest.mark.slow
def test_the_bench_writes_what_the_plan_reads(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not haproxy.found():
        pytest.skip("haproxy is not installed; `apt-get install haproxy`")
    tiny_model.publish(tmp_path / "published")
    flags = [f"--repository={tmp_path / 'published'}", f"--comments={SYNTHETIC}", "--seconds=2"]
    flags += ["--probe-s=0.5", "--connections=1", "--connections=4", "--shares=0.3"]
    flags += [f"--out={tmp_path / 'results/simulation'}"]
    monkeypatch.setattr(sys, "argv", ["bench.serving.simulation", *flags])
    simulation.main()
    path = tmp_path / "results/simulation/simulation.json"
    written = json.loads(path.read_text("utf-8"))
    (run,) = written["runs"]
    assert run["measured"]["requests"] > 0 and run["simulated"]["answered"] > 0
    assert written["bytes"]["request"] > 100 and written["bytes"]["response"] > 100
    results = changed(tmp_path / "results", lambda road: road.update(artifact=written["artifact"]))
    found = read_measured(results, written["artifact"]["precision"], 50)
    assert found.request_bytes and found.stalls
    planned = plan(PlanConfig(rps=1000, precision=found.precision), found)
    each = written["bytes"]["request"] + written["bytes"]["response"]
    assert planned.network_bits == pytest.approx(8000 * each)
    other = changed(tmp_path / "other", dict)
    path.parent.rename(tmp_path / "other/simulation")
    assert read_measured(other, "int8", 50).request_bytes is None  # of another artifact
