"""The page of a report in Chromium: wide, on a phone, in the dark, by keyboard and on paper."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, chromium, opened, resized

from streamline.run.reporting import report_run

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium here; name one in CHROMIUM")
WIDE, PHONE = {"width": 1140, "height": 900}, {"width": 420, "height": 900}
PAPER = {"width": 690, "height": 1000}  # A4 without its margins
COMMITTED = sorted((Path(__file__).parents[2] / "reports").rglob("report.html"))


@pytest.fixture(scope="module")
def report(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(run_folder, tmp_path_factory.mktemp("page") / "out"))
    return report_run(folder)


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture
def page(chrome: Any, report: Path) -> Iterator[Any]:
    """The page at a desk; nothing of a test may make its console complain."""
    with opened(chrome, report, viewport=WIDE) as (found, said):
        yield found
        assert said == []


def column(page: Any, name: str) -> list[str]:
    """The shown cells of a column, from above."""
    return page.evaluate(
        """name => {
          const heads = [...document.querySelectorAll("#results thead th")];
          const at = heads.findIndex(head => head.textContent.startsWith(name));
          const rows = [...document.querySelectorAll("#results tbody tr")];
          return rows.filter(row => !row.hidden).map(row => row.cells[at].textContent.trim());
        }""",
        name,
    )


def shown(page: Any) -> list[str]:
    """The headings that are shown."""
    heads = page.locator("#results thead th:visible").all_inner_texts()
    return [head.split("\n")[0].strip(" ↑↓") for head in heads]


def test_the_first_screen_has_question_answer_figure_and_table(page: Any) -> None:
    assert re.match("Which method removes 10.% and 25.% of", page.inner_text("h1"))
    ties = r"(cannot|none of the other \d+ can) be told from it"
    assert re.search(ties, page.inner_text(".answer"))
    assert "times as fast" in page.inner_text(".answer") and "±" in page.inner_text(".answer")
    top = page.locator("[data-figure]").first
    assert top.get_attribute("data-figure").startswith("pareto-")
    assert top.bounding_box()["y"] < WIDE["height"] / 2


def test_every_figure_is_drawn(page: Any) -> None:
    names = [figure.get_attribute("data-figure") for figure in page.locator("[data-figure]").all()]
    kinds = ("pareto", "accuracy", "stability", "layers", "cosine", "answers", "loss")
    assert {name.split("-")[0] for name in names} == set(kinds)
    for name in names:
        drawing = page.locator(f"[data-figure='{name}'] svg.marks")
        assert drawing.count() == 1, name
        box = drawing.bounding_box()
        assert box["width"] > 200 and box["height"] > 60, name
        assert drawing.locator("path, rect, line").count() > 10, name


def test_a_figure_s_views_are_chosen_by_keyboard(page: Any) -> None:
    figure = page.locator("[data-figure]").first
    figure.locator("input").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("[data-figure][data-drawn='1']")
    assert "prefill speed" in figure.locator("svg.marks").text_content()


def numbers(page: Any, name: str) -> list[float]:
    """The numbers of a column, from above."""
    return [float(cell.split(" ")[0]) for cell in column(page, name) if cell[:1].isdigit()]


def test_the_table_sorts_by_its_headings(page: Any) -> None:
    before = column(page, "method")
    head = page.locator("#results thead th", has_text="average").locator("button")
    head.focus()
    page.keyboard.press("Enter")
    assert numbers(page, "average") == sorted(numbers(page, "average"), reverse=True)
    assert column(page, "average")[-2:] == ["failed", "skipped"]
    head.click()
    assert numbers(page, "average") == sorted(numbers(page, "average"))
    assert page.locator("th[aria-sort='ascending']").count() == 1
    page.locator("#results thead th", has_text="method").locator("button").click()
    assert column(page, "method") == sorted(before)


def test_the_table_filters_by_method_and_target(page: Any) -> None:
    page.fill("#filter", "STREAMLINE-f")
    assert set(column(page, "method")) == {"llm-streamline-ffn"}
    assert page.inner_text("#count") == "2 of 13 rows"
    page.locator("#targets input[value='0.1']").uncheck()
    assert column(page, "target") == ["0.25"]
    page.fill("#filter", "")
    assert set(column(page, "target")) == {"0", "0.25"}


def test_columns_hide_and_each_task_unfolds(page: Any) -> None:
    assert "piqa" not in shown(page)
    page.check("#tasks")
    assert {"piqa", "hellaswag", "openbookqa"} <= set(shown(page))
    page.uncheck("#tasks")
    page.locator(".controls summary").click()
    page.locator("#columns label", has_text="stability").locator("input").uncheck()
    assert "stability" not in shown(page) and "average" in shown(page)


@pytest.mark.parametrize("tasks", [False, True])
def test_the_table_fits_1100_pixels_without_cutting(page: Any, tasks: bool) -> None:
    page.set_checked("#tasks", tasks)
    require_whole(page)


def require_whole(page: Any) -> None:
    """Nothing of the page, and of its table at a desk nothing either, is beyond an edge."""
    inner, outer = page.evaluate(
        "(t => [t.scrollWidth, t.parentNode.clientWidth])(document.getElementById('results'))"
    )
    width = page.viewport_size["width"]
    assert inner <= outer <= 1100 or width < WIDE["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for figure in page.locator("[data-figure]").all():
        box = figure.locator("svg.marks").bounding_box()
        assert box["width"] > 200 and box["height"] > 60
        assert 0 <= box["x"] <= width - box["width"]


def test_a_phone_scrolls_in_one_direction(chrome: Any, report: Path) -> None:
    with opened(chrome, report, viewport=PHONE) as (page, said):
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for drawing in page.locator("svg.marks").all():
            assert drawing.bounding_box()["width"] <= PHONE["width"]
            size = drawing.evaluate(
                "s => s.getBoundingClientRect().width / s.viewBox.baseVal.width"
            )
            assert size > 0.9  # letters keep their size
        assert {"method", "average"} <= set(shown(page))
        assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(chrome: Any, report: Path, scheme: str) -> None:
    with opened(chrome, report, viewport=WIDE, color_scheme=scheme) as (page, said):
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 100
        assert min(value for value, _ in contrasts) >= 4.5, min(contrasts)
        assert said == []


CONTRASTS = """() => {
  const channel = value => {
    value /= 255;
    return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  };
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("h1, p, li, td, th, figcaption, .drawing text")]
    .filter(element => element.textContent && element.checkVisibility())
    .map(element => {
      const style = getComputedStyle(element);
      const ink = light(element.tagName === "text" ? style.fill : style.color);
      const [high, low] = [Math.max(ink, page), Math.min(ink, page)];
      return [(high + 0.05) / (low + 0.05), element.textContent.slice(0, 40)];
    });
}"""


def cut_on_paper(page: Any) -> list[str]:
    """The tables that a sheet of paper would cut."""
    page.emulate_media(media="print", color_scheme="dark")
    resized(page, **PAPER)
    return page.evaluate(
        """() => [...document.querySelectorAll("table")]
             .filter(table => table.getBoundingClientRect().right > innerWidth + 1)
             .map(table => table.parentNode.ariaLabel)"""
    )


def test_paper_cuts_no_table(page: Any, tmp_path: Path) -> None:
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 50_000
    assert page.evaluate("[...document.querySelectorAll('main details')].every(d => d.open)")
    assert cut_on_paper(page) == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_without_a_script_the_drawings_and_all_columns_stand(chrome: Any, report: Path) -> None:
    with chrome.new_context(java_script_enabled=False, viewport=WIDE) as around:
        bare = around.new_page()
        bare.goto(report.as_uri())
        assert bare.locator(".drawing svg").count() == 7
        assert bare.locator("#results th:visible", has_text="hellaswag").count() == 1
        assert bare.locator(".controls:visible").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.parent.name)
def test_a_committed_page_is_whole(chrome: Any, file: Path) -> None:
    """Which is what its records make: tests/report/test_committed_reports.py."""
    files = [path.stem for path in (file.parent / "figures").glob("*.svg")]
    with opened(chrome, file, viewport=WIDE) as (page, said):
        shown = page.locator("[data-figure]").all()
        names = [figure.get_attribute("data-figure") for figure in shown]
        assert names and all(name.startswith(tuple(names)) for name in files)
        assert all(any(file.startswith(name) for file in files) for name in names)
        require_whole(page)
        methods = column(page, "method")
        head = page.locator("#results thead th", has_text="average").locator("button")
        for falls in (True, False):
            head.click()
            assert len(numbers(page, "average")) > 1
            assert numbers(page, "average") == sorted(numbers(page, "average"), reverse=falls)
        page.fill("#filter", methods[-1])
        assert set(column(page, "method")) == {one for one in methods if methods[-1] in one}
        assert len(column(page, "method")) < len(methods)
        page.fill("#filter", "")
        resized(page, **PHONE)
        require_whole(page)
        page.evaluate("document.querySelectorAll('main details').forEach(part => part.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert cut_on_paper(page) == []
        assert said == []
