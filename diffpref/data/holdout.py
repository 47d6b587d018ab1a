"""Rows that a run is measured on and never trains on: chosen by their prompts, so that no prompt is on both sides."""

from collections.abc import Sequence
from dataclasses import replace

from diffpref.data.decode import encoded_bytes
from diffpref.data.rows import Preferences
from diffpref.files.identity import content_key

MOST = 256
"""Rows that a share takes at most: more would tell no more, and be lost to training."""


def check_holdout(value: float) -> None:
    """Raise ValueError for what is neither a share below 1 nor a whole number."""
    if value >= 1 and value != int(value):
        raise ValueError(f"holdout_rows must be a share below 1 or a whole number of rows, got {value}.")


def hold_out(rows: Preferences, wanted: float) -> tuple[Preferences, Preferences | None]:
    """The rows to train on and those that are held out, None where there are none.

    Whole prompts are held out, in the order of a hash of their words: the same rows whatever their order, and mostly
    the same when rows are added. Where all rows have one prompt, the better image stands in its place. The words of a
    prompt count, not case or spaces. Both sides keep the order that the rows have.

    Args:
        wanted: a share below 1, at most 256 rows, rounded down; or a number of rows. A prompt's rows stay together, so
            that there may be fewer, or up to twice as many.

    Raises:
        ValueError: as `check_holdout`, or as many rows as there are.
    """
    check_holdout(wanted)
    count = int(wanted) if wanted >= 1 else min(int(wanted * len(rows)), MOST)
    if count >= len(rows):
        raise ValueError(f"holdout_rows {count} leaves none of {len(rows)} rows to train on: hold out fewer.")
    if count == 0:
        return rows, None
    held = _chosen(list(_units(rows).values()), count)
    if not held:
        line = f"held out: none of {len(rows)} rows: {count} were wanted, and each prompt has more than twice as many"
        return replace(rows, log=(*rows.log, line)), None
    kept = sorted(set(range(len(rows))) - set(held))
    line = f"held out: {len(held)} of {len(rows)} rows, for measuring alone"
    train = rows.subset(kept, dropped={}, step="training")
    return replace(train, log=(*rows.log, line)), rows.subset(held, dropped={}, step="held out")


def _units(rows: Preferences) -> dict[str, list[int]]:
    """The positions of the rows that must stay together, by a hash, in the hash's order."""
    prompts = [" ".join(rows.prompt(position).casefold().split()) for position in range(len(rows))]
    alike = len(set(prompts)) == 1
    units: dict[str, list[int]] = {}
    for position, prompt in enumerate(prompts):
        key = content_key(_better(rows, position) if alike else prompt)
        units.setdefault(key, []).append(position)
    return dict(sorted(units.items()))


def _better(rows: Preferences, position: int) -> bytes:
    row = rows[position]
    return encoded_bytes(row.images[row.scores.index(max(row.scores))])


def _chosen(units: Sequence[Sequence[int]], count: int) -> list[int]:
    """Positions of whole units, in order, until there are `count` or more; none that would make it twice as many."""
    held: list[int] = []
    for unit in units:
        if len(held) + len(unit) <= 2 * count:
            held += unit
        if len(held) >= count:
            break
    return sorted(held)
