"""One self-contained HTML file of text, numbers, tables, images and curves: no script, no network, light and dark."""

import base64
import io
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from diffpref.files import atomic
from diffpref.report import chart

_TEMPLATES = Environment(
    loader=PackageLoader("diffpref.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_CALLOUTS = {"good": "✓", "bad": "!", "note": "i"}
_VERDICTS = {"": "", "good": "✓", "bad": "!"}


class Page:
    """A page built block by block from top to bottom; every text is escaped, every image is inlined."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self.headings: list[str] = []
        self.blocks: list[Markup] = []

    def _add(self, macro: str, *values: Any) -> None:
        self.blocks.append(getattr(_TEMPLATES.get_template("blocks.html").module, macro)(*values))

    def heading(self, text: str) -> None:
        self.headings.append(text)
        self._add("heading", text, len(self.headings))

    def text(self, text: str) -> None:
        """Appends paragraphs; a blank line separates them, line breaks are kept."""
        for paragraph in text.split("\n\n"):
            if paragraph.strip():
                self._add("paragraph", paragraph.strip())

    def callout(self, text: str, verdict: Literal["good", "bad", "note"]) -> None:
        if verdict not in _CALLOUTS:
            raise ValueError(f"verdict must be one of {sorted(_CALLOUTS)}, got {verdict!r}.")
        self._add("callout", text, verdict, _CALLOUTS[verdict])

    def figures(self, items: Sequence[tuple[str, str, str]]) -> None:
        """Appends a row of big numbers, each (value, label, verdict) with a verdict of "", "good" or "bad"."""
        for _, label, verdict in items:
            if verdict not in _VERDICTS:
                raise ValueError(f"the verdict of {label!r} must be '', 'good' or 'bad', got {verdict!r}.")
        self._add("figures", items, _VERDICTS)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Appends a table; numbers stand right, floats have 4 significant digits, None is a dash."""
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"every row needs {len(header)} cells as the header has, got {len(row)}: {row!r}.")
        right = [bool(rows) and all(_is_number(row[i]) or row[i] is None for row in rows) for i in range(len(header))]
        cells = [[(_cell(value), _is_number(value)) for value in row] for row in rows]
        self._add("table", list(zip(header, right, strict=True)), cells)

    def pictures(
        self, rows: Sequence[Sequence[tuple[Image.Image, str]]], captions: Sequence[str] | None = None
    ) -> None:
        """Appends rows of (image, label), with a caption left of each row; small images appear twice as large."""
        if captions is not None and len(captions) != len(rows):
            raise ValueError(f"captions must name each of the {len(rows)} rows, got {len(captions)}.")
        columns = max((len(row) for row in rows), default=0)
        if columns:
            self._add("images", [[_inline(*cell) for cell in row] for row in rows], captions, columns)

    def curves(
        self,
        title: str,
        series: Mapping[str, Sequence[chart.Point]],
        *,
        x_label: str = "step",
        y_label: str = "",
        log: bool = False,
        bands: Mapping[str, Sequence[chart.Band]] | None = None,
    ) -> None:
        """Appends a line chart of (x, y) series and (x, low, high) bands; a band has its namesake's colour."""
        self.blocks.append(
            Markup(chart.line_chart(title, series, x_label=x_label, y_label=y_label, log=log, bands=bands))
        )

    def histogram(
        self,
        title: str,
        edges: Sequence[float],
        counts: Mapping[str, Sequence[float]],
        *,
        x_label: str = "",
        y_label: str = "share",
    ) -> None:
        """Appends outlines of counts in bins, each series as shares of its sum; `edges` are the bins' ends."""
        self.blocks.append(Markup(chart.histogram(title, edges, counts, x_label=x_label, y_label=y_label)))

    def heat(self, names: Sequence[str], values: Sequence[Sequence[float | None]]) -> None:
        """Appends a square table of numbers in [-1, 1], its cells coloured by their size and sign; None is a dash."""
        if len(values) != len(names) or any(len(row) != len(names) for row in values):
            raise ValueError(f"a heat table needs {len(names)} rows and columns as there are names, got {values!r}.")
        self._add("heat", names, [(name, list(map(_heat, row))) for name, row in zip(names, values, strict=True)])

    def code(self, text: str) -> None:
        self._add("code", text)

    def write(self, path: Path) -> None:
        """Replaces the file at once: a reader, or a crash, finds the old page or the new one, never half of it."""
        atomic.write_text(path, self.html())

    def html(self) -> str:
        style = Markup(_TEMPLATES.get_template("page.css").render() + chart.STYLE)
        return _TEMPLATES.get_template("page.html").render(
            title=self.title, subtitle=self.subtitle, headings=self.headings, blocks=self.blocks, style=style
        )


@dataclass(frozen=True)
class _Inline:
    """An image in the page itself."""

    label: str
    small: bool
    width: int
    format: str
    data: str
    """The file in base64."""


def _inline(image: Image.Image, label: str) -> _Inline:
    small, opaque = max(image.size) <= 160, image.mode in ("RGB", "L")
    file, lossless = io.BytesIO(), small or not opaque
    if lossless:
        image.save(file, "png")
    else:
        image.save(file, "jpeg", quality=90)
    data = base64.b64encode(file.getvalue()).decode()
    return _Inline(label, small, image.width * (2 if small else 1), "png" if lossless else "jpeg", data)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        number = float(value)
        return f"{number:.0f}" if 1e4 <= abs(number) < 1e9 else f"{number:.4g}"
    return "–" if value is None else str(value)


def _heat(value: float | None) -> tuple[str, str, str]:
    """The text of a cell, whose colour it has, and how much of it in percent."""
    if value is None:
        return "–", "", ""
    tint = "note" if value >= 0 else "bad"
    return f"{value:.2f}".replace("-", "−"), tint, f"{min(abs(value), 1) * 45:.0f}"
