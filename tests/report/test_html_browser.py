"""The HTML report in a real browser: from the disk, clicked, dragged, sorted, filtered, on a phone, in the dark."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sdcompress.report import Report
from sdcompress.report.html import to_html

Make = Callable[..., Report]
Save = Callable[..., None]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
MISSING = f"no Chromium: none of {', '.join(NAMES)} is on PATH, and CHROMIUM names none"
REFUSED = os.environ.get("CHROMIUM_REFUSED")  # why .ci/run could not install it
CAN_INSTALL = not REFUSED and shutil.which("apt-get") is not None and hasattr(os, "geteuid") and os.geteuid() == 0
MUST_RUN = bool(os.environ.get("CI")) and (CHROMIUM is not None or CAN_INSTALL)
if MUST_RUN:
    import playwright.sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None and not MUST_RUN, reason=REFUSED or MISSING)
# A container's root has no sandbox, and pages here are our own. The rest keeps the browser off the network.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
LONG = "a very long prompt, " * 100  # 2,000 characters
ATTACK = "<script>document.title = 'attacked'</script><img src=x onerror=\"document.title='attacked'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.fail(f"{MISSING}; CI is set, and apt-get can install it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)  # headless, in a profile of its own
        yield browser
        browser.close()


@pytest.fixture
def page_file(make_report: Make, alter: Callable[..., Report], save_pictures: Save, tmp_path: Path) -> Path:
    """A report of 45 pairs with an attack, a long prompt, thousands of layers, and all that is optional."""
    report = make_report(count=45, blocked=(7,), whole=True)
    layer = report.to_dict()["compressed"]["layers"][0]
    layers = [layer | {"layer": f"block.{i}.conv", "output_sqnr_db": 20 + i} for i in range(2500)]
    prompts = {f"samples.{i}.prompt": prompt for i, prompt in enumerate((ATTACK, LONG, "ünïcode 雪 “quotes”"))}
    report = alter(report, {"compressed.layers": layers, "samples.20.compressed.clip_score": 40.0, **prompts})
    save_pictures(report, tmp_path)
    file = tmp_path / "report.html"
    file.write_text(to_html(report, tmp_path), encoding="utf-8")
    return file


@pytest.fixture
def open_page(browser: Any, page_file: Path) -> Iterator[Callable[..., Any]]:
    """Opens the report; at the end no page may have complained, asked for anything, or been attacked."""
    complaints: list[str] = []
    opened = []

    def open_one(width: int = 1200, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        page.goto(page_file.as_uri())
        opened.append(page)
        return page

    yield open_one
    assert complaints == []
    for page in opened:
        assert page.title() == "tiny-int8 against tiny"
        page.context.close()


def rows_of(page: Any, table: str) -> list[str]:
    return page.locator(
        f'[data-table="{table}"] tbody tr > :nth-child({2 if table == "samples" else 1})'
    ).all_inner_texts()


def test_opens_with_the_worst_pair(open_page: Callable[..., Any]) -> None:
    page = open_page()
    assert page.locator("#viewer-prompt").inner_text() == "prompt number 20 | of *many*"
    assert page.locator("#viewer-place").inner_text() == "Pair 1 of 45"
    assert page.evaluate("[...document.images].filter((i) => i.complete && !i.naturalWidth && i.src).length") == 0
    assert page.locator("#shown-original").evaluate("image => image.naturalWidth") == 64
    assert page.locator("svg.chart").count() >= 6
    assert page.get_by_text("FAILED", exact=True).is_visible()


def test_slides_by_mouse_and_by_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page()
    stage = page.locator("#stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 60)
    page.mouse.up()
    assert stage.get_attribute("aria-valuenow") == "25"
    cut = page.locator("#shown-compressed").evaluate("image => getComputedStyle(image).clipPath")
    assert cut.startswith("inset(0") and 24 < float(cut.rstrip(")").split()[-1].rstrip("%")) < 26
    page.mouse.move(box["x"], box["y"])  # released: moving on changes nothing
    assert stage.get_attribute("aria-valuenow") == "25"
    stage.focus()
    page.keyboard.press("ArrowRight")
    assert stage.get_attribute("aria-valuenow") == "27"
    page.keyboard.press("Home")
    assert stage.get_attribute("aria-valuenow") == "0"


def test_difference_by_key_and_by_button(open_page: Callable[..., Any]) -> None:
    page = open_page()
    blend = "getComputedStyle(document.getElementById('shown-compressed')).mixBlendMode"
    assert page.evaluate(blend) == "normal"
    page.keyboard.press("d")
    assert page.evaluate(blend) == "difference"
    assert page.locator("#toggle-difference").get_attribute("aria-pressed") == "true"
    page.locator("#gain").select_option("16")
    assert "brightness(16)" in page.evaluate("getComputedStyle(document.getElementById('stage')).filter")
    page.locator("#toggle-difference").click()
    assert page.evaluate(blend) == "normal"
    page.locator('[data-table="samples"] input').fill("d")  # a letter of a filter is no command
    assert page.evaluate(blend) == "normal"


def test_sorts_filters_and_pages(open_page: Callable[..., Any]) -> None:
    page = open_page()
    place = page.locator('[data-table="samples"]')
    assert len(rows_of(page, "samples")) == 20 and place.locator(".count").inner_text() == "1–20 of 45"
    seed = place.get_by_role("button", name="seed")
    seed.click()
    assert rows_of(page, "samples")[0].startswith("<script>")  # seed 40, shown as the text it is
    seed.click()
    assert rows_of(page, "samples")[0] == "prompt number 44 | of *many*"
    assert place.locator("th", has_text="seed").get_attribute("aria-sort") == "descending"
    place.get_by_role("button", name="CLIP drift").click()
    place.get_by_role("button", name="CLIP drift").click()
    page.keyboard.press("Tab")
    for _ in range(2):
        place.get_by_role("button", name="Next page").click()
    assert place.locator(".count").inner_text() == "41–45 of 45"
    assert rows_of(page, "samples")[-1] == "prompt number 7 | of *many*"  # blocked, so without a drift: last either way
    place.locator("input").fill("quotes ÜNÏCODE")
    assert rows_of(page, "samples") == ["ünïcode 雪 “quotes”"]
    place.locator("tbody tr").click()
    assert page.locator("#viewer-prompt").inner_text() == "ünïcode 雪 “quotes”"
    place.locator("input").fill("nothing like it")
    assert rows_of(page, "samples") == [] and "none of 45" in place.locator(".count").inner_text()


def test_thousands_of_layers_are_paged(open_page: Callable[..., Any]) -> None:
    page = open_page()
    place = page.locator('[data-table="layers"]')
    assert len(rows_of(page, "layers")) == 25 and place.locator(".count").inner_text() == "1–25 of 2500"
    place.locator("input").fill("block.2499")
    assert rows_of(page, "layers") == ["unet.block.2499.conv"]


def test_keyboard_alone_reaches_another_pair(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.keyboard.press("j")
    assert page.locator("#viewer-place").inner_text() == "Pair 2 of 45"
    page.keyboard.press("k")
    assert page.locator("#viewer-place").inner_text() == "Pair 1 of 45"
    page.locator('[data-table="samples"] .thumbnail').nth(2).focus()
    page.keyboard.press("Enter")
    assert page.locator("#viewer-place").inner_text() == "Pair 3 of 45"
    # Everything that can be clicked can be focused, and has a name.
    unnamed = """[...document.querySelectorAll("button, input, select, [role=slider]")].filter((each) =>
        each.tabIndex < 0 || !(each.textContent.trim() || each.getAttribute("aria-label") || each.labels?.length)
    ).length"""
    assert page.evaluate(unnamed) == 0


def test_attribution_step_by_step(open_page: Callable[..., Any]) -> None:
    table = open_page().get_by_role("region", name="Step by step")
    rows = [row.locator("th, td").all_inner_texts() for row in table.locator("tbody tr").all()]
    assert [row[0] for row in rows] == ["unet", "+ prune", "+ recover", "+ cast"]


def test_copies_the_command(open_page: Callable[..., Any]) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "sdcompress run tiny-sd --recipe 'my recipe.yaml'"


@pytest.mark.parametrize("width", [320, 375, 1200])
def test_no_width_scrolls_sideways(open_page: Callable[..., Any], width: int) -> None:
    page = open_page(width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator('[data-table="samples"] input').fill("very long")  # 2,000 characters in the viewer and the table
    page.locator('[data-table="samples"] tbody tr').click()
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_dark_where_the_reader_wants_it(open_page: Callable[..., Any]) -> None:
    def brightness(scheme: str, what: str) -> float:
        page = open_page(color_scheme=scheme)
        colour = page.evaluate(f"getComputedStyle(document.body).{what}")
        return sum(int(part) for part in colour.strip("rgb()").split(",")) / 3

    assert brightness("light", "backgroundColor") > 240 > 60 > brightness("light", "color")
    assert brightness("dark", "backgroundColor") < 40 < 200 < brightness("dark", "color")


def test_moves_nothing_where_motion_is_unwanted(open_page: Callable[..., Any]) -> None:
    smooth = "getComputedStyle(document.documentElement).scrollBehavior"
    assert open_page(reduced_motion="reduce").evaluate(smooth) == "auto"
    assert open_page(reduced_motion="no-preference").evaluate(smooth) == "smooth"
