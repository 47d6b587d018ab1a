"""The figures of a labelled data set, added up batch by batch, so that its memory does not grow with the prompts."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from diffpref.label.statistics import Batch, Moments
from diffpref.rewards.aggregate import PairCounts, pair_counts

PHI = "phi"
SPREAD = 4.0
"""A histogram reaches this many standard deviations from the mean; what lies beyond is in its outermost bins."""
BINS, MESSAGES, SIZES = 40, 2, 12
NO_FAILURES = ("ok", "near_duplicate")
"""A picture that resembles another one of its prompt is left out where the settings say so; it has not failed."""


@dataclass
class OfGenerator:
    """What is counted of one generator's pictures."""

    planned: int = 0
    labelled: int = 0
    wins: int = 0
    phi: float = 0.0
    retried: int = 0
    near_duplicates: int = 0
    status: Counter[str] = field(default_factory=Counter)
    messages: dict[str, list[str]] = field(default_factory=dict)
    scores: dict[str, Moments] = field(default_factory=dict)
    histograms: dict[str, Int64[np.ndarray, " bins"]] = field(default_factory=dict)


class Tally:
    """Takes every batch once with `add`, then once more with `bin`; `figures` gives the result."""

    def __init__(self) -> None:
        self.generators: defaultdict[str, OfGenerator] = defaultdict(OfGenerator)
        self.rewards: defaultdict[str, Moments] = defaultdict(lambda: Moments(3))  # score, tokens, log of pixels
        self.gains: defaultdict[str, Moments] = defaultdict(Moments)
        self.pairs: defaultdict[tuple[str, str], PairCounts] = defaultdict(lambda: PairCounts(0, 0, 0))
        self.candidates: Counter[int] = Counter()
        self.compared = self.tied_prompts = 0
        self.duplicates: Counter[str] = Counter()
        self.size = Moments(2)  # phi, log of pixels
        self.sizes: defaultdict[tuple[int, int], Moments] = defaultdict(Moments)

    def add(self, batch: Batch, messages: Sequence[str | None]) -> None:
        """Count a batch; `messages` are the rows' own, of which a few are kept as examples."""
        for name in np.unique(batch.generator).tolist():
            self._generator(self.generators[name], batch, batch.generator == name, messages)
        for name, scores in batch.scores.items():
            rows = np.stack([scores, batch.tokens, batch.log_pixels], 1)
            self.rewards[name].add(rows[_scored(batch, name)])
        self._duplicates(batch)
        self._labels(batch)

    def _generator(
        self, tally: OfGenerator, batch: Batch, mine: Bool[np.ndarray, " n"], messages: Sequence[str | None]
    ) -> None:
        tally.planned += int(mine.sum())
        tally.labelled += int((mine & batch.labelled).sum())
        tally.wins += int((mine & batch.best).sum())
        tally.phi += float(batch.phi[mine & batch.labelled].sum())
        tally.retried += int((mine & batch.retried).sum())
        tally.near_duplicates += int((mine & (batch.duplicate_of != "")).sum())
        tally.status.update(batch.status[mine].tolist())
        for name, scores in batch.scores.items():
            tally.scores.setdefault(name, Moments()).add(scores[mine & _scored(batch, name), None])
        for place in np.flatnonzero(mine & (batch.status != "ok")).tolist():
            known, text = tally.messages.setdefault(str(batch.status[place]), []), messages[place]
            if text and text not in known and len(known) < MESSAGES:
                known.append(text)

    def _duplicates(self, batch: Batch) -> None:
        places = np.flatnonzero(batch.duplicate_of != "")
        for place in places.tolist():
            # A picture's id is its prompt's 16 digits, the generator and the sample, joined by "-".
            other = str(batch.duplicate_of[place])[17:].rpartition("-")[0]
            self.duplicates["same generator" if other == batch.generator[place] else "another generator"] += 1
        self.duplicates["prompts"] += len(np.unique(batch.prompt[places]))

    def _labels(self, batch: Batch) -> None:
        part = batch.labelled
        counts = np.bincount(batch.prompt[part], minlength=int(batch.prompt.max(initial=-1)) + 1)
        self.candidates.update(counts.tolist())
        self.compared += int((counts * (counts - 1) // 2).sum())
        columns = {**batch.scores, PHI: batch.phi}
        for a, b in [*combinations(columns, 2), (PHI, PHI)]:
            both = part & np.isfinite(columns[a]) & np.isfinite(columns[b])
            one, two, groups = (torch.from_numpy(x[both]) for x in (columns[a], columns[b], batch.prompt))
            self.pairs[a, b] += pair_counts(one, two, groups=groups)
        low, high = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
        np.minimum.at(low, batch.prompt[part], batch.phi[part])
        np.maximum.at(high, batch.prompt[part], batch.phi[part])
        self.tied_prompts += int((low == high).sum())
        for name, scores in batch.scores.items():
            seen = part & np.isfinite(scores)
            means = np.bincount(batch.prompt[seen], scores[seen], minlength=len(counts)) / np.maximum(
                np.bincount(batch.prompt[seen], minlength=len(counts)), 1
            )
            best = seen & batch.best
            self.gains[name].add((scores[best] - means[batch.prompt[best]])[:, None])
        self.size.add(np.stack([batch.phi, batch.log_pixels], 1)[part])
        sizes = np.stack([batch.width, batch.height], 1)
        for width, height in np.unique(sizes[part], axis=0).tolist():
            self.sizes[width, height].add(batch.phi[part & (sizes == [width, height]).all(1), None])

    def bin(self, batch: Batch) -> None:
        """Fill the histograms, whose ranges follow from everything that was added."""
        for name, scores in batch.scores.items():
            edges, seen = self.edges(name), _scored(batch, name)
            for generator in np.unique(batch.generator).tolist():
                mine = np.clip(scores[seen & (batch.generator == generator)], edges[0], edges[-1])
                found = self.generators[generator].histograms.setdefault(name, np.zeros(BINS, np.int64))
                found += np.histogram(mine, edges)[0]

    def edges(self, reward: str) -> Float64[np.ndarray, " edges"]:
        """The ends of the bins of a reward's histogram."""
        found = self.rewards[reward]
        if not found.n:
            return np.linspace(0.0, 1.0, BINS + 1)
        mean, reach = found.mean[0], SPREAD * found.std[0]
        low, high = max(found.low[0], mean - reach), min(found.high[0], mean + reach)
        pad = 0.5 * (1 + abs(mean)) * 1e-3 if high - low <= 1e-9 * (1 + abs(mean)) else 0.0
        return np.linspace(low - pad, high + pad, BINS + 1)

    def figures(self) -> dict[str, Any]:
        """Everything as plain numbers, texts, lists and dicts; None where there is nothing to count."""
        failed = sum(n for g in self.generators.values() for s, n in g.status.items() if s not in NO_FAILURES)
        planned = sum(g.planned for g in self.generators.values())
        labelled = sum(g.labelled for g in self.generators.values())
        wins = sum(g.wins for g in self.generators.values())
        ordered = self.pairs[PHI, PHI].ordered_a
        return {
            "pictures": {
                "planned": planned,
                "ok": sum(g.status["ok"] for g in self.generators.values()),
                "labelled": labelled,
                "failed": failed,
                "failed_share": _ratio(failed, planned),
            },
            "candidates": {
                "prompts": sum(self.candidates.values()),
                "without_labels": self.candidates[0],
                "mean": _ratio(labelled, sum(self.candidates.values()) - self.candidates[0]),
                "prompts_by_candidates": {str(k): n for k, n in sorted(self.candidates.items())},
            },
            "generators": {
                name: {
                    "planned": g.planned,
                    "labelled": g.labelled,
                    "labelled_share": _ratio(g.labelled, labelled),
                    "wins": g.wins,
                    "win_share": _ratio(g.wins, wins),
                    "mean_phi": _ratio(g.phi, g.labelled),
                    "retried": g.retried,
                    "near_duplicates": g.near_duplicates,
                    "status": dict(sorted(g.status.items())),
                    "messages": g.messages,
                }
                for name, g in self.generators.items()
            },
            "ties": {
                "pairs": self.compared,
                "tied_share": _ratio(self.compared - ordered, self.compared),
                "prompts_without_order": self.tied_prompts,
            },
            "rewards": {name: self._reward(name) for name in self.rewards},
            "tau_b": self._tau(),
            "near_duplicates": {
                name: self.duplicates[name] for name in ("prompts", "same generator", "another generator")
            },
            "sizes": self._sizes(),
        }

    def _reward(self, name: str) -> dict[str, Any]:
        found, gain = self.rewards[name], self.gains[name]
        return {
            "scored": found.n,
            **_summary(found),
            "gain_of_the_best": float(gain.mean[0]) if gain.n else None,
            "gain_of_the_best_in_std": _ratio(float(gain.mean[0]), float(found.std[0])) if gain.n else None,
            "correlation_with_tokens": found.correlation(0, 1),
            "correlation_with_log_pixels": found.correlation(0, 2),
            "edges": self.edges(name).tolist(),
            "by_generator": {
                key: {**_summary(g.scores[name]), "histogram": g.histograms.get(name, np.zeros(0)).tolist()}
                for key, g in self.generators.items()
                if g.scores[name].n
            },
        }

    def _tau(self) -> dict[str, dict[str, float | None]]:
        names = [*self.rewards, PHI]
        table: dict[str, dict[str, float | None]] = {name: {} for name in names}
        for a, b in combinations(names, 2):
            tau = self.pairs[a, b].tau_b
            table[a][b] = table[b][a] = None if math.isnan(tau) else tau
        return table

    def _sizes(self) -> dict[str, Any]:
        most = sorted(self.sizes.items(), key=lambda item: (-item[1].n, item[0]))
        shown = sorted(most[:SIZES], key=lambda item: (item[0][0] * item[0][1], item[0]))
        return {
            "different": len(most),
            "correlation_of_phi_with_log_pixels": self.size.correlation(0, 1),
            "most_frequent": [
                {"width": w, "height": h, "pictures": m.n, "mean_phi": float(m.mean[0])} for (w, h), m in shown
            ],
        }


def _scored(batch: Batch, reward: str) -> Bool[np.ndarray, " n"]:
    return (batch.status == "ok") & np.isfinite(batch.scores[reward])


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _summary(found: Moments) -> dict[str, float | None]:
    if not found.n:
        return {"mean": None, "std": None, "low": None, "high": None}
    return {
        "mean": float(found.mean[0]),
        "std": float(found.std[0]),
        "low": float(found.low[0]),
        "high": float(found.high[0]),
    }
