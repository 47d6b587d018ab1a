"""report.html of a run directory: the verdict, pictures before and after, curves, and how the run was made."""

import json
import math
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diffpref.objectives.alarms import COLLAPSE
from diffpref.report.curves import Record, draw_curves, finite, read_metrics, series
from diffpref.report.page import Page
from diffpref.training.alarms import DRIFT

Figure = tuple[str, str, str]

RECENT = 0.1  # share of the logged steps that "now" means
SHEETS = 8  # sample grids shown, first and last among them
SHEET_WIDTH = 1600  # pixels; larger sample grids are reduced to it, the files stay as they are
PAIRS, PAIR_WIDTH, ACROSS = 24, 512, 6  # pairs shown, their largest side in pixels, pairs in one row


def write_report(run: Path) -> Path:
    """The path of report.html, made from what the run directory holds; what is missing there is left out.

    Args:
        run: holds metrics.jsonl, samples/, config.yaml, environment.json and evaluation.json, each optional.
    """
    metrics, unreadable = read_metrics(run / "metrics.jsonl")
    evaluation = _json(run / "evaluation.json", {})
    page = Page(run.resolve().name, _subtitle(run, metrics))
    _verdict(page, metrics, unreadable, evaluation)
    _before_after(page, run / "samples")
    _evaluation(page, evaluation)
    draw_curves(page, metrics)
    _samples(page, run / "samples")
    _provenance(page, run)
    page.write(run / "report.html")
    return run / "report.html"


def _subtitle(run: Path, metrics: Sequence[Record]) -> str:
    if not metrics:
        return "diffpref run"
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime((run / "metrics.jsonl").stat().st_mtime))
    return f"diffpref run, at step {metrics[-1]['step']} on {written}"


def _verdict(page: Page, metrics: Sequence[Record], unreadable: int, evaluation: Record) -> None:
    for figures in (
        [(str(value), str(label), str(good)) for value, label, good in evaluation.get("figures", [])],
        _figures(metrics),
    ):
        if figures:
            page.figures(figures)
    alarms: dict[str, list[tuple[int, str]]] = {}
    for record in metrics:
        broken = [key for key in ("loss", "grad_norm") if key in record and not finite(record[key])]
        found = [f"{key} is not finite" for key in broken] + str(record.get("alarm") or "").splitlines()
        for alarm in found:
            # The same alarm with other numbers in it is the same alarm.
            kind = re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", alarm)
            alarms.setdefault(kind, []).append((record["step"], alarm.rstrip(".")))
    for found in alarms.values():
        (first, text), (last, _) = found[0], found[-1]
        when = f"step {first}" if len(found) == 1 else f"{len(found)} times, steps {first} to {last}"
        page.callout(f"{text} ({when}).", "bad")
    if metrics and not alarms:
        page.callout(f"No alarm in {len(metrics)} logged steps.", "good")
    if unreadable:
        page.callout(f"{unreadable} lines of metrics.jsonl could not be read and are missing here.", "note")


def _figures(metrics: Sequence[Record]) -> list[Figure]:
    """What the last steps say in numbers."""

    def recent(key: str) -> float | None:
        values = [value for _, value in series(metrics, key) if finite(value)]
        values = values[-max(1, math.ceil(RECENT * len(values))) :]
        return sum(values) / len(values) if values else None

    def last(key: str) -> float | None:
        return next((value for _, value in reversed(series(metrics, key))), None)

    figures: list[Figure] = []
    if (accuracy := recent("rewards/accuracies")) is not None:
        figures.append((f"{accuracy:.0%}", "of training pairs ranked as labelled", "bad" if accuracy < 0.5 else ""))
    if (margin := recent("rewards/margins")) is not None:
        figures.append((f"{margin:.3g}", "mean margin in nats, beta included", ""))
    if (ratio := recent("error/chosen/ratio")) is not None:
        label = "error on chosen pictures, over the reference's"
        figures.append((f"{ratio:.3f}", label, "bad" if ratio > COLLAPSE else ""))
    if (drift := last("drift")) is not None:
        label = "error on the base model's own samples, over the base's"
        figures.append((f"{drift:.3f}", label, "bad" if drift > DRIFT else ""))
    if (held := last("heldout/accuracy")) is not None:
        ratios = ", ".join(f"{last(f'heldout/error/{side}/ratio'):.3f}" for side in ("chosen", "rejected"))
        label = f"of held-out pairs ranked as labelled; errors over the base's, chosen and rejected: {ratios}"
        figures.append((f"{held:.0%}", label, ""))
        figures.append((f"{last('heldout/margin'):.3g}", "mean margin of held-out pairs in nats", ""))
    if (seconds := recent("seconds_per_step")) is not None:
        figures.append((f"{seconds:.3g} s", "for a training step", ""))
    if memory := [value for _, value in series(metrics, "peak_memory_gib")]:
        figures.append((f"{max(memory):.3g} GiB", "peak memory", ""))
    return figures


def read_pairs(samples: Path) -> list[tuple[Path, Path, str]]:
    """(picture before, picture after, caption) of each complete pair in samples/pairs, in order."""
    given, pairs = _json(samples / "pairs" / "captions.json", []), []
    for i, before in enumerate(sorted((samples / "pairs").glob("*-before.png"))):
        name = before.name.removesuffix("-before.png")
        if (after := before.with_name(f"{name}-after.png")).is_file():
            pairs.append((before, after, str(given[i]) if i < len(given) else name))
    return pairs


def _before_after(page: Page, samples: Path) -> None:
    pairs = read_pairs(samples)
    if not pairs:
        return
    rows = []
    for start in range(0, min(len(pairs), PAIRS), ACROSS):
        part = pairs[start : min(start + ACROSS, PAIRS)]
        rows.append([(_open(before, PAIR_WIDTH), "") for before, _, _ in part])
        rows.append([(_open(after, PAIR_WIDTH), caption) for _, after, caption in part])
    page.heading("Before and after")
    page.text("The same prompt and the same starting noise; only the fine-tuning differs.")
    page.pictures(rows, ["before", "after"] * (len(rows) // 2))
    if len(pairs) > PAIRS:
        page.text(f"{len(pairs) - PAIRS} more pairs are in samples/pairs.")


def _evaluation(page: Page, evaluation: Record) -> None:
    table, notes = evaluation.get("table", []), evaluation.get("notes", [])
    if not table and not notes:
        return
    page.heading("Evaluation")
    if table:
        changes = [row[2] - row[1] if finite(row[1]) and finite(row[2]) else None for row in table]
        if any(change is not None for change in changes):
            page.table(["", "before", "after", "change"], [[*row, c] for row, c in zip(table, changes, strict=True)])
        else:
            page.table(["", "before", "after"], table)
    for note in notes:
        page.text(str(note))


def _samples(page: Page, samples: Path) -> None:
    sheets = sorted(samples.glob("step-[0-9]*.png"))
    if not sheets:
        return
    count = min(SHEETS, len(sheets))
    sheets = [sheets[round(i * (len(sheets) - 1) / max(1, count - 1))] for i in range(count)]
    page.heading("Samples over time")
    if prompts := _json(samples / "prompts.json", []):
        page.text("From left to right: " + "; ".join(map(str, prompts)) + ".")
    titles = [f"step {int(sheet.stem.removeprefix('step-'))}" for sheet in sheets]
    page.pictures([[(_open(sheet, SHEET_WIDTH), "")] for sheet in sheets], titles)


def _provenance(page: Page, run: Path) -> None:
    environment, config = _json(run / "environment.json", {}), run / "config.yaml"
    if not environment and not config.is_file():
        return
    page.heading("How it was made")
    command = environment.get("command")
    if command:
        page.code(command if isinstance(command, str) else shlex.join(map(str, command)))
    rows: list[tuple[str, str]] = []
    for key, value in environment.items():
        if isinstance(value, dict):
            rows += [(str(name), str(inner)) for name, inner in value.items()]
        elif key != "command" and value not in (None, []):
            rows.append((key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    if rows:
        page.table(["environment", ""], rows)
    if config.is_file():
        page.text("config.yaml, with every default resolved:")
        page.code(config.read_text(encoding="utf-8").rstrip())


def _json(path: Path, default: Any) -> Any:
    """What the file holds, or the default where there is no file."""
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"{path} is no valid JSON: {problem}. Delete it, or write it again.") from None


def _open(path: Path, width: int) -> Image.Image:
    """The picture, reduced to at most `width` pixels across."""
    with Image.open(path) as picture:
        if picture.width > width:
            return picture.convert("RGB").resize((width, max(1, picture.height * width // picture.width)))
        return picture.convert("RGB")
