"""A second version beside the current one: a share of the requests, or copies of them, compared.

    toxicity canary --version 2 --share 0.05     # it answers 5 % of the requests
    toxicity canary --version 2 --shadow         # it is sent copies; its answers reach nobody
    toxicity canary                              # what the comparison found so far
    toxicity canary --end
    toxicity promote                             # it becomes the current version, everywhere
    toxicity rollback                            # it ends; without one, the version before serves
    toxicity canary --version 2 --for-minutes 30 --most-flips 0.01 --p99-ms 50   # by rule

It is a server of its own behind haproxy (serve/canary_backend.py). Whoever is drawn gets its
answer, or a replica's where it does not answer; a shadow, and the comparison (serve/mirror.py),
whatever becomes of them, reach no caller.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from console.options import make_config, parse_config, run
from contract import ARTIFACT_FILE, BadInput, GateFailed
from export.manifest import check_gates
from export.repository import current, verify, version_folder
from export.switch import rollback as previous
from export.switch import serve_version
from serve import door
from serve.programs import same_attributes
from serve.promotion import Bounds, judged, refused
from serve.settings import CANARY, Canary, DoorConfig, Settings, read_settings
from serve.supervisor import Supervisor
from serve.telling import comparison, comparison_lines, print_replicas

_CANARY: JsonDict = {"group": "The second version"}
_RULE: JsonDict = {"group": "Promotion by rule"}
_DOOR: JsonDict = {"group": "Server"}
_WATCH_S = 1.0
_DIFFER = (
    "only requests that name their outputs without `attributes` are drawn",
    "requests that name the output `attributes` are not drawn",
)
"""Without and with --shadow."""


@dataclass(frozen=True)
class CanaryConfig:
    """Flags of `toxicity canary`, `promote` and `rollback`."""

    action: Literal["run", "promote", "rollback"] = Field(
        "run", description="run, promote or rollback", json_schema_extra=_CANARY
    )
    version: int | None = Field(
        None, ge=1, description="published version to serve beside", json_schema_extra=_CANARY
    )
    share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the scoring requests that is drawn, 0.05 by default",
        json_schema_extra=_CANARY,
    )
    shadow: bool = Field(
        False,
        description="send it copies of the drawn requests; its answers reach nobody",
        json_schema_extra=_CANARY,
    )
    end: bool = Field(
        False, description="end it; the current version answers all", json_schema_extra=_CANARY
    )
    json: bool = Field(
        False, description="what was found as one JSON document", json_schema_extra=_CANARY
    )
    for_minutes: float | None = Field(
        None,
        gt=0,
        description="watch it so long, then promote it where every bound holds, else end it",
        json_schema_extra=_RULE,
    )
    most_flips: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of comments whose decision may flip: the upper end of its 95 % interval",
        json_schema_extra=_RULE,
    )
    p99_ms: float | None = Field(
        None, gt=0, description="largest p99 of its requests", json_schema_extra=_RULE
    )
    most_shift: float | None = Field(
        None, gt=0, description="how far its mean score may lie off", json_schema_extra=_RULE
    )
    most_failures: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="share of its requests that it may fail or not answer",
        json_schema_extra=_RULE,
    )
    least_comments: int = Field(
        1000, ge=1, description="fewer compared comments prove nothing", json_schema_extra=_RULE
    )
    repository: Path = Field(
        Path("model_repository"), description="published repository", json_schema_extra=_DOOR
    )
    run_dir: Path = Field(
        Path("runs/serve"), description="folder of the running server", json_schema_extra=_DOOR
    )
    require_signature: Path | None = Field(
        None, description="public key that a version must be signed for", json_schema_extra=_DOOR
    )
    ready_timeout_s: float = Field(
        120, gt=0, description="longest wait for a ready server", json_schema_extra=_DOOR
    )

    @property
    def bounds(self) -> Bounds:
        return Bounds(
            most_flips=self.most_flips,
            p99_ms=self.p99_ms,
            most_shift=self.most_shift,
            most_failures=self.most_failures,
            least_comments=self.least_comments,
        )

    @model_validator(mode="after")
    def _flags_go_together(self) -> CanaryConfig:
        if self.version is not None and self.end:
            raise ValueError("--version and --end are given, expected one of them")
        for name in ("share", "for_minutes"):
            if getattr(self, name) is not None and self.version is None:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} is given without --version, expected both")
        if self.shadow and self.version is None:
            raise ValueError("--shadow is given without --version, expected both")
        bounds = (self.most_flips, self.p99_ms, self.most_shift)
        if (self.for_minutes is None) != (bounds == (None, None, None)):
            raise ValueError(
                "--for-minutes goes with a bound: --most-flips, --p99-ms or --most-shift"
            )
        return self


def main() -> None:
    config = parse_config(
        CanaryConfig,
        None,
        prog="python -m serve.canary",
        description="Serve a second version beside the current one and compare them.",
        positional="action",
    )
    if config.action == "promote":
        promote(config)
    elif config.action == "rollback":
        roll_back(config)
    elif config.end:
        end(config)
    elif config.version is None:
        show(config)
    else:
        begin(config)
        if config.for_minutes is not None:
            watch(config)


# --- Commands ----------------------------------------------------------------------------
def begin(config: CanaryConfig) -> None:
    """Serve the version beside the current one; return once it scores and is drawn.

    One that runs takes the new share. Raises BadInput for a version that `verify` refuses, another
    canary and a server that does not start, GateFailed for one without passed gates; what serves,
    a canary that ran, too, then serves as before.
    """
    assert config.version
    with door.alone(config.run_dir):
        supervisor, before = _running(config)
        if before.canary and before.canary.version != config.version:
            raise BadInput(
                f"--version is {config.version}, expected {before.canary.version}, which is the "
                "canary already; run `toxicity promote` or `toxicity canary --end` first"
            )
        repository = Path(before.repository)
        artifact = verify(repository, config.version, before.public_key)
        check_gates(artifact, version_folder(repository, config.version) / ARTIFACT_FILE)
        if config.version == current(repository):
            raise BadInput(
                f"--version is {config.version}, expected another than the current one; "
                "`toxicity versions` lists them"
            )
        share = config.share or 0.05
        canary = Canary(config.version, share, config.shadow)
        after = dataclasses.replace(before, canary=canary)
        try:
            door.bring_up(_door_config(config, before), after, supervisor, before)
        except BaseException:
            if before.canary:
                door.put_back(_door_config(config, before), before, supervisor)
            else:
                _take_down(config, supervisor, before)
            raise
        door.write_settings(config.run_dir, after)
        print_replicas(after, supervisor)
        if not same_attributes(after, supervisor):
            print(f"the versions' attributes differ: {_DIFFER[config.shadow]}")


def end(config: CanaryConfig) -> None:
    """End the canary, no request failed. Raises BadInput when there is none."""
    with door.alone(config.run_dir):
        supervisor, before = _running(config)
        canary = _canary(before)
        _take_down(config, supervisor, dataclasses.replace(before, canary=None))
    print(f"version {canary.version} is no canary any more; version {_current(before)} serves")


def promote(config: CanaryConfig) -> None:
    """Make the canary's version the current one and load it everywhere, no request failed.

    Raises BadInput when there is no canary, and when a server cannot load its version: the one of
    before is current again then, and the canary stays.
    """
    with door.alone(config.run_dir):
        supervisor, before = _running(config)
        canary, repository = _canary(before), Path(before.repository)
        changed = current(repository) != canary.version
        serve_version(repository, canary.version, public_key=before.public_key)
        try:
            door.bring_up(_door_config(config, before), before, supervisor, before)
        except BaseException:
            if changed:
                previous(repository, public_key=before.public_key)
                door.bring_up(_door_config(config, before), before, supervisor, before)
            raise
        after = dataclasses.replace(before, canary=None)
        _take_down(config, supervisor, after)
        print_replicas(after, supervisor)
    print(f"version {canary.version} serves; `toxicity rollback` goes back")


def roll_back(config: CanaryConfig) -> None:
    """Go back a step: end the canary; where there is none, the version before serves.

    The server of the run folder loads that at once, if it serves this repository. Raises as
    `export.switch.rollback` does, and BadInput when a server cannot load that version: the current
    one stays then.
    """
    settings = _of_repository(config)
    if settings and settings.canary:
        end(config)
        return
    key = config.require_signature or (settings.public_key if settings else None)
    if settings is None:
        number = previous(config.repository, public_key=key)
        print(
            f"version {number} of {config.repository} serves from the next start on; "
            "`make serve` loads it into the running server"
        )
        return
    with door.alone(config.run_dir):
        supervisor, before = _running(config)
        was = current(config.repository)
        number = previous(config.repository, public_key=key)
        try:
            door.bring_up(_door_config(config, before), before, supervisor, before)
        except BaseException:
            serve_version(config.repository, was, public_key=key)
            door.bring_up(_door_config(config, before), before, supervisor, before)
            raise
        print_replicas(before, supervisor)
    print(f"version {number} of {config.repository} serves")


def show(config: CanaryConfig) -> None:
    """Print what the comparison found. Raises BadInput when there is no canary."""
    supervisor, settings = _running(config)
    canary = _canary(settings)
    found = comparison(supervisor)
    if found is None:
        raise BadInput(
            f"the mirror of {config.run_dir} does not answer, expected its findings; it is started "
            "again by itself, try again"
        )
    if config.json:
        print(json.dumps({**dataclasses.asdict(canary), **found}))
    else:
        print("\n".join(comparison_lines(found)))


def watch(config: CanaryConfig) -> None:
    """Wait until the time is over or a bound is surely broken; then promote the canary or end it.

    Raises GateFailed when it was ended. A kill leaves the canary as it is.
    """
    assert config.for_minutes
    print(f"watching for {config.for_minutes:g} min; Ctrl-C leaves the canary as it is", flush=True)
    supervisor, settings = _running(config)
    version = _canary(settings).version
    starts = _starts(supervisor)
    deadline = time.monotonic() + 60 * config.for_minutes
    while True:
        found: dict[str, Any] = comparison(supervisor) or {}
        over = time.monotonic() >= deadline
        verdict = judged(found, config.bounds, over=over)
        if _starts(supervisor) != starts:
            verdict = refused("its server ended and was started again")
        if verdict.decided:
            break
        time.sleep(_WATCH_S)
        settings = read_settings(config.run_dir) or settings
        if not settings.canary or settings.canary.version != version:
            raise BadInput(
                f"version {version} is no canary any more, expected it for {config.for_minutes:g} "
                "min; somebody ended or promoted it"
            )
    print("\n".join(comparison_lines(found)) if found else "nothing was compared")
    print("\n".join(verdict.lines))
    if verdict.promote:
        promote(config)
        return
    end(config)
    raise GateFailed(f"version {version} was not promoted: {'; '.join(verdict.failed)}")


# --- Inside ------------------------------------------------------------------------------
def _running(config: CanaryConfig) -> tuple[Supervisor, Settings]:
    supervisor = Supervisor(config.run_dir)
    settings = read_settings(config.run_dir)
    if settings is None or not supervisor.running():
        raise BadInput(f"no server is running from {config.run_dir}; start it with `make serve`")
    if not settings.balanced:
        raise BadInput(
            "haproxy is not in front, expected it for a second version; `apt-get install haproxy`, "
            "then `make stop serve`"
        )
    return supervisor, settings


def _of_repository(config: CanaryConfig) -> Settings | None:
    """Of the server that runs, if it serves the repository of the flags."""
    settings = read_settings(config.run_dir)
    if settings is None or not Supervisor(config.run_dir).running():
        return None
    return settings if settings.repository == str(config.repository.resolve()) else None


def _canary(settings: Settings) -> Canary:
    if settings.canary is None:
        raise BadInput(
            "no second version serves, expected one; start it with `toxicity canary --version N`"
        )
    return settings.canary


def _current(settings: Settings) -> int:
    return current(Path(settings.repository))


def _starts(supervisor: Supervisor) -> int:
    state = supervisor.states().get(CANARY)
    return state.starts if state else 0


def _take_down(config: CanaryConfig, supervisor: Supervisor, after: Settings) -> None:
    door.take_down_canary(_door_config(config, after), after, supervisor)
    door.write_settings(config.run_dir, after)


def _door_config(config: CanaryConfig, settings: Settings) -> DoorConfig:
    """As the door was started: another flag would start its programs again."""
    same = ("repository", "http_port", "grpc_port", "metrics_port", "stop_timeout_s")
    values = {
        **{name: getattr(settings, name) for name in same},
        **{name: getattr(config, name) for name in ("run_dir", "ready_timeout_s")},
    }
    return make_config(DoorConfig, {"action": "start", **values})


if __name__ == "__main__":
    run(main)
