"""`diffpref data validate`: every row that cannot be used, and what the others would teach beside what is meant."""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from diffpref.data.bad_row import listed
from diffpref.data.check import Examined, examine
from diffpref.data.look import SIDE
from diffpref.data.poison import Poison
from diffpref.data.reading import Read, read
from diffpref.data.rows import Preferences, count_dropped
from diffpref.data.tokens import TokenCount, by_words, of_model


@dataclass(frozen=True)
class Validate:
    """Read preference data, decode every image, list all bad rows, and warn of what would teach something else.

    The exit status is 1 if a row is bad, and 0 with warnings alone."""

    reading: Read
    size_mismatch: Literal["error", "crop"] = "error"
    """"crop" accepts rows whose images differ in size."""
    min_size: int | None = None
    """The least width and height of an image, in pixels."""
    resolution: Annotated[int, Ge(8)] | None = None
    """Side of the training images, in pixels: smaller ones are warned of. Without it, those below 256."""
    pretrained_model_name_or_path: str = ""
    """The pipeline whose tokenizer counts the captions' tokens; without it words are counted."""
    workers: int = 2
    """Threads that decode."""
    json: bool = False
    """Print one JSON object in place of text."""


def _tokens(model: str) -> TokenCount:
    if not model:
        return by_words()
    if (tokens := of_model(model)) is None:
        raise ValueError(f"{model} has no tokenizer that can be loaded: name a pipeline's folder or hub name.")
    return tokens


def validate(command: Validate) -> int:
    """Run the command; the exit status."""
    tokens = _tokens(command.pretrained_model_name_or_path)
    rows = read(command.reading, on_bad_row="skip")
    poison = Poison(resolution=command.resolution, tokens=tokens)
    seen = examine(
        rows,
        poison,
        size_mismatch=command.size_mismatch,
        min_size=command.min_size,
        workers=command.workers,
        full=True,
        side=command.resolution or SIDE,
    )
    bad = _bad_rows(rows, seen)
    if command.json:
        print(json.dumps(_record(rows, seen, bad), indent=2))
    else:
        _print(rows, seen, bad)
    return 1 if bad and command.reading.on_bad_row == "error" else 0


def _bad_rows(rows: Preferences, seen: Examined) -> Counter[str]:
    """How many rows are bad, by reason; ties and rows without a label are dropped and not bad."""
    reasons = {problem.reason for problem in rows.problems}
    return Counter({reason: count for reason, count in rows.dropped.items() if reason in reasons}) + seen.dropped


def _print(rows: Preferences, seen: Examined, bad: Mapping[str, int]) -> None:
    print(rows.summary())
    print(f"images decoded: {len(rows)} rows, {len(seen.good)} kept{count_dropped(seen.dropped)}")
    for finding in seen.findings:
        print(f"warning: {finding.text}.")
    if total := sum(bad.values()):
        found = listed([*rows.problems, *seen.problems], total)
        remedy = "Mend or remove them, or leave them out with --on_bad_row skip."
        print(f"diffpref data: {total} bad row{'s' * (total > 1)}:\n{found}\n{remedy}", file=sys.stderr)


def _record(rows: Preferences, seen: Examined, bad: Mapping[str, int]) -> dict[str, object]:
    return {
        "source": rows.source,
        "schema": rows.schema,
        "read": len(rows) + sum(rows.dropped.values()),
        "kept": len(seen.good),
        "dropped": dict(Counter(rows.dropped) + seen.dropped),
        "bad": sum(bad.values()),
        "bad_rows": [asdict(problem) for problem in (*rows.problems, *seen.problems)],
        "warnings": [asdict(finding) for finding in seen.findings],
    }
