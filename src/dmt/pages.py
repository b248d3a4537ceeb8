"""A report as one HTML file that needs nothing else, or as Markdown: headings, words, tables and pictures.

Its tables may be shown on a terminal as well.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as ConsoleTable

from dmt.errors import UserInputError

_NUMBER = re.compile(r"(< )?[-+\d.,%]*(nan)?")
_MAX_LETTERS = 30  # of a word that a terminal shows in one line


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def sides(self) -> list[str]:
        """``right`` for each column of numbers, ``left`` for those that have words."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.header)
        return ["right" if all(map(_NUMBER.fullmatch, column)) else "left" for column in columns]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page.

    Args:
        heading: its title.
        text: paragraphs.
        tables: below them.
        pictures: below those.
    """

    heading: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Figure] = field(default=())


def check_suffix(option: str, path: Path | None) -> None:
    """Raise :class:`UserInputError` where an option names neither a page nor a picture."""
    if path is not None and path.suffix not in (".html", ".png", ".svg", ".pdf"):
        raise UserInputError(f"{option} {path}: give a name that ends in .html, .png, .svg or .pdf")


def write_page(path: Path, *, title: str, sections: Sequence[Section]) -> None:
    """Write the sections as one HTML file, right on narrow and wide screens and on paper."""
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_TEMPLATE)
    pictures = [[_data_uri(picture) for picture in section.pictures] for section in sections]
    path.write_text(page.render(title=title, sections=list(zip(sections, pictures, strict=True))), encoding="utf-8")


def write_markdown(path: Path, *, title: str, sections: Sequence[Section]) -> None:
    """Write the sections as Markdown, and their pictures as files beside it."""
    lines = [f"# {title}", ""]
    number = 0
    for section in sections:
        lines += [f"## {section.heading}", ""]
        for paragraph in section.text:
            lines += [paragraph, ""]
        for table in section.tables:
            rule = ["---:" if side == "right" else "---" for side in table.sides]
            rows = [table.header, rule, *table.rows]
            lines += [*("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows), ""]
        for picture in section.pictures:
            number += 1
            file = path.with_name(f"{path.stem}_{number}.svg")
            file.write_bytes(_svg(picture))
            lines += [f"![{section.heading}]({file.name})", ""]
    path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")


def print_table(table: Table) -> None:
    """Show a table on standard output, words as they are, whatever signs they have.

    What does not fit a narrow terminal is folded between words; one that is too narrow for single words gets longer
    lines instead, rather than less of the table.
    """
    console, shown = Console(markup=False, emoji=False), ConsoleTable()
    columns = list(zip(table.header, *table.rows, strict=True))
    lines = 3 * len(columns) + 1  # between them, with spaces
    is_narrow = sum(max(map(len, column)) for column in columns) + lines > console.width
    widths = []
    for cells, side in zip(columns, table.sides, strict=True):
        # Numbers are not folded, nor what stands above them.
        width = max(map(len, cells if side == "right" else " ".join(cells).split()))
        widths.append(width if side == "right" else min(width, _MAX_LETTERS))
        shown.add_column(cells[0], width=width if is_narrow and side == "right" else None, overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    console.width = max(console.width, sum(widths) + lines)
    console.print(shown)


def _data_uri(figure: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(_svg(figure)).decode()


def _svg(figure: Figure) -> bytes:
    buffer = BytesIO()
    # The same picture is the same bytes.
    with mpl.rc_context({"svg.hashsalt": "dmt"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem; margin: 0 auto;
       padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ccc; }
.wide { overflow-x: auto; }
.picture { margin: 0.5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.5rem 0; }
th, td { padding: 0.2rem 0.8rem 0.2rem 0; text-align: left; border-bottom: 1px solid #e5e5e5; vertical-align: top; }
.right { text-align: right; } td.right { white-space: nowrap; }
img { display: block; max-width: 100%; height: auto; }
@media screen and (max-width: 50rem) { body { overflow-wrap: break-word; } img { max-width: none; }
                                       table { width: max-content; } .left { max-width: max(10rem, 30vw); } }
@page { margin: 15mm; }
@media print { body { max-width: none; padding: 0; font-size: 9pt; } img, tr { break-inside: avoid; }
               h1, h2 { break-after: avoid; } .wide { overflow: visible; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for section, pictures in sections %}
<section>
<h2>{{ section.heading }}</h2>
{% for paragraph in section.text %}
<p>{{ paragraph }}</p>
{% endfor %}
{% for table in section.tables %}
<div class="wide"><table>
{% set sides = table.sides %}
<thead><tr>{% for cell in table.header %}<th class="{{ sides[loop.index0] }}">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>{% for cell in row %}<td class="{{ sides[loop.index0] }}">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% endfor %}
{% for picture in pictures %}
<div class="wide picture"><img src="{{ picture }}" alt="{{ section.heading }}"></div>
{% endfor %}
</section>
{% endfor %}
</body>
</html>
"""
