import shutil

import pytest

from equipoise.lab.results.report import write_report

playwright = pytest.importorskip("playwright.sync_api")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
HOSTILE = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a <b>bold</b> &lt; %{y} & $x$")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_report(browser, tmp_path):
    """Opens the report on some records with every figure drawn; afterwards the page must have been silent and alone."""
    pages, requests, trouble = [], [], []

    def open_(records):
        path = tmp_path / "report.html"
        write_report(records, path)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(path.as_uri())
        page.evaluate("dispatchEvent(new Event('beforeprint'))")  # draws what is still waiting to be scrolled to
        page.locator(".plot > script").first.wait_for(state="detached")
        playwright.expect(page.locator(".plot .scatterlayer")).to_have_count(page.locator(".plot:not(.empty)").count())
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.wait_for_timeout(100)
        page.close()
    assert trouble == []
    assert requests
    assert [url for url in requests if not url.startswith(("file://", "data:", "blob:"))] == []


def records(make_record, tasks=("alpha", "beta"), **settings):
    return [make_record(m, s, tasks, **settings) for m in ("equal", "gradnorm") for s in range(2)]


def test_every_curve_is_drawn(open_report, make_record):
    tasks = tuple(f"task {i}" for i in range(14))
    page = open_report(records(make_record, tasks))
    assert page.locator(".js-plotly-plot").count() == 2 + 2 * 4 + 14 + 14
    count = "(plots, path) => plots.map((plot) => plot.querySelectorAll(path + '[d^=M]').length)"
    lines = page.locator(".js-plotly-plot").evaluate_all(count, "path.js-line:not([style*='stroke-width: 0px'])")
    bands = page.locator(".js-plotly-plot").evaluate_all(count, "path.js-fill")
    # A line per task in each of a method's panels, and the targets of GradNorm; no bands among so many.
    assert (lines[2:10], bands[2:10]) == ([14, 14, 14, 14, 14, 14, 28, 14], [0] * 8)
    # Training and test loss of two methods, each with a band; then their metric.
    assert (lines[10:24], bands[10:24]) == ([4] * 14, [4] * 14)
    assert (lines[24:], bands[24:]) == ([2] * 14, [2] * 14)


def test_figures_are_drawn_when_they_come_near_the_screen(browser, tmp_path, make_record):
    write_report(records(make_record, tuple("abcdefgh")), tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 1280, "height": 500})
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector(".js-plotly-plot .scatterlayer")
    assert page.locator(".plot > script").count() > 0
    last = page.locator(".plot").last
    assert last.locator("script").count() == 1
    last.scroll_into_view_if_needed()
    last.locator(".scatterlayer").wait_for()
    page.close()


def test_hostile_names_are_shown_literally_and_do_nothing(open_report, make_record):
    page = open_report(records(make_record, HOSTILE, problem=HOSTILE[0], metric=HOSTILE[1]))
    shown = page.inner_text("body")
    assert all(name in shown for name in HOSTILE)
    assert page.locator("main img").count() == 0
    for key, name in enumerate(HOSTILE):
        # The trace is found by its place, as its stored name is escaped.
        hovered = (
            page.locator(".js-plotly-plot")
            .nth(2 + key)
            .evaluate(
                """(plot, key) => {
                const curve = plot.data.findIndex((trace) => trace.name && trace.legendgroup === key);
                Plotly.Fx.hover(plot, [{ curveNumber: curve, pointNumber: 10 }]);
                return plot.querySelector(".hoverlayer").textContent;
            }""",
                str(key),
            )
        )
        assert hovered.startswith(name)
    title = page.locator(".js-plotly-plot").last.locator(".ytitle").text_content()
    assert title.startswith(HOSTILE[1])


def test_the_legend_selects_tasks_and_axes_can_be_set_free(open_report, make_record):
    page = open_report(records(make_record))
    section = page.locator(".linked").nth(1)
    visible = "plots => plots.map((p) => p.data.filter((t) => t.name && t.visible !== false).map((t) => t.name))"
    ranges = "plots => plots.map((p) => p.layout.yaxis.range.join())"
    plots = section.locator(".js-plotly-plot")
    assert plots.evaluate_all(visible)[0] == ["alpha", "beta"]
    section.get_by_role("button", name="beta").click()
    assert plots.evaluate_all(visible) == [["beta"]] * 6 + [["beta", "beta"], ["beta"]]
    assert (
        page.locator(".linked").nth(2).locator(".js-plotly-plot").evaluate_all(visible)[0] == ["equal", "gradnorm"] * 2
    )
    section.get_by_role("button", name="beta").click()
    assert plots.evaluate_all(visible)[0] == ["alpha", "beta"]

    common = plots.evaluate_all(ranges)
    assert common[1] == common[5]
    section.get_by_role("checkbox").check()
    free = plots.evaluate_all(ranges)
    assert free[1] != free[5]
    section.get_by_role("checkbox").uncheck()
    assert plots.evaluate_all(ranges) == common


def test_the_page_fits_narrow_and_wide_screens(open_report, make_record):
    page = open_report(records(make_record, ("a" * 60, "beta")))
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_diverged_run_is_drawn_to_where_it_ends(open_report, make_record):
    broken = {"alpha": [1.0, 0.9, float("nan"), float("inf"), float("nan")], "beta": [1.0] * 5}
    runs = [make_record(), make_record("gradnorm", train=broken, validation=broken, test=broken)]
    page = open_report(runs)
    assert "gradnorm, seed 0: diverged" in page.inner_text(".flags")
    assert page.locator(".js-plotly-plot").count() == 2 + 2 * 4 + 2 + 2


def test_a_single_run_has_a_report_too(open_report, make_record):
    page = open_report([make_record(tasks=("only",))])
    assert "(n = 1)" in page.inner_text("table")
    assert page.locator(".js-plotly-plot").count() == 2 + 4 + 1 + 1


def test_a_click_on_a_column_sorts_the_tasks_and_the_numbers_can_be_saved(open_report, make_record):
    page = open_report(records(make_record, ("beta", "alpha", "gamma")))
    names = lambda: page.locator("tbody.task th").all_inner_texts()  # noqa: E731
    assert names() == ["beta", "alpha", "gamma"]
    head = page.locator("th .sort").first
    head.click()
    assert names() == ["alpha", "beta", "gamma"]
    head.click()
    assert names() == ["gamma", "beta", "alpha"]
    page.locator("th .sort").nth(1).click()
    numbers = [float(text.split()[0]) for text in page.locator("tbody.task td:nth-child(3)").all_inner_texts()]
    assert numbers == sorted(numbers)
    with page.expect_download() as saved:
        page.get_by_role("link", name="All numbers as CSV").click()
    assert saved.value.path().read_text().startswith("comparison,part,row")


def test_the_picture_can_be_read_in_light_and_in_dark(browser, tmp_path, make_record):
    write_report(records(make_record), tmp_path / "report.html")
    shades = []
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme=scheme)
        page.goto((tmp_path / "report.html").as_uri())
        shade = "([selector, property]) => getComputedStyle(document.querySelector(selector))[property]"
        shades.append([page.evaluate(shade, pair) for pair in (["body", "backgroundColor"], [".drawn text", "fill"])])
        assert page.locator(".drawn").bounding_box()["width"] <= 390
        page.close()
    light, dark = ([sum(map(int, color[4:-1].split(","))) for color in found] for found in shades)
    assert light[0] - light[1] > 400
    assert dark[1] - dark[0] > 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_buttons_of_a_figure_hide_none_of_its_curves(open_report, make_record, scheme):
    page = open_report(records(make_record))
    page.emulate_media(color_scheme=scheme)
    grounds = page.locator(".modebar-group").evaluate_all(
        "groups => groups.map((one) => getComputedStyle(one).backgroundColor)"
    )
    assert set(grounds) == {"rgba(0, 0, 0, 0)"}
