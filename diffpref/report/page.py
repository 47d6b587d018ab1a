"""One self-contained HTML file of text, numbers, tables, pictures and curves: no script, no network, light and dark."""

import base64
import io
import numbers
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Literal

from PIL import Image

from diffpref.files import atomic
from diffpref.report import chart

STYLE = """
:root{--bg:#fff;--fg:#1c2024;--dim:#667079;--line:#dfe3e6;--soft:#f5f7f8;--good:#00795a;--bad:#b54708;--note:#0068a3}
@media screen and (prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e9eb;--dim:#98a2aa;--line:#30363b;
--soft:#1d2125;--good:#3ecf9f;--bad:#ff9d5c;--note:#6cbcf0}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 20px 72px;display:grid;gap:16px 32px;grid-template-columns:1fr 1fr}
main>*{grid-column:1/-1;margin:0;min-width:0}main>.chart{grid-column:auto}
h1{font-size:30px;line-height:1.2;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:20px;line-height:1.3;padding-top:24px;letter-spacing:-.01em}
nav,.sub,figcaption{color:var(--dim)}.sub{margin-top:-10px}a{color:inherit;text-underline-offset:3px}
nav{font-size:14px;display:flex;flex-wrap:wrap;gap:2px 18px;border-bottom:1px solid var(--line);padding-bottom:12px}
p{max-width:76ch;white-space:pre-line;overflow-wrap:anywhere}
.good{--k:var(--good)}.bad{--k:var(--bad)}.note{--k:var(--note)}
.callout{max-width:none;border-left:4px solid var(--k);border-radius:0 6px 6px 0;background:var(--soft);
padding:10px 16px 10px 42px;text-indent:-26px}
.callout b{display:inline-block;width:26px;text-indent:0;color:var(--k)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.figures div{border:1px solid var(--line);border-radius:8px;padding:14px 16px}
.figures b{display:block;font-size:28px;line-height:1.25;letter-spacing:-.02em;color:var(--k,var(--fg))}
.figures small{font-size:18px}
.figures span{display:block;font-size:14px;line-height:1.4;padding-top:2px;color:var(--dim)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:15px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:6px 14px;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--dim);font-size:14px}th:first-child,td:first-child{padding-left:0}
th.n,td.n{text-align:right}
.heat td{background:color-mix(in srgb,var(--k,transparent) var(--v,0%),transparent)}
.pictures{display:grid;gap:12px;justify-content:start;overflow-x:auto;
grid-template-columns:repeat(var(--n),minmax(64px,max-content))}
.named{grid-template-columns:fit-content(12ch) repeat(var(--n),minmax(64px,max-content))}
.pictures h3{font-size:14px;font-weight:600;margin:0;padding:4px 8px 0 0}
.pictures figure{margin:0}.pictures img{display:block;border-radius:4px;height:auto;max-width:100%}
.pictures .small{image-rendering:pixelated}
.pictures figcaption{font-size:13px;line-height:1.35;padding-top:4px;contain:inline-size;overflow-wrap:anywhere}
pre{background:var(--soft);border-radius:6px;padding:14px 16px;overflow-x:auto;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
@media(max-width:720px){main{padding:24px 16px 48px}main>.chart{grid-column:1/-1}h1{font-size:25px}
.figures b{font-size:24px}
.pictures,.named{grid-template-columns:repeat(var(--n),minmax(84px,max-content))}.pictures h3{grid-column:1/-1}}
@media print{body{font-size:13px}main{max-width:none;padding:0}nav{display:none}pre{white-space:pre-wrap}
.pictures,.scroll{overflow:visible}.pictures{grid-template-columns:repeat(var(--n),minmax(0,max-content))}
.named{grid-template-columns:fit-content(12ch) repeat(var(--n),minmax(0,max-content))}.pictures h3{grid-column:auto}
figure,tr,.figures,.callout{break-inside:avoid}h2{break-after:avoid}}
"""


class Page:
    """A page built block by block from top to bottom; every text is escaped, every picture is inlined."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self.headings: list[str] = []
        self.blocks: list[str] = []

    def heading(self, text: str) -> None:
        self.headings.append(text)
        self.blocks.append(f'<h2 id="s{len(self.headings)}">{escape(text)}</h2>')

    def text(self, text: str) -> None:
        """Appends paragraphs; a blank line separates them, line breaks are kept."""
        self.blocks += [f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip()]

    def callout(self, text: str, kind: Literal["good", "bad", "note"]) -> None:
        marks = {"good": "✓", "bad": "!", "note": "i"}
        if kind not in marks:
            raise ValueError(f"kind must be one of {sorted(marks)}, got {kind!r}.")
        self.blocks.append(f'<p class="callout {kind}"><b>{marks[kind]}</b>{escape(text)}</p>')

    def figures(self, items: Sequence[tuple[str, str, str]]) -> None:
        """Appends a row of big numbers, each (value, label, verdict) with a verdict of "", "good" or "bad"."""
        marks = {"": "", "good": " <small>✓</small>", "bad": " <small>!</small>"}
        for _, label, verdict in items:
            if verdict not in marks:
                raise ValueError(f"the verdict of {label!r} must be '', 'good' or 'bad', got {verdict!r}.")
        cells = [
            f'<div class="{verdict}"><b>{escape(value)}{marks[verdict]}</b><span>{escape(label)}</span></div>'
            for value, label, verdict in items
        ]
        self.blocks.append(f'<div class="figures">{"".join(cells)}</div>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Appends a table; numbers stand right, floats have 4 significant digits, None is a dash."""
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"every row needs {len(header)} cells as the header has, got {len(row)}: {row!r}.")
        right = [bool(rows) and all(_is_number(row[i]) or row[i] is None for row in rows) for i in range(len(header))]
        head = "".join(f"<th{_right(r)}>{escape(name)}</th>" for name, r in zip(header, right, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{_right(_is_number(cell))}>{escape(_cell(cell))}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self.blocks.append(f'<div class="scroll">{table}</div>')

    def pictures(
        self, rows: Sequence[Sequence[tuple[Image.Image, str]]], captions: Sequence[str] | None = None
    ) -> None:
        """Appends rows of (picture, label), with a caption left of each row; small pictures appear twice as large."""
        if captions is not None and len(captions) != len(rows):
            raise ValueError(f"captions must name each of the {len(rows)} rows, got {len(captions)}.")
        columns = max((len(row) for row in rows), default=0)
        cells = []
        for i, row in enumerate(rows):
            cells += [] if captions is None else [f"<h3>{escape(captions[i])}</h3>"]
            cells += [_picture(picture, label) for picture, label in row]
            cells += ["<span></span>"] * (columns - len(row))
        if columns:
            named = "" if captions is None else " named"
            self.blocks.append(f'<div class="pictures{named}" style="--n:{columns}">{"".join(cells)}</div>')

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
        self.blocks.append(chart.line_chart(title, series, x_label=x_label, y_label=y_label, log=log, bands=bands))

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
        self.blocks.append(chart.histogram(title, edges, counts, x_label=x_label, y_label=y_label))

    def heat(self, names: Sequence[str], values: Sequence[Sequence[float | None]]) -> None:
        """Appends a square table of numbers in [-1, 1], its cells coloured by their size and sign; None is a dash."""
        if len(values) != len(names) or any(len(row) != len(names) for row in values):
            raise ValueError(f"a heat table needs {len(names)} rows and columns as there are names, got {values!r}.")
        rows = []
        for name, row in zip(names, values, strict=True):
            cells = "".join(f'<td class="n{_heat(value)}>{_decimals(value)}</td>' for value in row)
            rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
        head = "".join(f'<th class="n">{escape(name)}</th>' for name in ("", *names))
        table = f'<table class="heat"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        self.blocks.append(f'<div class="scroll">{table}</div>')

    def code(self, text: str) -> None:
        self.blocks.append(f"<pre>{escape(text)}</pre>")

    def write(self, path: Path) -> None:
        """Replaces the file at once: a reader, or a crash, finds the old page or the new one, never half of it."""
        atomic.write_text(path, self.html())

    def html(self) -> str:
        links = "".join(f'<a href="#s{i}">{escape(text)}</a>' for i, text in enumerate(self.headings, 1))
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<title>{escape(self.title)}</title><link rel="icon" href="data:,">\n'
            f"<style>{STYLE}{chart.STYLE}</style></head>\n"
            f"<body><main><h1>{escape(self.title)}</h1>\n"
            + (f'<p class="sub">{escape(self.subtitle)}</p>\n' if self.subtitle else "")
            + (f"<nav>{links}</nav>\n" if len(self.headings) > 2 else "")
            + "\n".join(self.blocks)
            + "\n</main></body></html>\n"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _right(condition: bool) -> str:
    return ' class="n"' if condition else ""


def _cell(value: object) -> str:
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        number = float(value)
        return f"{number:.0f}" if 1e4 <= abs(number) < 1e9 else f"{number:.4g}"
    return "–" if value is None else str(value)


def _heat(value: float | None) -> str:
    return '"' if value is None else f' {"note" if value >= 0 else "bad"}" style="--v:{min(abs(value), 1) * 45:.0f}%"'


def _decimals(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def _picture(picture: Image.Image, label: str) -> str:
    small = max(picture.size) <= 160
    opaque = picture.mode in ("RGB", "L")
    stream = io.BytesIO()
    if small or not opaque:
        kind, width = "png", picture.width * (2 if small else 1)
        picture.save(stream, "png")
    else:
        kind, width = "jpeg", picture.width
        picture.save(stream, "jpeg", quality=90)
    data = base64.b64encode(stream.getvalue()).decode()
    style = ' class="small"' if small else ""
    image = f'<img{style} width="{width}" alt="{escape(label)}" src="data:image/{kind};base64,{data}">'
    caption = f"<figcaption>{escape(label)}</figcaption>" if label else ""
    return f"<figure>{image}{caption}</figure>"
