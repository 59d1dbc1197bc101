"""Fill a Triton model repository with one more version, whole or not at all, and check it.

    model_repository/
        toxicity/config.pbtxt            text in, score out; the core as Triton's backend
        toxicity/tuning.json             after `make tune`: what it chose, and why
        toxicity/<N>/                    one version, never changed once it is there: the graph, the
                                         tokenizer, the core and ONNX Runtime as the gates ran them
        toxicity_encoder/config.pbtxt    ids in, logit out; onnxruntime backend of a stock image
        toxicity_encoder/<N>/model.onnx  the same bytes
        toxicity_encoder_ragged/...      likewise, the graph with the interface of ragged batching

`python -m export` calls `publish`; `python -m serve.triton start` calls `verify` first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

import contract
from contract import (
    ARTIFACT_FILE,
    BACKEND,
    ENCODER_MODEL,
    MAX_BATCH_SIZE,
    MAX_REQUEST_COMMENTS,
    ONNX_FILE,
    ORT_FILE,
    PUBLIC_MODEL,
    RAGGED_MODEL,
    TOKENIZER_FILE,
    BadInput,
)
from core import build
from core.binding import onnxruntime_library
from core.build import LIBRARY
from export.scorer import LongText, Scorer
from train.artifacts import read_json, sha256_of, write_atomically, write_json
from train.tokenizer import Tokenizer

CONFIG_FILE = "config.pbtxt"
_TUNING_FILE = "tuning.json"
_CORES = os.cpu_count() or 1
_FAST_COMMENTS_PER_S, _FAST_WINDOW_MS = 10_000, 2.0
"""From this rate of one core on, the HTTP front end costs more than the encoder (bench.road)."""
_MODELS = (RAGGED_MODEL, ENCODER_MODEL, PUBLIC_MODEL)
"""In the order in which a version is put in place: with the last one it counts."""
_REMEDY = "run `make export` to publish a new version"
_SERVED = (LIBRARY, ONNX_FILE, ORT_FILE, TOKENIZER_FILE)
"""Files that a server loads, beside the manifest."""


@dataclass(frozen=True)
class Tuning:
    """How the public model is served, as `make tune` measured it best on the machine."""

    instances: int
    window_ms: float = 0.0
    """Longest wait of a request for batch-mates."""
    max_batch: int = MAX_BATCH_SIZE
    """Most comments that the graph runs together."""


# --- Configurations ----------------------------------------------------------------------
def public_config(
    tuning: Tuning, device: str = "cpu", cache_bytes: int = contract.DEFAULT_CACHE_BYTES
) -> pb.ModelConfig:
    """Text -> score with `tuning.instances` sessions of one thread, for the core."""
    config = pb.ModelConfig(
        name=PUBLIC_MODEL,
        backend=BACKEND,
        max_batch_size=MAX_REQUEST_COMMENTS,
        input=[pb.ModelInput(name=contract.TEXT, data_type=pb.TYPE_STRING, dims=[1])],
        output=[
            pb.ModelOutput(name=contract.PROBABILITY, data_type=pb.TYPE_FP32, dims=[1]),
            pb.ModelOutput(name=contract.LOGIT, data_type=pb.TYPE_FP32, dims=[1]),
            pb.ModelOutput(name=contract.MODEL_VERSION, data_type=pb.TYPE_STRING, dims=[1]),
        ],
        instance_group=[_instances(tuning.instances, device)],
    )
    # Without a delay a batch is what queued while one ran.
    config.dynamic_batching.max_queue_delay_microseconds = int(1e3 * tuning.window_ms)
    config.parameters[contract.CACHE_BYTES].string_value = str(cache_bytes)
    config.parameters[contract.MAX_BATCH].string_value = str(tuning.max_batch)
    return config


def batch_size(max_len: int) -> int:
    """Most comments that a stock Triton may run together, all of them `max_len` tokens long."""
    return max(1, min(MAX_BATCH_SIZE, contract.MAX_BATCH_PAIRS // max_len**2))


def encoder_config(
    instances: int, device: str = "cpu", batch: int = MAX_BATCH_SIZE
) -> pb.ModelConfig:
    """Ids -> logit, for the onnxruntime backend of a stock Triton image.

    The graph gives its logit as [B], and Triton wants at least one dimension beside the batch:
    `dims: [1]` with an empty `reshape` is its documented form for that
    (docs/user_guide/model_configuration.md, "Reshape").
    """
    config = _onnxruntime_config(ENCODER_MODEL, instances, device, batch)
    for name in (contract.INPUT_IDS, contract.ATTENTION_MASK):
        config.input.add(name=name, data_type=pb.TYPE_INT64, dims=[-1])
    return config


def ragged_config(
    instances: int, device: str = "cpu", batch: int = MAX_BATCH_SIZE
) -> pb.ModelConfig:
    """Ids -> logit, batched by Triton whatever the requests' lengths; one comment a request.

    The onnxruntime backend joins a ragged input to one dimension, and Triton makes the counts,
    one for each request, as INT32 or FP32 only (docs/user_guide/ragged_batching.md and
    BatchInput in model_config.proto). One logit a request needs no `batch_output`.
    """
    config = _onnxruntime_config(RAGGED_MODEL, instances, device, batch)
    config.input.add(
        name=contract.INPUT_IDS, data_type=pb.TYPE_INT64, dims=[-1], allow_ragged_batch=True
    )
    config.batch_input.add(
        kind=pb.BatchInput.BATCH_ACCUMULATED_ELEMENT_COUNT,
        target_name=[contract.ACCUMULATED_COUNTS],
        data_type=pb.TYPE_INT32,
        source_input=[contract.INPUT_IDS],
    )
    return config


def _onnxruntime_config(name: str, instances: int, device: str, batch: int) -> pb.ModelConfig:
    config = pb.ModelConfig(
        name=name,
        backend="onnxruntime",
        max_batch_size=batch,
        output=[
            pb.ModelOutput(
                name=contract.LOGIT,
                data_type=pb.TYPE_FP32,
                dims=[1],
                reshape=pb.ModelTensorReshape(),
            )
        ],
        instance_group=[_instances(instances, device)],
    )
    config.dynamic_batching.SetInParent()
    for key in ("intra_op_thread_count", "inter_op_thread_count"):
        config.parameters[key].string_value = "1"
    return config


def _instances(count: int, device: str) -> pb.ModelInstanceGroup:
    """`count` sessions; on "cuda" so many on each GPU, which Triton hands out."""
    group = pb.ModelInstanceGroup
    return group(kind=group.KIND_GPU if device == "cuda" else group.KIND_CPU, count=count)


# --- Publishing --------------------------------------------------------------------------
def versions(repository: Path) -> list[int]:
    """Published versions, oldest first."""
    return _versions(repository / PUBLIC_MODEL)


def publish(
    repository: Path,
    *,
    onnx_path: Path,
    ragged_path: Path,
    tokenizer_path: Path,
    artifact: dict[str, Any],
    served_path: Path | None = None,
    instances: int | None = None,
    cache_bytes: int = contract.DEFAULT_CACHE_BYTES,
    keep_versions: int = 3,
) -> int:
    """Add one version and return its number; older ones stay servable whatever happens.

    Args:
        repository: folder, made when it is missing.
        onnx_path: graph with the tensors of the contract, one file.
        ragged_path: the same graph with the ragged interface.
        tokenizer_path: JSON of `train.tokenizer.Tokenizer`.
        artifact: what the version is; needs `device` ("cpu" or "cuda") and `max_len`, and
            `long_text` with the fields of `export.scorer.LongText` unless comments are cut. The
            version number and the size and sha256 of every file are added to it (`files`;
            `ragged` for the graph).
        served_path: graph of the public model, if another than these two's form for the device.
        instances: sessions of each server; of each GPU when `device` is "cuda". Left out:
            what `make tune` found in this repository, else by `default_tuning`.
        cache_bytes: memory of a server for the logits of repeated comments, 0 for none.
        keep_versions: newest versions that stay when the new one is in place.

    """
    with _locked(repository):
        published = versions(repository)
        version = max(published, default=0) + 1
        _clear_interrupted(repository, newest=version - 1)
        # Inside the model's own folder, where Triton skips names that are not numbers.
        with contextlib.ExitStack() as stack:
            ragged, encoder, public = staged = [
                stack.enter_context(_staging(repository / model)) for model in _MODELS
            ]
            write_atomically(encoder / ONNX_FILE, onnx_path.read_bytes())
            write_atomically(ragged / ONNX_FILE, ragged_path.read_bytes())
            # On a CPU the ragged form: no padding is made for a batch of mixed lengths. For a GPU
            # the dense one: its shapes are known before the run.
            served = served_path or (onnx_path if artifact["device"] == "cuda" else ragged_path)
            own = {onnx_path: encoder, ragged_path: ragged}.get(served)
            if own:
                _link_or_copy(own / ONNX_FILE, public / ONNX_FILE)
            else:
                write_atomically(public / ONNX_FILE, served.read_bytes())
            write_atomically(public / TOKENIZER_FILE, tokenizer_path.read_bytes())
            write_atomically(public / LIBRARY, build.library().read_bytes())
            _put_runtime(repository, published, public / ORT_FILE)
            described = {
                "files": {name: _fingerprint(public / name) for name in _SERVED},
                "encoder": _fingerprint(encoder / ONNX_FILE),
                "ragged": _fingerprint(ragged / ONNX_FILE),
                "core": build.described(),
            }
            write_json(public / ARTIFACT_FILE, {**artifact, "version": version, **described})
            for folder in staged:
                _fsync_folder(folder)
            device = artifact["device"]
            tuning = read_tuning(repository) or default_tuning(device, artifact)
            tuning = replace(tuning, instances=instances or tuning.instances)
            batch = batch_size(artifact["max_len"])
            for config_of in (ragged_config, encoder_config):
                _write_config(repository, config_of(tuning.instances, device, batch))
            _write_config(repository, public_config(tuning, device, cache_bytes))
            try:
                for model, folder in zip(_MODELS, staged, strict=True):
                    _put(folder, repository / model / str(version))
            except BaseException:
                _clear_interrupted(repository, newest=version - 1)
                raise
        for old in [*published, version][:-keep_versions]:
            for model in reversed(_MODELS):
                shutil.rmtree(repository / model / str(old), ignore_errors=True)
    return version


def default_tuning(device: str, artifact: Mapping[str, Any]) -> Tuning:
    """What serves until `make tune` has measured.

    An encoder that scores more comments on one core than the front end takes requests on the
    others needs no second session; a short wait then makes full batches of single comments. A
    slower one gets a session a core, and batches form by themselves.
    """
    if device == "cuda":
        return Tuning(1)
    if artifact.get("comments_per_s", 0) >= _FAST_COMMENTS_PER_S:
        return Tuning(1, window_ms=_FAST_WINDOW_MS)
    return Tuning(_CORES)


def tune(repository: Path, tuning: Tuning, evidence: dict[str, Any]) -> None:
    """Serve as `tuning` says from the next start on, and publish so in future.

    `evidence`, JSON, is kept beside the configuration. A stock image's models stay as they are.
    """
    artifact = read_artifact(repository)
    with _locked(repository):
        path = repository / PUBLIC_MODEL / CONFIG_FILE
        served = text_format.Parse(path.read_text("utf-8"), pb.ModelConfig())
        cache_bytes = int(served.parameters[contract.CACHE_BYTES].string_value)
        document = {"tuning": asdict(tuning), "evidence": evidence}
        write_json(repository / PUBLIC_MODEL / _TUNING_FILE, document)
        _write_config(repository, public_config(tuning, artifact["device"], cache_bytes))


def served_tuning(repository: Path) -> Tuning:
    """How the newest version is served: what `tune` found, or the default for its encoder."""
    artifact = read_artifact(repository)
    return read_tuning(repository) or default_tuning(artifact["device"], artifact)


def read_tuning(repository: Path) -> Tuning | None:
    """What `tune` wrote last, if it did."""
    path = repository / PUBLIC_MODEL / _TUNING_FILE
    if not path.is_file():
        return None
    return Tuning(**read_json(path, "delete it, or run `make tune`")["tuning"])


def _versions(model_folder: Path) -> list[int]:
    if not model_folder.is_dir():
        return []
    return sorted(int(folder.name) for folder in model_folder.iterdir() if folder.name.isdecimal())


@contextlib.contextmanager
def _locked(repository: Path) -> Iterator[None]:
    repository.mkdir(parents=True, exist_ok=True)
    with (repository / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _staging(model_folder: Path) -> Iterator[Path]:
    model_folder.mkdir(exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=model_folder, prefix=".staging-"))
    staging.chmod(0o755)  # mkdtemp's 0700 would hide it from a server's user
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _clear_interrupted(repository: Path, *, newest: int) -> None:
    """Drop what a killed `publish` left: staging, and encoders without their public half."""
    for model in _MODELS:
        for folder in (repository / model).glob(".staging-*"):
            shutil.rmtree(folder)
        for version in _versions(repository / model):
            if version > newest:
                shutil.rmtree(repository / model / str(version))


def _write_config(repository: Path, config: pb.ModelConfig) -> None:
    path = repository / config.name / CONFIG_FILE
    text = text_format.MessageToString(config)
    if not path.exists() or path.read_text("utf-8") != text:
        write_atomically(path, text)


def _put_runtime(repository: Path, published: list[int], target: Path) -> None:
    """ONNX Runtime's library beside the model: 35 MB that versions share where they can."""
    source = onnxruntime_library()
    sha256 = sha256_of(source)
    for version in reversed(published):
        shared = repository / PUBLIC_MODEL / str(version) / ORT_FILE
        if shared.is_file() and sha256_of(shared) == sha256:
            return _link_or_copy(shared, target)
    return write_atomically(target, source.read_bytes())


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a filesystem without hard links
        write_atomically(target, source.read_bytes())


def _put(staged: Path, target: Path) -> None:
    staged.rename(target)
    _fsync_folder(target.parent)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


# --- Reading back ------------------------------------------------------------------------
def version_folder(repository: Path, version: int | None = None) -> Path:
    """Folder of a version of the public model, the newest by default. Raises BadInput."""
    published = versions(repository)
    if not published:
        raise BadInput(
            f"{repository} holds no published model, expected one; run `make train export`"
        )
    if version is not None and version not in published:
        raise BadInput(
            f"version is {version}, expected one of {published} in {repository}; {_REMEDY}"
        )
    return repository / PUBLIC_MODEL / str(version or published[-1])


def read_artifact(repository: Path, version: int | None = None) -> dict[str, Any]:
    """artifact.json of a version, the newest by default. Raises BadInput."""
    return read_json(version_folder(repository, version) / ARTIFACT_FILE, _REMEDY)


def verify(repository: Path, version: int | None = None) -> dict[str, Any]:
    """`read_artifact`, once every file has the size and sha256 that it was published with.

    Raises BadInput that names the first file which is missing or altered.
    """
    folder = version_folder(repository, version)
    artifact = read_artifact(repository, version)
    files = artifact.get("files", {})
    missing = sorted(set(_SERVED) - files.keys())
    if missing:
        raise BadInput(f"{folder / ARTIFACT_FILE} does not list {missing[0]}; {_REMEDY}")
    expected_of = {folder / name: expected for name, expected in files.items()}
    for model, graph in ((ENCODER_MODEL, "encoder"), (RAGGED_MODEL, "ragged")):
        expected_of[repository / model / folder.name / ONNX_FILE] = artifact.get(graph, {})
    for path, expected in expected_of.items():
        if not path.is_file():
            raise BadInput(f"{path} is missing from the published version; {_REMEDY}")
        if (found := _fingerprint(path)) != expected:
            raise BadInput(
                f"{path} is damaged: its sha256 is {found['sha256'][:12]}..., expected "
                f"{str(expected.get('sha256'))[:12]}...; {_REMEDY}"
            )
    return artifact


def load_scorer(repository: Path, version: int | None = None) -> Scorer:
    """Scorer of a verified version, for offline use: the served code on the served files."""
    artifact = verify(repository, version)
    folder = version_folder(repository, version)
    tokenizer = Tokenizer.from_json((folder / TOKENIZER_FILE).read_text("utf-8"))
    return Scorer(
        folder / ONNX_FILE,
        tokenizer,
        artifact["device"],
        long_text=LongText.of_artifact(artifact),
        ort_library=folder / ORT_FILE,
    )


def current(repository: Path) -> int:
    return int(version_folder(repository).name)


def serving_config(repository: Path, version: int | None = None) -> str:
    return (repository / PUBLIC_MODEL / CONFIG_FILE).read_text("utf-8")


def served_files(repository: Path, version: int | None = None) -> dict[str, str]:
    folder = version_folder(repository, version)
    return {name: sha256_of(folder / name) for name in (*_SERVED, ARTIFACT_FILE)}
