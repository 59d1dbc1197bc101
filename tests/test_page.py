"""The page for people in a real headless Chromium, at the real door. One of each for all tests."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_door import ask, make_config, served, serving
from conftest import TinyModel

from contract import HOST
from export.scorer import CUT
from serve import door, haproxy, keys, ui
from serve.app.page.reading import Reader, _runs
from serve.settings import MONITOR_FILE
from train.data.load import load_comments
from train.data.tokenizer import Respelling, build_tokenizer

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

pytestmark = pytest.mark.slow

MARKUP = '<img src=x onerror="window.ran=1"><script>window.ran=1</script> you "are" & kind'
FIRST_VIEW_BYTES = 300_000
_HOSTILE_ROWS = [
    "you are a kind person",
    'awful person, you are\nnot "kind"; really',
    "the idea is not so bad, thanks",
    "=work <b>for</b> the awful idea",
    "thanks for your work and the idea",
]


class Page:
    """What a person does with the page, and what the browser says of it."""

    def __init__(self, driver: Any, address: str, downloads: Path) -> None:
        self.driver, self.address, self.downloads = driver, address, downloads

    def open(self, *, width: int = 1200, height: int = 1000) -> Page:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get_log("browser")  # what an earlier page said
        self.driver.get(self.address)
        self.until(lambda: self.js("return document.documentElement.dataset.ready") == "yes")
        self.js(
            "window.violations = [];"
            "addEventListener('securitypolicyviolation', e => violations.push(e.blockedURI))"
        )
        return self

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any], timeout_s: float = 60) -> Any:
        """Wait for it; a part of the page that is drawn anew while it is read is read again."""
        wait = WebDriverWait(
            self.driver, timeout_s, 0.05, ignored_exceptions=[StaleElementReferenceException]
        )
        return wait.until(lambda _: condition())

    def rows(self, selector: str) -> dict[str, list[str]]:
        """The rows of a table at one moment: the cells of each by its head."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].map(row =>"
            " [row.querySelector('th').innerText,"
            " [...row.querySelectorAll('td')].map(cell => cell.innerText)])"
        )
        return dict(self.js(script, selector))

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def text(self, selector: str) -> str:
        return str(self.until(lambda: (self.find(selector).text,))[0])

    def score(self, *comments: str) -> None:
        """Type the comments and press Ctrl+Enter."""
        box = self.find("#text")
        box.clear()
        box.send_keys("\n\n".join(comments))
        box.send_keys(Keys.CONTROL, Keys.ENTER)
        self.until(lambda: "scored by version" in self.text("#comments-status"))

    def decide_from(self, threshold: float) -> None:
        """Move the slider."""
        self.js(
            "const slider = document.getElementById('threshold'); slider.value = arguments[0];"
            "slider.dispatchEvent(new Event('input'))",
            threshold,
        )

    def key(self, *pressed: str) -> None:
        """Press keys at whatever has the focus."""
        for one in pressed:
            self.driver.switch_to.active_element.send_keys(one)

    def focused(self) -> str:
        return str(self.js("return document.activeElement.id"))

    def errors(self) -> list[str]:
        """What the console and the policy complained about since the page was opened."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        return said + list(self.js("return window.violations"))


@pytest.fixture(scope="module")
def opened(
    tiny_model: TinyModel, other_model: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[door.DoorConfig]:
    """The door with two published versions; the second serves."""
    if not haproxy.found():
        pytest.skip("haproxy is not installed: it is in front of the page")
    folder = tmp_path_factory.mktemp("page")
    for model in (tiny_model, other_model):
        model.publish(folder / "repository")
    with serving(make_config(folder / "run", folder / "repository")) as config:
        yield config


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("Chromium is not installed; `apt-get install chromium chromium-driver`")
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield started, downloads
    finally:
        started.quit()


@pytest.fixture
def page(opened: door.DoorConfig, browser: tuple[Any, Path]) -> Iterator[Page]:
    driver, downloads = browser
    address = f"http://{HOST}:{opened.http_port}/ui/"
    found = Page(driver, address, downloads)
    yield found
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    with contextlib.suppress(Exception):
        driver.execute_script("localStorage.clear(); sessionStorage.clear()")


# --- Comments ----------------------------------------------------------------------------
def test_the_score_is_the_servers(page: Page, opened: door.DoorConfig) -> None:
    texts = ["you are a kind person", "awful person and bad work"]
    page.open().score(*texts)
    shown = [float(one.get_attribute("data-probability")) for one in page.all(".score")]
    assert shown == served(opened, *texts)
    assert [one.text for one in page.all(".number")] == [f"{value:.4f}" for value in shown]
    toxic = sum(value >= 0.5 for value in shown)
    assert f"2 comments scored by version 2, {toxic} toxic at 0.50" in page.text("#comments-status")
    assert not page.errors()


def test_the_threshold_decides(page: Page) -> None:
    page.open().score("you are awful")
    value = float(page.find(".score").get_attribute("data-probability"))
    for at in (0.01, 0.99):
        page.decide_from(at)
        word = "toxic" if value >= at else "not toxic"
        assert f"{word} at {at:.2f} (yours)" in [li.text for li in page.all(".decisions li")]


def test_words_are_left_out_one_by_one(page: Page, opened: door.DoorConfig) -> None:
    page.open().score("you are awful")
    page.until(lambda: len(page.all("details table tbody tr")) == 3)
    rows = page.rows("details table tbody tr")
    whole, *without = served(opened, "you are awful", " are awful", "you  awful", "you are ")
    words = ["you", "are", "awful"]
    changes = dict(zip(words, (whole - one for one in without), strict=True))
    assert list(rows) == sorted(words, key=lambda word: -abs(changes[word]))
    signs = set()
    for word, value, mark in zip(words, without, page.all(".comment .word"), strict=True):
        sign = "+" if changes[word] > 0 else "−"
        assert rows[word] == [f"{value:.4f}", f"{sign}{abs(changes[word]):.4f}"]
        assert mark.text == word
        if abs(changes[word]) > 0.004:  # enough to be coloured, beside 0.02 at least
            assert ("up" if changes[word] > 0 else "down") in mark.get_attribute("class").split()
            signs.add(sign)
    assert len(signs) == 2


def test_it_says_how_the_text_was_read(page: Page) -> None:
    page.open().score("Kind blorf " + "you " * 20)
    page.until(lambda: page.all(".piece"))
    pieces = [one.text for one in page.all(".piece")]
    assert pieces[:2] == ["Kind", "blorf not in the vocabulary"]
    assert pieces[14:16] == ["you", "you behind the cut"]
    assert "15 tokens of at most 15. The rest is behind the cut" in page.text("#results")


def test_markup_is_text_and_nothing_runs(page: Page) -> None:
    page.open().score(MARKUP)
    page.until(lambda: page.all(".piece") and page.all("details table tbody tr"))
    page.find("#term").send_keys("kind")
    page.find("#other").send_keys('<img src=y onerror="window.ran=1">')
    page.find("#what-if button").click()
    page.until(lambda: page.all("#what-if-results tbody tr"))
    assert page.js("return document.querySelector('.comment').textContent") == MARKUP
    assert "<img src=y onerror=" in page.text("#what-if-results tbody th")
    assert not page.all("main img, main script")
    assert page.js("return window.ran") is None
    assert not page.errors()


def test_what_if_compares_a_replaced_term(page: Page, opened: door.DoorConfig) -> None:
    page.open().score("you are Awful", "you are kind", "not awfully bad")
    page.find("#term").send_keys("awful")
    page.find("#other").send_keys("kind", Keys.ENTER)
    page.until(lambda: page.all("#what-if-results tbody tr"))
    assert "1 of 3 comments have" in page.text("#what-if-status")
    before, after = served(opened, "you are Awful", "you are kind")
    cells = [cell.text for cell in page.all("#what-if-results tbody td")]
    assert cells[:2] == [f"{before:.4f}", f"{after:.4f}"]
    for term in ("absent", "a-b/c (d) [e] *+?^$|\\"):
        page.find("#term").clear()
        page.find("#term").send_keys(term, Keys.ENTER)
        page.until(lambda term=term: f"No comment has “{term}”" in page.text("#what-if-status"))


# --- Versions ----------------------------------------------------------------------------
def test_two_versions_side_by_side(
    page: Page, opened: door.DoorConfig, tiny_model: TinyModel
) -> None:
    texts = ["you are a kind person", "awful person and bad work"]
    page.open().score(*texts)
    page.find("#tab-versions").click()
    page.decide_from(at := 0.04)
    assert "serves" in Select(page.find("#version-a")).first_selected_option.text
    page.find("#versions button").click()
    page.until(lambda: len(page.all("#versions-results tbody tr")) == 2)
    rows = {
        text: [float(cell) for cell in cells[:2]]
        for text, cells in page.rows("#versions-results tbody tr").items()
    }
    for text, value in zip(texts, served(opened, *texts), strict=True):
        assert rows[text] == [
            pytest.approx(value, abs=6e-5),
            pytest.approx(1 / (1 + 2.718281828459045 ** -tiny_model.logit(text)), abs=6e-5),
        ]
    flipped = sum((a >= at) != (b >= at) for a, b in rows.values())
    assert flipped
    assert f"2 compared: {flipped} decisions flip at 0.04" in page.text("#versions-status")
    status, answer, _ = ask(opened, "/ui/api/compare", {"text": texts, "version": 9})
    assert (status, answer["error"].partition(",")[0]) == (400, "version 9 is not published")


# --- The queue ---------------------------------------------------------------------------
def test_a_file_is_labelled_by_keys_alone(page: Page, tmp_path: Path) -> None:
    """From the tab to the download without the mouse; the export is what training reads."""
    path = tmp_path / "comments.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "comment_text"), *enumerate(_HOSTILE_ROWS)])
    page.open()
    page.find("#tab-comments").send_keys(Keys.ARROW_RIGHT, Keys.NULL)
    page.key(Keys.ARROW_RIGHT)
    assert page.focused() == "tab-queue"
    page.find("#file").send_keys(str(path))  # a file dialog is the system's
    page.until(lambda: page.find("#start").is_enabled())
    assert Select(page.find("#column")).first_selected_option.text == "comment_text"
    page.find("#start").send_keys(Keys.ENTER)
    page.until(lambda: page.focused() == "queue-card")

    def distance() -> float:
        return abs(float(page.find("#queue-score .score").get_attribute("data-probability")) - 0.5)

    def current() -> str:
        return str(page.js("return document.getElementById('queue-text').textContent"))

    distances, wanted = [], {}
    for pressed, label in (("y", 1), ("n", 0), ("s", None), ("y", 1), ("n", 0)):
        distances.append(distance())
        text = current()
        page.key(pressed)
        if pressed == "s":
            page.key("u")  # undone, and skipped again
            assert current() == text
            page.key("s")
        elif label is not None:
            wanted[text] = label
    assert distances == sorted(distances)
    assert "That was the last one" in page.text("#queue-status")
    assert "4 labelled: 2 toxic, 2 not" in page.text("#labels-status")
    assert page.js("return localStorage.getItem('toxicity-queue')") is None

    page.find("#labels-download").send_keys(Keys.ENTER)
    exported = page.downloads / "labels.csv"
    page.until(exported.exists)
    page.until(lambda: exported.stat().st_size)
    read = load_comments(str(exported))
    exported.unlink()
    assert dict(zip(read.texts, read.labels.tolist(), strict=True)) == wanted
    assert read.source["dropped_no_text"] == read.source["dropped_no_label"] == 0
    assert not page.errors()


def test_progress_is_kept_only_where_it_is_wanted(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "comments.csv"
    path.write_text("text\n" + "".join(f'"{text} {i}"\n' for i, text in enumerate(["kind"] * 3)))
    page.open()
    page.find("#tab-queue").click()
    page.find("#file").send_keys(str(path))
    page.until(lambda: page.find("#start").is_enabled())
    page.find("#keep").click()
    page.find("#start").click()
    page.until(lambda: page.focused() == "queue-card")
    page.key("y")
    page.open()
    assert "1 labelled: 1 toxic" in page.text("#labels-status")
    page.find("#tab-queue").click()
    assert "Comment 2 of 3" in page.text("#queue-title")
    page.find("#keep").click()
    assert page.js("return localStorage.getItem('toxicity-queue')") is None


def test_a_file_that_cannot_be_read_is_refused(page: Page, tmp_path: Path) -> None:
    page.open()
    page.find("#tab-queue").click()
    for name, content, words in (
        ("quote.csv", 'text\n"a', "a quote that does not end"),
        ("empty.csv", "text\n", "no rows below its header"),
        ("long.csv", "text\n" + "a\n" * 5001, "5001 rows, at most 5000"),
        ("large.csv", "text\n" + "a" * 5_000_001, "at most 5000000"),
    ):
        (tmp_path / name).write_text(content)
        page.find("#file").send_keys(str(tmp_path / name))
        page.until(lambda words=words: words in page.text("#queue-status"))
        assert not page.find("#start").is_enabled()


def test_a_single_comment_can_be_corrected(page: Page) -> None:
    page.open().score("you are awful")
    yes, no = page.all("#results .label-buttons button")
    yes.click()
    assert "1 labelled: 1 toxic" in page.text("#labels-status")
    no.click()
    assert "1 labelled: 0 toxic, 1 not" in page.text("#labels-status")
    assert [one.get_attribute("aria-pressed") for one in (yes, no)] == ["false", "true"]
    no.click()
    assert page.text("#labels-status") == "none yet"


# --- Live --------------------------------------------------------------------------------
def test_charts_move_and_stop(page: Page, opened: door.DoorConfig) -> None:
    page.open()
    page.js(
        "const real = window.fetch; window.asked = 0;"
        "window.fetch = (path, ...more) => {"
        " if (path === '/ui/api/live') window.asked++; return real(path, ...more); }"
    )
    page.find("#tab-live").click()
    page.until(lambda: len(page.all("#charts svg")) == 4)
    page.until(lambda: "1 of 1 servers answer" in page.text("#live-status"))

    def moves() -> object:  # a rate is of what came between two looks
        served(opened, "you are kind")
        return re.search(r"requests \d", page.text("#charts .legend"))

    page.until(moves)
    page.js(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    asked = page.js("return window.asked")
    time.sleep(2.5)  # a chart that went on would have asked again
    assert page.js("return window.asked") <= asked + 0
    page.js("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    page.until(lambda: page.js("return window.asked") > asked)
    assert not page.errors()


@pytest.fixture
def monitoring(opened: door.DoorConfig, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real monitor of the door, with curated sets; the first traffic is its reference."""
    rows = "".join(f"you are a kind person {i},0,{'ab'[i % 2]}\n" for i in range(40))
    (tmp_path / "groups.csv").write_text(f"text,label,group\n{rows}")
    command = [sys.executable, "-m", "monitor", "--run-dir", str(opened.run_dir), "--port", "0"]
    command += ["--out", str(tmp_path / "out"), "--every-s", "1", "--windows-s", "3600"]
    command += ["--reference", "traffic", "--reference-comments", "60", "--least-comments", "60"]
    command += ["--curated", str(tmp_path / "groups.csv"), "--curated-rate", "1000"]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        (opened.run_dir / MONITOR_FILE).unlink(missing_ok=True)


def test_the_page_says_that_no_monitor_runs(page: Page, opened: door.DoorConfig) -> None:
    page.open()
    page.find("#tab-live").click()
    page.until(lambda: "No monitor runs: there was no reading yet" in page.text("#monitor-status"))
    assert not page.all("#monitor-charts *")
    assert ask(opened, "/ui/api/monitor")[1] == {"running": False}


def drift_is_drawn(page: Page, opened: door.DoorConfig) -> bool:
    """Comments come until a drift of enough of them is drawn."""
    served(opened, *["you are a kind person"] * 30)
    legend = [one.text for one in page.all("#monitor-charts .legend li")]
    return any(re.match(r"scores [\d.]+", words) for words in legend)


def test_charts_of_a_monitor_that_runs(
    page: Page, opened: door.DoorConfig, monitoring: subprocess.Popen[bytes]
) -> None:
    page.open()
    page.find("#tab-live").click()
    page.until(lambda: "A monitor runs, every 1 s" in page.text("#monitor-status"))
    assert "flags from 0.5 on" in page.text("#monitor-status")
    page.until(lambda: drift_is_drawn(page, opened))
    titles = [one.text for one in page.all("#monitor-charts h2")]
    assert titles == ["Drift", "Unknown words", "Alarms", "False positives of groups"]
    assert len(page.all("#monitor-charts svg")) == 4
    said = page.text("#monitor-charts figure:last-child figcaption")
    assert re.search(r"groups/[ab] [01]\.\d{3} \[[\d.]+, [\d.]+\] of 20", said)
    assert "decided from 0.5 on" in said
    assert not page.errors()
    # The monitor ends: what it wrote last grows old.
    monitoring.kill()
    monitoring.wait()
    file = opened.run_dir / MONITOR_FILE
    written = json.loads(file.read_text("utf-8"))
    assert "kind person" not in json.dumps(written)
    file.write_text(json.dumps({**written, "time": "2026-01-02T03:04:05+00:00"}))
    page.until(lambda: "No monitor runs: the last reading was" in page.text("#monitor-status"))
    file.write_text("[]")
    page.until(lambda: "no reading yet" in page.text("#monitor-status"))


def test_live_counts_what_was_asked(opened: door.DoorConfig) -> None:
    def counted() -> dict[str, Any]:
        return ask(opened, "/ui/api/live")[1]

    before = counted()
    status, answer, _ = ask(opened, "/score", {"text": ["you are kind"] * 30})
    assert status == 200
    deadline = time.monotonic() + 30
    while (now := counted())["answers"]["2xx"] <= before["answers"]["2xx"] or (
        now["totals"]["comments"] < before["totals"]["comments"] + 30
    ):
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
    application = now["application"]
    assert sum(application["scores"]) >= 30 and application["p50_ms"] <= application["p99_ms"]
    assert application["scores"][min(19, int(answer["probability"][0] * 20))] >= 30


# --- Everybody ---------------------------------------------------------------------------
def test_light_and_dark(page: Page) -> None:
    def background() -> tuple[int, ...]:
        found = page.js("return getComputedStyle(document.body).backgroundColor")
        return tuple(map(int, re.findall(r"\d+", found)[:3]))

    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    page.open()
    assert max(background()) < 60
    page.find("#theme").click()
    assert page.text("#theme") == "Theme: light" and min(background()) > 200
    page.open()  # the choice is kept
    assert min(background()) > 200
    page.find("#theme").click()
    assert page.text("#theme") == "Theme: dark" and max(background()) < 60


def test_nothing_moves_where_that_is_not_wanted(page: Page) -> None:
    def duration() -> str:
        page.open().score("kind")
        script = "return getComputedStyle(document.querySelector('.fill')).transitionDuration"
        return str(page.js(script))

    assert duration() != "0s"
    reduced = {"name": "prefers-reduced-motion", "value": "reduce"}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [reduced]})
    assert duration() == "0s"


@pytest.mark.parametrize("tab", ["comments", "versions", "queue", "live"])
def test_a_phone_does_not_scroll_sideways(tab: str, page: Page) -> None:
    page.open(width=360, height=740)
    page.score(MARKUP, "unbroken" * 60)
    for summary in page.all("#results summary"):
        summary.click()
    page.find(f"#tab-{tab}").click()
    width = page.js("return document.documentElement.scrollWidth")
    assert width <= 360


THEMES = ("light", "dark")


def choose(theme: str, page: Page) -> None:
    while page.text("#theme") != f"Theme: {theme}":
        page.find("#theme").click()


def serious_violations(page: Page) -> list[tuple[str, list[str]]]:
    """What axe finds: the rule, and where."""
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is missing")
    return [
        (one["id"], [node["html"][:120] for node in one["nodes"]])
        for one in axe.Axe().run(page.driver)["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_no_serious_violation(theme: str, page: Page) -> None:
    page.open()
    choose(theme, page)
    page.score("you are awful blorf")
    page.until(lambda: page.all(".piece") and page.all("details table tbody tr"))
    for tab in ("comments", "versions", "queue", "live"):
        page.find(f"#tab-{tab}").click()
        if tab == "live":
            page.until(lambda: page.all("#charts svg"))
        assert not serious_violations(page), tab


def test_the_monitors_section_is_for_everybody(
    page: Page, opened: door.DoorConfig, monitoring: subprocess.Popen[bytes]
) -> None:
    """With its charts and alarms, on a desk and on a phone, in both themes."""
    page.open()
    page.find("#tab-live").click()
    page.until(lambda: "A monitor runs, every 1 s" in page.text("#monitor-status"))
    page.until(lambda: drift_is_drawn(page, opened))

    def alarmed() -> object:
        served(opened, *["awful idea , not so bad for the work"] * 30)
        return page.all("#monitor-alarms li")

    page.until(alarmed)
    for width, height in ((1200, 1000), (360, 740)):
        page.open(width=width, height=height)
        page.find("#tab-live").click()
        page.until(lambda: len(page.all("#monitor-charts svg")) == 4)
        page.until(lambda: page.all("#monitor-alarms li"))
        assert page.js("return document.documentElement.scrollWidth") <= width
        for theme in THEMES:
            choose(theme, page)
            assert not serious_violations(page), (width, theme)
    assert monitoring.poll() is None


def test_the_first_view_is_small(page: Page) -> None:
    page.driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    page.open()
    page.driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": False})
    sizes = page.js(
        "return [...performance.getEntriesByType('navigation'),"
        " ...performance.getEntriesByType('resource')].map(e => [e.name, e.transferSize])"
    )
    assert len(sizes) >= 10 and all(size for _, size in sizes), sizes
    assert sum(size for _, size in sizes) <= FIRST_VIEW_BYTES
    assert all(name.startswith(page.address.removesuffix("/ui/")) for name, _ in sizes)


# --- The command -------------------------------------------------------------------------
def test_the_command_names_the_address(
    opened: door.DoorConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what runs, whatever the flags for a start say."""
    ui.show(ui.UiConfig(repository=opened.repository, run_dir=opened.run_dir))
    assert capsys.readouterr().out == f"page        http://{HOST}:{opened.http_port}/ui/\n"
    settings = ui.running(opened.run_dir)
    assert settings
    everywhere = dataclasses.replace(settings, address="0.0.0.0", tls_certificate="site.pem")
    assert ui.page_address(everywhere) == f"https://{HOST}:{opened.http_port}/ui/"


# --- The door ----------------------------------------------------------------------------
def test_headers_of_the_page(opened: door.DoorConfig) -> None:
    for path in ("/ui/api/about", "/ui/api/live", "/ui/api/monitor"):
        status, _, headers = ask(opened, path)
        assert status == 200
        policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://{own}", "{own}", 200),
        ("http://10.1.2.3:9000", "10.1.2.3:9000", 200),  # by another address, behind another port
        ("http://[fd00::1]:9000", "[fd00::1]:9000", 200),
        ("https://10.1.2.3:9000", "10.1.2.3:9000", 403),
        ("http://10.1.2.3:9001", "10.1.2.3:9000", 403),
        ("http://rebound.example:9000", "rebound.example:9000", 403),  # leads to this address
        ("http://10.1.2.3.example", "10.1.2.3.example", 403),
        ("null", "10.1.2.3:9000", 403),
    ],
)
def test_only_the_doors_own_page_may_ask(
    opened: door.DoorConfig, origin: str, host: str, status: int
) -> None:
    own = f"{HOST}:{opened.http_port}"
    headers = {"Origin": origin.format(own=own), "Host": host.format(own=own)}
    assert ask(opened, "/score", {"text": "kind"}, headers)[0] == status
    body = {"text": "kind"}
    assert ask(opened, "/ui/api/read", body, headers)[0] == status


def test_links_lead_to_the_page_but_not_to_its_endpoints(opened: door.DoorConfig) -> None:
    elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(opened, "/ui", headers=elsewhere)[0] == 307
    assert ask(opened, "/ui/api/about", headers=elsewhere)[0] == 403


def test_comments_are_in_no_log(page: Page, opened: door.DoorConfig) -> None:
    page.open().score("zqxmarker is kind")
    page.until(lambda: page.all(".piece"))
    ask(opened, "/ui/api/compare", {"text": ["zqxmarker"], "version": 1})
    ask(opened, "/ui/api/read", b'{"text": "zqxmarker \\ud800"}')
    for file in opened.run_dir.rglob("*"):
        if file.is_file():
            assert b"zqxmarker" not in file.read_bytes(), file


def test_the_page_asks_for_a_key_and_decides_by_the_versions_thresholds(
    tiny_model: TinyModel,
    tmp_path: Path,
    browser: tuple[Any, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not haproxy.found():
        pytest.skip("haproxy is not installed")
    thresholds = {"toxicity": 0.07, "careful": 0.03}
    artifact = {**tiny_model.artifact, "thresholds": thresholds}
    tiny_model.publish(tmp_path / "repository", artifact=artifact)
    argv = ["keys", "add", "--name", "person", "--file", str(tmp_path / "keys.json")]
    monkeypatch.setattr("sys.argv", argv)
    keys.main()
    secret = capsys.readouterr().out.splitlines()[0]
    config = make_config(tmp_path / "run", tmp_path / "repository", keys=tmp_path / "keys.json")
    driver, downloads = browser
    with serving(config):
        assert ask(config, "/ui/api/about")[0] == ask(config, "/score", {"text": "a"})[0] == 401
        page = Page(driver, f"http://{HOST}:{config.http_port}/ui/", downloads)
        driver.get(page.address)
        page.until(lambda: page.find("#key-dialog").is_displayed())
        page.find("#key-value").send_keys(secret, Keys.ENTER)
        page.until(lambda: "version 1 serves" in page.text("#about"))
        page.score("you are kind")
        decided = [li.text.split(" at ")[1] for li in page.all(".decisions li")]
        assert decided == ["0.07 (toxicity)", "0.03 (careful)"]
        assert page.text("#threshold-value") == "0.07"  # the slider begins there
        assert page.js("return [localStorage.length, sessionStorage['toxicity-key']]") == [
            1,  # the theme
            secret,
        ]
        driver.execute_script("localStorage.clear(); sessionStorage.clear()")


# --- How it was read ---------------------------------------------------------------------
def test_pieces_that_are_read_together() -> None:
    def runs(parts: str, whole: str) -> list[tuple[bool, str, str]]:
        a, b = parts.split(), whole.split()
        return [(same, " ".join(a[i]), " ".join(b[j])) for same, i, j in _runs(a, b)]

    assert runs("i am i d i o t", "i am idiot") == [
        (True, "i am", "i am"),
        (False, "i d i o t", "idiot"),
    ]
    assert runs("h e l l o w o r l d ok x", "hello world ok x") == [
        (False, "h e l l o w o r l d", "hello world"),
        (True, "ok x", "ok x"),
    ]
    assert runs("", "x") == [(False, "", "x")] and runs("", "") == []


def test_every_piece_of_a_hostile_comment_is_shown(comments: list[str]) -> None:
    """Whatever is written, nothing is lost on the way to the page."""
    words = ["you are a kind awful person and the idea is not so bad idiot"]
    tokenizer = build_tokenizer(words, max_vocab=100, max_len=16, respelling=Respelling())
    reader = Reader(tokenizer, CUT)
    for text in [*comments, "you i d i o t are b4d", "k i n d", "a w f u l k i n d person 1d10t"]:
        pieces = reader.read(text)["pieces"]
        assert "".join(text[:8000].split()) == "".join("".join(p[0].split()) for p in pieces)
    states = {p[0]: tuple(p[1:]) for p in reader.read("you i d i o t are b4d blorf")["pieces"]}
    assert states == {
        "you": ("read", "you"),
        "i d i o t": ("respelled", "idiot"),
        "are": ("read", "are"),
        "b4d": ("respelled", "bad"),
        "blorf": ("unknown", "[UNK]"),
    }
