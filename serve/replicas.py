"""One server, or several behind haproxy, on this machine only: `make serve`, `status`, `stop`.

    python -m serve.replicas start --replicas 2    # start, restart what ended, or update
    python -m serve.replicas status
    python -m serve.replicas stop

Replica N keeps its log in runs/serve/replica-N and listens 10 N ports above the public ones:
8000-8002 are haproxy's, 8010-8012 replica 1's. With one replica there is no haproxy and the
server itself has the public ports (`serve.triton`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pydantic import Field
from pydantic.dataclasses import dataclass

from contract import HOST, BadInput
from export.repository import verify
from serve import haproxy, triton
from serve.triton import ServeConfig, Server
from train.cli import make_config, parse_config, run

_FOLDER = "replica-"
_PORTS_APART = 10


@dataclass(frozen=True)
class ReplicasConfig(ServeConfig):
    """Flags of `python -m serve.replicas`."""

    replicas: int | None = Field(
        None,
        ge=1,
        description="servers behind haproxy; as many as there are, or one without haproxy",
    )


def main() -> None:
    config = parse_config(
        ReplicasConfig,
        None,
        prog="python -m serve.replicas",
        description="Start, stop or look at the local Triton servers.",
        positional="action",
    )
    {"start": start, "stop": stop, "status": status}[config.action](config)


def start(config: ReplicasConfig) -> None:
    """Serve the newest published version with every replica; return once all answer.

    Starts those that are missing, then updates the others one after the other, then tells
    haproxy. Raises BadInput as `serve.triton.start` and `serve.haproxy.start` do; a version that
    one replica cannot load goes to none after it.
    """
    known = _known(config)
    wanted = config.replicas or len(known) or 1
    if wanted == 1 and not known:
        triton.start(config)
        return
    if triton.running(config):
        raise BadInput(
            f"one server without haproxy runs from {config.run_dir}, expected none before "
            f"{wanted} replicas; run `make stop` first"
        )
    haproxy.executable()
    verify(config.repository)
    try:
        servers = _start_each(config, wanted)
        balancer = haproxy.start(config, servers)
    except BaseException:
        if not known:
            stop(config)
        raise
    for number in range(wanted + 1, max(known, default=0) + 1):
        triton.stop(_replica(config, number))
    _print_replicas(config)
    triton.print_addresses(config.run_dir / haproxy.LOG_FILE, balancer)


def _start_each(config: ReplicasConfig, wanted: int) -> list[Server]:
    replicas = [_replica(config, number) for number in range(1, wanted + 1)]
    found = [triton.running(replica) for replica in replicas]
    servers = []
    for replica, server in zip(replicas, found, strict=True):
        if server is None:
            print(f"{replica.run_dir.name}: starting", flush=True)
        servers.append(server or triton.launch(replica))
    for replica, server in zip(replicas, found, strict=True):
        if server:
            print(f"{replica.run_dir.name}: ", end="", flush=True)
            triton.update(replica, server)
    return servers


def stop(config: ReplicasConfig) -> None:
    """End haproxy, then the servers; each finishes what is in flight."""
    known = _known(config)
    if not known:
        triton.stop(config)
        return
    haproxy.stop(config)
    with ThreadPoolExecutor(len(known)) as pool:
        list(pool.map(lambda number: triton.stop(_replica(config, number)), known))


def status(config: ReplicasConfig) -> None:
    """Print what runs from `config.run_dir`."""
    if not _known(config):
        triton.status(config)
        return
    _print_replicas(config)
    if balancer := haproxy.running(config):
        triton.print_addresses(config.run_dir / haproxy.LOG_FILE, balancer)
    else:
        print("haproxy is not running; start it with `make serve`")


def _known(config: ReplicasConfig) -> list[int]:
    """Numbers of the replicas that were started and not stopped, whether they live or not."""
    files = config.run_dir.glob(f"{_FOLDER}*/{triton.PROCESS_FILE}")
    return sorted(int(path.parent.name.removeprefix(_FOLDER)) for path in files)


def _replica(config: ReplicasConfig, number: int) -> ServeConfig:
    """Raises BadInput when a port of it would be past 65535."""
    above = _PORTS_APART * number
    return make_config(
        ServeConfig,
        {
            "action": config.action,
            "repository": config.repository,
            "run_dir": config.run_dir / f"{_FOLDER}{number}",
            "http_port": config.http_port + above,
            "grpc_port": config.grpc_port + above,
            "metrics_port": config.metrics_port + above,
            "ready_timeout_s": config.ready_timeout_s,
            "stop_timeout_s": config.stop_timeout_s,
        },
    )


def _print_replicas(config: ReplicasConfig) -> None:
    balancer = haproxy.running(config)
    states = haproxy.states(balancer) if balancer else {}
    for number in _known(config):
        replica = _replica(config, number)
        server = triton.running(replica)
        if server is None:
            print(f"{replica.run_dir.name}: ended; start it again with `make serve`")
            continue
        state = states.get(replica.run_dir.name, "not known to haproxy")
        print(
            f"{replica.run_dir.name}: {state}, process {server.pid}, version "
            f"{triton.served_version(server)}, metrics http://{HOST}:{server.metrics_port}/metrics"
        )


if __name__ == "__main__":
    run(main)
