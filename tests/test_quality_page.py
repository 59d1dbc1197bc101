"""The evaluation's page: verdict, contents, coloured tables, and that it fits a telephone."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality.metrics import bootstrap, classification, interval
from quality.page import group_heat, made, page
from quality.report import screen
from quality.verdict import verdict

EVALUATION = Path(__file__).parent.parent / "bench/results/eval/evaluation.json"


@pytest.fixture
def document() -> dict[str, Any]:
    """The evaluation that the pages' tables are from."""
    found: dict[str, Any] = json.loads(EVALUATION.read_text("utf-8"))
    return found


# --- Intervals ---------------------------------------------------------------------------
@given(st.integers(0, 10_000), st.integers(2, 60))
def test_each_value_is_inside_its_interval_even_one_that_resampling_moves(
    seed: int, n: int
) -> None:
    """ECE of resamples is above that of the comments: resampling makes bins noisier."""
    rng = np.random.default_rng(seed)
    labels, logits = (rng.random(n) < 0.3).astype(float), rng.normal(size=n)
    values = bootstrap(lambda w: classification(labels, logits, w), n, resamples=100, seed=0)
    for name, found in (("ece", values["ece"]),):
        shown = interval(found)
        assert shown["low"] is not None and shown["high"] is not None, name
        assert shown["low"] <= shown["value"] <= shown["high"], name


# --- Verdict -----------------------------------------------------------------------------
def test_the_verdict_says_what_held_what_missed_and_whether_a_baseline_is_beaten(
    document: dict[str, Any],
) -> None:
    first, lines = next(iter(document["models"])), verdict(document)
    missed = [name for name, bar in document["bars"].items() if not bar["holds"]]
    assert missed
    held = len(document["bars"]) - len(missed)
    assert lines[0].state == "miss"
    assert lines[0].words == f"{first}: {held} of {len(document['bars'])} bars hold"
    for name in missed:
        assert [line for line in lines if line.state == "miss" and line.words.startswith(name)]
    for name in document["results"]:
        assert [line for line in lines if line.words.startswith(f"{name}: AUROC 0.")]
    (test,) = (line for line in lines if line.words.startswith("test: AUROC"))
    assert test.state == "pass" and "above baseline" in test.words
    assert screen(document).startswith("verdict\nmiss  ")

    changed = copy.deepcopy(document)
    for bar in changed["bars"].values():
        bar["holds"] = True
    beaten = changed["results"]["test"]["baseline"]["difference"]["auroc"]
    beaten |= {"value": 0.02, "low": 0.01, "high": 0.03}
    del changed["checklist"], changed["misspelled"]
    changed["thresholds"][first]["precision 0.9"] = None
    words = {line.words: line.state for line in verdict(changed)}
    total = len(changed["bars"])
    assert words[f"{first}: {total} of {total} bars hold"] == "pass"
    assert any("BELOW baseline," in w and state == "miss" for w, state in words.items())
    assert words["not measured, for want of --misspell, --checklist"] == "note"
    assert words["not reachable on validation: precision 0.9"] == "note"


# --- The page ----------------------------------------------------------------------------
def test_the_contents_lead_to_every_section(document: dict[str, Any]) -> None:
    text = page(document, {})
    links, headings = re.findall(r'href="#([^"]+)"', text), re.findall(r'<h2 id="([^"]+)"', text)
    assert links == headings and len(set(headings)) == len(headings) > 10
    assert text.index('class="verdict"') < text.index("<nav") < text.index("<table")
    assert text.count("<table") == text.count('<div class="wide"')


def test_the_page_says_when_where_and_with_what(document: dict[str, Any]) -> None:
    of_before = {
        k: v for k, v in document.items() if k not in ("measured_at", "hardware", "versions")
    }
    assert "not stated" in made(of_before)
    document |= {
        "measured_at": "2026-01-02T03:04:05+00:00",
        "hardware": {"cpu": "A CPU", "cores": 2, "isa": ["avx2"], "memory_gib": 8},
        "versions": {"python": "3.11", "torch": "2.6"},
    }
    said = "Measured 2026-01-02T03:04:05+00:00 on A CPU, 2 cores, 8 GiB (avx2); python 3.11, torch"
    assert said in page(document, {})


def test_the_worst_group_has_the_deepest_colour(document: dict[str, Any]) -> None:
    heats = {heat.title: heat for heat in group_heat(document)}
    heat = heats["eval_nontoxic_identity_vs_random, by group"]
    assert [group for group, _ in heat.rows] == ["all", "identity_term", "random"]
    assert len(heat.columns) == len(document["models"]) * 3  # no toxic comment: FPR alone
    text = page(document, {})
    start = text.index('aria-label="eval_nontoxic_identity_vs_random, by group"')
    table = text[start : text.index("</table>", start)]
    cells = re.findall(r"rgba\(200,60,40,([\d.]+)\)\">([\d.]+) ", table)
    assert len(cells) == 3 * len(heat.columns)
    by_value = sorted((float(value), float(opacity)) for opacity, value in cells)
    assert [opacity for _, opacity in by_value] == sorted(opacity for _, opacity in by_value)
    assert by_value[-1][1] == 0.55


@pytest.mark.slow
def test_the_page_fits_a_telephone_and_its_tables_scroll(
    document: dict[str, Any], tmp_path: Path
) -> None:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    driver_program = shutil.which("chromedriver")
    if not driver_program:
        pytest.skip("chromedriver is not installed")
    path = tmp_path / "evaluation.html"
    path.write_text(page(document, {}), "utf-8")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(driver_program))
    try:
        size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(path.as_uri())
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
        wide = driver.execute_script(
            "return [...document.querySelectorAll('.wide')]"
            ".map(one => [one.clientWidth, one.scrollWidth])"
        )
        assert all(shown <= 360 for shown, _ in wide)
        assert sum(held > shown for shown, held in wide) > 5
    finally:
        driver.quit()
