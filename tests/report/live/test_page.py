"""The page in a browser."""

from __future__ import annotations

import threading

import pytest

from sdsd.report.live import LiveServer
from tests import axe, browser

from .rows import lines

# In a browser


@pytest.fixture
def chromium(tmp_path):
    if browser.executable() is None:
        pytest.skip("no Chromium or Chrome on this machine: apt-get install chromium, or name one in CHROME")
    with browser.Browser(tmp_path / "profile") as page:
        yield page


def test_the_page_waits_for_its_file_and_redraws_as_it_grows(chromium, server, path):
    page = chromium
    page.open(server.address)
    page.wait_for("document.querySelector('#note').textContent.includes('not there yet')")
    assert page.evaluate("document.querySelector('#run').hidden")
    path.write_text("".join(lines(30, names=3)))
    page.wait_for("document.querySelector('#state').textContent === 'writing'")
    assert page.evaluate("document.querySelector('#about').textContent").startswith("last step 30")
    assert page.evaluate("document.querySelector('#scale').textContent") == "130"
    assert page.evaluate("document.querySelector('#scale-label').textContent").endswith("(99.9% interval 65 – ∞)")
    assert page.evaluate("document.querySelector('#advice').textContent") == "Grow."
    assert page.evaluate("document.querySelectorAll('#gamma-chart path.curve').length") == 4
    named = page.evaluate("[...document.querySelectorAll('.batch-gamma')].map((each) => each.textContent)")
    assert named == ["Γ of a batch of 32"] * 2
    assert page.evaluate("document.querySelector('#parameters td').dataset.label") == "Γ of a batch of 32"
    before = page.evaluate("document.querySelector('#noise-chart path.total').getAttribute('d')")
    with path.open("a") as more:
        more.writelines(lines(20, first=31, names=3))
    page.wait_for("document.querySelector('#about').textContent.startsWith('last step 50')")
    assert page.evaluate("document.querySelector('#noise-chart path.total').getAttribute('d')") != before
    assert page.evaluate("document.querySelectorAll('#parameters tr').length") == 4
    assert page.complaints == []
    asked = {request.split("?")[0] for request in page.requests if request != "data:,"}
    assert asked == {server.address + name for name in ("", "live.css", "live.js", "data")}


def test_another_step_by_keyboard_mouse_and_slider(chromium, server, path):
    page = chromium
    path.write_text("".join(lines(30, names=2)))
    page.open(server.address)
    page.wait_for("document.querySelectorAll('#parameters tr').length === 3")
    shown = "Number(document.querySelector('#step-value').textContent)"
    page.press("Tab", 9)
    assert page.evaluate("document.activeElement.id") == "step"
    page.press("ArrowLeft", 37)
    page.press("ArrowLeft", 37)
    assert page.evaluate(shown) == 28
    assert page.evaluate("document.querySelector('#scale').textContent") == "128"
    assert page.evaluate("document.querySelector('#parameters td').textContent") == "0.25"
    assert page.evaluate("document.activeElement.getAttribute('aria-valuetext')") == "step 28"
    page.press("Tab", 9)
    assert page.evaluate("document.activeElement.id") == "newest"
    page.evaluate("document.activeElement.click()")
    assert page.evaluate(shown) == 30
    box = "document.querySelector('#noise-chart').getBoundingClientRect()"
    left, top, width = (page.evaluate(f"{box}.{side}") for side in ("left", "top", "width"))
    page.move_mouse(left + width / 2, top + 50)
    assert 10 < page.evaluate(shown) < 20
    page.move_mouse(2, 2)
    assert page.evaluate(shown) == 30
    page.evaluate("document.querySelector('[aria-label=\"draw layer1.weight\"]').click()")
    assert page.evaluate("document.querySelectorAll('#gamma-chart path.curve').length") == 2


def test_the_page_says_when_nothing_answers_any_more(chromium, path):
    path.write_text("".join(lines(3)))
    with LiveServer(path) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        chromium.open(serving.address)
        chromium.wait_for("document.querySelectorAll('#parameters tr').length === 2")
        serving.shutdown()
        thread.join()
    chromium.wait_for("document.querySelector('#state').textContent === 'ended'")
    assert "Start it again" in chromium.evaluate("document.querySelector('#note').textContent")
    assert not chromium.evaluate("document.querySelector('#run').hidden")


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_while_it_waits_and_when_it_draws(chromium, server, path, dark):
    if not axe.there():
        pytest.skip(axe.MISSING)
    chromium.show_as(400, dark=dark)
    chromium.open(server.address)
    chromium.wait_for("!document.querySelector('#note').hidden")
    assert axe.violations(chromium) == []
    path.write_text("".join(lines(30, names=3)))
    chromium.wait_for("document.querySelectorAll('#parameters tr').length === 4")
    assert axe.violations(chromium) == []


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_on_a_phone_nor_on_a_wide_screen(chromium, server, path, width, dark):
    path.write_text("".join(lines(30, names=3)))
    chromium.show_as(width, dark=dark)
    chromium.open(server.address)
    chromium.wait_for("document.querySelectorAll('#parameters tr').length === 4")
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    assert chromium.cut_off() == []
    colour = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(18, 22, 28)" if dark else "rgb(255, 255, 255)")
