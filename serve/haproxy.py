"""The load balancer before several local servers: haproxy, from a generated configuration.

`serve.replicas` starts and stops it. The file that it wrote last is runs/serve/haproxy.cfg.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import string
import time
import urllib.request
from collections.abc import Sequence

import psutil

from contract import HOST, PUBLIC_MODEL, BadInput
from serve.process import alive, refuse_taken_port, spawn, wait_or_kill
from serve.triton import ServeConfig, Server, read_running
from train.artifacts import write_atomically, write_json

_CONFIG_FILE, _PROCESS_FILE = "haproxy.cfg", "haproxy.json"
LOG_FILE = "haproxy.log"
_HTTP_BACKEND = "http_replicas"
_TEMPLATE = string.Template("""\
global
    hard-stop-after ${stop_timeout_s}s

defaults
    mode http
    timeout connect 1s
    timeout client  ${timeout_s}s
    timeout server  ${timeout_s}s
    balance leastconn
    http-reuse always
    # Scoring is a pure function: a request that no answer came to may be sent again, elsewhere.
    # haproxy keeps up to 16 KiB of a request for that; of a longer one only the connect is retried.
    retries 2
    option redispatch 1
    retry-on conn-failure empty-response
    # Two failed checks, half a second, take a replica out; one good check brings it back.
    # Not /v2/health/ready: in release 24.10 it says no while another version loads or unloads, and
    # for good after one failed to load, though the model answers all the time.
    option httpchk GET /v2/models/$model/ready
    default-server check inter 250ms fall 2 rise 1

frontend http
    bind $host:$http_port
    default_backend $http_backend

frontend grpc
    bind $host:$grpc_port proto h2
    default_backend grpc_replicas

frontend metrics
    bind $host:$metrics_port
    http-request use-service prometheus-exporter if { path /metrics }

backend $http_backend
$http_servers

backend grpc_replicas
$grpc_servers
""")
"""Keywords as in the haproxy 2.6 configuration manual."""
_TIMEOUT_S = 60
_SBIN = ("/usr/sbin", "/usr/local/sbin")
"""Where Debian puts haproxy, and the PATH of a plain user does not look."""
_POLL_S = 0.1


def render(config: ServeConfig, servers: Sequence[Server]) -> str:
    """Text of the configuration for these replicas; `config` has the balancer's own ports."""
    named = [(f"replica-{number}", server) for number, server in enumerate(servers, start=1)]
    http = [f"    server {name} {HOST}:{s.http_port}" for name, s in named]
    # Health is asked over HTTP/1 at the other port.
    grpc = [
        f"    server {name} {HOST}:{s.grpc_port} proto h2 port {s.http_port} check-proto h1"
        for name, s in named
    ]
    return _TEMPLATE.substitute(
        http_backend=_HTTP_BACKEND,
        host=HOST,
        model=PUBLIC_MODEL,
        http_port=config.http_port,
        grpc_port=config.grpc_port,
        metrics_port=config.metrics_port,
        stop_timeout_s=int(config.stop_timeout_s),
        timeout_s=_TIMEOUT_S,
        http_servers="\n".join(http),
        grpc_servers="\n".join(grpc),
    )


def found() -> str | None:
    """Path of haproxy, if it is installed."""
    return shutil.which("haproxy", path=os.pathsep.join([os.environ.get("PATH", ""), *_SBIN]))


def executable() -> str:
    """`found`. Raises BadInput where there is none."""
    path = found()
    if path is None:
        raise BadInput(
            "haproxy is not installed, expected it before more than one replica; "
            "run `apt-get install haproxy`, or serve without REPLICAS"
        )
    return path


def start(config: ServeConfig, servers: Sequence[Server]) -> Server:
    """Put haproxy before `servers`, or change a running one to them without losing a request.

    Raises BadInput when it is not installed or does not start.
    """
    path, text = config.run_dir / _CONFIG_FILE, render(config, servers)
    balancer = running(config)
    if balancer is None:
        for flag in ("http_port", "grpc_port", "metrics_port"):
            refuse_taken_port(getattr(config, flag), flag)
        write_atomically(path, text)
        command = [executable(), "-W", "-f", str(path.resolve())]
        process = spawn(command, dict(os.environ), config.run_dir / LOG_FILE)
    else:
        process = psutil.Process(balancer.pid)
        if path.read_text("utf-8") != text:
            write_atomically(path, text)
            process.send_signal(signal.SIGUSR2)  # the old worker finishes what it began
    balancer = Server(
        pid=process.pid,
        create_time=process.create_time(),
        repository=str(config.repository.resolve()),
        http_port=config.http_port,
        grpc_port=config.grpc_port,
        metrics_port=config.metrics_port,
        replicas=tuple(servers),
    )
    write_json(config.run_dir / _PROCESS_FILE, dataclasses.asdict(balancer))
    _wait_until_up(config, balancer, len(servers))
    return balancer


def stop(config: ServeConfig) -> None:
    """Take no more requests, finish those in flight, end."""
    balancer = running(config)
    if balancer is not None:
        process = psutil.Process(balancer.pid)
        family = [process, *process.children(recursive=True)]
        process.send_signal(signal.SIGUSR1)
        wait_or_kill(family, config.stop_timeout_s)
    (config.run_dir / _PROCESS_FILE).unlink(missing_ok=True)


def running(config: ServeConfig) -> Server | None:
    """The live haproxy of `config.run_dir`, if there is one; its pid is the master process."""
    return read_running(config.run_dir / _PROCESS_FILE)


def states(balancer: Server) -> dict[str, str]:
    """Replica -> what haproxy makes of it ("UP", "DOWN", ...); empty when it does not answer."""
    url = f"http://{HOST}:{balancer.metrics_port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = str(answer.read(), "utf-8")
    except OSError:
        return {}
    line = rf'^haproxy_server_status{{proxy="{_HTTP_BACKEND}",server="(.*)",state="(.*)"}} 1$'
    return dict(re.findall(line, text, re.MULTILINE))


def _wait_until_up(config: ServeConfig, balancer: Server, replicas: int) -> None:
    deadline = time.monotonic() + config.ready_timeout_s
    while list(states(balancer).values()) != ["UP"] * replicas:
        if not alive(balancer.pid, balancer.create_time) or time.monotonic() > deadline:
            log = config.run_dir / LOG_FILE
            lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line]
            raise BadInput(
                f"haproxy's replicas are {states(balancer) or 'not there'}, expected {replicas} "
                f"that are up; {lines[-1] if lines else 'it said nothing'}; the log is {log}"
            )
        time.sleep(_POLL_S)
