"""One self-contained HTML page: headings, paragraphs, tables and pictures, for reports that are opened anywhere."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
nav a { margin-right: 1em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
figure { display: inline-block; margin: .5em 1em .5em 0; vertical-align: top }
figcaption { color: #555; font-size: 13px }
img { max-width: 100% }
"""


@dataclass
class Table:
    """A table: a header, and rows of as many cells, which are written as `str` gives them."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass
class Picture:
    """A picture with the line below it.

    Args:
        png: the content of a PNG file; `png_of` makes it of a matplotlib figure.
        caption: plain text.
    """

    png: bytes
    caption: str = ""


@dataclass
class Section:
    """A heading and what is below it, in order: a str is a paragraph of plain text."""

    heading: str
    content: Sequence[str | Table | Picture] = field(default_factory=list)


def html_page(title: str, sections: Sequence[Section]) -> str:
    """Write a page that needs no other file and no network: style and pictures are inside it.

    All text is plain text and escaped, so that a class named "<b>" is shown as such.

    Args:
        title: heading of the page and name of the browser's tab.
        sections: parts of the page, linked from a line at its top.
    """
    links = "".join(f'<a href="#section{i}">{escape(section.heading)}</a>' for i, section in enumerate(sections))
    body = "\n".join(_section(i, section) for i, section in enumerate(sections))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def png_of(figure: Figure) -> bytes:
    """Draw a matplotlib figure as the content of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    return file.getvalue()


def _section(number: int, section: Section) -> str:
    parts = "\n".join(_part(part) for part in section.content)
    return f'<h2 id="section{number}">{escape(section.heading)}</h2>\n{parts}'


def _part(part: str | Table | Picture) -> str:
    if isinstance(part, str):
        return f"<p>{escape(part)}</p>"
    if isinstance(part, Table):
        rows = "\n".join(_row("td", row) for row in part.rows)
        return f"<table>\n{_row('th', part.header)}\n{rows}\n</table>"
    data = base64.b64encode(part.png).decode()
    caption = escape(part.caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )


def _row(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
