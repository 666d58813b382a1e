"""The report in a real browser: sort, filter, open a run; on a phone, in the dark; no error, no network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import synthetic_ledger as synthetic
from itrd.bench.cells import Cell, cells_of
from itrd.bench.ledger import Ledger
from itrd.bench.report import write_report
from itrd.bench.tracks import TEACHER, load_track

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not CHROMIUM or not DRIVER, reason="no chromium and chromedriver on this machine"
)

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"),
)
HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"


# Places on the page: published tracks first, then the package's others by name, then what the ledger has besides.
SMOKE, HOSTILE_TRACK = (
    ["protocol", "protocol-bf16", "binary", "binary-short", "smoke", "other"].index(t)
    for t in ("smoke", "other")
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of synthetic records: a part of the protocol, the whole smoke track, one hostile record."""
    root = tmp_path_factory.mktemp("report")
    for cell in list(cells_of(load_track("protocol")))[:210]:
        synthetic.write(root / "results", cell, synthetic.record(cell, 240))
    for cell in cells_of(load_track("smoke")):
        epochs = 15 if cell.method == TEACHER else 12
        synthetic.write(root / "results", cell, synthetic.record(cell, epochs, protocol="custom"))
    hostile = Cell("other", "resnet14", "resnet8", "kd", 0)
    record = synthetic.record(hostile, 3, hardware=HOSTILE)
    record["objective"] = record["settings"][HOSTILE] = HOSTILE
    record["cell"]["method"] = record["cell"]["student"] = HOSTILE
    synthetic.write(root / "results", hostile, record)
    out, _ = write_report(Ledger(root / "results"), root / "report.html", root / "zoo")
    return out


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


Open = Callable[..., Any]


@pytest.fixture
def opened(driver: Any, report: Path) -> Iterator[Open]:
    """Open the report at a size; afterwards, the console must be empty."""

    def open_(
        width: int = 1280, *, dark: bool = False, track: int = 0, page: Path = report, link: str = ""
    ) -> Any:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.get("about:blank")
        driver.get(page.as_uri() + link)
        if track:
            driver.find_elements("css selector", "#tracks button")[track].click()
        return driver

    yield open_
    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []


def texts(driver: Any, selector: str) -> list[str]:
    return [node.text for node in driver.find_elements("css selector", selector)]


def column(driver: Any, table: str, number: int) -> list[str]:
    return texts(driver, f"#{table} tbody tr td:nth-child({number})")


def test_both_published_tables(opened: Open) -> None:
    page = opened()
    assert texts(page, "#tables h2") == ["Same architecture family", "Different architectures"]
    assert "ITRD" in texts(page, "#tables tbody th")
    kd = page.find_element("css selector", 'td[data-pair="0"][data-method="itrd"]')
    assert ("▲" in kd.text) or ("▼" in kd.text)
    assert kd.value_of_css_property("background-color") is not None
    not_run = page.find_element("css selector", 'td[data-pair="0"][data-method="hint"]')
    assert not_run.text == "73.58"
    empty = page.find_element("css selector", 'td[data-pair="1"][data-method="fsp"]')
    assert empty.text == ""


def test_the_interval_shows_on_focus_and_on_hover(opened: Open) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page = opened()
    button = page.find_element("css selector", 'td[data-pair="2"][data-method="itrd"] button')
    tip = page.find_element("id", "tip")
    assert not tip.is_displayed()
    page.execute_script("arguments[0].focus()", button)
    assert "95% interval" in tip.text
    assert "published 71.47% (last epoch)" in tip.text
    assert "95% interval" in button.get_attribute("aria-label")
    page.execute_script("arguments[0].blur()", button)
    assert not tip.is_displayed()
    ActionChains(page).move_to_element(button).perform()
    assert "n = 5" in tip.text


def test_sort(opened: Open) -> None:
    page = opened()
    for key, number in (("last", 5), ("seed", 4)):
        page.find_element("css selector", f'#runs th button[data-key="{key}"]').click()
        down = [float(text) for text in column(page, "runs", number)]
        assert down == sorted(down, reverse=True)
        head = page.find_element("css selector", f'#runs th button[data-key="{key}"]')
        assert head.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
        head.click()
        up = [float(text) for text in column(page, "runs", number)]
        assert up == sorted(up)
        assert len(up) == 50
    means = [float(text) for text in column(page, "ranking", 3)]
    assert means == sorted(means, reverse=True)
    page.find_element("css selector", '#ranking th button[data-key="mean"]').click()
    assert [float(text) for text in column(page, "ranking", 3)] == sorted(means)


def test_filter_and_pages(opened: Open) -> None:
    page = opened()
    assert "210 runs" in page.find_element("id", "count").text
    page.find_element("id", "next").click()
    assert page.find_element("id", "page").text == "page 2 of 5"
    page.find_element("id", "filter").send_keys("resnet56 ITRD seed1")
    assert column(page, "runs", 2) == ["resnet56-resnet20-itrd-seed1"]
    page.find_element("id", "filter").send_keys(" nothing")
    assert column(page, "runs", 2) == []
    assert "0 runs" in page.find_element("id", "count").text


def test_a_cell_leads_to_its_runs_and_a_run_to_its_record(opened: Open, report: Path) -> None:
    page = opened()
    page.find_element("css selector", 'td[data-pair="2"][data-method="itrd"] button').click()
    assert column(page, "runs", 2) == [f"resnet56-resnet20-itrd-seed{seed}" for seed in range(5)]
    assert len(page.find_elements("css selector", "#chosen li")) == 5
    page.find_element("css selector", "#runs .link").click()
    dialog = page.find_element("id", "details")
    assert dialog.is_displayed()
    assert "learning_rate: 0.05" in dialog.text
    assert "itrd bench run --track protocol --methods itrd --pairs resnet56:resnet20 --seeds 0" in dialog.text
    link = page.execute_script("return location.hash")
    dialog.find_element("css selector", ".close").click()
    assert not dialog.is_displayed()
    page.find_element("id", "show-all").click()
    assert "210 runs" in page.find_element("id", "count").text
    page = opened(link=link)
    assert "resnet56-resnet20-itrd-seed0" in page.find_element("id", "details").text


def test_curves_and_costs(opened: Open) -> None:
    page = opened()
    data = "return Chart.getChart('curves').data.datasets.map(d => [d.label, d.data.length, d.data.at(-1).x])"
    assert all(points == last == 240 for _, points, last in page.execute_script(data))
    page.find_element("id", "clear-curves").click()
    assert page.execute_script(data) == []
    page.find_element("id", "filter").send_keys("resnet56 ITRD seed1")
    page.find_element("css selector", "#runs input[type=checkbox]").click()
    assert [label for label, *_ in page.execute_script(data)] == ["resnet56-resnet20-itrd-seed1"]
    page.execute_script(
        "const s = document.getElementById('curve-kind'); s.value = 'train'; s.dispatchEvent(new Event('change'))"
    )
    assert (
        page.execute_script("return Chart.getChart('curves').options.scales.y.title.text")
        == "training accuracy, %"
    )
    shapes = page.execute_script("return Chart.getChart('cost').data.datasets.map(d => d.pointStyle)")
    assert len(shapes) == len(set(shapes)) > 2  # told apart without colour


def test_comparison_with_any_method(opened: Open) -> None:
    page = opened()
    page.execute_script(
        "const s = document.getElementById('baseline'); s.value = [...s.options].findIndex(o => o.text === 'KD');"
        "s.dispatchEvent(new Event('change'))"
    )
    assert "Against KD" in texts(page, "#ranking th")
    row = page.find_element("css selector", '#ranking tr[data-method="itrd"]').text
    assert "p " in row
    assert " to " in row
    assert ", 4 pairs" in row  # of five runs


def test_the_smoke_track_is_separate(opened: Open) -> None:
    page = opened(track=SMOKE)
    assert "Not comparable with published numbers" in page.find_element("id", "about").text
    assert "resnet20-resnet8-kd-seed1" in column(page, "runs", 2)
    assert not any("wrn" in name for name in column(page, "runs", 2))
    assert "above the student alone" in page.find_element("css selector", ".legend").text


def test_hostile_records_are_text(opened: Open) -> None:
    page = opened(track=HOSTILE_TRACK)
    assert page.title != "broken"
    page.find_element("css selector", "#runs .link").click()
    dialog = page.find_element("id", "details").text
    assert dialog.count("document.title='broken'") >= 3
    assert page.title != "broken"
    assert page.find_elements("css selector", "img") == []


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(opened: Open, dark: bool) -> None:
    page = opened(390, dark=dark)
    for track in range(HOSTILE_TRACK + 1):
        page.find_elements("css selector", "#tracks button")[track].click()
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    page.find_elements("css selector", "#tracks button")[0].click()
    page.find_element("css selector", "#runs .link").click()
    box = page.find_element("id", "details").rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(opened: Open, dark: bool) -> None:
    """Body text against the page, and a coloured cell's text against its colour: at least 4.5 to 1."""
    page = opened(dark=dark)
    script = """
      const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
      const parts = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length === 3 ? [...n, 1] : n; };
      const light = (rgb) => rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const ratio = (x, y) => (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
      const contrast = (a, b) => ratio(light(a), light(b));
      const back = parts(getComputedStyle(document.body).backgroundColor);
      const found = [[...document.querySelectorAll('.up > button, .down > button, .only, .hint')].map((node) => {
        const style = getComputedStyle(node);
        const behind = parts(style.backgroundColor);
        return contrast(parts(style.color).slice(0, 3), over(behind, back));
      })];
      return [light(back.slice(0, 3)), Math.min(...found.flat())];
    """
    back, worst = page.execute_script(script)
    assert (back < 0.1) == dark
    assert worst >= 4.5


@pytest.mark.slow
def test_twenty_thousand_runs_stay_usable(opened: Open, tmp_path: Path) -> None:
    import time

    synthetic.fill(tmp_path / "results", count=20_000)
    out, _ = write_report(Ledger(tmp_path / "results"), tmp_path / "report.html", tmp_path)
    started = time.perf_counter()
    page = opened(page=out)
    assert "20,000 runs" in page.find_element("id", "count").text
    opening = time.perf_counter() - started
    started = time.perf_counter()
    page.find_element("id", "filter").send_keys("x")
    page.find_element("css selector", '#runs th button[data-key="last"]').click()
    assert (opening, time.perf_counter() - started) < (15, 5)
