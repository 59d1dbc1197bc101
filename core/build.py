"""Build the core with the pinned compiler of the package index: `python -m core.build`.

The compiler is the `ziglang` wheel, CMake and ninja are wheels too, so a machine needs none of
its own, and the library needs no more than glibc 2.28. What was built is described in
`lib/build.json`: compiler, flags and the sha256 of every source. The same sources give the same
bytes.

    python -m core.build                                  # into core/lib/
    python -m core.build --target aarch64                 # compiled, not run
    python -m core.build --sanitize address,undefined     # with the machine's own compiler
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import contract

CORE = Path(__file__).resolve().parent
LIBRARY = f"libtriton_{contract.BACKEND}.so"
"""The core as a Triton backend, and as what Python binds to."""
GENERATOR = "open_loop"
NOOP = "libtriton_noop.so"
"""A backend that does nothing, for `bench.serving.road`."""
BUILD_FILE = "build.json"
_GLIBC = "2.28"
_FLAGS = "-O2 -g0 -DNDEBUG"
_TIMEOUT_S = 1800
_CONSTANTS = (
    *("PAD_ID", "UNK_ID", "CLS_ID", "MAX_LEN", "MAX_WINDOWS", "MAX_COMMENT_BYTES"),
    *("INPUT_IDS", "ATTENTION_MASK", "ACCUMULATED_COUNTS", "LOGIT", "TEXT", "PROBABILITY"),
    *("ATTRIBUTES", "MAX_ATTRIBUTES"),
    *("MODEL_VERSION", "MAX_REQUEST_COMMENTS", "MAX_BATCH_SIZE", "MAX_REQUEST_WINDOWS"),
    *(
        "MAX_BATCH_PAIRS",
        "MAX_REQUEST_BYTES",
        "BYTES_A_ROW",
        "STARTS_VARIABLE",
        "CALM_WAIT_S",
        "OVERLOADED_WAIT_S",
        "OVERLOADED_S",
        "CACHE_BYTES",
        "MAX_BATCH",
        "THRESHOLD",
        "DECISION_THRESHOLD",
        "HISTOGRAMS",
        "ARRIVAL_HEADER",
        "CHECK_COMMENT",
        "DURATION_BOUNDS",
        "BATCH_BOUNDS",
        "SCORE_BINS",
        "TOKEN_BOUNDS",
    ),
    *("ONNX_FILE", "TOKENIZER_FILE", "ARTIFACT_FILE", "ORT_FILE"),
)
"""What the core takes from the one contract."""


def main() -> None:
    from console.options import parse_config  # who only looks for the library needs no flags
    from core.options import BuildConfig

    config = parse_config(
        BuildConfig, None, prog="python -m core.build", description="Build the core."
    )
    if config.sanitize:
        print(build_sanitized(config.out or CORE / "sanitized", config.sanitize))
    else:
        out = config.out or lib_folder(config.target)
        print(build(out, config.target) / LIBRARY)


def lib_folder(target: str = "") -> Path:
    """Where the build for an architecture lies, this machine's by default."""
    target = target or platform.machine()
    return CORE / "lib" if target == platform.machine() else CORE / f"lib-{target}"


def library() -> Path:
    """The library for this machine, built when it is missing or older than its sources."""
    return _built() / LIBRARY


def executable(name: str) -> Path:
    """What is built with it for measuring: GENERATOR or NOOP."""
    return _built() / name


def described() -> dict[str, Any]:
    """What `build.json` says: compiler, flags, target, and the sha256 of the sources."""
    document: dict[str, Any] = json.loads((_built() / BUILD_FILE).read_text("utf-8"))
    return document


def is_current() -> bool | None:
    """Whether the build for this machine is of these sources; None when there is none."""
    built = lib_folder() / BUILD_FILE
    if not built.is_file():
        return None
    found: str = json.loads(built.read_text("utf-8"))["sources"]
    return found == _sources_sha256()


def _built() -> Path:
    folder = lib_folder()
    if is_current():
        return folder
    print("building the native core (once; a minute or two the first time) ...", file=sys.stderr)
    return build(folder)


def build(out: Path, target: str = "") -> Path:
    """Compile into `out`, whole or not at all. Raises ToxicityError with the compiler's words."""
    target = target or platform.machine()
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", f"{target}-linux-gnu.{_GLIBC}"]
    options = {
        "CMAKE_CXX_COMPILER": ";".join(compiler),
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": target,
        "CMAKE_CXX_FLAGS_RELEASE": _FLAGS,
        "CMAKE_SHARED_LINKER_FLAGS": "-s",
        "CMAKE_EXE_LINKER_FLAGS": "-s",
    }
    for package in ("ziglang", "cmake", "ninja"):
        if find_spec(package) is None:
            raise contract.BadInput(
                f"the package {package} is not installed for {sys.executable}, expected it to "
                "build the core; run `make install`"
            )
    document = {
        "compiler": f"ziglang {importlib.metadata.version('ziglang')}",
        "target": f"{target}-linux-gnu.{_GLIBC}",
        "flags": f"-std=c++17 {_FLAGS}",
        "sources": _sources_sha256(),
    }
    return _compile(out, options, document)


def build_sanitized(out: Path, sanitize: str) -> Path:
    """The same with the machine's own compiler and its sanitizers, for tests.

    With clang the fuzz targets of tests/fuzz are built, too.
    """
    clang = shutil.which("clang++")
    compiler = clang or shutil.which("g++")
    if compiler is None:
        raise contract.BadInput(
            "no clang++ or g++ is on PATH, expected one for a sanitizer build (the pinned compiler "
            "has no address sanitizer); run `apt-get install clang`"
        )
    options = {
        "CMAKE_CXX_COMPILER": compiler,
        "CMAKE_CXX_FLAGS_RELEASE": "-O1",
        "SANITIZE": sanitize,
        "FUZZ": "ON" if clang else "OFF",
    }
    document = {"compiler": compiler, "sanitize": sanitize, "sources": _sources_sha256()}
    return _compile(out, options, document)


def _compile(out: Path, options: dict[str, str], document: dict[str, Any]) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        out.with_name(f".{out.name}.lock").open("w") as lock,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".build-") as folder,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        work = Path(folder) / "work"
        work.mkdir()
        (work / "contract.h").write_text(contract_header(), "utf-8")
        flags = [f"-D{name}={value}" for name, value in options.items()]
        programs = Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        for command in (
            [
                "cmake",
                "-S",
                str(CORE),
                "-B",
                str(work),
                "-GNinja",
                "-DCMAKE_BUILD_TYPE=Release",
                *flags,
            ],
            ["cmake", "--build", str(work)],
        ):
            ended = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
            )
            if ended.returncode:
                log = out.parent / "build.log"
                log.write_text(ended.stdout + ended.stderr, "utf-8")
                raise contract.ToxicityError(
                    f"the core does not compile ({command[0]} ended with {ended.returncode}); "
                    f"the compiler's words are in {log}"
                )
        staged = Path(folder) / "lib"
        staged.mkdir()
        for path in sorted(work.iterdir()):
            program = path.suffix == "" and path.is_file() and os.access(path, os.X_OK)
            if program or path.suffix == ".so":
                shutil.copy2(path, staged / path.name)
        (staged / BUILD_FILE).write_text(json.dumps(document, indent=2) + "\n", "utf-8")
        out.mkdir(exist_ok=True)
        # One by one, its description last: who has an older library open keeps it.
        for path in sorted(staged.iterdir(), key=lambda path: path.name == BUILD_FILE):
            path.replace(out / path.name)
    return out


def contract_header() -> str:
    """The constants of `contract` that the core needs, as C++."""
    lines = ["// From contract.py, by core/build.py.", "#pragma once", "", "namespace toxicity {"]
    for name in _CONSTANTS:
        value = getattr(contract, name)
        kind = {int: "long long", float: "double", str: "char", tuple: "double"}[type(value)]
        several = "[]" if isinstance(value, str | tuple) else ""
        text = json.dumps(value)
        if isinstance(value, tuple):
            text = "{" + ", ".join(str(float(one)) for one in value) + "}"
        lines.append(f"constexpr {kind} {name}{several} = {text};")
    return "\n".join([*lines, "}  // namespace toxicity", ""])


def _sources_sha256() -> str:
    digest = hashlib.sha256(contract_header().encode())
    digest.update(f"{_FLAGS} {_GLIBC}".encode())
    bench = CORE.parent / "bench"
    folders = (CORE / "src", CORE / "triton", bench / "generator", bench / "noop")
    files = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    for path in sorted([*files, CORE / "CMakeLists.txt", CORE / "exports.map"]):
        if path.is_file():
            digest.update(f"{path.name}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    from console.ending import run

    run(main)
