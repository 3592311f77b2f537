"""The pages that commands write, in a browser: on a phone and on a wide screen, light and dark, by keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sdsd import cli
from sdsd.geometry import NeuronMap
from sdsd.report import figures, geometry_page, html
from sdsd.studies import DemoConfig, run_demo
from tests import axe, browser

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")
pytest.importorskip("sklearn")

WIDTHS = (400, 1400)


def shown_figure(columns: int, name: str, width: float = 7.6) -> html.Figure:
    figure, axes = figures.new_figure(3.8 * columns if columns > 1 else width, 3.4, columns=columns)
    for place, each in enumerate([axes] if columns == 1 else axes):
        figures.draw_merges(each, {"near": [1e-5, 3e-4], "random": [2e-3], "far": [0.5, 0.01]})
        figures.set_title(each, f"panel {place}")
    return html.Figure(figures.to_panels(figure, name), "A caption.", "A title.")


def everything(folder: Path) -> Path:
    """A page with each kind of block that pages are made of."""
    torch.manual_seed(0)
    neuron_map = NeuronMap.from_activations(torch.randn(60, 4).relu() @ torch.randn(4, 30), layer="hidden")
    claim = geometry_page.ClaimRow(
        "Far pairs cost more",
        "reproduced",
        "5 × (0.0594 / 0.0119)",
        "2 [1.1, 4] × far / near",
        "Near 0.001, far 0.002.",
        "reproduced if the interval lies above 1",
    )
    verdicts = ("reproduced", "direction only", "not reproduced", "untestable here")
    claims = [geometry_page.ClaimRow(**{**vars(claim), "verdict": each}) for each in verdicts]
    wide = html.Table(
        ("pairs", "mean cosine", "mean |change of loss|", "largest", "at once", "accuracy, all at once"),
        [(name, "0.96", "0.000084", "0.0012", "−0.0029", "−9.1 points") for name in ("near", "random", "far")],
        "What a merge costs.",
    )
    sections = [
        html.Section("Figures", [shown_figure(1, "one"), shown_figure(2, "two"), shown_figure(4, "four")]),
        html.Section("Side by side", [html.SideBySide([shown_figure(1, "left", 5.2), shown_figure(1, "right", 5.2)])]),
        html.Section("Tables", [wide, html.Table(("network", "accuracy"), [("untouched", "98.2%")])]),
        html.Section("Map", [geometry_page.InteractiveMap(neuron_map, "map0")]),
        html.Section("Claims", [html.Heading("a network"), geometry_page.ClaimRows(claims)]),
        html.Section("Settings", [html.Code("sdsd geometry --model net.py"), html.settings([("seed", "0")])]),
    ]
    cards = html.Cards([("0.89 ×", "as costly"), ("0.84 [0.71, 0.92] of starts at rank 1", "measured here")])
    page = html.page("A page", [html.Text("A lead."), cards, html.Note("A note.")], sections, "f", geometry_page.head())
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return everything(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.executable() is None:
        pytest.skip("no Chromium or Chrome on this machine: apt-get install chromium, or name one in CHROME")
    with browser.Browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def opened(chromium, path):
    def opened(width: int = 400, dark: bool = False) -> browser.Browser:
        chromium.show_as(width, dark=dark)
        chromium.open(path)
        chromium.wait_for("document.querySelector('#map0').data !== undefined")
        return chromium

    return opened


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut(opened, width):
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.cut_off() == []
    assert page.complaints == []


def test_what_is_cut_is_found(opened):
    page = opened()
    page.evaluate("document.querySelector('h1').style.marginLeft = '300px'")
    page.evaluate("document.querySelector('h1').style.whiteSpace = 'nowrap'")
    assert page.cut_off() == ["H1 : A page"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(opened, width, dark):
    if not axe.there():
        pytest.skip(axe.MISSING)
    page = opened(width, dark)
    assert axe.violations(page) == []


def test_axe_would_find_something(opened):
    if not axe.there():
        pytest.skip(axe.MISSING)
    page = opened()
    page.evaluate("document.querySelector('.note').style.color = '#ddd'")
    (found,) = axe.violations(page)
    assert found.startswith('color-contrast (1): <p class="note"')


def written_by_commands(folder: Path) -> Iterator[Path]:
    """The pages of the demonstration, of a study with three panels and of a map, at their shortest."""
    demo = run_demo(folder / "demo", DemoConfig(epochs=2), quiet=True)
    yield demo.written[0] if demo.written[0].name == "report.html" else demo.folder / "report.html"
    assert cli.main(["study", "rank", "--quick", "--quiet", "--out", str(folder / "studies")]) == 0
    yield folder / "studies" / "rank" / "report.html"
    assert cli.main(["claims", "--read", "--quiet", "--out", str(folder / "studies"), "--docs", str(folder)]) == 0
    yield folder / "studies" / "claims.html"
    torch.save(torch.randn(60, 4).relu() @ torch.randn(4, 30), folder / "activations.pt")
    assert cli.main(["map", str(folder / "activations.pt"), "--out", str(folder / "map")]) == 0
    yield folder / "map" / "map.html"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> list[Path]:
    return list(written_by_commands(tmp_path_factory.mktemp("written")))


def test_pages_of_commands(chromium, written):
    if not axe.there():
        pytest.skip(axe.MISSING)
    for path in written:
        for width in WIDTHS:
            for dark in (False, True):
                chromium.show_as(width, dark=dark)
                chromium.open(path)
                chromium.wait_for("[...document.querySelectorAll('.neuron-map')].every((each) => each.data)")
                assert chromium.evaluate("document.documentElement.scrollWidth") == width, path
                assert chromium.cut_off() == [], path
                assert axe.violations(chromium) == [], (path, width, dark)


def test_one_minus_sign(written):
    """Numbers below zero, in tables, figures and sentences, carry U+2212."""
    for path in written:
        text = re.sub(r"<(style|script|code)\b.*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        text = re.sub(r"<[^>]*>", " ", text)
        assert not re.search(r"(?<![\w-])-\d", text), (path, re.search(r".{30}(?<![\w-])-\d.{20}", text))


def boxes(page: browser.Browser, selector: str) -> list[dict[str, float]]:
    return page.evaluate(
        f"[...document.querySelectorAll({selector!r})].map((each) => each.getBoundingClientRect())"
        ".filter((box) => box.width > 0).map(({left, top, width}) => ({left, top, width}))"
    )


def test_panels_stack_on_a_phone_and_their_text_stays_readable(opened):
    panels = "section:first-of-type figure:nth-of-type(2) .canvas > div"
    for width, columns in ((400, 1), (1400, 2)):
        page = opened(width)
        assert len({round(box["left"]) for box in boxes(page, panels)}) == columns
        sizes = page.evaluate(
            "[...document.querySelectorAll('.canvas svg text')].map((text) => text.getBoundingClientRect().height)"
            ".filter((height) => height > 0)"
        )
        assert min(sizes) >= 11


def test_each_figure_is_shown_once(opened):
    for width in WIDTHS:
        page = opened(width)
        seen = [boxes(page, f"section:first-of-type figure:nth-of-type({number}) svg") for number in (1, 2, 3)]
        assert list(map(len, seen)) == [1, 2, 4]


def test_rows_are_cards_on_a_phone_and_keep_their_meaning(opened):
    page = opened(400)
    row = "document.querySelectorAll('section:nth-of-type(3) table')[0].tBodies[0].rows[2]"
    assert page.evaluate(f"getComputedStyle({row}).display") == "block"
    labels = page.evaluate(f"[...{row}.cells].slice(1).map((cell) => getComputedStyle(cell, '::before').content)")
    assert labels[0] == '"mean cosine"'
    assert labels[-1] == '"accuracy, all at once"'
    assert page.evaluate(f"[...{row}.cells].map((cell) => cell.getAttribute('role'))") == ["rowheader"] + 5 * ["cell"]
    assert page.evaluate(f"{row}.getAttribute('role')") == "row"
    page = opened(1400)
    assert page.evaluate(f"getComputedStyle({row}).display") == "table-row"


def test_words_are_not_broken_and_claims_have_the_width_of_their_card(opened):
    page = opened(1400)
    heads = page.evaluate(
        "[...document.querySelectorAll('thead th')].filter((head) => !head.textContent.includes(' '))"
        ".map((head) => head.getBoundingClientRect().height)"
    )
    assert max(heads) < 45  # two lines have 50
    page = opened(400)
    card, claim = ("document.querySelector('.claims tbody tr')", "document.querySelector('.claims tbody th')")
    widths = [page.evaluate(f"{each}.getBoundingClientRect().width") for each in (card, claim)]
    assert widths[1] > 0.85 * widths[0]


FOCUS = "document.activeElement"


def use_map_by_keyboard(page: browser.Browser, name: str) -> None:
    """Choose neuron 1, and turn the map by three of its buttons."""
    for _ in range(40):
        page.press("Tab", 9)
        if page.evaluate(f"{FOCUS}.closest('.map-controls') !== null && {FOCUS}.tagName === 'SELECT'"):
            break
    page.press("ArrowDown", 40)
    page.press("ArrowDown", 40)
    said = f"document.querySelector('#{name}-controls output').textContent"
    page.wait_for(f"{said} !== ''")
    assert page.evaluate(said).startswith("neuron 1 · cluster ")
    assert "Nearest, with cosines: " in page.evaluate(said)
    page.wait_for(f"document.querySelector('#{name}').data.some((trace) => trace.name === 'chosen')")
    camera = f"JSON.stringify(document.querySelector('#{name}')._fullLayout.scene.camera.eye)"
    for way in ("left", "up", "nearer"):
        before = page.evaluate(camera)
        page.press("Tab", 9)
        while page.evaluate(f"{FOCUS}.dataset.way") != way:
            page.press("Tab", 9)
        page.evaluate(f"{FOCUS}.click()")
        page.wait_for(f"{camera} !== {before!r}")


def test_a_map_alone_by_keyboard_on_a_phone(chromium, tmp_path):
    torch.manual_seed(0)
    neuron_map = NeuronMap.from_activations(torch.randn(60, 4).relu() @ torch.randn(4, 30), layer="hidden")
    path = neuron_map.save_html(tmp_path / "map.html")
    complaints = len(chromium.complaints)
    chromium.show_as(400, dark=False)
    chromium.open(path)
    chromium.wait_for("document.querySelector('#map').data !== undefined")
    use_map_by_keyboard(chromium, "map")
    assert chromium.complaints[complaints:] == []


def test_the_eye_goes_back_where_the_map_is_narrow(opened):
    """Plotly keeps the height of what is seen, so that a narrow element would cut neurons off on both sides."""
    seen = {}
    for width in (1400, 400):
        page = opened(width)
        page.wait_for("document.querySelector('#map0 .legend') !== null")
        seen[width] = page.evaluate(
            "(() => { const map = document.querySelector('#map0'), { x, y, z } = map._fullLayout.scene.camera.eye;"
            " return [Math.hypot(x, y, z), map.clientHeight / map.clientWidth]; })()"
        )
    assert seen[1400][1] < 1 < seen[400][1]
    assert seen[400][0] / seen[1400][0] == pytest.approx(seen[400][1])


def test_keyboard_and_touch_reach_what_pointing_shows(opened):
    page = opened(400)
    use_map_by_keyboard(page, "map0")
    while page.evaluate(f"{FOCUS}.tagName") != "SUMMARY":
        page.press("Tab", 9)
    page.evaluate(f"{FOCUS}.click()")
    assert page.evaluate(f"{FOCUS}.parentElement.open")
    assert page.evaluate(f"{FOCUS}.nextElementSibling.textContent") == "reproduced if the interval lies above 1"


def test_the_legend_lies_below_the_map_on_a_phone(opened):
    legend, scene = "document.querySelector('#map0 .legend')", "document.querySelector('#map0')._fullLayout.scene"
    page = opened(400)
    page.wait_for(f"{legend} !== null")
    bottom = page.evaluate(f"{scene}.domain.y[0]")
    assert page.evaluate("document.querySelector('#map0')._fullLayout.legend.orientation") == "h"
    assert bottom == 0
    page = opened(1400)
    page.wait_for(f"{legend} !== null")
    assert page.evaluate("document.querySelector('#map0')._fullLayout.legend.orientation") == "v"
