"""The part of docs/coverage.md that the zoo of functional geometry writes, a row at a time or whole."""

from __future__ import annotations

from tests.zoo import geometry_page
from tests.zoo.geometry_page import Row, section, with_rows, with_section

ROWS = [
    Row("one family", "a", 3, 2, 1, (1, 2), (0, 1)),
    Row("one family", "b", 3, 2, 2, (2, 2), (1, 1)),
    Row("another", "a", 3, 2, 2, (4, 4), (3, 3)),
]


def page(rows):
    return with_section(
        f"# Coverage\n\ntext\n\n{geometry_page.HEADING}\n\nold\n\n# Coverage: symmetries\n\nmore\n", section(rows)
    )


def test_a_row_that_is_put_in_is_as_if_all_had_been_written():
    new = Row("one family", "a", 3, 2, 2, (2, 2), (1, 1))
    assert "7 of 8 MLPs and convolutions cut, 4 of 5 streams behind norms." in page(ROWS)
    assert with_rows(page(ROWS), [new]) == page([new, *ROWS[1:]])
    assert with_rows(page(ROWS), []) == page(ROWS)


def test_the_page_has_totals_of_its_rows():
    text = geometry_page.TABLE.read_text(encoding="utf-8")
    assert with_rows(text, []) == text
