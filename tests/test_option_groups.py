"""Flags of several commands stand in groups, say what they are and name no machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from export.config import ExportConfig
from export.thresholds import ThresholdsConfig
from export.versions import VersionsConfig
from migrate.config import MigrateConfig
from monitor.config import MonitorConfig
from quality.config import QualityConfig
from quality.models import models_here
from serve.canary import CanaryConfig
from serve.offline.config import ScoreFileConfig
from serve.score import ScoreConfig
from train.artifacts import WEIGHTS_FILE

CONFIGS = (
    *(CanaryConfig, ExportConfig, MigrateConfig, MonitorConfig, QualityConfig),
    *(ScoreConfig, ScoreFileConfig, ThresholdsConfig, VersionsConfig),
)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_flag_has_a_group_and_a_description(config: Any) -> None:
    groups = set()
    for field in dataclasses.fields(config):
        info = field.default
        assert isinstance(info, FieldInfo), field.name
        assert info.description and isinstance(info.json_schema_extra, dict), field.name
        groups.add(info.json_schema_extra["group"])
        assert not isinstance(info.default, Path) or not info.default.is_absolute(), field.name
    assert 1 < len(groups) < 8


def test_the_models_that_are_here_are_found_when_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the module is imported: a default is the same on every machine."""
    assert QualityConfig().models == ()
    monkeypatch.chdir(tmp_path)
    assert models_here() == ("baseline", "baseline-words")
    run = Path("runs/model")
    run.mkdir(parents=True)
    (run / WEIGHTS_FILE).touch()
    assert models_here() == ("runs/model", "baseline", "baseline-words")
