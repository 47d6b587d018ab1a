"""The scores of a labelled data set in numbers: their spread, by generator, and how far the rewards agree."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float64

from diffpref.label.database import Database, correlation, counts, histogram, name
from diffpref.label.tally import BINS, ratio

PHI = "phi"
SPREAD = 4.0
"""A histogram reaches this many standard deviations from the mean; what lies beyond is in its outermost bins."""

SUMMARIES = f"""
SELECT reward, generator, count(*) AS scored, avg(score) AS mean, stddev_pop(score) AS std, min(score) AS low,
    max(score) AS high, {correlation("score", "tokens")} AS tokens, {correlation("score", "log_pixels")} AS log_pixels
FROM scores WHERE status = 'ok' GROUP BY GROUPING SETS ((reward), (reward, generator)) ORDER BY generator
"""
GAINS = """
SELECT reward, avg(gain)
FROM (SELECT reward, any_value(score) FILTER (best) - avg(score) AS gain FROM scores WHERE labelled
      GROUP BY reward, prompt_id)
GROUP BY reward
"""
NOTHING = {"scored": 0, "mean": None, "std": None, "low": None, "high": None, "tokens": None, "log_pixels": None}


def of_rewards(database: Database) -> dict[str, dict[str, Any]]:
    """What is known of each reward's scores."""
    rows = {(row["reward"], row["generator"]): row for row in database.table(SUMMARIES)}
    gains = dict(database.rows(GAINS))
    figures: dict[str, dict[str, Any]] = {}
    for reward in database.rewards:
        row, gain = rows.get((reward, None), NOTHING), gains.get(reward)
        edges = _edges(row)
        query = (
            f"SELECT generator, {histogram('score', edges)} FROM scores WHERE reward = ? AND status = 'ok' GROUP BY 1"
        )
        bins = dict(database.rows(query, reward))
        figures[reward] = {
            "scored": row["scored"],
            **_summary(row),
            "gain_of_the_best": gain,
            "gain_of_the_best_in_std": None if gain is None else ratio(gain, row["std"]),
            "correlation_with_tokens": row["tokens"],
            "correlation_with_log_pixels": row["log_pixels"],
            "edges": edges.tolist(),
            "by_generator": {
                generator: {**_summary(own), "histogram": counts(bins[generator], edges)}
                for (key, generator), own in rows.items()
                if key == reward and generator is not None
            },
        }
    return figures


@dataclass(frozen=True)
class PairCounts:
    """Pairs of images of the same prompt, counted."""

    agreement: int
    """Pairs that both rewards order alike, less those that they order otherwise."""
    ordered_a: int
    """Pairs that the first reward does not tie."""
    ordered_b: int

    @property
    def tau_b(self) -> float:
        """Kendall's tau-b in [-1, 1]; not a number where one of the rewards ties every pair.

        tau_b = (concordant - discordant) / sqrt(pairs untied in a * pairs untied in b); Kendall 1945, Biometrika 33.
        """
        ordered = math.sqrt(self.ordered_a) * math.sqrt(self.ordered_b)
        return self.agreement / ordered if ordered else math.nan


def count_pairs(database: Database) -> dict[tuple[str, str], PairCounts]:
    """For every two of the rewards and phi, and for phi with itself: pairs of labelled images of one prompt."""
    columns = [*database.rewards, PHI]
    both = [*combinations(columns, 2), (PHI, PHI)]
    signs = [f"sign(b.{name(column)} - a.{name(column)}) AS {name(column)}" for column in columns]
    sums = []
    for one, two in both:
        a, b = name(one), name(two)
        # A sum leaves out the pairs in which a score is missing.
        sums += [f"sum({a} * {b})", f"sum(abs({a}) + 0 * {b})", f"sum(abs({b}) + 0 * {a})"]
    query = f"""
    WITH images AS MATERIALIZED (SELECT prompt_id, row, {", ".join(map(name, columns))} FROM labels WHERE labelled),
    pairs AS (SELECT {", ".join(signs)} FROM images a JOIN images b ON a.prompt_id = b.prompt_id AND a.row < b.row)
    SELECT {", ".join(sums)} FROM pairs
    """
    (totals,) = database.rows(query)
    whole = [int(total or 0) for total in totals]
    return {key: PairCounts(*whole[3 * i : 3 * i + 3]) for i, key in enumerate(both)}


def tau_b(pairs: Mapping[tuple[str, str], PairCounts]) -> dict[str, dict[str, float | None]]:
    """Kendall's tau-b of every two of the rewards and phi; None where one of them ties every pair."""
    table: dict[str, dict[str, float | None]] = {a: {} for a in dict.fromkeys(a for a, _ in pairs)}
    for (a, b), count in pairs.items():
        if a != b:
            table[a][b] = table[b][a] = None if math.isnan(count.tau_b) else count.tau_b
    return table


def _edges(row: Mapping[str, Any]) -> Float64[np.ndarray, " edges"]:
    """The ends of the bins of a reward's histogram."""
    if not row["scored"]:
        return np.linspace(0.0, 1.0, BINS + 1)
    mean, reach = row["mean"], SPREAD * row["std"]
    low, high = max(row["low"], mean - reach), min(row["high"], mean + reach)
    pad = 0.5 * (1 + abs(mean)) * 1e-3 if high - low <= 1e-9 * (1 + abs(mean)) else 0.0
    return np.linspace(low - pad, high + pad, BINS + 1)


def _summary(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: row[key] for key in ("mean", "std", "low", "high")}
