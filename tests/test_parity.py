"""One text -> score truth: PyTorch, the published graph and the live server, both precisions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Exported

from bench.model.parity import bars, compare
from bench.traffic.comments import SYNTHETIC, load_pool
from export.repository import load_scorer
from serve import triton
from serve.client import score_comments
from train.artifacts import load_checkpoint
from train.data.batches import TokenizedOnTheFly
from train.validation import logits_of

ROOT = Path(__file__).parent.parent
COUNT = 300


@pytest.fixture(scope="module", params=["fp32", "int8"])
def live(
    request: pytest.FixtureRequest,
    exported_of: Callable[[str], Exported],
    make_server_config: Callable[[Path], triton.ServeConfig],
) -> tuple[str, triton.ServeConfig]:
    """A trained model, exported in one precision and served."""
    config = make_server_config(exported_of(request.param)[0].repository)
    triton.start(config)
    return request.param, config


def test_three_ways_give_one_score(live: tuple[str, triton.ServeConfig], trained_run: Path) -> None:
    precision, config = live
    texts = load_pool(SYNTHETIC, size=COUNT).texts
    checkpoint = load_checkpoint(trained_run)
    ids = TokenizedOnTheFly(texts, checkpoint.tokenizer)
    torch_logits = logits_of(checkpoint.model, ids, np.arange(COUNT))
    onnx_logits = load_scorer(config.repository).score(texts).logit
    http = score_comments(texts, url=f"127.0.0.1:{config.http_port}").logit
    grpc = score_comments(texts, protocol="grpc", url=f"127.0.0.1:{config.grpc_port}").logit
    measured = compare(torch_logits, http, grpc)
    assert all(bar["holds"] for bar in bars(measured, COUNT, precision).values()), measured
    assert np.ptp(torch_logits) > 1
    if precision == "int8":
        assert (onnx_logits == http).all()
        assert measured["max_logit_difference"] > 1e-4  # it really is another arithmetic
    else:
        np.testing.assert_allclose(http, onnx_logits, atol=1e-5, rtol=0)


def test_command_prints_bars_that_hold(
    live: tuple[str, triton.ServeConfig], trained_run: Path
) -> None:
    precision, config = live
    command = [
        sys.executable,
        "-m",
        "bench.model.parity",
        "--comments",
        SYNTHETIC,
        "--count",
        "100",
    ]
    command += ["--run-dir", str(config.run_dir), "--json"]
    done = subprocess.run(
        [*command, "--checkpoint", str(trained_run)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["artifact"]["precision"] == precision
    assert document["comments"]["comments"] == 100


def test_another_checkpoint_is_refused(
    live: tuple[str, triton.ServeConfig], tmp_path: Path
) -> None:
    other = tmp_path / "model"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"other weights")
    command = [sys.executable, "-m", "bench.model.parity", "--comments", SYNTHETIC]
    command += ["--run-dir", str(live[1].run_dir), "--checkpoint", str(other)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "was not exported from" in done.stderr


def test_bars_go_red() -> None:
    reference = np.array([-2.0, -0.00001, 3.0], np.float32)
    served = np.array([-2.0, 0.00001, 3.0], np.float32)
    measured = compare(reference, served, served + np.float32(1e-3))
    red = {name for name, bar in bars(measured, 3, "fp32").items() if not bar["holds"]}
    assert red == {"flipped_decisions", "max_difference_alone_to_batched"}
    measured = compare(reference, served + np.float32(1e-3), served + np.float32(1e-3))
    assert not bars(measured, 3, "fp32")["max_logit_difference"]["holds"]
