"""metrics.jsonl read back, and the training curves drawn from it."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from diffpref.report.page import Page

Record = Mapping[str, Any]
POINTS = 80  # of a curve; each is the mean of neighbouring logged steps, so that a trend is seen through the noise


def read_metrics(path: Path) -> tuple[list[Record], int]:
    """One record for each logged step, in order, and the number of lines that could not be read.

    A step that a resumed run logged again counts once, as it was logged last. A last line that is still being
    written is no error.
    """
    if not path.is_file():
        return [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records, unreadable = {}, 0
    for i, line in enumerate(lines):
        try:
            record = json.loads(line)
            records[int(record["step"])] = record
        except (ValueError, KeyError, TypeError):
            unreadable += bool(line.strip()) and i < len(lines) - 1
    return [records[step] for step in sorted(records)], unreadable


def series(metrics: Sequence[Record], key: str) -> list[tuple[int, float]]:
    """(step, value) wherever the key was logged; a loss that is not finite stays in, to be counted or skipped later."""
    return [(record["step"], float(record[key])) for record in metrics if isinstance(record.get(key), int | float)]


def _blocks(points: Sequence[tuple[int, float]], size: int) -> list[tuple[float, float, float, float]]:
    """(mean step, mean, lowest, highest) of the finite values in each run of `size` neighbours."""
    found = []
    for start in range(0, len(points), size):
        part = [point for point in points[start : start + size] if finite(point[1])]
        if part:
            values = [value for _, value in part]
            step = sum(step for step, _ in part) / len(part)
            found.append((step, sum(values) / len(values), min(values), max(values)))
    return found


def finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _draw(
    page: Page,
    metrics: Sequence[Record],
    size: int,
    title: str,
    keys: Mapping[str, str],
    y_label: str = "",
    *,
    log: bool = False,
    spread: bool = False,
) -> None:
    """A chart of the keys by their labels, unless none was logged; each point is the mean of `size` neighbours."""
    blocks = {name: _blocks(series(metrics, key), size) for name, key in keys.items()}
    blocks = {name: points for name, points in blocks.items() if points}
    lines = {name: [(x, mean) for x, mean, _, _ in points] for name, points in blocks.items()}
    bands = {name: [(x, low, high) for x, _, low, high in points] for name, points in blocks.items()}
    if blocks:
        page.curves(title, lines, y_label=y_label, log=log, bands=bands if spread else None)


TIMESTEPS = {
    "Ranked as labelled, by timestep": ("accuracy", "share"),
    **{f"Reward of {kind} images, by timestep": (f"rewards/{kind}", "nats") for kind in ("chosen", "rejected")},
    **{
        f"Error on {kind} images, by timestep": (f"error/{kind}/ratio", "policy over reference")
        for kind in ("chosen", "rejected")
    },
}
"""Charts by quarter of the schedule: the metric before the quarter's name, and its unit."""


def _by_timestep(draw: Callable[[str, Mapping[str, str], str], None], metrics: Sequence[Record]) -> None:
    for title, (metric, unit) in TIMESTEPS.items():
        found = {key for record in metrics for key in record if key.startswith(f"{metric}/t_")}
        keys = {f"t = {' to '.join(map(str, _numbers(key)))}": key for key in sorted(found, key=_numbers)}
        draw(title, keys, unit)


def draw_curves(page: Page, metrics: Sequence[Record]) -> None:
    """Appends a chart for each quantity that was logged; each point is the mean of a block of logged steps."""
    if not metrics:
        return
    size = math.ceil(len(metrics) / POINTS)
    page.heading("Curves")
    if size > 1:
        page.text(f"Each point is the mean of {size} logged steps.")

    draw = partial(_draw, page, metrics, size)
    draw("Loss", {"loss": "loss"}, "band: lowest to highest" if size > 1 else "", spread=size > 1)
    draw("Training pairs", {"ranked as labelled": "rewards/accuracies", "saturated": "saturated"}, "share")
    middle, low, high = (_blocks(series(metrics, f"margins/{key}"), size) for key in ("p50", "p10", "p90"))
    if middle:
        band = [(x, bottom, top) for (x, bottom, *_), (_, top, *_) in zip(low, high, strict=False)]
        median = {"median": [(x, value) for x, value, *_ in middle]}
        page.curves("Margin", median, y_label="nats; band: 10th to 90th percentile", bands={"median": band})
    draw("Implicit rewards", {"chosen": "rewards/chosen", "rejected": "rewards/rejected"}, "nats")
    for kind in ("chosen", "rejected"):
        keys = {name: f"error/{kind}/{name}" for name in ("policy", "reference")}
        draw(f"Error on {kind} pictures", keys, "mean over elements")
    ratios = {kind: f"error/{kind}/ratio" for kind in ("chosen", "rejected")}
    draw("Error, policy over reference", ratios, "1: as good as the reference")
    # Measured rarely: each measurement is a point of its own.
    beyond = {"own samples of the base (drift)": "drift"}
    beyond |= {f"held-out {kind} images": f"heldout/error/{kind}/ratio" for kind in ("chosen", "rejected")}
    _draw(page, metrics, 1, "Beyond the training pairs, policy over reference", beyond, "error; 1: as the base")
    _draw(page, metrics, 1, "Held-out pairs", {"ranked as labelled": "heldout/accuracy"}, "share")
    _draw(page, metrics, 1, "Margin of held-out pairs", {"mean": "heldout/margin"}, "nats")
    _by_timestep(draw, metrics)
    shares = {kind: f"rewards/effective_share/{kind}" for kind in ("chosen", "rejected")}
    draw("How evenly images carry the change", shares, "effective share; 1: all alike")
    draw("Rejected error's growth over the chosen one's move", {"drop": "drop"})
    draw(
        "Gradient norm",
        {"gradient norm": "grad_norm"},
        "band: lowest to highest" if size > 1 else "",
        log=True,
        spread=size > 1,
    )
    draw("Learning rate", {"learning rate": "learning_rate"})
