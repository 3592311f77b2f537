"""The page: self-contained, escaped, and one document."""

from __future__ import annotations

from html.parser import HTMLParser

from sdsd.report import html

VOID = {"meta", "br", "img", "link"}


class Balance(HTMLParser):
    """Fails when a tag is closed that was not the last one opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag


def everything() -> str:
    evil = "<script>alert('&')</script>"
    figure = html.Figure("<svg></svg>", evil, f'{evil}" onload="x')
    blocks = [
        html.Text(evil),
        html.Note(evil),
        html.Code(evil),
        html.settings([(evil, evil)], evil),
        html.Cards([(evil, evil)]),
        figure,
        html.SideBySide([figure, figure]),
        html.Table((evil, "b"), [(evil, evil)], evil),
    ]
    return html.page(evil, blocks, [html.Section(evil, blocks)], evil)


def test_everything_is_escaped_and_balanced():
    page = everything()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.seen
    assert 'onload="x"' not in page.replace("&quot;", "")
    assert page.startswith("<!DOCTYPE html>")


def test_nothing_is_fetched():
    page = everything()
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_a_dollar_in_the_text_stays():
    assert "$style costs $5" in html.page("t", [html.Text("$style costs $5")], [])
