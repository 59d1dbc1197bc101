"""`toxicity fetch` against a real S3 server: whole or not at all, verified, resumed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyModel
from fleet_tools import ROOT, tool

from contract import (
    ARTIFACT_FILE,
    ONNX_FILE,
    ORT_FILE,
    PUBLIC_MODEL,
    SERVING_FILE,
    SIGNATURE_FILE,
    TOKENIZER_FILE,
    BadInput,
    GateFailed,
)
from export import fetch as fetching
from export.fetch import FetchConfig, fetch
from export.object_store import ObjectStore
from export.repository import current, verify, versions
from export.signing import make_keys
from export.switch import rollback, serve_version
from storage.files import sha256_of

obstore = pytest.importorskip("obstore", reason="obstore is not installed: pip install '.[s3]'")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-1"}


# --- A real S3 server --------------------------------------------------------------------
@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of moto's S3 server, a process of its own."""
    server = tool("moto_server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [server, "-H", "127.0.0.1", "-p", str(port)], stdout=out, stderr=out
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


class Bucket:
    """A bucket of its own for a test, filled and damaged through the same client as a user's."""

    def __init__(self, endpoint: str, name: str) -> None:
        request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        self.store = obstore.store.S3Store(name, client_options={"allow_http": True})
        self.source = f"s3://{name}/models"

    def fill(self, repository: Path) -> None:
        for path in sorted(repository.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                self.put(path.relative_to(repository).as_posix(), path.read_bytes())

    def put(self, name: str, data: bytes) -> None:
        obstore.put(self.store, f"models/{name}", data)

    def get(self, name: str) -> bytes:
        return bytes(obstore.get(self.store, f"models/{name}").bytes())

    def delete(self, name: str) -> None:
        obstore.delete(self.store, f"models/{name}")


@pytest.fixture
def bucket(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Bucket:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return Bucket(endpoint, "b" + str(abs(hash(request.node.name))))


@pytest.fixture
def repository(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """Two versions; the second serves."""
    made = tmp_path / "made"
    tiny_model.publish(made)
    tiny_model.publish(made)
    return made


def _tree(folder: Path) -> dict[str, str]:
    """Every file with its sha256; what is made for the moment is not there."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def _versions_only(folder: Path) -> dict[str, str]:
    return {name: sha for name, sha in _tree(folder).items() if SERVING_FILE not in name}


# --- What comes --------------------------------------------------------------------------
def test_the_version_that_serves_comes_byte_by_byte(
    bucket: Bucket, repository: Path, tmp_path: Path
) -> None:
    bucket.fill(repository)
    target = tmp_path / "target"
    version, came = fetch(FetchConfig(bucket.source, target))
    assert version == 2 == current(target) == verify(target)["version"]
    assert versions(target) == [2]
    wanted = {n: s for n, s in _versions_only(repository).items() if "/1/" not in n}
    assert _versions_only(target) == wanted
    sizes = {s: (repository / n).stat().st_size for n, s in wanted.items()}
    artifact = sha256_of(repository / PUBLIC_MODEL / "2" / ARTIFACT_FILE)
    files = {s: size for s, size in sizes.items() if s != artifact}
    configs = [s for n, s in wanted.items() if n.endswith("config.pbtxt")]
    assert came == sum(size for s, size in files.items() if s not in configs)  # each once
    assert fetch(FetchConfig(bucket.source, target)) == (2, 0), "it is there already"


def test_another_version_is_added_and_can_be_rolled_back(
    bucket: Bucket, repository: Path, tmp_path: Path
) -> None:
    bucket.fill(repository)
    target = tmp_path / "target"
    assert fetch(FetchConfig(bucket.source, target, version=1))[0] == 1 == current(target)
    assert fetch(FetchConfig(bucket.source, target))[0] == 2 == current(target)
    assert versions(target) == [1, 2]
    assert rollback(target) == 1 == verify(target)["version"]
    assert fetch(FetchConfig(bucket.source, target)) == (2, 0)
    assert current(target) == 2


def test_what_a_stopped_command_fetched_is_not_fetched_again(
    bucket: Bucket, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.fill(repository)
    target, real = tmp_path / "target", ObjectStore.chunks
    large = repository / PUBLIC_MODEL / "2" / ORT_FILE

    def ends_within_the_largest(self: ObjectStore, name: str, start: int = 0) -> Iterator[bytes]:
        chunks = real(self, name, start)
        if name.endswith(ORT_FILE):
            yield next(chunks)
            raise KeyboardInterrupt
        yield from chunks

    monkeypatch.setattr(ObjectStore, "chunks", ends_within_the_largest)
    with pytest.raises(KeyboardInterrupt):
        fetch(FetchConfig(bucket.source, target))
    part = target / fetching.PARTS / sha256_of(large)
    kept = part.stat().st_size
    assert 0 < kept < large.stat().st_size
    with pytest.raises(BadInput):
        current(target)
    monkeypatch.setattr(ObjectStore, "chunks", real)
    starts: dict[str, int] = {}

    def counted(self: ObjectStore, name: str, start: int = 0) -> Iterator[bytes]:
        starts[name.rsplit("/", 1)[-1]] = start
        yield from real(self, name, start)

    monkeypatch.setattr(ObjectStore, "chunks", counted)
    fetch(FetchConfig(bucket.source, target))
    assert starts[ORT_FILE] == kept and verify(target)["version"] == 2
    assert not (target / fetching.PARTS).exists()


def test_a_part_that_is_not_of_the_file_is_found_and_dropped(
    bucket: Bucket, repository: Path, tmp_path: Path
) -> None:
    bucket.fill(repository)
    target = tmp_path / "target"
    part = target / fetching.PARTS / sha256_of(repository / PUBLIC_MODEL / "2" / ORT_FILE)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"another beginning")
    with pytest.raises(BadInput, match=f"{ORT_FILE} is damaged"):
        fetch(FetchConfig(bucket.source, target))
    assert not part.exists()
    assert fetch(FetchConfig(bucket.source, target))[0] == 2


# --- What is refused ---------------------------------------------------------------------
@pytest.mark.parametrize("name", [ONNX_FILE, TOKENIZER_FILE, ARTIFACT_FILE])
@pytest.mark.parametrize("damage", ["changed", "short", "long", "missing"])
def test_a_damaged_version_is_refused_and_nothing_changes(
    bucket: Bucket, repository: Path, tmp_path: Path, name: str, damage: str
) -> None:
    bucket.fill(repository)
    target = tmp_path / "target"
    fetch(FetchConfig(bucket.source, target, version=1))
    before = _tree(target)
    data = bucket.get(f"{PUBLIC_MODEL}/2/{name}")
    flipped = bytes([data[0] ^ 1]) + data[1:]
    damaged = {"changed": flipped, "short": data[:-1], "long": data + b" "}
    # The same graph lies there under several names; any whole one will do.
    for path in repository.glob(f"*/2/{name}"):
        at = path.relative_to(repository).as_posix()
        if damage == "missing":
            bucket.delete(at)
        else:
            bucket.put(at, damaged[damage])
    with pytest.raises(BadInput, match=rf"s3://.*{name} is (damaged|not there).*; ") as refused:
        fetch(FetchConfig(bucket.source, target))
    assert "\n" not in str(refused.value)
    after = {n: s for n, s in _tree(target).items() if fetching.PARTS not in n}
    assert after == before and verify(target)["version"] == 1


def test_a_version_without_passed_gates_is_refused(
    bucket: Bucket, tiny_model: TinyModel, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    tiny_model.publish(made, artifact={**tiny_model.artifact, "measured": {"fp32_shapes": 1.0}})
    bucket.fill(made)
    with pytest.raises(GateFailed, match="fp32_shapes"):
        fetch(FetchConfig(bucket.source, tmp_path / "target"))


def test_only_a_version_signed_for_the_key_is_taken(
    bucket: Bucket, repository: Path, tmp_path: Path
) -> None:
    for name in ("ours", "other"):
        make_keys(tmp_path / f"{name}.key", tmp_path / f"{name}.pub")
    bucket.fill(repository)
    asked = FetchConfig(bucket.source, tmp_path / "target", require_signature=tmp_path / "ours.pub")
    with pytest.raises(BadInput, match=r"s3://.*/2 is not signed"):
        fetch(asked)
    serve_version(repository, 2, sign_key=tmp_path / "other.key")
    bucket.fill(repository)
    with pytest.raises(BadInput, match=r"s3://.*artifact.sig is no signature"):
        fetch(asked)
    assert not any((tmp_path / "target" / fetching.PARTS).iterdir()), "no file came before that"
    serve_version(repository, 2, sign_key=tmp_path / "ours.key")
    bucket.fill(repository)
    assert fetch(asked)[0] == 2
    assert (tmp_path / "target" / PUBLIC_MODEL / "2" / SIGNATURE_FILE).is_file()
    verify(tmp_path / "target", public_key=tmp_path / "ours.pub")


def test_a_number_that_is_another_versions_is_refused(
    bucket: Bucket, repository: Path, tiny_model: TinyModel, tmp_path: Path
) -> None:
    bucket.fill(repository)
    target = tmp_path / "target"
    for _ in range(2):
        tiny_model.publish(target, artifact={**tiny_model.artifact, "created": "elsewhere"})
    with pytest.raises(BadInput, match=r"version 2 of .* is another one than the source's"):
        fetch(FetchConfig(bucket.source, target))


def test_a_version_that_is_not_there(bucket: Bucket, repository: Path, tmp_path: Path) -> None:
    bucket.fill(repository)
    with pytest.raises(BadInput, match=r"--version is 7, expected one of \[1, 2\]"):
        fetch(FetchConfig(bucket.source, tmp_path / "target", version=7))


def test_a_half_copied_change_is_refused(bucket: Bucket, repository: Path, tmp_path: Path) -> None:
    """serving.json of the new version came to the store, config.pbtxt is of none it knows."""
    bucket.fill(repository)
    bucket.put(f"{PUBLIC_MODEL}/config.pbtxt", b"name: 'toxicity'")
    with pytest.raises(BadInput, match=r"config\.pbtxt is not of serving\.json"):
        fetch(FetchConfig(bucket.source, tmp_path / "target"))


# --- As a user calls it ------------------------------------------------------------------
def _command(*flags: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toxicity", "fetch", *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command(bucket: Bucket, repository: Path, tmp_path: Path) -> None:
    bucket.fill(repository)
    target = tmp_path / "target"
    done = _command(bucket.source, "--repository", target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"version 2 of {bucket.source} serves in {target} from the next")
    absent = _command(bucket.source + "/nowhere", "--repository", tmp_path / "none")
    assert (absent.returncode, absent.stdout) == (2, "")
    assert "serving.json is not there, expected an object; check" in absent.stderr
    assert absent.stderr.count("\n") == 1
    wrong = _command("https://models.example", "--repository", tmp_path / "none")
    assert wrong.returncode == 2 and "expected s3://bucket/prefix" in wrong.stderr


def test_a_store_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: refused at once
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        done = _command(
            "s3://bucket/models",
            *("--repository", tmp_path / "target"),
            **CREDENTIALS,
            AWS_ENDPOINT_URL=address,
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "did not come whole" in done.stderr
