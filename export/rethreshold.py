"""The thresholds of a published version: read, or changed.

A version is never changed once it is there. So new thresholds come as a new version with the same
graph, tokenizer, core and ONNX Runtime, byte by byte, and with the gates that these passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract import (
    ARTIFACT_FILE,
    ENCODER_MODEL,
    ONNX_FILE,
    PROFILE_FILE,
    PUBLIC_MODEL,
    RAGGED_MODEL,
    THRESHOLDS_FILE,
    BadInput,
)
from export.manifest import check_gates, fingerprint
from export.profile import at_another_threshold, read_profile
from export.publish import add_version, files_of, link_or_copy, write_manifest
from export.repository import Snapshot, current, served_version, verify, version_folder
from storage.files import json_text, write_atomically
from train.operating.document import Thresholds, read_thresholds

_RESTATED = frozenset({PROFILE_FILE, THRESHOLDS_FILE})
"""Files that say where a version decides: those that are made anew."""
_REMEDY = "run `make export` to publish a new version"


def published_thresholds(repository: Path, version: int | None = None) -> Thresholds | None:
    """Those of a verified version, the one that serves by default; None of one without the file.

    Raises BadInput as `export.repository.verify` does.
    """
    artifact = verify(repository, version)
    if THRESHOLDS_FILE not in artifact["files"]:
        return None
    folder = version_folder(repository, artifact["version"])
    return read_thresholds(folder / THRESHOLDS_FILE, _REMEDY)


def publish_thresholds(
    repository: Path,
    version: int,
    thresholds: Thresholds,
    *,
    keep_versions: int = 3,
    sign_key: Path | None = None,
) -> int:
    """Add a version that is `version` with these thresholds, and let it serve; returns its number.

    Raises BadInput for a version that `verify` refuses or that changes meanwhile, GateFailed for
    one without passed gates; what served before then serves on.
    """
    served = served_version(repository, version)

    def fill(found: Snapshot | None, number: int, staged: Mapping[str, Path]) -> dict[str, Any]:
        del found
        before = verify(repository, version)
        check_gates(before, version_folder(repository, version) / ARTIFACT_FILE)
        for model in (ENCODER_MODEL, RAGGED_MODEL):
            source = repository / model / str(version) / ONNX_FILE
            link_or_copy(source, staged[model] / ONNX_FILE)
        public = staged[PUBLIC_MODEL]
        folder, threshold = version_folder(repository, version), thresholds.decision.threshold
        for name in before["files"].keys() - _RESTATED:
            link_or_copy(folder / name, public / name)
        write_atomically(public / THRESHOLDS_FILE, thresholds.to_text())
        if profile := read_profile(folder, before["files"]):
            restated = at_another_threshold(profile, number, threshold)
            write_atomically(public / PROFILE_FILE, json_text(asdict(restated)))
        files = files_of(public)
        _require_same(files, before["files"], version)
        for model, graph in ((ENCODER_MODEL, "encoder"), (RAGGED_MODEL, "ragged")):
            there = {ONNX_FILE: fingerprint(staged[model] / ONNX_FILE)}
            _require_same(there, {ONNX_FILE: before[graph]}, version)
        decided = {PUBLIC_MODEL: threshold}
        document = {
            **before,
            "version": number,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": files,
            "thresholds": {**before.get("thresholds", {}), **decided},
            "rethresholded": version,
        }
        write_manifest(public, document)
        return document

    return add_version(
        repository,
        fill,
        instances=served.tuning.instances,
        cache_bytes=served.cache_bytes,
        keep_versions=keep_versions,
        sign_key=sign_key,
    )


def _require_same(
    files: Mapping[str, Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]], version: int
) -> None:
    for name in before.keys() - _RESTATED:
        if files.get(name) != before[name]:
            raise BadInput(
                f"{name} of version {version} changed while it was copied, expected the published "
                f"file; {_REMEDY}"
            )


def asked_version(repository: Path, version: int | None) -> int:
    """`version`, or the one that serves. Raises BadInput when none does."""
    return current(repository) if version is None else version
