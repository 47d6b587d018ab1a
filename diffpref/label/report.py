"""report.html and report.json of a labelling run: how many, how good, how the rewards agree, and what is suspicious."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffpref.files import atomic
from diffpref.label.sections import AFTER_IT, BEFORE_THE_SHEET, STATUSES, verdict
from diffpref.label.sheet import Sample, draw_sheet
from diffpref.label.statistics import to_batch
from diffpref.label.tally import Tally
from diffpref.report.page import Page

_ROWS = 50_000
_EXAMPLES = 2


def write_report(folder: Path) -> Path:
    """The path of report.html; report.json beside it holds the same figures.

    Args:
        folder: of a run, with prompts.parquet and labels/; images/ gives the contact sheet, and label.yaml says which
            rewards are held out.

    Raises:
        ValueError: prompts or labels are not there, or cannot be read.
    """
    prompts = _read(folder / "prompts.parquet")
    files = sorted((folder / "labels").glob("[0-9]*.parquet"))
    if not files:
        raise ValueError(f"{folder / 'labels'} holds no labels: run the stage labels first.")
    ids, tokens = _lengths(prompts)
    tally, sample = Tally(), Sample()
    for table in _batches(files):
        tally.add(to_batch(table, _tokens(table, ids, tokens)), table.column("message").to_pylist())
        sample.add(table)
    for table in _batches(files):
        tally.bin(to_batch(table, _tokens(table, ids, tokens)))
    figures = {"prompts": _prompts(prompts), "held_out": _held_out(folder / "label.yaml"), **tally.figures()}
    page = Page(folder.resolve().name, "diffpref labels")
    verdict(page, figures)
    for draw in BEFORE_THE_SHEET:
        draw(page, figures)
    draw_sheet(page, sample, folder / "images")
    for draw in AFTER_IT:
        draw(page, figures)
    atomic.write_json(folder / "report.json", figures)
    page.write(folder / "report.html")
    return folder / "report.html"


def _held_out(path: Path) -> list[str]:
    """The names of the rewards that have no say in the labels."""
    if not path.is_file():
        return []
    from diffpref.label.settings import from_yaml

    return [reward.name for reward in from_yaml(path).rewards if reward.held_out]


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as problem:
        raise ValueError(f"{path} cannot be read ({problem}): restore it, or run its stage again.") from None


def _batches(files: Sequence[Path]) -> Iterator[pa.Table]:
    """Whole files together until there are many rows, each with its number as the column `shard`."""
    waiting: list[pa.Table] = []
    for i, path in enumerate(files):
        table = _read(path)
        waiting.append(table.append_column("shard", pa.array(np.full(len(table), int(path.stem), np.int32))))
        if sum(map(len, waiting)) >= _ROWS or i == len(files) - 1:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []


def _lengths(prompts: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the prompts as numbers in ascending order, and the tokens of each."""
    ids = _numbers(prompts)
    order = np.argsort(ids, kind="stable")
    return ids[order], prompts.column("tokens").to_numpy()[order].astype(np.float64)


def _numbers(table: pa.Table) -> np.ndarray:
    """The prompt ids of the rows, whose 16 hexadecimal digits are 64 bits."""
    return np.array([int(name, 16) for name in table.column("prompt_id").to_pylist()], np.uint64)


def _tokens(table: pa.Table, ids: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return tokens[np.minimum(np.searchsorted(ids, _numbers(table)), len(ids) - 1)]


def _prompts(table: pa.Table) -> dict[str, Any]:
    """How many prompts have which status, with examples, and how long the kept ones are."""
    kept = table.filter(table.column("kept"))
    tokens = kept.column("tokens").to_numpy()
    status: dict[str, Any] = {}
    for name in STATUSES:
        rows = table.filter(pc.call_function("equal", [table.column("status"), name]))
        examples = rows.slice(0, _EXAMPLES).select(["prompt", "detail"]).to_pylist()
        status[name] = {"prompts": len(rows), "kept": int(np.sum(rows.column("kept").to_numpy())), "examples": examples}
    longest = int(tokens.max(initial=0))
    edges = np.linspace(0, max(longest, 1) + 1, min(max(longest, 1) + 1, 40) + 1)
    return {
        "rows": len(table),
        "kept": len(kept),
        "status": status,
        "tokens": {
            "mean": float(tokens.mean()) if len(tokens) else None,
            "longest": longest,
            "edges": edges.tolist(),
            "histogram": np.histogram(tokens, edges)[0].tolist(),
        },
    }
