"""`make serve` and `make stop` as a target of `bench.faults.run`: a real server behind haproxy."""

from __future__ import annotations

import contextlib
import io
import shutil
import zlib
from pathlib import Path

import psutil

from bench.faults.targets import Broken, Found, bits_of_versions, broken_versions, make_repository
from console.options import make_config
from contract import HOST, BadInput, ToxicityError
from serve import door, triton
from serve.run_folder import plain
from storage.system_errors import explained

_NOT_HURT_S = 60.0
_FIRST_PORT, _PORTS = 20_000, 5_000


class ServeTarget:
    """The door is opened, and closed; each may end anywhere."""

    share = 10
    base = "repository"
    spared = ("stopped", "tmpfs full", "damaged file")
    """A second command waits for minutes; a file system in memory is too small for the runtime; a
    damaged repository is the business of those that write it."""

    def make(self, base: Path) -> None:
        make_repository(base)

    def work(self, scratch: Path) -> None:
        config = self._config(scratch)
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                door.start(config)
                door.stop(config)
            except OSError as error:  # as the command line says it
                if words := explained(error):
                    raise BadInput(words) from error
                raise

    def again(self, scratch: Path) -> None:
        config = self._config(scratch)
        with contextlib.redirect_stdout(io.StringIO()):
            door.start(config)
            scores = triton.scores_at(f"http://{HOST}:{config.http_port}")
            door.stop(config)
        if not scores:
            raise ToxicityError("the door was opened and does not score")

    def found(self, scratch: Path) -> Found:
        return bits_of_versions(scratch / "repository")

    def broken(self, scratch: Path, before: Found, *, settled: bool) -> Broken:
        broken = broken_versions(scratch / "repository", before, settled=settled)
        if settled:
            run_dir = plain(scratch / "run")
            if left := [path.name for path in run_dir.glob("*/*.sock*")]:
                broken["no_litter"] = f"socket {min(left)} is left"
            if words := _running_from(run_dir):
                broken["no_litter"] = f"{words} still runs"
        return broken

    def files(self, scratch: Path) -> list[Path]:  # noqa: ARG002
        return []

    def notices(self, scratch: Path, damaged: Path) -> Broken:  # noqa: ARG002
        return {}

    def recovered(self, scratch: Path) -> Broken:  # noqa: ARG002
        return {}

    def clean(self, scratch: Path) -> None:
        """End what a trial left, so that it disturbs no other one."""
        run_dir = plain(scratch / "run")
        for process in _processes(run_dir):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if run_dir.is_symlink():
            run_dir.unlink()
        shutil.rmtree(scratch / "run", ignore_errors=True)

    def _config(self, scratch: Path) -> door.DoorConfig:
        # The same for both commands, and below those that the system gives away.
        http_port = _FIRST_PORT + 2 * (zlib.crc32(bytes(scratch)) % _PORTS)
        return make_config(
            door.DoorConfig,
            {
                "action": "start",
                "repository": scratch / "repository",
                "run_dir": scratch / "run",
                "http_port": http_port,
                "metrics_port": http_port + 1,
                "ready_timeout_s": _NOT_HURT_S,
            },
        )


def _running_from(run_dir: Path) -> str:
    return ", ".join(sorted({process.name() for process in _processes(run_dir)}))


def _processes(run_dir: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(f"{run_dir}/" in argument for argument in process.cmdline()):
                found.append(process)
    return found
