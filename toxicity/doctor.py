"""What this machine can do and what is missing, a line each with its remedy: `toxicity doctor`.

    toxicity doctor
    toxicity doctor --check     # exit status 1 when something is missing that is needed
    toxicity doctor --json

Nothing is built, started or changed. "note" stands for what the commands do without, "MISSING" for
what one of train, export and serve needs.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Literal

import psutil
from pydantic import Field
from pydantic.dataclasses import dataclass

from console.options import parse_config, run
from contract import GRPC_PORT, HTTP_PORT, METRICS_PORT, ToxicityError
from core import build
from serve import door, haproxy, tritonserver

_PACKAGE = "toxicity-serving"
_OLDEST = (3, 11)
_INSTALL = "run `make install`"
_GIB = 1 << 30
_LEAST_MEMORY, _LEAST_DISK = 2 * _GIB, 5 * _GIB
_LEAST_FILES = 4096
"""Open files of the balancer and its clients under load."""
_VECTORS = {
    "avx2": "vectors of 256 bits",
    "avx512f": "vectors of 512 bits",
    "avx512_vnni": "INT8 dot products",
    "avx_vnni": "INT8 dot products",
    "asimddp": "INT8 dot products",
    "i8mm": "INT8 matrix products",
}
_INT8 = {name for name, words in _VECTORS.items() if "INT8" in words}
State = Literal["ok", "note", "MISSING"]


@dataclass(frozen=True)
class DoctorConfig:
    """Flags of `toxicity doctor`."""

    repository: Path = Field(Path("model_repository"), description="published repository")
    run_dir: Path = Field(Path("runs/serve"), description="run folder of the server")
    http_port: int = Field(HTTP_PORT, ge=1, le=65535, description="port of HTTP requests")
    grpc_port: int = Field(GRPC_PORT, ge=1, le=65535, description="port of gRPC requests")
    metrics_port: int = Field(METRICS_PORT, ge=1, le=65535, description="port of /metrics")
    check: bool = Field(False, description="exit with status 1 when something needed is missing")
    json: bool = Field(False, description="print one JSON document instead of lines")


@plain_dataclass(frozen=True)
class Examined:
    """One line: what it is about, how it is, and what to do."""

    name: str
    state: State
    found: str
    remedy: str = ""


Check = Callable[[DoctorConfig], Iterator[Examined]]


def main() -> None:
    config = parse_config(
        DoctorConfig, None, prog="python -m toxicity.doctor", description="Look at this machine."
    )
    findings = examine(config)
    if config.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}))
    else:
        print(lines(findings))
    missing = [finding.name for finding in findings if finding.state == "MISSING"]
    if missing and config.check:
        raise ToxicityError(f"missing: {', '.join(missing)}; each line above says what to do")


def lines(findings: list[Examined]) -> str:
    """A table for people."""
    width = max(len(finding.name) for finding in findings)
    return "\n".join(
        f"{one.state:7}  {one.name:{width}}  {one.found}{'; ' if one.remedy else ''}{one.remedy}"
        for one in findings
    )


def examine(config: DoctorConfig) -> list[Examined]:
    """Every finding; a check that fails itself is one, too."""
    findings: list[Examined] = []
    for name, check in CHECKS.items():
        try:
            findings += check(config)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            findings.append(Examined(name, "note", f"cannot be looked at ({reason})"))
    return findings


# --- Software ----------------------------------------------------------------------------
def _python(_: DoctorConfig) -> Iterator[Examined]:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        yield Examined("python", "MISSING", found, f"install {oldest}, then run `make install`")
        return
    yield Examined("python", "ok", found)


def _packages(_: DoctorConfig) -> Iterator[Examined]:
    from packaging.requirements import Requirement

    found, wrong = [], []
    for text in importlib.metadata.requires(_PACKAGE) or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement} is {version or 'not there'}")
        else:
            found.append(f"{requirement.name} {version}")
    yield Examined("packages", "ok", ", ".join(found))
    for words in wrong:
        yield Examined("packages", "MISSING", words, _INSTALL)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compiler(_: DoctorConfig) -> Iterator[Examined]:
    for package in ("ziglang", "cmake", "ninja"):
        version = _version(package)
        if version:
            yield Examined("compiler", "ok", f"{package} {version}")
        else:
            yield Examined("compiler", "MISSING", f"no {package}, which builds the core", _INSTALL)


def _core(_: DoctorConfig) -> Iterator[Examined]:
    current, folder = build.is_current(), build.lib_folder()
    if current is None:
        yield Examined("core", "MISSING", f"none in {folder}", "run `toxicity build`")
    elif not current:
        yield Examined("core", "note", "of other sources than these", "run `toxicity build`")
    else:
        said = json.loads((folder / build.BUILD_FILE).read_text("utf-8"))
        made = f"{said['compiler']} for {said['target']}, sources {said['sources'][:12]}"
        yield Examined("core", "ok", f"built from these sources by {made}")


def _onnxruntime(_: DoctorConfig) -> Iterator[Examined]:
    try:
        import onnxruntime
    except ImportError as error:
        yield Examined("onnxruntime", "MISSING", f"cannot be imported ({error})", _INSTALL)
        return
    providers = ", ".join(onnxruntime.get_available_providers())
    yield Examined("onnxruntime", "ok", f"{onnxruntime.__version__} with {providers}")


def _tritonserver(_: DoctorConfig) -> Iterator[Examined]:
    try:
        program = tritonserver.wheel() / "bin" / "tritonserver"
    except ToxicityError as error:
        yield Examined("tritonserver", "MISSING", str(error))
        return
    if not program.is_file():
        yield Examined("tritonserver", "MISSING", f"none at {program}", _INSTALL)
        return
    yield Examined("tritonserver", "ok", f"of nvidia-pytriton {_version('nvidia-pytriton')}")


def _haproxy(_: DoctorConfig) -> Iterator[Examined]:
    program = haproxy.found()
    if program is None:
        lost = "none: one server on 127.0.0.1, without replicas, gRPC, TLS, keys and bounds"
        yield Examined("haproxy", "note", lost, "run `apt-get install haproxy`")
        return
    yield Examined("haproxy", "ok", f"{_first_line([program, '-v'])}, {program}")


def _clang(_: DoctorConfig) -> Iterator[Examined]:
    program = shutil.which("clang++")
    if program is None:
        yield Examined("clang", "note", "none, which fuzzing needs", "run `apt-get install clang`")
        return
    yield Examined("clang", "ok", _first_line([program, "--version"]))


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, errors="replace")
    return next(iter((done.stdout or done.stderr).splitlines()), f"status {done.returncode}")


# --- Hardware and system -----------------------------------------------------------------
def _gpu(_: DoctorConfig) -> Iterator[Examined]:
    program = shutil.which("nvidia-smi")
    done = program and subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20)
    if not done or done.returncode or not done.stdout.strip():
        yield Examined("gpu", "note", "none with an NVIDIA driver: the CPU trains and serves")
        return
    for line in done.stdout.splitlines():
        yield Examined("gpu", "ok", re.sub(r" \(UUID: .*\)", "", line))
    if not _version("onnxruntime-gpu"):
        yield Examined("gpu", "note", "ONNX Runtime is the CPU's", "run `make clean install`")


def _cpu(_: DoctorConfig) -> Iterator[Examined]:
    text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    words = set(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)[0].split())
    has = sorted(words & _VECTORS.keys())
    state: State = "ok" if words & _INT8 else "note"
    less = "" if words & _INT8 else " (no INT8 dot products: INT8 gains less here)"
    yield Examined("cpu", state, f"{platform.machine()} with {', '.join(has) or 'none'}{less}")
    usable, cores = len(os.sched_getaffinity(0)), os.cpu_count()
    yield Examined("cores", "ok", f"{usable} of {cores} usable, load {os.getloadavg()[0]:.1f}")


def _memory(_: DoctorConfig) -> Iterator[Examined]:
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} GiB free of {memory.total / _GIB:.1f}"
    little = memory.available < _LEAST_MEMORY
    yield _bounded("memory", found, little, "end some programs: a training wants 2 GiB")


def _limits(_: DoctorConfig) -> Iterator[Examined]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    little = hard != resource.RLIM_INFINITY and hard < _LEAST_FILES
    words = f"raise the hard limit to {_LEAST_FILES:,} (`ulimit -Hn`)"
    yield _bounded("open files", _limit(hard), little, words)
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    little = hard != resource.RLIM_INFINITY and hard < tritonserver.STACK_BYTES
    words = "raise the hard limit (`ulimit -Hs`): deep JSON could end the server"
    yield _bounded("stack", _limit(hard), little, words)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"at most {value:,}"


def _disk(config: DoctorConfig) -> Iterator[Examined]:
    folder = config.repository.resolve()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / _GIB:.1f} GiB free at {folder}"
    yield _bounded("disk", found, free < _LEAST_DISK, "free some space: a run wants 5 GiB")


def _bounded(name: str, found: str, little: bool, remedy: str) -> Examined:
    return Examined(name, "note" if little else "ok", found, remedy if little else "")


# --- What is served ----------------------------------------------------------------------
def _ports(config: DoctorConfig) -> Iterator[Examined]:
    settings = door.read_settings(config.run_dir)
    listeners = {
        one.laddr.port: one.pid
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr
    }
    for flag in ("http_port", "grpc_port", "metrics_port"):
        port, name = getattr(config, flag), flag.replace("_", " ")
        if port not in listeners:
            yield Examined(name, "ok", f"{port} is free")
        elif settings and getattr(settings, flag) == port:
            yield Examined(name, "ok", f"{port} is served from {config.run_dir}")
        else:
            owner = _process(listeners[port])
            remedy = f"stop it, or give --{flag.replace('_', '-')} to `serve`"
            yield Examined(name, "MISSING", f"{port} is held by {owner}", remedy)


def _process(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        return f"process {pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return f"process {pid}"


def _repository(config: DoctorConfig) -> Iterator[Examined]:
    from export.repository import verify

    try:
        artifact = verify(config.repository)
    except ToxicityError as error:
        yield Examined("repository", "MISSING", str(error))
        return
    words = f"version {artifact['version']} ({artifact['precision']}) is current and whole"
    yield Examined("repository", "ok", f"{config.repository}: {words}")


CHECKS: dict[str, Check] = {
    "python": _python,
    "packages": _packages,
    "compiler": _compiler,
    "core": _core,
    "onnxruntime": _onnxruntime,
    "tritonserver": _tritonserver,
    "haproxy": _haproxy,
    "clang": _clang,
    "gpu": _gpu,
    "cpu": _cpu,
    "memory": _memory,
    "limits": _limits,
    "disk": _disk,
    "ports": _ports,
    "repository": _repository,
}
"""In the order of the lines."""


if __name__ == "__main__":
    run(main)
