"""`diffpref data score`: a reward for every image of preference data, which SmPO and RankDPO learn from.

SmPO's preprocessing (arXiv 2506.02698), and the choice model of Diffusion-DPO's code: the reward says which is better.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffpref.data.bad_row import BadRow
from diffpref.data.convert import RECORD_FORMS, write_records
from diffpref.data.decode import decode
from diffpref.data.rows import Dropped, OnBadRow, Preferences, Row
from diffpref.data.score_file import ScoreFile, row_key
from diffpref.evaluate.statistics import wilson_interval
from diffpref.label.entries import RewardUse
from diffpref.label.progress import Bar
from diffpref.label.score import reward_key
from diffpref.rewards import CheckedReward, find_reward

PROBABILITY = "chosen_probability"


def score(
    rows: Preferences,
    name: str,
    output: Path,
    *,
    device: str = "",
    batch_size: int = 8,
    on_bad_row: OnBadRow = "error",
    drop_contradictions: bool = False,
) -> list[str]:
    """Write the rows with a reward's scores as parquet, or go on where that was stopped; the lines for people.

    Args:
        rows: read with their ties, between which the reward may decide.
        name: a reward's name, a YAML file or an address, as `find_reward` takes it.
        device: where the reward computes; "" takes a GPU if there is one.
        batch_size: rows whose images are scored at once.
        drop_contradictions: leave rows out of which the reward prefers another image than the data; else it decides.

    Raises:
        ValueError: an image or a reward that cannot be used, or another reward's scores beside the output.
    """
    kept = ScoreFile(output, reward=name, identity=reward_key(RewardUse("reward", name)))
    before = len(kept)
    reward = find_reward(name, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    scored, agreement = scored_rows(
        rows,
        reward,
        kept,
        batch_size=batch_size,
        dropped=Dropped(on_bad_row),
        drop_contradictions=drop_contradictions,
    )
    _write(scored, reward, output)
    kept.remove()
    lines = [scored.summary(), agreement, f"written: {output} ({len(scored)} rows)"]
    return [f"{before} rows were scored before this start", *lines] if before else lines


def scored_rows(
    rows: Preferences,
    reward: CheckedReward,
    kept: ScoreFile,
    *,
    batch_size: int,
    dropped: Dropped,
    drop_contradictions: bool,
) -> tuple[Preferences, str]:
    """The rows with the reward's scores in place of theirs, and in how many it prefers the same image.

    Args:
        kept: has the scores of an earlier start, and takes the new ones.
        dropped: takes rows whose images cannot be decoded.
    """
    found: dict[int, tuple[float, ...]] = {}
    with Bar("scores", sum(map(len, rows.scores)), shown=True) as bar:
        for start in range(0, len(rows), batch_size):
            places = range(start, min(start + batch_size, len(rows)))
            found |= _scored(rows, places, reward, kept, dropped)
            bar(sum(len(rows.scores[place]) for place in places))
    told = [place for place in found if len(set(rows.scores[place])) > 1]
    against = {place for place in told if _best(found[place]) != _best(rows.scores[place])}
    good = [place for place in found if not (drop_contradictions and place in against)]
    dropped.counts.update({"reward against the choice": len(against)} if drop_contradictions and against else {})
    subset = rows.subset(good, dropped=dropped.counts, step=f"scored by {reward.name}")
    numbers = [int(rows.index[place]) for place in good]
    read_scored = _WithScores(rows.read, {number: found[place] for number, place in zip(numbers, good, strict=True)})
    scored = replace(subset, read=read_scored, scores=[found[place] for place in good])
    return scored, _agreement(reward.name, len(told) - len(against), len(told))


def _scored(
    rows: Preferences, places: Sequence[int], reward: CheckedReward, kept: ScoreFile, dropped: Dropped
) -> dict[int, tuple[float, ...]]:
    """The scores of these rows; what is not kept yet is scored at once, and kept."""
    found: dict[int, tuple[float, ...]] = {}
    todo, images, prompts = [], [], []
    for place in places:
        row = rows[place]
        try:
            key = row_key(row)
            if (scores := kept.get(key)) is None:
                images += [decode(source) for source in row.images]
                prompts += [row.prompt] * len(row.images)
                todo.append((place, key, len(row.images)))
            else:
                found[place] = scores
        except BadRow as problem:
            dropped.bad(row.where, problem)
    if todo:
        values = iter(reward(images, prompts).tolist())
        new = {place: (key, tuple(next(values) for _ in range(count))) for place, key, count in todo}
        kept.add(dict(new.values()))
        found |= {place: scores for place, (_, scores) in new.items()}
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class _WithScores:
    read: Callable[[int], Row]
    scores: Mapping[int, tuple[float, ...]]
    """The number of a row -> its scores."""

    def __call__(self, number: int) -> Row:
        return replace(self.read(number), scores=self.scores[number])


def _best(scores: Sequence[float]) -> int:
    return scores.index(max(scores))


def _agreement(name: str, same: int, told: int) -> str:
    if not told:
        return f"{name}: the data say of no row which image is better, so the reward decides"
    low, high = wilson_interval(same, told)
    shares = f"{same / told:.1%} [{low:.1%}, {high:.1%}]"
    return f"{name} prefers the image that the data prefer in {same} of {told} rows: {shares}"


def _write(scored: Preferences, reward: CheckedReward, output: Path) -> None:
    """Pairs with both scores and P(chosen), or lists with their scores."""
    import datasets

    pairs = all(len(scores) == 2 for scores in scored.scores)
    form = RECORD_FORMS["pairs" if pairs else "lists"]

    def record(row: Row) -> dict[str, object]:
        if not pairs:
            return form.record(row)
        better, worse = (torch.tensor([value]) for value in (max(row.scores), min(row.scores)))
        return {**form.record(row), PROBABILITY: float(torch.sigmoid(reward.pair_logit(better, worse)))}

    more = {PROBABILITY: datasets.Value("float64")} if pairs else None
    write_records(scored, output, record, form.schema(more))
