"""The fuzz targets under their sanitizers, for a few seconds each; `make fuzz` runs them long."""

from __future__ import annotations

import shutil

import pytest

from tests.fuzz.run import SHARES, fuzz

pytestmark = pytest.mark.skipif(
    shutil.which("clang++") is None, reason="clang++ is not on PATH: nothing was fuzzed"
)


@pytest.mark.timeout(900)  # the sanitizer build takes most of it
def test_no_input_of_a_short_run_crashes_a_target() -> None:
    document = fuzz(1_000_000, 8, 1, comments="synthetic")
    assert document["targets"].keys() == SHARES.keys()
    for name, target in document["targets"].items():
        assert target["crash"] is None, name
        assert target["inputs"] > 100, name
        assert target["edges"] > 100, name
