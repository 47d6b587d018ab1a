"""Line charts and histograms as inline SVG: round ticks, quantile bands, thin lines, colour-blind-safe colours."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
Band = tuple[float, float, float]

# Geometry in SVG units; the drawing scales with its column, so 13-unit text stays readable on a phone.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 270, 58, 12, 10, 40
BINS = 240  # of a long series, each bin keeps its lowest and highest point, so that no spike is lost
COLOURS = 6  # classes c0 to c5; a seventh series repeats the first colour, dashed

# Okabe and Ito's palette, brightened on dark.
STYLE = """
.c0{color:#0072b2}.c1{color:#d55e00}.c2{color:#009e73}.c3{color:#b5548c}.c4{color:#d18f00}.c5{color:#4aa3d8}
@media screen and (prefers-color-scheme:dark){
.c0{color:#56b4e9}.c1{color:#ff8a4c}.c2{color:#35c796}.c3{color:#e59ac4}.c4{color:#f0c24b}.c5{color:#a9d8f5}}
.chart{padding-top:8px}.chart b{display:block;font-size:15px}
.chart small{font-size:13px;font-weight:400;color:var(--dim)}
.chart svg{display:block;width:100%;height:auto}
.chart figcaption{font-size:13px;display:flex;flex-wrap:wrap;gap:0 14px;color:var(--fg);min-height:1.6em}
.chart i{display:inline-block;width:16px;border-top:3px solid;vertical-align:middle;margin-right:6px}
.chart i.dash{border-top-style:dashed}
.chart text{font-size:13px;fill:var(--dim)}.chart line{stroke:var(--line)}
.chart polyline{fill:none;stroke:currentColor;stroke-width:1.5;stroke-linejoin:round}
.chart .dash{stroke-dasharray:5 3}.chart polygon{fill:currentColor;opacity:.17}.chart circle{fill:currentColor}
"""


def line_chart(
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    x_label: str = "step",
    y_label: str = "",
    log: bool = False,
    bands: Mapping[str, Sequence[Band]] | None = None,
) -> str:
    """An HTML figure with the (x, y) series as lines and the (x, low, high) bands behind them.

    Non-finite points, and those not above 0 on a logarithmic axis, are left out; a band has its namesake's colour.
    """
    lines = {name: sorted(p for p in points if _drawable(p, log)) for name, points in series.items()}
    areas = {name: sorted(p for p in points if _drawable(p, log)) for name, points in (bands or {}).items()}
    names = [*lines, *(name for name in areas if name not in lines)]
    return _figure(title, names, _drawing(lines, areas, _styles(names), x_label, log), y_label)


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Mapping[str, Sequence[float]],
    *,
    x_label: str = "",
    y_label: str = "share",
) -> str:
    """An HTML figure with the outline of each series, whose bins add up to 1.

    Args:
        edges: of the bins, ascending; one more than each series has counts.
    """
    for name, values in counts.items():
        if len(values) + 1 != len(edges):
            raise ValueError(f"{name!r} must have {len(edges) - 1} counts, one a bin, got {len(values)}.")
    shares = {name: [value / (sum(values) or 1) for value in values] for name, values in counts.items()}
    if not any(map(sum, shares.values())):
        return _figure(title, list(shares), _empty("nothing to count"), y_label)
    axes = _Axes((edges[0], edges[-1]), (0.0, 1.05 * max(map(max, shares.values()))))
    style, out = _styles(list(shares)), [axes.grid(x_label)]
    for name, values in shares.items():
        steps = [(x, y) for left, right, y in zip(edges, edges[1:], values, strict=False) for x in (left, right)]
        path = axes.path([(edges[0], 0.0), *steps, (edges[-1], 0.0)])
        out.append(f'<polygon class="{style[name]}" points="{path}"/><polyline class="{style[name]}" points="{path}"/>')
    return _figure(title, list(shares), "".join(out), y_label)


def _styles(names: Sequence[str]) -> dict[str, str]:
    return {name: f"c{i % COLOURS}{' dash' if i >= COLOURS else ''}" for i, name in enumerate(names)}


def _figure(title: str, names: Sequence[str], svg: str, y_label: str) -> str:
    style = _styles(names)
    legend = "".join(f'<span><i class="{style[name]}"></i>{escape(name)}</span>' for name in names)
    label = escape(f"{title}: {', '.join(names)}")
    return (
        f'<figure class="chart"><b>{escape(title)} <small>{escape(y_label)}</small></b>'
        f"<figcaption>{legend}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{svg}</svg></figure>'
    )


def _empty(text: str) -> str:
    return f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">{text}</text>'


def _drawable(point: Point | Band, log: bool) -> bool:
    # A NaN is below nothing; beyond 1e300 the range of the axis could overflow.
    return all(abs(v) < 1e300 for v in point) and (not log or min(point[1:]) > 0)


def _drawing(
    lines: Mapping[str, Sequence[Point]],
    areas: Mapping[str, Sequence[Band]],
    style: Mapping[str, str],
    x_label: str,
    log: bool,
) -> str:
    """The inside of the SVG: grid, ticks, bands, lines."""
    everything = [point for points in (*lines.values(), *areas.values()) for point in points]
    if not everything:
        return _empty("no finite values")
    scale = math.log10 if log else float
    ys = [scale(y) for point in everything for y in point[1:]]
    axes = _Axes(_span([point[0] for point in everything], 0.0), _span(ys, 0.04), log)
    across, up, path = axes.across, axes.up, axes.path
    out = [axes.grid(x_label)]
    for name, area in areas.items():
        low, high = [(x, y) for x, y, _ in area], [(x, y) for x, _, y in area]
        out.append(f'<polygon class="{style[name]}" points="{path([*_thin(low), *reversed(_thin(high))])}"/>')
    for name, line in lines.items():
        if len(line) == 1:
            x, y = line[0]
            out.append(f'<circle class="{style[name]}" cx="{across(x)}" cy="{up(y)}" r="3.5"/>')
        elif line:
            out.append(f'<polyline class="{style[name]}" points="{path(_thin(line))}"/>')
    return "".join(out)


@dataclass(frozen=True)
class _Axes:
    """Where numbers stand in the drawing; the range of a logarithmic y axis is in powers of ten."""

    x: Point
    y: Point
    log: bool = False

    def across(self, x: float) -> str:
        return f"{LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - RIGHT - LEFT):.1f}"

    def up(self, y: float) -> str:
        height = ((math.log10(y) if self.log else y) - self.y[0]) / (self.y[1] - self.y[0])
        return f"{HEIGHT - BOTTOM - height * (HEIGHT - BOTTOM - TOP):.1f}"

    def path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.across(x)},{self.up(y)}" for x, y in points)

    def grid(self, x_label: str) -> str:
        """Lines, ticks and their labels."""
        out, right, bottom = [], WIDTH - RIGHT, HEIGHT - BOTTOM
        for value, name in _ticks(*self.y, count=5, log=self.log):
            y = self.up(value)
            out.append(f'<line x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
            out.append(f'<text x="{LEFT - 7}" y="{y}" dy="4" text-anchor="end">{name}</text>')
        for value, name in _ticks(*self.x, count=7):
            x = self.across(value)
            out.append(f'<line x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
            out.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{name}</text>')
        out.append(f'<text x="{right}" y="{HEIGHT - 5}" text-anchor="end">{escape(x_label)}</text>')
        return "".join(out)


def _span(values: Sequence[float], margin: float) -> tuple[float, float]:
    """The range to draw, widened by `margin` of itself; a constant gets a range around it."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(high) / 10 or 1.0
    else:
        pad = margin * (high - low)
    return low - pad, high + pad


def _thin(line: Sequence[Point]) -> list[Point]:
    """At most 2 * BINS points: the lowest and the highest of each bin of neighbours, in their order."""
    size = math.ceil(len(line) / BINS)
    bins = [line[i : i + size] for i in range(0, len(line), size)]
    return [p for b in bins for p in sorted({min(b, key=lambda p: p[1]), max(b, key=lambda p: p[1])})]


def _ticks(low: float, high: float, *, count: int, log: bool = False) -> Iterator[tuple[float, str]]:
    """About `count` round values inside the range with their labels; a logarithmic range is in powers of ten."""
    if log and high - low > 1.2:
        every = math.ceil((high - low) / 6)
        for k in range(math.floor(low), math.floor(high) + 1, every):
            for m in (1, 2, 5) if high - low <= 2.5 else (1,):
                if low <= math.log10(m) + k <= high:
                    yield m * 10.0**k, f"{m * 10.0**k:g}" if -4 <= k <= 5 else f"{m}e{k}"
        return
    if log:
        low, high = 10**low, 10**high
    rough = (high - low) / count
    power = math.floor(math.log10(rough))
    step = next(m for m in (1, 2, 5, 10) if m * 10**power >= rough * 0.999) * 10.0**power
    largest = max(abs(low), abs(high))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    digits = max(0, math.floor(math.log10(largest)) - math.floor(math.log10(step) + 1e-9))
    for i in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield i * step, f"{i * step:.{decimals}f}" if 1e-3 <= largest < 1e6 else _exponent(f"{i * step:.{digits}e}")


def _exponent(text: str) -> str:
    """1.50e-08 as 1.5e-8, and 0.00e+00 as 0."""
    mantissa, _, power = text.partition("e")
    return f"{float(mantissa):g}e{int(power)}" if power and float(mantissa) else mantissa.partition(".")[0]
