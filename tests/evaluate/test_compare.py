"""The comparison of two models' pictures: equal sets tie, and each number looks at the set that it is named after."""

import json
from collections.abc import Sequence

import pytest
import torch
from PIL import Image

from diffpref.demo.compare import HandComparison, compare_hands
from diffpref.demo.judge import Judge, JudgeNetwork, to_batch

CAPTIONS = [f"thing {i}" for i in range(12)]


@pytest.fixture(scope="module")
def judge() -> Judge:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = JudgeNetwork(widths=(4, 4, 8, 8), features=12, embedding=8, artists=3)
        network.train()(torch.rand(16, 3, 64, 64))
        judge = Judge(network, artists=("a", "b", "c"), captions=CAPTIONS, prototypes=torch.randn(12, 1, 8))
    # Each drawing of `pictures(0)` is its caption's prototype.
    prototypes = judge.embed(to_batch(pictures(0)))[:, None]
    return Judge(judge.network, artists=judge.artists, captions=CAPTIONS, prototypes=prototypes)


def pictures(seed: int, low: int = 0) -> list[Image.Image]:
    blocks = torch.randint(low, 256, (12, 8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return [Image.fromarray(b.numpy()).resize((64, 64), Image.Resampling.NEAREST) for b in blocks]


def compared(judge: Judge, base: Sequence[Image.Image], tuned: Sequence[Image.Image]) -> HandComparison:
    return compare_hands(judge, base=base, tuned=tuned, captions=CAPTIONS, artist="b", real=pictures(0))


def test_identical_sets_tie(judge: Judge) -> None:
    result = compared(judge, pictures(2), pictures(2))
    assert (result.win_rate.rate, result.n) == (0.5, 12)
    assert result.base == result.tuned


def test_sorted_sets_win_always(judge: Judge) -> None:
    """Of two sets, the tuned one takes the picture that is more the artist's: every comparison is won."""
    x, y = pictures(2), pictures(3)
    more = judge.artist_probability(to_batch(x))[:, 1] > judge.artist_probability(to_batch(y))[:, 1]
    tuned = [a if m else b for a, b, m in zip(x, y, more.tolist(), strict=True)]
    base = [b if m else a for a, b, m in zip(x, y, more.tolist(), strict=True)]
    result = compared(judge, base, tuned)
    assert result.win_rate.rate == 1.0
    assert compared(judge, tuned, base).win_rate.rate == 0.0
    assert result.tuned.artist_share > result.base.artist_share


def test_the_real_pictures_themselves_are_the_best_tuned_model(judge: Judge) -> None:
    result = compared(judge, pictures(4, low=200), pictures(0))
    assert result.tuned.top1 == result.tuned.top5 == 1.0
    assert result.base.top1 < 1.0
    assert 0 <= result.tuned.frechet < 1e-6 < result.base.frechet  # float32 features
    assert result.tuned.spread.inside and result.tuned.spread.largest < 1e-9
    assert not result.base.spread.inside  # almost white against all colours


def test_table_and_json_carry_the_numbers(judge: Judge) -> None:
    result = compared(judge, pictures(4, low=200), pictures(0))
    table = {name: (before, after) for name, before, after in result.table()}
    assert len(table) == 6
    assert table["caption is the judge's nearest"] == (f"{result.base.top1:.3f}", "1.000")
    assert table["colour and contrast within the real spread"][0].startswith("OUTSIDE")
    plain = json.loads(json.dumps(result.to_json()))
    assert plain["win_rate"]["rate"] == result.win_rate.rate
    assert plain["tuned"]["top5"] == 1.0 and plain["tuned"]["spread"]["inside"] is True
    assert plain["base"]["frechet"] == result.base.frechet


def test_wrong_arguments_are_named(judge: Judge) -> None:
    x = pictures(2)
    with pytest.raises(ValueError, match="artist must be one of .*got 'monet'"):
        compare_hands(judge, base=x, tuned=x, captions=CAPTIONS, artist="monet", real=x)
    with pytest.raises(ValueError, match="11 base and 12 tuned for 12 captions"):
        compare_hands(judge, base=x[:-1], tuned=x, captions=CAPTIONS, artist="b", real=x)
    with pytest.raises(ValueError, match="no drawing of 'nothing'"):
        compare_hands(judge, base=x, tuned=x, captions=[*CAPTIONS[:-1], "nothing"], artist="b", real=x)
