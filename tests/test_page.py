"""The page is well formed, escaped and self-contained, and replaces the old file at once."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from diffpref.report.chart import BINS, BOTTOM, HEIGHT
from diffpref.report.page import Page

VOID = {"meta", "link", "img", "br", "hr"}
EVIL = """<script>alert("x")</script> & 'quoted' </title></style>"""


class Reader(HTMLParser):
    """Fails on tags that do not nest; collects text, tags and every address."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: Page | str) -> Reader:
    reader = Reader()
    reader.feed(page if isinstance(page, str) else page.html())
    reader.close()
    assert not reader.open, f"never closed: {reader.open}"
    assert all(address.startswith(("#", "data:")) for address in reader.addresses), reader.addresses
    return reader


def points(page: Page, tag: str) -> list[list[tuple[float, float]]]:
    """The drawn coordinates of every polyline or polygon."""
    found = [attrs["points"] or "" for name, attrs in read(page).tags if name == tag]
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())] for text in found]


def test_every_text_is_escaped_and_the_page_is_self_contained() -> None:
    picture = Image.new("RGB", (4, 4), "red")
    page = Page(EVIL, EVIL)
    page.heading(EVIL)
    page.text(EVIL)
    page.callout(EVIL, "bad")
    page.figures([(EVIL, EVIL, "good"), ("1", "plain", "")])
    page.table([EVIL], [[EVIL]])
    page.pictures([[(picture, EVIL)]], [EVIL])
    page.curves(EVIL, {EVIL: [(0, 1.0), (1, 2.0)]}, x_label=EVIL, y_label=EVIL, bands={EVIL: [(0, 0.0, 1.0)]})
    page.code(EVIL)
    reader = read(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    # title, h1, subtitle, h2, text, callout, two of figures, two of table, row caption, picture label, chart title,
    # unit, legend, x label, code
    assert sum(EVIL in text for text in reader.texts) == 17
    assert "http" not in page.html()


def test_paragraphs_are_split_at_blank_lines() -> None:
    page = Page("t")
    page.text("one\nstill one\n\n\n\ntwo\n")
    assert [tag for tag, _ in read(page).tags].count("p") == 2


def test_table_formats_numbers_and_rejects_ragged_rows() -> None:
    page = Page("t")
    page.table(["name", "value"], [["a", 0.123456], ["b", 7], ["c", 12345.678], ["d", None], ["e", float("nan")]])
    html = page.html()
    for cell in ("0.1235", "7", "12346", "nan"):
        assert f'<td class="n">{cell}</td>' in html
    assert "<td>–</td>" in html and '<th class="n">value</th>' in html and "<td>a</td>" in html
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        page.table(["name", "value"], [["a"]])


def test_small_pictures_are_shown_twice_as_large_and_photographs_as_jpeg() -> None:
    page = Page("t")
    row = [(Image.new("RGB", (64, 32)), "a"), (Image.new("RGB", (512, 512)), "b"), (Image.new("RGBA", (512, 9)), "c")]
    page.pictures([row, row[:1]], ["first", "second"])
    images = [attrs for tag, attrs in read(page).tags if tag == "img"]
    assert [image["width"] for image in images] == ["128", "512", "512", "128"]
    assert [re.match(r"data:image/(\w+);", image["src"] or "").group(1) for image in images] == [  # type: ignore[union-attr]
        "png",
        "jpeg",
        "png",
        "png",
    ]
    assert [image.get("class") for image in images] == ["small", None, None, "small"]
    with pytest.raises(ValueError, match="each of the 1 rows, got 2"):
        page.pictures([row], ["a", "b"])


def test_verdicts_and_kinds_are_checked() -> None:
    with pytest.raises(ValueError, match="'', 'good' or 'bad', got 'fine'"):
        Page("t").figures([("1", "x", "fine")])


def test_non_finite_points_are_skipped() -> None:
    page = Page("t")
    page.curves("c", {"a": [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0), (math.nan, 5.0), (4, 1e308)]})
    (line,) = points(page, "polyline")
    assert len(line) == 2
    assert line[0][0] < line[1][0] and line[0][1] > line[1][1]  # y grows downwards in SVG


def test_a_single_point_is_a_dot_and_no_points_say_so() -> None:
    page = Page("t")
    page.curves("one", {"a": [(5, 1.0)], "b": []})
    page.curves("none", {"a": [(5, math.nan)]})
    reader = read(page)
    assert [tag for tag, _ in reader.tags].count("circle") == 1
    assert "no finite values" in reader.texts


def test_logarithmic_axis_spaces_decades_evenly_and_leaves_out_zero() -> None:
    page = Page("t")
    page.curves("c", {"a": [(0, 1.0), (1, 10.0), (2, 100.0), (3, 0.0), (4, -1.0)]}, log=True)
    (line,) = points(page, "polyline")
    assert len(line) == 3
    assert line[0][1] - line[1][1] == pytest.approx(line[1][1] - line[2][1], abs=0.11)  # coordinates have one decimal
    assert {"1", "10", "100"} <= set(read(page).texts)


def test_a_long_series_is_thinned_and_keeps_its_spike() -> None:
    page = Page("t")
    page.curves("c", {"a": [(i, 9.0 if i == 777 else 0.0) for i in range(10_000)]})
    (line,) = points(page, "polyline")
    assert len(line) <= 2 * BINS
    lowest, highest = max(y for _, y in line), min(y for _, y in line)
    assert lowest - highest > 150  # of the 220 units of the plot
    assert [x for x, _ in line] == sorted(x for x, _ in line)


@pytest.mark.parametrize(
    "ys", [[0.0, 0.0], [1e-8, 2e-8], [-1e12, 1e12], [3.0, 3.0 + 1e-13], [1e-200, 1e200], [0.5, 0.5001], [2.0, 90.0]]
)
@pytest.mark.parametrize("log", [False, True])
def test_any_range_gets_short_distinct_ticks_inside_the_plot(ys: list[float], log: bool) -> None:
    page = Page("t")
    page.curves("c", {"a": list(enumerate(ys))}, log=log)
    lines = points(page, "polyline")
    if log and min(ys) <= 0:
        assert not lines
        return
    assert all(10 <= y <= 230 for _, y in lines[0])
    ticks = re.findall(r'<text x="51" y="([-.0-9]+)" dy="4" text-anchor="end">([^<]+)</text>', page.html())
    places, labels = [float(place) for place, _ in ticks], [label for _, label in ticks]
    assert 3 <= len(ticks) <= 9, labels
    assert places == sorted(places, reverse=True) and all(10 <= place <= 230 for place in places)
    assert len(set(labels)) == len(labels) and all(len(label) <= 7 for label in labels), labels
    assert [float(label) for label in labels] == sorted(float(label) for label in labels)


def test_band_has_the_colour_of_its_line() -> None:
    page = Page("t")
    page.curves("c", {"a": [(0, 1.0)], "b": [(0, 1.0), (1, 2.0)]}, bands={"b": [(0, 0.5, 1.5), (1, 1.0, 3.0)]})
    tags = read(page).tags
    (band,), (line,) = ([a for t, a in tags if t == name] for name in ("polygon", "polyline"))
    assert band["class"] == line["class"] == "c1"
    (outline,) = points(page, "polygon")
    assert len(outline) == 4


def test_write_leaves_one_file_and_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    Page("old").write(path)
    with path.open(encoding="utf-8") as reader:
        Page("new").write(path)
        assert "<title>old</title>" in reader.read()  # who has the old page open goes on reading it
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert "<title>new</title>" in path.read_text(encoding="utf-8")


def test_a_failing_write_keeps_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    Page("old").write(path)
    old = path.read_bytes()
    broken = Page("new")
    broken.text("\ud800")  # half of a surrogate pair: no UTF-8
    with pytest.raises(UnicodeEncodeError):
        broken.write(path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_navigation_links_reach_their_headings() -> None:
    page = Page("t")
    for name in ("a", "b", "c"):
        page.heading(name)
    reader = read(page)
    assert [a for a in reader.addresses if a.startswith("#")] == ["#s1", "#s2", "#s3"]
    assert [attrs["id"] for tag, attrs in reader.tags if tag == "h2"] == ["s1", "s2", "s3"]


def test_a_histogram_draws_shares_between_its_edges() -> None:
    page = Page("t")
    page.histogram("h", [0.0, 1.0, 2.0, 4.0], {"a": [1, 0, 3], "b": [10, 10, 20]}, x_label="score")
    lines = points(page, "polyline")
    assert lines == points(page, "polygon") and len(lines) == 2
    for line, shares in zip(lines, ([0.25, 0.0, 0.75], [0.25, 0.25, 0.5]), strict=True):
        left, right, floor = line[0][0], line[-1][0], line[0][1]
        assert line[-1][1] == floor == HEIGHT - BOTTOM
        edges = [left + (right - left) * edge / 4 for edge in (0, 1, 2, 4)]
        assert [x for x, _ in line[1:-1]] == pytest.approx([edges[i] for i in (0, 1, 1, 2, 2, 3)], abs=0.11)
        heights = [floor - y for _, y in line[1:-1:2]]
        assert heights == [floor - y for _, y in line[2:-1:2]]
        highest = floor - min(y for line in lines for _, y in line)
        assert [h / highest for h in heights] == pytest.approx([share / 0.75 for share in shares], abs=0.002)
    page.histogram("empty", [0.0, 1.0], {"a": [0]})
    assert "nothing to count" in read(page).texts
    with pytest.raises(ValueError, match="'a' must have 2 counts, one a bin, got 3"):
        page.histogram("h", [0.0, 1.0, 2.0], {"a": [1, 2, 3]})


def test_a_heat_table_colours_by_size_and_sign() -> None:
    page = Page("t")
    page.heat([EVIL, "b"], [[None, 1.0], [-0.25, 0.0]])
    cells = [attrs for tag, attrs in read(page).tags if tag == "td"]
    assert [cell["class"] for cell in cells] == ["n", "n note", "n bad", "n note"]
    assert [cell.get("style") for cell in cells] == [None, "--v:45%", "--v:11%", "--v:0%"]
    assert [text for text in read(page).texts if text in ("–", "1.00", "−0.25", "0.00")] == [
        "–",
        "1.00",
        "−0.25",
        "0.00",
    ]
    assert sum(EVIL in text for text in read(page).texts) == 2
    with pytest.raises(ValueError, match="2 rows and columns"):
        page.heat(["a", "b"], [[1.0, 0.0]])
