"""What Chromium draws of the report."""

import itertools

import pytest

from experiments.report import runs
from experiments.report.page import Report, render
from tests import browser, report_folders


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = report_folders.sweep(tmp_path_factory.mktemp("sweeps") / "first")
    return Report("first", runs.collect([str(folder)]), "ppo")


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return report_folders.grid(tmp_path_factory.mktemp("grids"))


@pytest.fixture(scope="module")
def lengths(tmp_path_factory):
    return report_folders.lengths(tmp_path_factory.mktemp("lengths"))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    if browser.find() is None:
        pytest.skip("no Chromium or Chrome at hand (Debian: apt-get install chromium)")
    window = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield window
    window.close()


@pytest.fixture
def chromium(running):
    running.new_page()
    return running


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_bytes(render(report))
    return file


def plot(key):
    return f"document.querySelector('.plot[data-drawn=\"{key}\"]')"


def show(chromium, selector="#curves"):
    """Scrolls through the charts of a section until each is drawn, as a reader would."""
    section = f"document.querySelectorAll('{selector} .plot')"
    for i in range(chromium.evaluate(f"{section}.length")):
        if chromium.evaluate(f"!{section}[{i}].closest('details:not([open])')"):
            chromium.evaluate(f"{section}[{i}].scrollIntoView({{block: 'center'}})")
            chromium.until(f"{section}[{i}].querySelector('.main-svg')")
    chromium.evaluate(f"document.querySelector('{selector}').scrollIntoView()")


def count(chromium, key, selector):
    return chromium.evaluate(f"{plot(key)}.querySelectorAll(`{selector}`).length")


LINES, BANDS = ".scatterlayer .js-line[style*='stroke-width: 2px']", ".scatterlayer .js-fill"


def test_each_variant_is_a_line_with_a_band(chromium, page):
    chromium.open(page)
    show(chromium)
    for env in ("CartPole-v1", "Acrobot-v1"):
        key = f"eval_return-{env}"
        assert count(chromium, key, LINES) == 3
        assert count(chromium, key, BANDS) == 3
        assert count(chromium, key, ".points path") == 3 * 6
    assert count(chromium, "eval_return-CartPole-v1", ".modebar-btn") == 6
    assert count(chromium, "eval_return-CartPole-v1", "[data-title*=Share]") == 0
    assert chromium.complaints == []
    assert chromium.requests == [page.absolute().as_uri()]


def test_comparisons_and_diagnostics_are_drawn(chromium, page):
    chromium.open(page)
    show(chromium, "#comparison")
    assert count(chromium, "probability_of_improvement", ".points path") == 2 * 3
    assert count(chromium, "probability_of_improvement", ".errorbar .xerror") == 2 * 3
    assert count(chromium, "aggregate_scores", ".points path") == 3 * 3
    for key in ("performance_profiles", "sample_efficiency"):
        assert count(chromium, key, LINES) == count(chromium, key, BANDS) == 3
    show(chromium, "#diagnostics")
    for metric in ("episode_return", "effective_sample_size", "weight_max", "approx_kl"):
        assert count(chromium, f"{metric}-beside-Acrobot-v1", LINES) == 3
    assert count(chromium, "kl_spikes-beside-Acrobot-v1", ".points path") == 3 * 4
    assert chromium.complaints == []


def test_the_end_of_training_is_labelled(chromium, page):
    chromium.open(page)
    show(chromium, "#comparison")
    chart = plot("sample_efficiency")
    last = f"[...{chart}.querySelectorAll('.xtick text')].at(-1)"
    assert chromium.evaluate(f"{last}.textContent") == "100%"
    assert chromium.evaluate(f"{last}.style.display") != "none"  # as where it does not fit


def test_the_legend_hides_and_shows_variants(chromium, page):
    chromium.open(page)
    show(chromium)
    key, button = "eval_return-CartPole-v1", "document.querySelectorAll('.legend button')[1]"
    chromium.evaluate(f"{button}.click()")
    assert chromium.evaluate(f"{button}.getAttribute('aria-pressed')") == "false"
    assert count(chromium, key, LINES) == count(chromium, key, BANDS) == 2
    chromium.open(page)  # as the page does while runs are watched
    show(chromium)
    assert count(chromium, key, LINES) == 2
    chromium.evaluate(f"{button}.click()")
    assert count(chromium, key, LINES) == 3


def test_another_return_is_drawn_in_its_place(chromium, page):
    chromium.open(page)
    show(chromium)
    chromium.evaluate("document.getElementById('metric').value = 'episode_return'")
    chromium.evaluate("document.getElementById('metric').dispatchEvent(new Event('change'))")
    assert count(chromium, "episode_return-CartPole-v1", LINES) == 3
    title = f"{plot('episode_return-CartPole-v1')}.querySelector('.ytitle').textContent"
    assert chromium.evaluate(title) == "return (training)"


def at(chromium, key, x, y):
    """Where in the window a point of a chart lies."""
    return chromium.evaluate(
        f"(() => {{ const p = {plot(key)}, a = p._fullLayout, b = p.getBoundingClientRect();"
        f"return [b.x + a._size.l + a.xaxis.d2p({x}), b.y + a._size.t + a.yaxis.d2p({y})] }})()"
    )


def mouse(chromium, kind, where, **more):
    chromium.send("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], **more)


def test_hovering_shows_value_interval_and_seeds(chromium, page):
    chromium.open(page)
    show(chromium)
    key = "eval_return-CartPole-v1"
    mouse(chromium, "mouseMoved", at(chromium, key, 10_000, 480))
    chromium.until(f"{plot(key)}.querySelector('.hovertext')")
    text = chromium.evaluate(f"{plot(key)}.querySelector('.hovertext').textContent")
    assert "rgpo sharpness=4" in text
    assert "10,000 steps: 480" in text
    assert "95 % [4" in text
    assert "8 seeds" in text


def test_dragging_zooms_and_the_button_resets(chromium, page):
    chromium.open(page)
    show(chromium)
    key = "eval_return-CartPole-v1"
    limits = f"{plot(key)}._fullLayout.xaxis.range.map(Number)"
    whole = chromium.evaluate(limits)
    start, end = at(chromium, key, 2000, 100), at(chromium, key, 6000, 400)
    mouse(chromium, "mousePressed", start, button="left", clickCount=1)
    mouse(chromium, "mouseMoved", end, button="left", buttons=1)
    mouse(chromium, "mouseReleased", end, button="left", clickCount=1)
    chromium.until(f"{limits}[1] < 6500")
    assert chromium.evaluate(limits) == pytest.approx([2000, 6000], abs=60)
    chromium.evaluate("document.querySelectorAll('.legend button')[0].click()")
    assert chromium.evaluate(limits) == pytest.approx([2000, 6000], abs=60)
    chromium.evaluate("document.querySelectorAll('.legend button')[0].click()")
    chromium.evaluate("document.getElementById('reset').click()")
    chromium.until(f"{limits}[1] > 9000")
    assert chromium.evaluate(limits) == pytest.approx(whole)


def test_a_phone_scrolls_tables_and_not_the_page(chromium, page):
    chromium.open(page, width=390, height=844, touch=True)
    chromium.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for selector in ("#curves", "#comparison", "#diagnostics"):
        show(chromium, selector)
    assert chromium.evaluate("innerWidth") == 390
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 390
    wide = "[...document.querySelectorAll('.plot')].filter(p => p.scrollWidth > innerWidth).length"
    assert chromium.evaluate(wide) == 0
    table = "document.querySelector('#settings .scroll')"
    assert chromium.evaluate(f"{table}.scrollWidth > {table}.clientWidth")
    assert chromium.evaluate("document.getElementById('zoom').checked") is False
    assert chromium.complaints == []


def test_dark_mode_reaches_the_charts(chromium, page):
    chromium.open(page, dark=True)
    show(chromium)
    text = f"getComputedStyle({plot('eval_return-CartPole-v1')}.querySelector('.xtitle')).fill"
    paper = "getComputedStyle(document.body).backgroundColor"

    def brightness(expression):
        red, green, blue = chromium.evaluate(expression).partition("(")[2].split(",")[:3]
        return int(red) + int(green) + int(blue.rstrip(")"))

    assert brightness(paper) < 100 < 400 < brightness(text)
    chromium.scheme("light")
    chromium.until(f"{text} === 'rgb(89, 99, 110)'")
    assert brightness(paper) == 3 * 255


def test_the_page_names_its_parts(chromium, page):
    chromium.open(page)
    levels = "[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))"
    found = chromium.evaluate(levels)
    assert found[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(found))
    unnamed = "[...document.querySelectorAll('.plot, img, iframe, .scroll')].filter(e => "
    unnamed += "!(e.ariaLabel || e.alt || e.title || e.getAttribute('aria-labelledby'))).length"
    assert chromium.evaluate(unnamed) == 0
    links = "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))"
    assert chromium.evaluate(links)


def test_a_sweep_is_drawn(chromium, grid, tmp_path):
    file = tmp_path / "index.html"
    file.write_bytes(render(grid))
    chromium.open(file, width=1400)
    show(chromium, "#sweeps")
    ppo, rgpo, heat = (
        chart.key for chart in (grid.swept[0][0], grid.swept[1][0], grid.swept[1][2])
    )
    assert count(chromium, rgpo, ".points path") == count(chromium, rgpo, ".yerror") == 6
    assert count(chromium, rgpo, ".legend .traces") == 2
    assert count(chromium, heat, ".heatmap-label") == 6
    ticks = f"[...{plot(ppo)}.querySelectorAll('.xtick text')].map(t => t.textContent)"
    assert chromium.evaluate(ticks) == ["0.0001", "0.001", "0.01"]
    # A chart that is alone in its row fills it.
    section = "document.querySelector('#sweeps').clientWidth"
    assert chromium.evaluate(f"{plot(ppo)}.clientWidth > 0.95 * {section}")
    assert chromium.complaints == []


def test_parameters_of_environments_are_drawn(chromium, lengths, tmp_path):
    file = tmp_path / "index.html"
    file.write_bytes(render(lengths))
    chromium.open(file, width=1400)
    show(chromium, "#tasks")
    (charts,) = lengths.tasks.values()
    assert count(chromium, charts[1].key, ".points path") == 7
    assert count(chromium, charts[1].key, ".legend .traces") == 3
    assert chromium.complaints == []


def test_numbers_do_not_break_on_a_phone_and_the_legend_scrolls(chromium, grid, tmp_path):
    file = tmp_path / "index.html"
    file.write_bytes(render(grid))
    chromium.open(file, width=390, height=844, touch=True)
    lines = "[...document.querySelectorAll('.whole')].every(e => e.getClientRects().length === 1)"
    assert chromium.evaluate(lines)
    legend = "document.querySelector('.legend')"
    assert chromium.evaluate(f"{legend}.scrollWidth > {legend}.clientWidth")
    assert chromium.evaluate(f"{legend}.clientHeight < 60")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 390
