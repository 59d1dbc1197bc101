"""The picture of the dashboard: what the real Prometheus answers to its queries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Exported, free_port

from bench.monitor.dashboard import DashboardBenchConfig, pictured
from bench.monitor.programs import running_prometheus
from contract import HOST, BadInput
from monitor.picture import PictureConfig, draw
from serve import haproxy

ROOT = Path(__file__).parent.parent
BOARD = ROOT / "deploy" / "grafana" / "toxicity.json"
MOST_BYTES = 300_000


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one that scrapes nothing; it knows numbers and the time."""
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    settings = folder / "prometheus.yml"
    settings.write_text("scrape_configs: []\n")
    with running_prometheus(settings, folder, free_port()) as address:
        yield address


@pytest.fixture
def config(prometheus: str, tmp_path: Path) -> Callable[..., PictureConfig]:
    """Of a dashboard with a panel of these queries."""

    def make(*expressions: str, kind: str = "timeseries", **more: Any) -> PictureConfig:
        panel = {
            "type": kind,
            "title": "Some",
            "gridPos": {"x": 0, "y": 1, "w": 24, "h": 8},
            "fieldConfig": {"defaults": {"unit": "s", "min": 0}},
            "targets": [{"expr": one, "legendFormat": "v {{ version }}"} for one in expressions],
        }
        row = {"type": "row", "title": "Row", "gridPos": {"x": 0, "y": 0, "w": 24, "h": 1}}
        path = tmp_path / "board.json"
        path.write_text(json.dumps({"panels": [row, panel]}))
        fields = {"prometheus": prometheus, "dashboard": path, "out": tmp_path / "board.png"}
        return PictureConfig(**{**fields, "minutes": 5, **more})

    return make


def test_lines_are_what_prometheus_answers(config: Callable[..., PictureConfig]) -> None:
    asked = config('label_replace(vector(7), "version", "3", "", "")', "vector(time())")
    _, panel = draw(asked)
    first, second = panel.queries
    (line,) = first.lines
    assert line.legend == "v 3" and set(line.values) == {7}
    assert 100 < len(line.times) < 400
    assert (line.times[-1] - line.times[0]).astype(int) in range(295, 301)
    assert asked.out.read_bytes().startswith(b"\x89PNG") and len(second.lines) == 1
    draw(config("time()", kind="stat"))


@pytest.mark.parametrize(
    "nothing", ["nobody_gives_it", "vector(0) / 0", "rate(a[$__rate_interval])"]
)
def test_a_query_without_data_is_an_error(
    nothing: str, config: Callable[..., PictureConfig]
) -> None:
    asked = config("vector(1)", nothing)
    with pytest.raises(
        BadInput, match=r"^board\.json has 1 without data of its queries, .* 'Some': "
    ):
        draw(asked)
    assert not asked.out.exists()
    draw(config("vector(1)", nothing, allow_empty=True))
    draw(config(nothing, kind="stat", allow_empty=True))
    assert asked.out.exists()


def test_what_cannot_be_asked_or_read_is_one_line(
    config: Callable[..., PictureConfig], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"answers sum\( with status 400, expected 200"):
        draw(config("sum("))
    for wrong in (f"http://{HOST}:{free_port()}", "localhost:9090", "here"):
        with pytest.raises(BadInput, match=r"does not answer \(.*with --prometheus$"):
            draw(config("vector(1)", prometheus=wrong))
    for text in ("{}", '{"panels": [{}]}', '{"panels": 1}'):
        (tmp_path / "no.json").write_text(text)
        with pytest.raises(BadInput, match=r"no\.json is no dashboard, expected one"):
            draw(config("vector(1)", dashboard=tmp_path / "no.json"))


@pytest.mark.slow
@pytest.mark.skipif(not haproxy.found(), reason="haproxy is not installed")
@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
def test_every_panel_shows_data_of_what_really_serves(
    exported_of: Callable[[str], Exported], tmp_path: Path
) -> None:
    """Servers behind haproxy, load, labels, curated sets, the monitor, Prometheus."""
    exported, _ = exported_of("fp32")
    out = tmp_path / "dashboard.png"
    drawn = pictured(
        DashboardBenchConfig(
            repository=exported.repository, comments="synthetic:400", minutes=0.7, rate=8, out=out
        )
    )
    wanted = json.loads(BOARD.read_text("utf-8"))["panels"]
    assert [panel.title for panel in drawn] == [panel.get("title", "") for panel in wanted]
    for panel, one in zip(drawn, wanted, strict=True):
        assert len(panel.queries) == len(one.get("targets", [])), panel.title
        assert all(query.lines for query in panel.queries), panel.title
    assert out.stat().st_size < MOST_BYTES


def test_the_picture_of_the_page_is_small() -> None:
    assert (ROOT / "docs/images/dashboard.png").stat().st_size < MOST_BYTES
