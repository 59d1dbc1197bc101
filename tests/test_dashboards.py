"""Rules and the dashboard: made by their command, sound, and of metrics that somebody gives."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from contract import HOST
from monitor import dashboard
from monitor.exporter import PREFIX, metric_names
from monitor.judge import CHECKS
from monitor.rules import RULES, faster

ROOT = Path(__file__).parent.parent
BOARD = ROOT / "deploy" / "grafana" / "toxicity.json"


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    panels = json.loads(BOARD.read_text("utf-8"))["panels"]
    targets = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(targets) > 20
    return [*targets, *(rule["expr"] for rule in rules())]


def metrics_in(expression: str) -> set[str]:
    """Names of this project's metrics in a query."""
    return set(re.findall(r"\btoxicity[_:][\w:]+", re.sub(r'"[^"]*"', '""', expression)))


def test_the_dashboard_is_what_its_command_writes() -> None:
    assert dashboard.text() == BOARD.read_text("utf-8"), "run python -m monitor.dashboard"


@pytest.mark.slow
def test_panels_and_rules_name_only_metrics_that_are_given(served: Any) -> None:
    """By the real server and the real monitor."""
    from serve.client import score_comments

    score_comments(["hello"], url=f"{HOST}:{served.http_port}")
    with urllib.request.urlopen(f"http://{HOST}:{served.metrics_port}/metrics") as answer:
        text = answer.read().decode()
    server = {
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    }
    server |= set(re.findall(r"^# TYPE (\w+) counter", text, re.MULTILINE))  # of none yet
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = server | recorded | metric_names()
    asked = {name for expression in expressions() for name in metrics_in(expression)}
    assert not asked - known
    assert re.search(r'toxicity_request_duration_seconds_bucket\{.*le="0\.05"', text)


def test_a_metric_that_nobody_gives_is_found() -> None:
    found = metrics_in('sum(rate(toxicity_nonsense_total{check="toxicity_x"}[5m])) / toxicity:a:b')
    assert found == {"toxicity_nonsense_total", "toxicity:a:b"}
    assert not found & metric_names()


def test_alerts_name_checks_that_there_are_and_none_is_forgotten() -> None:
    named = set()
    for rule in rules():
        for pattern in re.findall(rf'{PREFIX}_alarm{{check=~?"([^"]+)"', rule["expr"]):
            named |= {check for check in CHECKS if re.fullmatch(pattern, check)}
            assert any(re.fullmatch(pattern, check) for check in CHECKS), pattern
    # Prometheus sees these for itself, whether or not a monitor runs.
    by_itself = {"latency", "refusals", "versions_differ", "server_down"}
    assert named | by_itself == set(CHECKS) and not named & by_itself


def test_every_alert_has_its_section_in_the_operations_page() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    assert sections.keys() == alerts.keys()
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert re.search(r"^Back: `[^`]+`", sections[name], re.MULTILINE), name


def test_shortened_rules_keep_all_but_their_times() -> None:
    text = RULES.read_text("utf-8")
    assert faster(text, 1) == text
    short = faster(text, 60)
    assert "[5s]" in short and "[360s]" in short and "for: 10s" in short
    assert not re.search(r"\[\d+[mh]\]|for: \d+[mh]", short)
    assert re.sub(r"\d+[smh]\b", "", short) == re.sub(r"\d+[smh]\b", "", text)


@pytest.mark.parametrize(
    "command",
    [
        "promtool check config deploy/prometheus/prometheus.yml",
        "promtool test rules deploy/prometheus/rules_test.yml",
        "amtool check-config deploy/prometheus/alertmanager.yml",
    ],
)
def test_prometheus_takes_the_files(command: str) -> None:
    tool = command.split()[0]
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_tested_alert_by_alert() -> None:
    tests = yaml.safe_load((RULES.parent / "rules_test.yml").read_text("utf-8"))["tests"]
    fired = {
        one["alertname"]
        for test in tests
        for one in test.get("alert_rule_test", [])
        if one["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}
