"""Pages are whole in themselves, and say what they are given as it is."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from dmt.errors import UserInputError
from dmt.pages import Section, Table, check_suffix, write_page


class Outline(HTMLParser):
    """Cells and addresses of a page; and that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def write(folder: Path) -> str:
    figure = Figure()
    figure.subplots().plot([1, 2])
    table = Table(header=["name", "AUC"], rows=[["a<b> & c", "0.5"]])
    section = Section(heading="Towers <4>", text=["first", "second"], tables=[table], pictures=[figure])
    write_page(folder / "page.html", title="T & D", sections=[section, Section(heading="Empty")])
    return (folder / "page.html").read_text()


def test_a_page_holds_all_it_shows(tmp_path: Path) -> None:
    page = write(tmp_path)
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.cells == ["name", "AUC", "a<b> & c", "0.5"]
    assert [address.partition(",")[0] for address in outline.addresses] == ["data:image/svg+xml;base64"]
    assert not re.search(r"(src|href|url)\W{1,2}https?:", page)
    assert "<h2>Towers &lt;4&gt;</h2>" in page and "<p>first</p>\n<p>second</p>" in page


def test_narrow_screens_scroll_what_is_wide_and_nothing_else(tmp_path: Path) -> None:
    page = write(tmp_path)
    assert page.count('<div class="wide"><table>') == page.count('<div class="wide picture"><img ') == 1
    assert page.count("<table>") == page.count("<img ") == 1
    [narrow] = re.findall(r"@media screen and \(max-width: 50rem\) \{(.*?\}) \}", page, flags=re.DOTALL)
    assert "img { max-width: none; }" in narrow  # its own width, as its letters are to be read
    assert ".left { max-width:" in narrow and "overflow-wrap: break-word" in narrow
    assert ".wide { overflow-x: auto; }" in page and "img { display: block; max-width: 100%;" in page


def test_the_same_page_is_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path) == write(tmp_path)


def test_numbers_are_set_right_and_words_left() -> None:
    rows = [["0", "strided", "0.8374", "4 (flat)", "", "1,024"], ["1", "random", "-0.1", "8", "< 0.001", "95%"]]
    assert Table(header=list("abcdef"), rows=rows).sides == ["right", "left", "right", "left", "right", "right"]
    assert Table(header=["a", "b"], rows=[]).sides == ["right", "right"]


def test_other_names_are_refused() -> None:
    check_suffix("--report", None)
    check_suffix("--report", Path("a.png"))
    with pytest.raises(UserInputError, match="--report a: give a name that ends in"):
        check_suffix("--report", Path("a"))
