"""TorchScript: the file is the PyTorch model at every shape, and its gate can go red."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import contract
import export.__main__ as export_main
from contract import GateFailed
from export.config import ExportConfig
from export.gates import parity
from export.graph.torchscript import TORCHSCRIPT_FILE, torchscript_runner, write_torchscript
from tests.conftest import TinyModel
from train.model import ToxicityEncoder


@pytest.fixture(scope="module")
def written(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torchscript") / TORCHSCRIPT_FILE
    write_torchscript(tiny_model.model, path)
    return path


def gate(tiny_model: TinyModel, path: Path) -> parity.Finding:
    words = [parity.Comment("words", range(len(tiny_model.tokenizer.vocabulary)))]
    return parity.shape_parity(
        "torchscript_shapes",
        contract.TORCHSCRIPT_LOGIT_ATOL,
        parity.torch_runner(tiny_model.model),
        torchscript_runner(path),
        words,
        max_len=tiny_model.tokenizer.max_len,
        seed=0,
    )


def test_equals_pytorch_at_every_shape(tiny_model: TinyModel, written: Path) -> None:
    finding = gate(tiny_model, written)
    assert finding.holds, finding


def test_also_where_gradients_are_on(tiny_model: TinyModel, written: Path) -> None:
    """nn.MultiheadAttention has another path there, and a server may not ask for inference."""
    ids = torch.randint(3, 20, (5, 9))
    mask = torch.ones_like(ids)
    mask[1, 1:] = mask[2, 4:] = 0
    loaded = torch.jit.load(written)
    with torch.inference_mode():
        expected = tiny_model.model(ids, mask)
    torch.testing.assert_close(loaded(ids, mask), expected, atol=1e-5, rtol=0)


def test_one_corrupted_weight_turns_the_gate_red(
    tiny_model: TinyModel, written: Path, tmp_path: Path
) -> None:
    weight = tiny_model.model.blocks[1].mlp[2].weight.detach().numpy()
    corrupted = weight.copy()
    corrupted[3, 5] += 0.1
    bad = tmp_path / TORCHSCRIPT_FILE
    buffer = io.BytesIO()
    replaced = 0
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(buffer, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if data == weight.tobytes():
                data, replaced = corrupted.tobytes(), replaced + 1
            target.writestr(entry, data)
    assert replaced == 1
    bad.write_bytes(buffer.getvalue())
    finding = gate(tiny_model, bad)
    assert not finding.holds
    assert finding.worst.startswith("batch ")


def test_only_the_deprecation_is_silenced(tiny_model: TinyModel, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_torchscript(tiny_model.model, tmp_path / "model.pt")
        torchscript_runner(tmp_path / "model.pt")


def test_export_writes_it_and_a_failed_gate_publishes_nothing(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExportConfig(
        checkpoint=trained_run,
        repository=tmp_path / "repository",
        out=tmp_path / "out",
        precision="fp32",
        instances=1,
        torchscript=True,
    )

    def corrupted(model: ToxicityEncoder, path: Path) -> None:
        with torch.no_grad():
            bias = model.blocks[0].mlp[0].bias
            bias[0] += 1
            write_torchscript(model, path)
            bias[0] -= 1

    with monkeypatch.context() as patch:
        patch.setattr(export_main, "write_torchscript", corrupted)
        with pytest.raises(GateFailed, match=r"gate torchscript_shapes is .*batch \d+ x length"):
            export_main.export(config)
    assert not config.repository.exists()

    report = export_main.export(config)
    gates = {entry["gate"]: entry for entry in report["gates"]}
    assert gates["torchscript_shapes"]["holds"]
    path = config.out / TORCHSCRIPT_FILE
    assert report["torchscript"]["bytes"] == path.stat().st_size
    assert json.loads((config.out / "report.json").read_text())["torchscript"]
    one = np.array([[contract.CLS_ID]])
    assert torchscript_runner(path)(one, np.ones_like(one)).shape == (1,)
