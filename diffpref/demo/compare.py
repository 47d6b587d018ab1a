"""Has the model taken up an artist's hand, and kept the captions? Base and tuned pictures before the judge."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from diffpref.demo.judge import Judge, to_batch
from diffpref.evaluate.statistics import (
    Spread,
    WinRate,
    frechet_distance,
    picture_statistics,
    win_rate,
    within_spread,
)


@dataclass(frozen=True)
class HandSummary:
    """One model's pictures before the judge. Shares are in [0, 1], the distance in squared feature units."""

    artist_share: float
    """Mean probability of the artist over pictures."""
    top1: float
    """Share of pictures whose own caption is the nearest of all."""
    top5: float
    """Share of pictures whose own caption is among the five nearest."""
    frechet: float
    """Frechet distance to the artist's real pictures; lower is closer."""
    spread: Spread
    """Mean colour and contrast against the artist's real pictures."""


@dataclass(frozen=True)
class HandComparison:
    """Pictures of the same captions by the base and the tuned model, n of each."""

    artist: str
    n: int
    win_rate: WinRate
    """How often the tuned picture is more probably the artist's than the base picture of its caption."""
    base: HandSummary
    tuned: HandSummary

    def table(self) -> list[tuple[str, str, str]]:
        """Rows (name, before, after) for a report; the base's win rate over itself is 0.5."""

        def row(name: str, field: str, form: str = ".3f") -> tuple[str, str, str]:
            return name, format(getattr(self.base, field), form), format(getattr(self.tuned, field), form)

        def check(summary: HandSummary) -> str:
            return f"{'inside' if summary.spread.inside else 'OUTSIDE'} (|z| up to {summary.spread.largest:.2f})"

        return [
            (f"win rate in {self.artist}'s hand over the base", "0.500", str(self.win_rate)),
            row(f"judge's mean probability of {self.artist}", "artist_share"),
            row("caption is the judge's nearest", "top1"),
            row("caption is among the judge's five nearest", "top5"),
            row(f"Frechet distance to {self.artist}'s pictures", "frechet", ".2f"),
            ("colour and contrast within the real spread", check(self.base), check(self.tuned)),
        ]

    def to_json(self) -> dict[str, object]:
        """The same numbers as plain dictionaries, for json.dumps."""

        def plain(summary: HandSummary) -> dict[str, object]:
            spread = {"inside": summary.spread.inside, "z": dict(summary.spread.z)}
            return {**vars(summary), "spread": spread}

        return {
            "artist": self.artist,
            "n": self.n,
            "win_rate": dict(vars(self.win_rate)),
            "base": plain(self.base),
            "tuned": plain(self.tuned),
        }


def compare_hands(
    judge: Judge,
    *,
    base: Sequence[Image.Image],
    tuned: Sequence[Image.Image],
    captions: Sequence[str],
    artist: str,
    real: Sequence[Image.Image],
) -> HandComparison:
    """The tuned pictures against the base's, caption by caption, and both against the artist's `real` pictures.

    Args:
        base, tuned: picture i of each shows captions[i], best from the same noise.
        real: the artist's own drawings, of any captions.

    Raises:
        ValueError: an artist or caption unknown to the judge, or not one base and one tuned picture a caption.
    """
    if artist not in judge.artists:
        raise ValueError(f"artist must be one of {list(judge.artists)}, got {artist!r}.")
    if not len(base) == len(tuned) == len(captions):
        raise ValueError(
            "compare_hands needs one base and one tuned picture a caption, "
            f"got {len(base)} base and {len(tuned)} tuned for {len(captions)} captions."
        )
    theirs = to_batch(real)
    their_features, their_statistics = judge.features(theirs), picture_statistics(theirs)
    shares: list[list[float]] = []
    summaries: list[HandSummary] = []
    for pictures in (base, tuned):
        x = to_batch(pictures)
        share = judge.artist_probability(x)[:, judge.artists.index(artist)]
        top1, top5 = (judge.matches(x, captions, top=top).double().mean().item() for top in (1, 5))
        distance = frechet_distance(judge.features(x), their_features)
        spread = within_spread(picture_statistics(x), their_statistics)
        shares.append(share.tolist())
        summaries.append(HandSummary(share.double().mean().item(), top1, top5, distance, spread))
    return HandComparison(artist, len(captions), win_rate(shares[1], shares[0]), summaries[0], summaries[1])
