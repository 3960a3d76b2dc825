"""The page opened from the file system in Debian's Chromium, without a window."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from pareco.reporting.page import page_html
from pareco.reporting.records import Records
from tests.reporting.conftest import FULL_COSTS, GROUPS
from tests.reporting.pages import (
    ABSENT,
    CLAIM,
    HOSTILE,
    RAN,
    renamed,
    section_of,
    without_latency,
)

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
REQUIRED = "PARECO_REQUIRE_CHROMIUM"
HANGING = 600  # seconds, after which a browser that says nothing is given up
BROKEN = """
const broken = [];
for (const root of document.querySelectorAll("header, #summary, #claims, h2, h3")) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    for (const word of walker.currentNode.data.matchAll(/[^\\s-]+/g)) {
      const range = document.createRange();
      range.setStart(walker.currentNode, word.index);
      range.setEnd(walker.currentNode, word.index + word[0].length);
      const boxes = [...range.getClientRects()];
      if (new Set(boxes.map((box) => box.top)).size > 1
          || boxes.some((box) => box.left < 8 || box.right > innerWidth - 8)) broken.push(word[0]);
    }
  }
}
return broken;
"""


class Browser:
    """A browser with a page in it, and what a test asks of its first chart."""

    def __init__(self, driver: webdriver.Chrome, folder: Path) -> None:
        self.driver, self.path = driver, folder / "index.html"

    def show(self, *records: Records, width: int = 1280) -> None:
        """Open a page with a section for each of the records, in a window of some width."""
        text = page_html([section_of(each) for each in records], [CLAIM], [RAN, ABSENT])
        self.path.write_text(text, encoding="utf-8")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(self.path.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script returns; `chart` is the first chart, `canvas` its element."""
        prefix = "const canvas = document.querySelector('canvas'), chart = Chart.getChart(canvas);"
        return self.driver.execute_script(prefix + script, *arguments)

    @property
    def canvas(self) -> WebElement:
        return self.find("canvas")

    def find(self, selector: str) -> WebElement:
        """The element, once it is there: browsers tell of some changes only a moment later."""
        place = (By.CSS_SELECTOR, selector)
        return WebDriverWait(self.driver, HANGING).until(lambda driver: driver.find_element(*place))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.canvas.send_keys(key)

    def texts(self, selector: str) -> list[str]:
        return [each.text for each in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def facts(self) -> dict[str, str]:
        """What the detail panel shows of a network, by name; empty without one."""
        return dict(zip(self.texts(".facts dt"), self.texts(".facts dd"), strict=True))

    def points(self, method: int) -> list[dict[str, float]]:
        """The pixels, within the canvas, of the networks of a method, and their values."""
        return self.run(
            "const place = 4 * arguments[0] + 3, values = chart.data.datasets[place].data;"
            "return chart.getDatasetMeta(place).data.map("
            "(point, index) => ({left: point.x, top: point.y, ...values[index]}));",
            method,
        )

    def pixels(self, colour: str) -> int:
        """How many pixels of the canvas are of about a colour, such as #0173b2."""
        return self.run(
            "const wanted = arguments[0].match(/../g).map((part) => parseInt(part, 16));"
            "const copy = new OffscreenCanvas(canvas.width, canvas.height);"
            "const context = copy.getContext('2d', {willReadFrequently: true});"
            "context.drawImage(canvas, 0, 0);"
            "const all = context.getImageData(0, 0, canvas.width, canvas.height).data;"
            "let count = 0;"
            "for (let i = 0; i < all.length; i += 4) count += all[i + 3] > 200"
            " && wanted.every((part, k) => Math.abs(all[i + k] - part) < 12);"
            "return count;",
            colour.removeprefix("#"),
        )

    def colours(self) -> list[str]:
        """The colours of the methods."""
        return self.run(
            "return chart.data.datasets.filter((d, i) => i % 4 === 2).map(d => d.borderColor)"
        )

    def point_at(self, point: dict[str, float], *, press: bool = False) -> None:
        """Move the mouse to a point of the canvas; with `press` click there."""
        self.run("canvas.scrollIntoView({block: 'center'})")
        size = self.canvas.size
        across, down = point["left"] - size["width"] / 2, point["top"] - size["height"] / 2
        moves = ActionChains(self.driver)
        moves.move_to_element_with_offset(self.canvas, round(across), round(down))
        (moves.click() if press else moves).perform()


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    """Chromium; the test is skipped where it is not installed, unless REQUIRED is set."""
    if lacking := [str(path) for path in (CHROMIUM, DRIVER) if not path.exists()]:
        refuse = pytest.fail if os.environ.get(REQUIRED) else pytest.skip
        refuse(f"no {', '.join(lacking)}: install Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver: webdriver.Chrome, tmp_path: Path) -> Iterator[Browser]:
    """A browser; the test fails if a page in it logs anything."""
    driver.get_log("browser")
    yield Browser(driver, tmp_path)
    assert driver.get_log("browser") == []


@pytest.fixture(scope="module")
def plain(records: Records) -> Records:
    return without_latency(records)


def test_the_chart_is_drawn_and_nothing_is_loaded(browser: Browser, plain: Records) -> None:
    browser.show(plain)
    assert all(browser.pixels(colour) > 100 for colour in browser.colours())
    assert browser.run("return performance.getEntriesByType('resource').map(e => e.name)") == []
    assert browser.run("return [...document.images].every(i => i.naturalWidth > 0)")


def test_pointing_at_a_network_shows_what_it_is(browser: Browser, plain: Records) -> None:
    """A click where no network is clears the choice."""
    browser.show(plain)
    assert browser.facts() == {}
    runs = plain.fronts[plain.fronts["method"] == "uniform"].reset_index(drop=True)
    for index in (3, 14):
        row, point = runs.loc[index], browser.points(2)[index]
        browser.point_at(point, press=index == 14)
        facts = browser.facts()
        assert facts["method"] == "uniform"
        assert facts["seed"] == str(row["seed"])
        assert facts["top-1 error"] == f"{row['test_top1_error']:.2f}%"
        assert facts["MACs"] == (
            f"{row['macs'] / 1e6:.3g} M ({100 * row['macs'] / FULL_COSTS['macs']:.1f}%)"
        )
        assert facts["widths"] == row["widths"]
        names, maxima = zip(*GROUPS, strict=True)
        widths = row["widths"].split()
        counts = [f"{width} of {maximum}" for width, maximum in zip(widths, maxima, strict=True)]
        assert browser.texts(".count") == counts
        assert browser.texts(".bars .name") == list(names)
        bars = browser.run(
            "return [...document.querySelectorAll('.track')].map(t =>"
            " t.firstChild.getBoundingClientRect().width / t.getBoundingClientRect().width)"
        )
        shares = np.array(widths, dtype=int) / maxima
        assert bars == pytest.approx(shares, abs=0.01)
    browser.point_at({"left": 100, "top": browser.canvas.size["height"] - 80}, press=True)
    assert browser.facts() == {}
    assert "No network is chosen" in browser.find(".facts").text


def test_a_method_can_be_switched_off_and_on(browser: Browser, plain: Records) -> None:
    browser.show(plain)
    colour, place = browser.colours()[0], browser.points(0)[0]
    before = browser.pixels(colour)
    browser.point_at(place)
    assert browser.facts()["method"] == "pareco"
    box = browser.find("input[data-method='0']")
    box.click()
    assert browser.pixels(colour) == 0 < before
    assert browser.facts() == {}
    seen = set()
    for _ in range(len(plain.fronts)):
        browser.press(Keys.ARROW_RIGHT)
        seen.add(browser.facts()["method"])
    assert seen == {"random", "uniform"}
    browser.press(Keys.ESCAPE)
    browser.point_at(place)
    assert browser.facts().get("method") != "pareco"
    browser.press(Keys.ESCAPE)
    box.send_keys(Keys.SPACE)
    assert browser.pixels(colour) == before


def test_the_axis_can_be_switched_to_what_was_measured(browser: Browser, records: Records) -> None:
    browser.show(without_latency(records))
    assert not browser.find("input[value='latency_ms']").is_enabled()
    browser.show(records)
    own = records.fronts[records.fronts["method"] == "pareco"]
    before = [point["left"] for point in browser.points(0)]
    for cost, full in {"latency_ms": 2.6, **FULL_COSTS}.items():
        browser.find(f"input[value='{cost}']").click()
        values = [point["x"] for point in browser.points(0)]
        assert values == pytest.approx(list(own[cost]), abs=1e-4)
        low, high = browser.run("return [chart.scales.x.min, chart.scales.x.max]")
        assert low < own[cost].min()
        assert high == pytest.approx(1.02 * full)
        after = [point["left"] for point in browser.points(0)]
        assert (after == before) == (cost == "macs")
    browser.find("input[value='macs']").click()
    title = browser.run("return chart.options.scales.x.title.text")
    assert title == "MACs (% of the full network’s 4.12 M)"
    browser.press(Keys.END)
    assert browser.facts()["latency"] == "2.6 ms (100.0%)"


def test_keys_reach_the_chart_and_move_between_networks(browser: Browser, plain: Records) -> None:
    browser.show(plain)
    ordered = plain.fronts.sort_values("macs", kind="stable")["widths"].tolist()
    browser.find("input[type='radio']:checked").send_keys(Keys.TAB)
    assert browser.run("return document.activeElement === canvas")
    assert browser.run("return getComputedStyle(canvas).outlineStyle") == "solid"
    browser.press(Keys.ARROW_RIGHT)
    assert browser.facts()["widths"] == ordered[0]
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert browser.facts()["widths"] == ordered[2]
    browser.press(Keys.END)
    assert browser.facts()["MACs"] == "4.12 M (100.0%)"
    method = browser.facts()["method"]
    browser.press(Keys.ARROW_UP)
    assert browser.facts()["method"] != method
    assert browser.facts()["MACs"] == "4.12 M (100.0%)"
    browser.press(Keys.ARROW_DOWN)
    assert browser.facts()["method"] == method
    browser.press(Keys.ESCAPE)
    assert browser.facts() == {}


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_the_page_fits_and_no_word_is_broken(
    browser: Browser, records: Records, width: int
) -> None:
    small = replace(records, experiment=replace(records.experiment, scale="short: 3 epochs"))
    browser.show(small, renamed(records, "imagenet_mbv2_memory-cpu"), width=width)
    browser.press(Keys.HOME)
    browser.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    browser.find("details.networks tbody tr")
    assert browser.run("return document.documentElement.scrollWidth") == width
    assert browser.run(BROKEN) == []
    box = browser.run("return canvas.getBoundingClientRect().toJSON()")
    assert 0 <= box["left"] < box["right"] <= width
    assert box["height"] > 250


def test_all_networks_are_there_as_a_table_too(browser: Browser, plain: Records) -> None:
    browser.show(plain)
    browser.find("details.networks summary").click()
    browser.find("details.networks tbody tr")
    assert len(browser.texts("details.networks tbody tr")) == len(plain.fronts)
    cells = browser.texts("details.networks tbody tr:nth-child(8) > *")
    row = plain.fronts.loc[7]
    assert cells[:3] == [row["method"], str(row["seed"]), f"{row['test_top1_error']:.2f}"]
    assert f"{row['macs']:,}" in cells
    assert cells[-1] == row["widths"]


def test_dark_and_light_follow_the_reader(browser: Browser, plain: Records) -> None:
    browser.show(plain)
    found = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.driver.execute_async_script(  # until the page has been drawn twice
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        )
        ground = "getComputedStyle(document.body).backgroundColor"
        found.append(browser.run(f"return [{ground}, chart.options.scales.x.ticks.color]"))
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    (light, light_text), (dark, dark_text) = found
    assert light == "rgb(255, 255, 255)" != dark
    assert light_text != dark_text


def test_names_that_look_like_markup_run_nothing(browser: Browser, plain: Records) -> None:
    browser.show(renamed(plain, HOSTILE), plain)
    browser.press(Keys.HOME)
    assert browser.facts()["method"].startswith("</script><img")
    assert browser.run("return window.broken === undefined && !document.querySelector('[onerror]')")
