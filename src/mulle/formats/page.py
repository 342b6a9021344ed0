"""One self-contained HTML page: the frame all of Mulle's reports share.

No script, no external request (a content policy in the page forbids both), light and dark by the reader's setting,
readable on a phone, printable. Everything that is not marked `Html` is escaped here, once.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mulle.core.schema import MISSING_TEXT
from mulle.formats.page_style import STYLE

Tone = Literal["ok", "warn", "bad", "plain"]

MAX_TEXT = 160
_SMALLEST_PLAIN = 1e-4
_LARGEST_PLAIN = 1e6
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")


class Html(str):
    """Text that is HTML already: it goes into the page as it is."""

    __slots__ = ()


Cell = str | int | float | None
"""What a table cell may hold; `Html` is a `str` and is not escaped."""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a page.

    Args:
        title: Shown as a heading; escaped.
        body_html: HTML, made of the functions of this module and of `formats/charts.py`.
        note: One sentence in small print under the heading: how to read the part; escaped.
    """

    title: str
    body_html: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """One large figure at the top of a page."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "plain"


def escape(value: object, *, limit: int = MAX_TEXT) -> str:
    """Return `value` as text that is safe in HTML, at most `limit` characters of it.

    `Html` passes unchanged. Control characters and lone surrogates become U+FFFD, and the marker of a missing text
    becomes "(missing)", so that the page can always be written as UTF-8.
    """
    if isinstance(value, Html):
        return value
    text = "(missing)" if value == MISSING_TEXT else str(value)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    text = _CONTROL.sub("\ufffd", text).encode("utf-8", "replace").decode("utf-8")
    return html.escape(text, quote=True)


def format_number(value: float, *, digits: int = 4) -> str:
    """Return a number as a person reads it: `0.8431`, `12,345`, `3.2e-05`; NaN and infinities as `–`, `∞`, `-∞`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < _LARGEST_PLAIN):
        return f"{int(value):,}"
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if size >= _LARGEST_PLAIN or size < _SMALLEST_PLAIN:
        return f"{value:.2e}"
    decimals = max(0, digits - max(0, math.floor(math.log10(size)) + 1)) if size >= 1 else digits
    return f"{value:,.{decimals}f}"


def html_table(header: Sequence[str], rows: Iterable[Sequence[Cell]], *, caption: str = "") -> str:
    """Return an HTML table; numbers stand right, text left, None is a dash.

    Args:
        header: Column titles, escaped.
        rows: One sequence per row, as long as `header`.
        caption: Small print above the table, escaped.
    """
    body = [list(row) for row in rows]
    numeric = [_all_numbers([row[i] for row in body]) for i in range(len(header))]
    head = "".join(f"<th{_right(numeric[i])}>{escape(title)}</th>" for i, title in enumerate(header))
    lines = ["".join(f"<td{_right(numeric[i])}>{_cell(value)}</td>" for i, value in enumerate(row)) for row in body]
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    inner = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{inner}</tbody></table></div>'


def html_tiles(tiles: Sequence[Tile]) -> str:
    """Return the large figures of a page, side by side where there is room."""
    parts = [
        f'<div class="tile {tile.tone}"><div class="tile-label">{escape(tile.label)}</div>'
        f'<div class="tile-value">{escape(tile.value)}</div><div class="tile-note">{escape(tile.note)}</div></div>'
        for tile in tiles
    ]
    return f'<div class="tiles">{"".join(parts)}</div>'


def html_pairs(pairs: Iterable[tuple[str, Cell]]) -> str:
    """Return label and value, one pair per line: lineage, settings, the host."""
    items = "".join(f"<div><dt>{escape(label)}</dt><dd>{_cell(value)}</dd></div>" for label, value in pairs)
    return f'<dl class="pairs">{items}</dl>'


def html_callout(text: str, *, tone: Tone = "plain") -> str:
    """Return one sentence set apart, coloured by its tone."""
    return f'<p class="callout {tone}">{escape(text, limit=1000)}</p>'


def html_columns(*parts: str) -> str:
    """Return HTML parts side by side where there is room, one under the other on a phone."""
    return f'<div class="columns">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def html_figure(body_html: str, caption: str) -> str:
    """Return a chart with its caption above it."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{body_html}</figure>"


def html_badge(tone: Tone, text: str) -> Html:
    """Return a small coloured label; colour never carries the meaning alone, so `text` says it too."""
    return Html(f'<span class="badge {tone}">{escape(text)}</span>')


def html_details(summary: str, body_html: str) -> str:
    """Return a part that is folded away until the reader opens it."""
    return f"<details><summary>{escape(summary)}</summary>{body_html}</details>"


def render_page(
    title: str,
    sections: Sequence[Section],
    subtitle: str = "",
    badge: tuple[Tone, str] | None = None,
    *,
    footer: str = "",
    language: str = "en",
) -> str:
    """Return a whole HTML document, self-contained.

    Args:
        title: Heading and window title; escaped.
        sections: The parts, in reading order. With more than three, links to them stand under the heading.
        subtitle: One sentence under the heading; escaped.
        badge: Tone and text of the verdict beside the heading.
        footer: The last line, in small print; escaped.
        language: BCP 47 tag of the text, for screen readers and hyphenation.
    """
    mark = html_badge(*badge) if badge else ""
    below = f'<p class="subtitle">{escape(subtitle, limit=400)}</p>' if subtitle else ""
    links = "".join(f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections) if section.title)
    navigation = f"<nav>{links}</nav>" if len(sections) > 3 else ""  # noqa: PLR2004 - a page of three parts needs no map
    body = "".join(_section(i, section) for i, section in enumerate(sections))
    end = f"<footer>{escape(footer, limit=400)}</footer>" if footer else ""
    return (
        f'<!doctype html>\n<html lang="{escape(language)}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f'<body><main><header><div class="headline"><h1>{escape(title)}</h1>{mark}</div>{below}{navigation}</header>'
        f"{body}{end}</main></body></html>\n"
    )


def _section(index: int, section: Section) -> str:
    heading = f"<h2>{escape(section.title)}</h2>" if section.title else ""
    note = f'<p class="note">{escape(section.note, limit=1000)}</p>' if section.note else ""
    return f'<section id="s{index}">{heading}{note}{section.body_html}</section>'


def _cell(value: Cell) -> str:
    if value is None:
        return "–"
    return escape(value) if isinstance(value, str) else format_number(value)


def _is_number(value: Cell) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _all_numbers(values: Sequence[Cell]) -> bool:
    return any(map(_is_number, values)) and all(value is None or _is_number(value) for value in values)


def _right(numeric: bool) -> str:  # noqa: FBT001 - one private argument
    return ' class="n"' if numeric else ""
