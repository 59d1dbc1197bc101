"""Tuning: what is better by more than the noise is written, and stays for later versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TinyModel
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from bench.serving.tune import TuneConfig, bars, choose
from bench.traffic.comments import SYNTHETIC
from contract import MAX_BATCH, PUBLIC_MODEL
from export.model_config import CONFIG_FILE, Tuning
from export.repository import read_tuning, served_tuning, verify
from export.switch import tune


def test_only_a_gain_above_the_margin_replaces_what_stands() -> None:
    config = TuneConfig(instances=(1, 2), window_ms=(0, 2), max_batch=(16, 64), comments=SYNTHETIC)
    capacity = {1: 100.0, 2: 150.0}

    def measure(tuning: Tuning) -> dict[str, float]:
        gain = 1.04 if tuning.window_ms else 1.0  # within the margin of 0.05
        gain *= 1.2 if tuning.max_batch == 16 else 1.0
        return {"capacity_rps": gain * capacity[tuning.instances]}

    best, rows = choose(config, Tuning(1), measure)
    assert best == Tuning(2, 0, 16)
    assert [row["capacity_rps"] for row in rows] == [100.0, 150.0, 156.0, 180.0]
    assert bars(rows)["tunings_with_capacity"]["holds"]
    assert not bars([*rows, {"capacity_rps": 0.0}])["tunings_with_capacity"]["holds"]


@pytest.mark.slow
def test_what_was_chosen_is_served_and_stays(tiny_model: TinyModel, tmp_path: Path) -> None:
    tiny_model.publish(tmp_path)
    assert read_tuning(tmp_path) is None
    chosen = Tuning(3, 2.5, 16)
    tune(tmp_path, chosen, {"rows": [1]})
    for _ in range(2):
        served = text_format.Parse(
            (tmp_path / PUBLIC_MODEL / CONFIG_FILE).read_text("utf-8"), pb.ModelConfig()
        )
        assert served.instance_group[0].count == 3
        assert served.dynamic_batching.max_queue_delay_microseconds == 2500
        assert served.parameters[MAX_BATCH].string_value == "16"
        assert read_tuning(tmp_path) == served_tuning(tmp_path) == chosen
        verify(tmp_path)
        tiny_model.publish(tmp_path, instances=None)
    path = tmp_path / PUBLIC_MODEL / "tuning.json"
    assert json.loads(path.read_text()) == {
        "tuning": {"instances": 3, "window_ms": 2.5, "max_batch": 16, "batching": True},
        "evidence": {"rows": [1]},
    }
    path.write_text("{")  # evidence for people: what serves does not come from it
    assert served_tuning(tmp_path) == chosen
    verify(tmp_path)
