"""The report in a browser: read by eye, keyboard and phone, with and without its script.

Run by `make test-browser`, which installs Playwright; the browser is the system's Chromium, or what CHROMIUM names.
"""

import itertools
import json
import math
import os
import shutil

import pytest

pytest.importorskip("playwright", reason="playwright is not installed; `make test-browser` installs it")

import smoke_rows
from playwright.sync_api import sync_playwright

from experiments import ledger, report
from research.analysis import html, results

FOUND = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, FOUND), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; set CHROMIUM to one")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}

# The least contrast of the page's texts with what is behind them (WCAG 2.2, 1.4.3), with the text that has it.
CONTRAST = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parse(colour).map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if ((parse(colour)[3] ?? 1) === 1) return colour;
    }
    throw new Error("no background");
  };
  let least = [Infinity, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest("script, svg")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least[0]) least = [contrast, node.data];
  }
  return least;
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of a study whose runs have logs and samples."""
    folder = tmp_path_factory.mktemp("report")
    for row in smoke_rows.rows(lambda number: 2 + math.sin(number) / 10):
        path = results.save(row, folder / "results" / row.study / row.scale / "cells")
        run = folder / "runs" / row.study / row.scale / path.stem
        run.mkdir(parents=True)
        steps = range(10, 2010, 10)
        lines = [{"step": step, "loss": 2 + 3 * math.exp(-step / 200)} for step in steps]
        lines += [{"step": step, "validation_loss": 2.2 + 300 / step} for step in steps if step % 400 == 0]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "samples.txt").write_text("Fellow citizens, <b>the union is strong</b>. " * 20)
    judged = ledger.judged(folder / "results")
    sections = list(report.sections(folder / "results", folder / "runs", judged))
    path = folder / "report.html"
    path.write_text(html.page(sections, judged, title=report.TITLE))
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # As root, which CI is, Chromium starts without its sandbox only; the page is our own.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page in a window of its own; an error, a warning or a request for anything else fails the test."""
    contexts, wrong = [], []

    def opened(**options):
        context = browser.new_context(viewport=options.pop("viewport", DESKTOP), **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(5_000)
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on(
            "request",
            lambda request: (
                wrong.append(request.url) if not request.url.startswith(("data:", address)) else None
            ),
        )
        tab.goto(address)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def unfold(tab):
    tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")


def column(tab, number):
    return tab.locator(f"table.sortable >> nth=0 >> tbody tr > :nth-child({number})").evaluate_all(
        "cells => cells.map((cell) => cell.dataset.value ?? null)"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(visit, scheme):
    tab = visit(color_scheme=scheme)
    unfold(tab)
    contrast, text = tab.evaluate(CONTRAST)
    assert contrast >= 4.5, text


def test_dark_is_dark(visit):
    grounds = [
        visit(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert grounds[0] == "rgb(255, 255, 255)"
    assert grounds[1] != grounds[0]


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_only_boxes_scroll_sideways(visit, viewport):
    tab = visit(viewport=viewport)
    unfold(tab)
    assert tab.evaluate("document.scrollingElement.scrollWidth") == viewport["width"]
    boxes = tab.locator(".scroll").evaluate_all("all => all.map((box) => box.scrollWidth - box.clientWidth)")
    assert max(boxes) > 0


def test_columns_sort_both_ways_and_missing_numbers_stay_last(visit):
    tab = visit()
    declared = column(tab, 1)
    head = tab.locator("table.sortable >> nth=0 >> thead th >> nth=2")
    assert head.get_attribute("aria-sort") == "none"
    button = head.get_by_role("button")
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    losses = [float(value) for value in column(tab, 3)]
    assert losses == sorted(losses)
    assert column(tab, 1) != declared
    button.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(value) for value in column(tab, 3)] == losses[::-1]

    difference = tab.locator("table.sortable >> nth=0 >> thead th >> nth=3")
    for _ in range(2):
        difference.get_by_role("button").click()
        values = column(tab, 4)
        assert values[-1] is None  # the baseline
        assert None not in values[:-1]
    assert head.get_attribute("aria-sort") == "none"

    tab.locator("table.sortable >> nth=0 >> thead button >> nth=0").click()
    assert column(tab, 1) == sorted(declared)


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_from_a_number_to_its_run(visit, script):
    tab = visit(java_script_enabled=script)
    head = tab.get_by_role("rowheader", name="prefix_lm", exact=True)
    cell = tab.locator("table.sortable >> nth=0 >> tbody tr", has=head).locator("td >> nth=1")
    row = tab.locator('[id="architecture/smoke/arm/prefix_lm/seed/1"]')
    assert not row.is_visible()
    cell.locator("summary").click()
    cell.get_by_role("link", name="seed 1").click()
    row.wait_for(state="visible")
    arm = tab.locator("details.block", has=row)
    arm.get_by_text("Config of seed 0").click()
    assert "families.DecoderConfig.mask = @masks.Prefix()" in arm.locator("pre >> nth=0").inner_text()
    assert arm.get_by_role("img", name="prefix_lm: loss").is_visible()
    arm.get_by_text("Samples of seed 1 (1)").click()
    assert "<b>the union is strong</b>" in arm.locator("pre.text:visible").inner_text()


def test_without_a_script_nothing_pretends_to_work(visit):
    assert visit(java_script_enabled=False).locator("button").count() == 0


def test_curves_zoom_by_buttons_and_by_dragging(visit):
    tab = visit()
    chart = tab.locator(".chart >> nth=0")
    picture = chart.locator(".plot > svg")

    def labels(axis):
        return [float(text) for text in chart.locator(f".{axis} li").all_inner_texts()]

    whole = picture.get_attribute("viewBox"), labels("x"), labels("y")
    assert whole[1] == [0, 500, 1000, 1500, 2000]
    chart.get_by_role("button", name="zoom in").click()
    assert labels("x") == [500, 750, 1000, 1250, 1500]
    assert labels("y")[0] < 2.3 < 4 < whole[2][0]  # the values of those steps fill the height
    chart.get_by_role("button", name="later").click()
    assert labels("x") == [1000, 1250, 1500, 1750, 2000]
    chart.get_by_role("button", name="later").click()
    assert labels("x")[-1] == 2000  # there is nothing beyond
    chart.get_by_role("button", name="all").click()
    assert (picture.get_attribute("viewBox"), labels("x"), labels("y")) == whole

    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + box["width"] * 0.75, middle)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.25, middle)
    tab.mouse.up()
    assert labels("x")[0] == pytest.approx(500, abs=5)
    assert labels("x")[-1] == pytest.approx(1500, abs=5)
    picture.dblclick()
    assert labels("x") == whole[1]


def test_the_keyboard_goes_through_the_page_in_its_order_and_shows_where_it_is(visit):
    tab = visit()
    seen = []
    for _ in range(100):
        tab.keyboard.press("Tab")
        seen.append(
            tab.evaluate(
                """() => {
                  const style = getComputedStyle(document.activeElement);
                  const top = document.activeElement.getBoundingClientRect().top + scrollY;
                  return [document.activeElement.innerText.trim(), style.outlineStyle, style.outlineWidth, top];
                }"""
            )
        )
    names = [name for name, *_ in seen]
    assert names[:3] == ["Skip to the results", "Claims", "architecture, smoke"]
    table = names.index("Skip the table")
    assert names[table + 2].startswith("arm")  # after the box of the table, which arrow keys scroll
    assert all(outline != "none" and width == "3px" for _, outline, width, _ in seen)
    tops = [top for name, *_, top in seen if not name.startswith("Skip")]
    assert all(
        after > before - 60 for before, after in itertools.pairwise(tops)
    )  # heads of a table differ in height

    tab.goto(f"{tab.url}#main")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.closest('main') !== null")


def test_every_picture_has_words(visit):
    tab = visit()
    unfold(tab)
    images = tab.get_by_role("img").all()
    named = [
        tab.get_by_role("img", name=name).count() for name in ("over steps", "Which keys", "training FLOPs")
    ]
    assert len(images) == sum(named)
    assert min(named) > 0
    broken = "all => all.filter((image) => !image.naturalWidth).length"
    assert tab.locator("img").evaluate_all(broken) == 0


def test_paper_has_no_buttons_and_dark_letters(visit):
    tab = visit(color_scheme="dark")
    tab.emulate_media(media="print")
    assert tab.locator(".tools:visible, nav:visible").count() == 0
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
