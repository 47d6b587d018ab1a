"""The judge: what goes in, what is refused, and that a picture's verdict does not hang on its neighbours."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffpref.demo.judge import Judge, JudgeNetwork, to_batch

SHIPPED = Path(__file__).parents[2] / "assets" / "judge"
CAPTIONS = ("fox", "tea pot", "bus", "kite", "leek", "drum", "café")
ARTISTS = ("google", "twitter", "openmoji")


def random_judge(seed: int = 0) -> Judge:
    """A judge of random weights that has learned nothing but normalises as a trained one does."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = JudgeNetwork(widths=(4, 4, 8, 8), features=12, embedding=6, artists=3)
        network.train()(torch.rand(16, 3, 64, 64))
        return Judge(network, artists=ARTISTS, captions=CAPTIONS, prototypes=torch.randn(len(CAPTIONS), 2, 6))


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    blocks = torch.randint(256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.fixture(params=["random", "shipped"])
def judge(request: pytest.FixtureRequest) -> Judge:
    if request.param == "random":
        return random_judge()
    if not (SHIPPED / "judge.safetensors").is_file():
        pytest.skip("assets/judge has not been made")
    return Judge.load(SHIPPED)


def test_shapes_and_ranges(judge: Judge) -> None:
    x = pictures(5)
    assert judge.features(x).shape[0] == 5
    share = judge.artist_probability(x)
    assert share.shape == (5, len(judge.artists)) and share.min() >= 0
    torch.testing.assert_close(share.sum(1), torch.ones(5))
    torch.testing.assert_close(judge.embed(x).norm(dim=1), torch.ones(5))


def test_the_same_picture_gets_the_same_verdict_again(judge: Judge) -> None:
    x = pictures(4)
    assert torch.equal(judge.features(x), judge.features(x))
    assert torch.equal(judge.artist_probability(x), judge.artist_probability(x))
    assert not judge.features(x).requires_grad


def test_a_verdict_does_not_hang_on_the_other_pictures(judge: Judge) -> None:
    """More pictures than one chunk holds; a convolution may add in another order, hence float32's 1e-4."""
    x = pictures(150)
    some = [0, 127, 128, 149]
    for verdict in (judge.features, judge.artist_probability):
        alone = torch.cat([verdict(x[i : i + 1]) for i in some])
        torch.testing.assert_close(verdict(x)[some], alone, atol=1e-4, rtol=1e-4)


def test_the_hand_does_not_look_through_the_trunk() -> None:
    """Two judges of other trunks and one hand name the same artists, and see other captions."""
    x, first, second = pictures(4), random_judge(0), random_judge(1)
    assert not torch.allclose(first.artist_probability(x), second.artist_probability(x))
    second.network.hand.load_state_dict(first.network.hand.state_dict())
    assert torch.equal(first.artist_probability(x), second.artist_probability(x))
    assert not torch.allclose(first.embed(x), second.embed(x))


def test_the_hand_standardises() -> None:
    """Moving and stretching the mean and scale with the features leaves the logits as they are."""
    hand = random_judge().network.hand
    s = torch.rand(5, hand.mean.numel(), generator=torch.Generator().manual_seed(0))
    before = hand(s)
    hand.mean, hand.scale = hand.mean + 2.0, hand.scale * 3.0
    torch.testing.assert_close(hand(3 * s + 2), before, atol=1e-4, rtol=0)


def test_a_judge_of_other_style_features_is_refused() -> None:
    with pytest.raises(ValueError, match="made for 7 style features"):
        JudgeNetwork(widths=(4, 4, 8, 8), features=12, embedding=6, artists=3, style=7)


def test_matches_ranks_among_all_captions() -> None:
    """Prototypes are set to the pictures' own embeddings, so that each picture's ranking is known."""
    x = pictures(len(CAPTIONS))
    judge = random_judge()
    judge = Judge(judge.network, artists=ARTISTS, captions=CAPTIONS, prototypes=judge.embed(x)[:, None])
    assert judge.matches(x, CAPTIONS).all()
    shifted = [*CAPTIONS[1:], CAPTIONS[0]]
    assert not judge.matches(x, shifted).any()
    assert judge.matches(x, shifted, top=len(CAPTIONS)).all()
    similarity = judge.embed(x) @ judge.prototypes[:, 0].T
    third = [CAPTIONS[row] for row in similarity.topk(3).indices[:, 2].tolist()]
    assert not judge.matches(x, third, top=2).any()
    assert judge.matches(x, third, top=3).all()


def test_a_caption_is_as_near_as_its_nearest_drawing() -> None:
    """Caption i has two drawings, one of them far off; its other drawing alone must be enough."""
    x = pictures(len(CAPTIONS))
    judge = random_judge()
    own = judge.embed(x)
    drawings = torch.stack([-own, own], 1)
    judge = Judge(judge.network, artists=ARTISTS, captions=CAPTIONS, prototypes=drawings)
    assert judge.matches(x, CAPTIONS).all()


def test_unknown_caption_and_unequal_lengths_are_refused(judge: Judge) -> None:
    with pytest.raises(ValueError, match="no drawing of 'a flying pencil sharpener'"):
        judge.matches(pictures(1), ["a flying pencil sharpener"])
    with pytest.raises(ValueError, match="got 1 for 2 pictures"):
        judge.matches(pictures(2), [judge.captions[0]])


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    x, first = pictures(6), random_judge()
    first.save(tmp_path / "a", notes={"held_out": ["fox"]})
    second = Judge.load(tmp_path / "a")
    second.save(tmp_path / "b", notes={})
    third = Judge.load(tmp_path / "b")
    assert (second.artists, second.captions) == (first.artists, first.captions)
    # float16 keeps 11 bits; once rounded, a second round trip changes nothing in the network.
    torch.testing.assert_close(second.artist_probability(x), first.artist_probability(x), atol=5e-3, rtol=0)
    assert torch.equal(third.features(x), second.features(x))
    assert torch.equal(third.artist_probability(x), second.artist_probability(x))
    torch.testing.assert_close(third.prototypes, second.prototypes, atol=1e-3, rtol=0)


@pytest.mark.parametrize("missing", ["config.json", "judge.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    random_judge().save(tmp_path, notes={})
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        Judge.load(tmp_path)


def test_to_batch_resizes_and_puts_transparent_pictures_on_white() -> None:
    red, clear = Image.new("RGB", (128, 32), (255, 0, 0)), Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    batch = to_batch([red, clear, Image.new("L", (64, 64), 7)])
    assert batch.shape == (3, 3, 64, 64) and batch.dtype == torch.uint8
    assert batch[0].float().mean((1, 2)).tolist() == [255.0, 0.0, 0.0]
    assert (batch[1] == 255).all()
    assert (batch[2] == 7).all()
    with pytest.raises(ValueError, match="at least one"):
        to_batch([])


def test_to_batch_keeps_rows_and_columns() -> None:
    picture = Image.new("RGB", (64, 64), "white")
    picture.putpixel((5, 9), (1, 2, 3))  # x = 5, y = 9
    assert to_batch([picture])[0, :, 9, 5].tolist() == [1, 2, 3]


def test_the_shipped_judge_is_small_and_says_what_it_never_saw() -> None:
    if not (SHIPPED / "judge.safetensors").is_file():
        pytest.skip("assets/judge has not been made")
    assert (SHIPPED / "judge.safetensors").stat().st_size < 1_200_000
    judge = Judge.load(SHIPPED)
    assert judge.artists == ARTISTS and len(judge.captions) == 585
    assert judge.prototypes.shape[:2] == (585, 3)
    config = json.loads((SHIPPED / "config.json").read_text())
    assert set(config["held_out"]) < set(judge.captions)
    assert config["held_out_accuracy"]["real"]["artist"] >= 0.9
