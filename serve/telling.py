"""What `make serve` and `make status` print of a door: its programs, versions and addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract import HOST, ToxicityError
from export.repository import current, versions
from serve import control, haproxy, mirror_settings, triton
from serve.app import settings as app
from serve.metrics_door import BALANCER_METRICS
from serve.settings import CANARY, MIRROR, DoorConfig, Settings, server_names
from serve.supervisor import State, Supervisor


def scores(settings: Settings, folder: Path) -> bool:
    """Whether the server of this folder really scores."""
    if settings.balanced:
        return control.scores(folder / control.HTTP_SOCKET)
    return triton.scores_at(f"http://{HOST}:{settings.http_port}")


def app_scores(sock: Path) -> bool:
    """Whether the application at this socket really scores, by way of a server."""
    try:
        status, _ = control.ask(sock, app.HEALTH_PATH)
    except OSError:
        return False
    return status == 200


def served_version(settings: Settings, folder: Path) -> int | None:
    """The version that the server of this folder answers with, asked of itself."""
    if settings.balanced:
        return control.version(folder / control.HTTP_SOCKET)
    return triton.version_at(f"http://{HOST}:{settings.http_port}")


def print_replicas(settings: Settings, supervisor: Supervisor) -> None:
    """A line for each program."""
    states = supervisor.states()
    up = haproxy.states(supervisor.program_folder(haproxy.NAME)) if settings.balanced else {}
    for name in server_names(settings):
        print(f"{name + ':':14} {_described(settings, supervisor, states.get(name), name, up)}")
    if settings.balanced:
        for name in haproxy.NAMES:
            print(f"{name + ':':14} {_process(states.get(name))}")
        ready = app_scores(supervisor.program_folder(app.NAME) / app.SOCKET)
        words = "scores" if ready else "DOES NOT SCORE"
        print(f"{app.NAME + ':':14} {words}, {_process(states.get(app.NAME))}")
    if settings.canary:
        described = _described(settings, supervisor, states.get(CANARY), CANARY, up)
        mode = "a copy of" if settings.canary.shadow else "answers"
        print(f"{CANARY + ':':14} {mode} {settings.canary.share:.4g} of requests, {described}")
        found = comparison(supervisor)
        words = comparison_lines(found)[0] if found else "DOES NOT ANSWER"
        print(f"{MIRROR + ':':14} {words}, {_process(states.get(MIRROR))}")


def comparison(supervisor: Supervisor) -> dict[str, Any] | None:
    """What the mirror found (serve/comparison.py); None while it does not answer."""
    sock = supervisor.program_folder(MIRROR) / mirror_settings.HTTP_SOCKET
    try:
        status, document = control.ask(sock, mirror_settings.COMPARISON_PATH)
    except OSError:
        return None
    return document if status == 200 and isinstance(document, dict) else None


def comparison_lines(found: dict[str, Any]) -> list[str]:
    """The same for people; the first line is a summary."""
    flips = found["flips"]
    count = sum(flips.values())
    lines = [f"{found['comments']} comments compared, {count} decisions flipped"]
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(found["dropped"].items()))
    if not found["comments"]:
        return [*lines, f"not compared {dropped}"] if dropped else lines
    lines += [
        f"flips        {found['flip_share']:.4g} of comments: {flips['to_flagged']} to flagged, "
        f"{flips['to_passed']} to passed",
        f"mean shift   {found['mean_shift']:+.4g}, of a score {found['mean_absolute_shift']:.4g}, "
        f"at most {found['largest_shift']:.4g}",
        f"PSI          {found['psi']:.4g}",
    ]
    for role in ("stable", "canary"):
        one = found[role]
        lines.append(
            f"{role:12} version {', '.join(one['versions'])}: p50 {one['p50_ms']:.3g} ms, "
            f"p99 {one['p99_ms']:.3g} ms of {one['requests']} requests"
        )
    return [*lines, f"not compared {dropped or 'none'}"]


def _described(
    settings: Settings,
    supervisor: Supervisor,
    state: State | None,
    name: str,
    up: dict[str, str],
) -> str:
    folder = supervisor.program_folder(name)
    ready = "scores" if scores(settings, folder) else "DOES NOT SCORE"
    version = served_version(settings, folder)
    seen = f", {up[name]} for haproxy" if name in up else ""
    path = f"/{name}/metrics" if settings.balanced else "/metrics"
    return (
        f"{ready}, version {version or 'none'}{seen}, {_process(state)}, metrics "
        f"http://{HOST}:{settings.metrics_port}{path}"
    )


def _process(state: State | None) -> str:
    if state is None:
        return "not known to the supervisor"
    again = f", started {state.starts} times" if state.starts > 1 else ""
    if state.pid:
        return f"process {state.pid} up {state.up_s} s{again}"
    return f"{state.words}{again}; it is started again by itself"


def print_addresses(config: DoorConfig, settings: Settings, *, example: bool = True) -> None:
    """Where the door is open, and an example request with its answer."""
    try:
        repository = Path(settings.repository)
        served, newest = current(repository), max(versions(repository))
        later = (
            "" if served == newest else f"; the newest is version {newest}, `make publish` takes it"
        )
        words = f"version {served} is current in {repository}{later}"
    except ToxicityError as error:
        words = f"{settings.repository}: {error}"
    scheme = "https" if settings.tls_certificate else "http"
    print(f"repository  {words}")
    print(f"HTTP        {scheme}://{settings.address}:{settings.http_port}")
    if settings.balanced:
        print(f"page        {scheme}://{settings.address}:{settings.http_port}{app.PAGE_PATH}/")
    if settings.grpc:
        print(f"gRPC        {settings.address}:{settings.grpc_port}")
    where = BALANCER_METRICS if settings.balanced else "/metrics"
    print(f"metrics     http://{HOST}:{settings.metrics_port}{where}")
    print(f"logs        {config.run_dir}")
    if not settings.balanced:
        print(
            "haproxy is not in front: bodies, headers, nesting, slow and foreign-origin requests "
            "are not bounded, and /score, /v1/moderations, /v1alpha1/comments:analyze and /ui are "
            "not served; `apt-get install haproxy`, then `make stop serve`"
        )
    if example and not settings.keys and not settings.tls_certificate:
        triton.print_example(f"http://{HOST}:{settings.http_port}")
