"""The real tritonserver: one text -> score truth, clear refusals, reload, stop."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from conftest import TinyModel, make_tiny_model
from tritonclient.utils import InferenceServerException

from contract import (
    ARTIFACT_FILE,
    CACHE_BYTES,
    FP32_INVARIANCE_ATOL,
    FP32_LOGIT_ATOL,
    HOST,
    LOGIT,
    MAX_BATCH,
    MAX_COMMENT_BYTES,
    MAX_REQUEST_BYTES,
    MAX_REQUEST_COMMENTS,
    MODEL_VERSION,
    ONNX_FILE,
    ORT_FILE,
    PUBLIC_MODEL,
    TEXT,
    TOKENIZER_FILE,
    BadInput,
    ToxicityError,
)
from core.build import LIBRARY
from export.repository import load_scorer
from export.scorer import probability
from serve import triton, view
from serve.client import Protocol, score_comments
from serve.process import started_s

MakeConfig = Callable[[Path], triton.ServeConfig]
PROTOCOLS: tuple[Protocol, ...] = ("http", "grpc")


def _url(config: triton.ServeConfig, protocol: Protocol) -> str:
    return f"{HOST}:{config.http_port if protocol == 'http' else config.grpc_port}"


def _post(config: triton.ServeConfig, body: bytes) -> tuple[int, dict[str, Any]]:
    url = f"http://{HOST}:{config.http_port}/v2/models/{PUBLIC_MODEL}/infer"
    try:
        with urllib.request.urlopen(url, data=body, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def _body(texts: list[Any], shape: list[int] | None = None) -> bytes:
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": shape or [len(texts), 1], "data": texts}
    return json.dumps({"inputs": [tensor]}).encode()


# --- One truth ---------------------------------------------------------------------------
def test_http_equals_grpc_equals_offline_equals_pytorch(
    served: triton.ServeConfig, tiny_model: TinyModel, comments: list[str]
) -> None:
    offline = load_scorer(served.repository).score(comments).logit
    pytorch = np.array([tiny_model.logit(text) for text in comments], np.float32)
    np.testing.assert_allclose(offline, pytorch, atol=FP32_LOGIT_ATOL, rtol=0)
    for protocol in PROTOCOLS:
        live = score_comments(comments, protocol=protocol, url=_url(served, protocol))
        np.testing.assert_allclose(live.logit, offline, atol=FP32_INVARIANCE_ATOL, rtol=0)
        np.testing.assert_array_equal(live.probability, probability(live.logit))
        assert set(live.model_version) == {"1"}


def test_concurrent_requests_get_their_own_answers(
    served: triton.ServeConfig, comments: list[str]
) -> None:
    expected = load_scorer(served.repository).score(comments).logit

    def one(at: int) -> float:
        protocol = PROTOCOLS[at % 2]
        return float(
            score_comments([comments[at]], protocol=protocol, url=_url(served, protocol)).logit[0]
        )

    with ThreadPoolExecutor(16) as pool:
        live = list(pool.map(one, range(len(comments))))
    np.testing.assert_allclose(live, expected, atol=FP32_INVARIANCE_ATOL, rtol=0)


def test_curl_form_answers_with_the_contracts_names(served: triton.ServeConfig) -> None:
    status, answer = _post(served, _body(["you are kind", ""]))
    assert status == 200
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs.keys() == {"probability", LOGIT, MODEL_VERSION}
    assert all(output["shape"] == [2, 1] for output in outputs.values())
    assert outputs[MODEL_VERSION]["data"] == ["1", "1"]


# --- What cannot be scored ---------------------------------------------------------------
REFUSED: dict[str, tuple[Any, str, str]] = {
    "wrong type": (np.zeros((1, 1), np.int32), "INT32", "data-type is 'INT32'.* expects 'BYTES'"),
    "no batch axis": (np.array([b"a"], object), "BYTES", r"Expected \[-1,1\], got \[1\]"),
    "two columns": (np.array([[b"a", b"b"]], object), "BYTES", r"Expected \[-1,1\], got \[1,2\]"),
    "empty batch": (np.empty((0, 1), object), "BYTES", "expected 1 string elements .* got 0"),
    "batch too large": (
        np.full((MAX_REQUEST_COMMENTS + 1, 1), b"a", object),
        "BYTES",
        f"batch-size must be <= {MAX_REQUEST_COMMENTS}",
    ),
    "bad UTF-8": (
        np.array([[b"fine"], [b"ab\xff"]], object),
        "BYTES",
        r"comment 1 is not valid UTF-8 \(byte 0xff at 2\), expected UTF-8",
    ),
    "many megabytes": (
        np.array([[b"a " * (10 << 20)]], object),
        "BYTES",
        f"comment 0 is {20 << 20} bytes long, expected at most {MAX_COMMENT_BYTES}",
    ),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", REFUSED)
def test_refusal_is_clear_and_the_clients_fault(
    served: triton.ServeConfig, protocol: Protocol, case: str
) -> None:
    data, datatype, message = REFUSED[case]
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    tensor = module.InferInput(TEXT, list(data.shape), datatype)
    tensor.set_data_from_numpy(data)
    with (
        module.InferenceServerClient(_url(served, protocol)) as client,
        pytest.raises(InferenceServerException, match=message) as caught,
    ):
        client.infer(PUBLIC_MODEL, [tensor])
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert len(caught.value.message().splitlines()) == 1


def test_json_body_past_the_usual_stack_does_not_end_the_server(
    served: triton.ServeConfig,
) -> None:
    status, answer = _post(served, _body(["a " * (10 << 20)]))
    assert status == 400
    assert "expected at most" in answer["error"]


def test_text_of_a_request_has_a_bound_of_its_own(served: triton.ServeConfig) -> None:
    """A stock image has no door before it, and gRPC's cannot read messages."""
    most = ["b " * (MAX_COMMENT_BYTES // 2)] * (MAX_REQUEST_BYTES // MAX_COMMENT_BYTES)
    assert _post(served, _body(most))[0] == 200
    status, answer = _post(served, _body([*most, "b"]))
    assert status == 400
    assert f"more than {MAX_REQUEST_BYTES} bytes of text" in answer["error"]


def test_bad_comment_fails_alone(served: triton.ServeConfig) -> None:
    good = _body(["?"])
    bad = good.replace(b"?", b"\xff")

    def send(at: int) -> int:
        return _post(served, good if at % 3 else bad)[0]

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(send, range(96)))
    assert statuses == [200 if at % 3 else 400 for at in range(96)]


@pytest.mark.parametrize("body", [b"{", b'{"inputs": 3}', _body([None]), _body(["\ud800"])])
def test_malformed_json_gets_a_reason(served: triton.ServeConfig, body: bytes) -> None:
    status, answer = _post(served, body)
    assert status >= 400
    assert "parse" in answer["error"]


def test_client_names_the_comment_that_cannot_be_sent() -> None:
    with pytest.raises(BadInput, match="comment 1 holds a lone surrogate at character 1"):
        score_comments(["a", "b\ud800"])
    with pytest.raises(BadInput, match=f"comment 0 is {MAX_COMMENT_BYTES + 1} bytes long"):
        score_comments(["a" * (MAX_COMMENT_BYTES + 1)])


# --- Overload ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def slow(
    tmp_path_factory: pytest.TempPathFactory, make_server_config: MakeConfig
) -> triton.ServeConfig:
    """A server whose model takes a millisecond and more for each of `_long_comments`."""
    folder = tmp_path_factory.mktemp("slow")
    model = make_tiny_model(folder, seed=0, d_model=128, n_layers=4, max_len=256)
    model.publish(folder / "repository")
    config = make_server_config(folder / "repository")
    triton.start(config)
    return config


_numbers = itertools.count()


def _long_comments(count: int) -> list[str]:
    """No two of a session are alike, or the cache would know the second one."""
    words = "you are a kind awful person and the idea is".split()
    digits = (f"{next(_numbers):06}" for _ in range(count))
    return [" ".join(words[int(digit)] for digit in number) + " you" * 300 for number in digits]


def test_overload_is_refused_in_words_and_passes(slow: triton.ServeConfig) -> None:
    config = slow
    bodies = [_body(_long_comments(64)) for _ in range(16)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        results = list(pool.map(lambda body: _post(config, body), bodies))
    refused = [answer["error"] for status, answer in results if status == 503]
    assert refused and all("overloaded" in reason for reason in refused)
    assert [status for status, _ in results].count(200) + len(refused) == len(bodies)
    assert _post(config, _body(["calm again"]))[0] == 200
    counted = f'toxicity_requests_refused_total{{reason="overloaded",version="1"}} {len(refused)}'
    assert counted in _metrics(config)


def test_requests_whose_clients_gave_up_are_dropped(slow: triton.ServeConfig) -> None:
    """They wait in Triton while a long batch runs, and are neither scored nor refused."""
    served = slow
    long = _body(_long_comments(MAX_REQUEST_COMMENTS))
    tensor = tritonclient.grpc.InferInput(TEXT, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"never mind"]], np.object_))
    counted = re.compile(r"toxicity_(?:comments|requests_refused)_total{.*} (\d+)")

    def is_answered(client: tritonclient.grpc.InferenceServerClient) -> bool:
        try:
            client.infer(PUBLIC_MODEL, [tensor], client_timeout=0.05)
        except InferenceServerException as error:
            assert "Deadline Exceeded" in str(error)
            return False
        return True

    before = sum(map(int, counted.findall(_metrics(served))))
    with (
        tritonclient.grpc.InferenceServerClient(_url(served, "grpc")) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(_post, served, long)
        answered = []
        while not running.done():
            answered.append(is_answered(client))
    assert running.result()[0] == 200
    gave_up = answered.count(False)
    assert gave_up >= 4
    time.sleep(0.5)
    taken = sum(map(int, counted.findall(_metrics(served)))) - before - MAX_REQUEST_COMMENTS
    assert taken - answered.count(True) <= gave_up / 2  # one may be taken as its time ends


def _metrics(config: triton.ServeConfig) -> str:
    url = f"http://{HOST}:{config.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read(), "utf-8")


def test_counters_on_the_metrics_port(
    tiny_model: TinyModel, tmp_path: Path, make_server_config: MakeConfig
) -> None:
    tiny_model.publish(tmp_path / "repository")
    config = make_server_config(tmp_path / "repository")
    triton.start(config)  # its example is the first counted, its check of readiness is not
    _post(config, _body(["", "one", "word " * 100]))
    triton_answered = time.monotonic() + 10
    while 'toxicity_comments_total{version="1"} 4' not in (metrics := _metrics(config)):
        assert time.monotonic() < triton_answered, metrics
    assert 'toxicity_comments_cut_total{version="1"} 1' in metrics
    assert 'toxicity_requests_total{version="1"} 2' in metrics
    assert f'nv_inference_count{{model="{PUBLIC_MODEL}",version="1"}} 5' in metrics
    triton.stop(config)


# --- Reload ------------------------------------------------------------------------------
def test_reload_under_load_fails_no_request(
    tiny_model: TinyModel,
    other_model: TinyModel,
    tmp_path: Path,
    make_server_config: MakeConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    repository = tmp_path / "repository"
    tiny_model.publish(repository)
    config = make_server_config(repository)
    triton.start(config)
    text = "you are a kind person"
    truth = {"1": tiny_model.logit(text), "2": other_model.logit(text)}
    assert abs(truth["1"] - truth["2"]) > 0.01
    done = threading.Event()

    def ask(protocol: Protocol) -> list[tuple[str, float]]:
        answers = []
        while not done.is_set():
            scores = score_comments([text], protocol=protocol, url=_url(config, protocol))
            answers.append((scores.model_version[0], float(scores.logit[0])))
        return answers

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, PROTOCOLS[i % 2]) for i in range(4)]
        try:
            other_model.publish(repository)
            triton.start(config)
        finally:
            done.set()
        answers = [answer for future in asking for answer in future.result()]
    assert "version 1 answers until" in capsys.readouterr().out
    assert {version for version, _ in answers} >= {"1"}
    for version, logit in answers:
        assert logit == pytest.approx(truth[version], abs=FP32_LOGIT_ATOL)
    assert score_comments([text], url=_url(config, "http")).model_version == ["2"]

    # A version that cannot load: the running one goes on.
    broken = dataclasses.replace(tiny_model, ragged_path=tmp_path / "broken.onnx")
    broken.ragged_path.write_bytes(b"no model")
    broken.publish(repository)
    with pytest.raises(BadInput, match=r"could not load .* the old one still answers"):
        triton.start(config)
    assert score_comments([text], url=_url(config, "http")).model_version == ["2"]
    triton.stop(config)
    with pytest.raises(BadInput, match="tritonserver ended with status 1 before it was ready"):
        triton.start(config)
    assert triton.running(config) is None


# --- Starting and stopping ---------------------------------------------------------------
def test_second_start_says_so_and_first_example_is_real(
    served: triton.ServeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    triton.start(served)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "already serving version 1"
    command = next(line for line in lines if line.startswith("$ curl"))[2:]
    said = subprocess.run(command, shell=True, capture_output=True, check=True).stdout
    assert json.loads(said) == json.loads(lines[-1])


def test_damaged_model_is_not_served(
    tiny_model: TinyModel, tmp_path: Path, make_server_config: MakeConfig
) -> None:
    config = make_server_config(tmp_path)
    with pytest.raises(BadInput, match=r"no published model.*make train export"):
        triton.start(config)
    tiny_model.publish(tmp_path)
    path = tmp_path / PUBLIC_MODEL / "1" / ONNX_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BadInput, match=r"model\.onnx is damaged"):
        triton.start(config)
    assert triton.running(config) is None


def test_taken_port_is_named_with_its_owner(
    served: triton.ServeConfig, make_server_config: MakeConfig
) -> None:
    config = make_server_config(served.repository)
    with socket.socket() as other:
        other.bind((HOST, config.grpc_port))
        other.listen()
        with pytest.raises(
            BadInput,
            match=f"port {config.grpc_port} is taken by process {os.getpid()}.*--grpc-port",
        ):
            triton.start(config)


def test_killed_server_leaves_nothing_and_starts_again(
    tiny_model: TinyModel, tmp_path: Path, make_server_config: MakeConfig
) -> None:
    tiny_model.publish(tmp_path / "repository")
    config = make_server_config(tmp_path / "repository")
    triton.start(config)
    server = psutil.Process(triton.running(config).pid)
    server.kill()
    psutil.wait_procs([server], timeout=10)
    assert triton.running(config) is None
    with pytest.raises(ToxicityError, match=r"no server answers at .*make serve"):
        score_comments(["x"], url=_url(config, "http"))
    triton.start(config)
    triton.stop(config)
    assert triton.running(config) is None
    assert not config.process_file.exists()


def test_recycled_process_id_is_never_killed(
    tmp_path: Path, make_server_config: MakeConfig
) -> None:
    config = make_server_config(tmp_path)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        server = triton.Server(bystander.pid, 1.0, str(tmp_path), 1, 2, 3)
        config.process_file.write_text(json.dumps(dataclasses.asdict(server)))
        triton.stop(config)
        assert bystander.poll() is None
    finally:
        bystander.send_signal(signal.SIGKILL)
        bystander.wait()


def test_a_clock_that_is_set_hides_no_process(
    tmp_path: Path, make_server_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_server_config(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        try:
            began = started_s(process.pid)
            uptime = float(Path("/proc/uptime").read_text().split()[0])
            assert 0 <= uptime - began < 300
            server = triton.Server(process.pid, began, str(tmp_path), 1, 2, 3)
            config.process_file.write_text(json.dumps(dataclasses.asdict(server)))
            hour_later = psutil.boot_time() + 3600  # as psutil sees it once the clock was set
            monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: hour_later)
            found = triton.running(config)
            assert found is not None and found.pid == process.pid
        finally:
            process.kill()
            process.wait()
    assert triton.running(config) is None


# --- Command lines -----------------------------------------------------------------------
def _run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_score_command(served: triton.ServeConfig, protocol: Protocol) -> None:
    server = ["--protocol", protocol, "--url", _url(served, protocol)]
    expected = score_comments(["you are kind", ""], url=_url(served, "http"))
    done = _run("serve.score", "--json", *server, "-", input="you are kind\n\n")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[TEXT] for row in rows] == ["you are kind", ""]
    assert [row[LOGIT] for row in rows] == pytest.approx(expected.logit.tolist(), abs=1e-5)
    table = _run("serve.score", *server, "you are kind").stdout.splitlines()
    assert len(table) == 2
    assert table[1].split()[0] == f"{expected.probability[0]:.4f}"


@pytest.mark.slow
def test_commands_end_with_one_line_and_status_2(tmp_path: Path) -> None:
    for arguments in (
        ["serve.score", "--url", f"{HOST}:1", "hello"],
        ["serve.score"],
        ["serve.triton", "start", "--repository", str(tmp_path)],
        ["serve.triton", "restart"],
        ["serve.triton", "stop", "--http-port", "x"],
    ):
        done = _run(*arguments)
        assert done.returncode == 2, arguments
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


# --- What it loads -----------------------------------------------------------------------
def test_server_runs_the_files_of_its_version(served: triton.ServeConfig) -> None:
    folder = (served.run_dir / view.FOLDER / PUBLIC_MODEL / "1").resolve()  # its private copy
    server = psutil.Process(triton.running(served).pid)
    assert not server.children(recursive=True)  # one process, whose end nobody can miss
    mapped = {Path(part.path) for part in server.memory_maps()}
    assert {folder / LIBRARY, folder / ORT_FILE} <= mapped


@pytest.mark.parametrize(
    ("name", "missing", "reason"),
    [
        (LIBRARY, True, "unable to find backend library for backend 'toxicity'"),
        (LIBRARY, False, f"{LIBRARY}: invalid ELF header"),
        *((name, True, name) for name in (ORT_FILE, ONNX_FILE, TOKENIZER_FILE, ARTIFACT_FILE)),
        *((name, False, f"{name} is damaged") for name in (ORT_FILE, ONNX_FILE, TOKENIZER_FILE)),
        (ARTIFACT_FILE, False, ARTIFACT_FILE),
    ],
)
def test_backend_itself_refuses_what_the_manifest_does_not_say(
    tiny_model: TinyModel,
    tmp_path: Path,
    make_server_config: MakeConfig,
    name: str,
    missing: bool,
    reason: str,
) -> None:
    """A stock image knows nothing of `verify`."""
    tiny_model.publish(tmp_path / "repository")

    def damage(models: Path) -> None:
        path = models / PUBLIC_MODEL / "1" / name
        path.chmod(0o644)
        if missing:
            path.unlink()
            return
        data = bytearray(path.read_bytes())
        # Of the library the first bytes: the loader knows nothing of a checksum.
        data[slice(0, 2) if name == LIBRARY else slice(-2, None)] = b"!!"
        path.write_bytes(data)

    config = make_server_config(tmp_path / "repository")
    with pytest.raises(BadInput, match=reason) as caught:
        triton.launch(config, damage)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("key", "value"), [(CACHE_BYTES, "-1"), (CACHE_BYTES, "many"), (MAX_BATCH, "99999")]
)
def test_parameter_that_no_export_writes_is_refused_by_name(
    tiny_model: TinyModel, tmp_path: Path, make_server_config: MakeConfig, key: str, value: str
) -> None:
    tiny_model.publish(tmp_path / "repository")

    def change(models: Path) -> None:
        path = models / PUBLIC_MODEL / "config.pbtxt"
        text = path.read_text("utf-8")
        changed = re.sub(rf'("{key}"[^"]*)"\d+"', rf'\1"{value}"', text)
        assert changed != text
        path.write_text(changed, "utf-8")

    with pytest.raises(BadInput, match=f"{key}.*'{value}'"):
        triton.launch(make_server_config(tmp_path / "repository"), change)
