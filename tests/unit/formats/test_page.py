# pyright: basic
"""The page frame and the charts: well-formed, escaped, and true to their numbers."""

import math
import xml.etree.ElementTree as ET

import pytest

from mulle.core.schema import MISSING_TEXT
from mulle.formats.charts import ForestRow, Series, bar_chart, category_pair, forest_plot, heat_table, histogram_pair, line_chart, ticks
from mulle.formats.page import Html, Section, Tile, escape, format_number, html_badge, html_pairs, html_table, html_tiles, render_page

HOSTILE = '<b onclick="x">&\'한글'


def parse(fragment):
    """Return the fragment as XML: a missing quote or an open element fails here."""
    return ET.fromstring(f"<div>{fragment.replace('&nbsp;', ' ')}</div>")  # noqa: S314 - our own output


@pytest.mark.parametrize(
    "fragment",
    [
        pytest.param(html_table([HOSTILE, "n"], [[HOSTILE, 1.5], [None, None]], caption=HOSTILE), id="table"),
        pytest.param(
            html_tiles([Tile(HOSTILE, HOSTILE, HOSTILE, "bad")]) + html_pairs([(HOSTILE, 3)]) + html_badge("ok", HOSTILE),
            id="tiles, pairs, badge",
        ),
        pytest.param(
            line_chart([Series(HOSTILE, [0, 1], [0, 1], [0, 0], [1, 2], dots=True), Series("b", [0], [math.nan])], x_label=HOSTILE),
            id="lines",
        ),
        pytest.param(line_chart([Series("none", [], [])], diagonal=True), id="a line without points"),
        pytest.param(
            histogram_pair([-math.inf, 0, 1, math.inf], [1, 2, 3], [0, 0, 0], labels=(HOSTILE, "b"), marker=0.5), id="histograms, one empty"
        ),
        pytest.param(category_pair([HOSTILE] * 30, [1] * 30, [2] * 30), id="more categories than are drawn"),
        pytest.param(bar_chart([HOSTILE, "b"], [1, -1], intervals=[(0, 2), (-2, 0)]), id="bars to both sides"),
        pytest.param(forest_plot([ForestRow(HOSTILE), ForestRow("b", 0.5, 0.4, 0.6, HOSTILE, flagged=True)], reference=0.5), id="forest"),
        pytest.param(forest_plot([]), id="an empty forest"),
        pytest.param(
            heat_table([HOSTILE] * 20, ["b"] * 20, [[0] * 20] * 20, row_title="r", column_title="c"), id="a table with nothing in it"
        ),
    ],
)
def test_every_part_is_well_formed_and_escaped(fragment):
    """Parts parse as XML, and a hostile name stays text."""
    root = parse(fragment)

    assert not any("onclick" in element.attrib for element in root.iter())
    assert "<b " not in fragment


def test_a_page_holds_its_parts_and_nothing_from_outside():
    """Title and sections are there, escaped; scripts and requests are forbidden by the page itself."""
    page = render_page(HOSTILE, [Section(f"부분 {i}", "<p>x</p>", HOSTILE) for i in range(4)], "sub", ("warn", "기다림"), footer="끝")

    assert all(text in page for text in ("부분 3", "기다림", "끝", "default-src 'none'", 'href="#s3"'))
    assert 'onclick="' not in page
    assert page.encode("utf-8")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(Html("<i>x</i>"), "<i>x</i>", id="what is HTML already stays"),
        pytest.param(MISSING_TEXT, "(missing)", id="the marker of a missing text is named"),
        pytest.param("a\x00b\ud800", "a\ufffdb?", id="what UTF-8 or HTML cannot hold is replaced"),
        pytest.param("x" * 500, "x" * 159 + "…", id="long text is cut"),
    ],
)
def test_escape_makes_anything_printable(value, expected):
    """Any text becomes safe, bounded and encodable."""
    assert expected == escape(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.84312, "0.8431"),
        (12345, "12,345"),
        (12.3456, "12.35"),
        (3.2e-7, "3.20e-07"),
        (math.nan, "–"),
        (-math.inf, "-∞"),
        (2.0, "2"),
        (1234.5, "1,234"),
    ],
)
def test_numbers_are_shown_as_people_read_them(value, expected):
    """Four significant digits, thousands parted, no NaN."""
    assert expected == format_number(value)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 1e-3), (1e9, 1e9 + 1), (0.8, 0.81)])
def test_ticks_are_few_rising_and_inside(low, high):
    """Marks lie inside the range, two to twelve of them."""
    found = ticks(low, high)

    assert found == sorted(found)
    assert 2 <= len(found) <= 12
    assert all(low - 1e-6 * (high - low) <= t <= high + 1e-6 * (high - low) for t in found)


def test_a_long_line_is_thinned_but_keeps_its_end():
    """Ten thousand points draw a few hundred, the last one among them."""
    chart = line_chart([Series("s", list(range(10_000)), list(range(10_000)))], x_range=(0, 9_999), y_range=(0, 9_999))
    points = chart.split('points="')[1].split('"')[0].split()

    assert 100 < len(points) < 500
    assert ("44.0,244.0", "410.0,10.0") == (points[0], points[-1])
