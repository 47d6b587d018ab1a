"""CLIPScore on a tiny open_clip model: three conventions against open_clip's own functions, one by one in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffpref.rewards import find_reward
from diffpref.rewards.clipscore import CLIPScore, CLIPScoreSettings
from tests.rewards.small_clip import LOG_100, PROMPTS, SIZE, add_small_architecture, pictures, small_open_clip

NAME, QUICK = "diffpref-tiny-clip", "diffpref-tiny-clip-quickgelu"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clipscore")
    add_small_architecture(folder, NAME)
    add_small_architecture(folder, QUICK, quick_gelu=True)
    save_file(small_open_clip(QUICK, seed=1).state_dict(), folder / "clip.safetensors")
    return folder / "clip.safetensors"


def load(file: Path | str, **settings) -> CLIPScore:
    return CLIPScoreSettings(**{"checkpoint": str(file), "architecture": QUICK, **settings}).load(torch.device("cpu"))


@torch.no_grad()
def published(prompts: list[str], *, name: str = QUICK, **changes) -> Tensor:
    """Cosines by open_clip's own preprocess_val, tokenizer and forward."""
    from open_clip import get_tokenizer
    from open_clip.transform import PreprocessCfg, image_transform_v2

    model, tokenizer = small_open_clip(name, seed=1).double(), get_tokenizer("ViT-L-14")
    preprocess = image_transform_v2(PreprocessCfg(size=SIZE, **changes), is_train=False)
    found = []
    for image, prompt in zip(pictures(), prompts, strict=True):
        outputs = model(preprocess(image)[None].double(), tokenizer([prompt]))
        found.append((outputs[0] * outputs[1]).sum())
    return torch.stack(found)


def test_the_three_conventions(file: Path) -> None:
    expected = published(PROMPTS)
    assert expected.min() < -0.02 and expected.max() > 0.02, "both signs must occur for this to say anything"
    hundred = load(file, convention="torchmetrics", batch_size=4)
    torch.testing.assert_close(load(file).score(pictures(), PROMPTS).double(), expected, atol=2e-6, rtol=0)
    clamped = torch.from_numpy(np.maximum(100 * expected.numpy(), 0))
    torch.testing.assert_close(hundred.score(pictures(), PROMPTS).double(), clamped, atol=2e-4, rtol=0)
    depicted = published([f"A photo depicts {prompt}" for prompt in PROMPTS])
    assert (depicted - expected).abs().max() > 1e-2
    hessel = load(file, convention="hessel").score(pictures(), PROMPTS).double()
    torch.testing.assert_close(hessel, torch.from_numpy(np.maximum(2.5 * depicted.numpy(), 0)), atol=5e-6, rtol=0)


def test_pair_logit_is_of_the_cosines(file: Path) -> None:
    """The same pair in every convention, as far as it is not cut at 0; the scale is the model's own."""
    cosines = torch.tensor([0.31, 0.22])
    for convention, unit in [("cosine", 1.0), ("hessel", 2.5), ("torchmetrics", 100.0)]:
        reward = load(file, convention=convention)
        logit = reward.pair_logit(unit * cosines[:1], unit * cosines[1:])
        torch.testing.assert_close(logit.item(), torch.tensor(LOG_100).exp().item() * 0.09, atol=1e-4, rtol=0)


def test_the_activation_is_the_architectures(file: Path) -> None:
    """A file says nothing of its activation: the name does, and the scores differ."""
    plain = load(file, architecture=NAME).score(pictures(), PROMPTS)
    torch.testing.assert_close(plain.double(), published(PROMPTS, name=NAME), atol=2e-6, rtol=0)
    assert (plain - load(file).score(pictures(), PROMPTS)).abs().max() > 1e-4
    from open_clip import get_model_config

    assert get_model_config(CLIPScoreSettings().architecture)["quick_gelu"] is True


def test_a_published_tag(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tag has its own mean and deviation, activation and resize; open_clip's table is given one with a local file."""
    from open_clip import pretrained

    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    tags = {
        "openai": {"file": str(file), "quick_gelu": True},
        "half": {"file": str(file), "quick_gelu": True, **half},
        "squash": {"file": str(file), "quick_gelu": True, "resize_mode": "squash"},
        "torn": {"file": __file__, "quick_gelu": True},
        "plain": {"file": str(file)},
    }
    for name in (NAME, QUICK):
        monkeypatch.setitem(pretrained._PRETRAINED, name, tags)
    expected = published(PROMPTS, **half)
    assert (expected - published(PROMPTS)).abs().max() > 1e-3
    reward = load("half")
    torch.testing.assert_close(reward.score(pictures(), PROMPTS).double(), expected, atol=2e-6, rtol=0)
    assert "mean (0.5, 0.5, 0.5)" in reward.provenance["preprocessing"]
    assert torch.equal(load("openai").score(pictures(), PROMPTS), load(file).score(pictures(), PROMPTS))
    with pytest.raises(ValueError, match=f"trained with QuickGELU and {NAME} is not; set architecture to '{QUICK}'"):
        load("openai", architecture=NAME)
    with pytest.raises(ValueError, match=f"trained without QuickGELU and {QUICK} is not; set architecture to '{NAME}'"):
        load("plain")
    with pytest.raises(ValueError, match="resized by squash"):
        load("squash")
    with pytest.raises(ValueError, match="is no file of .*UnpicklingError.*; delete it"):
        load("torn")


def test_by_name_batched_and_empty(file: Path) -> None:
    settings = {"checkpoint": str(file), "architecture": QUICK, "batch_size": 4}
    reward = find_reward("clipscore", settings=settings)
    scores = reward(pictures(), PROMPTS)
    one_by_one = torch.cat([reward([i], [p]) for i, p in zip(pictures(), PROMPTS, strict=True)])
    torch.testing.assert_close(scores, one_by_one, atol=2e-6, rtol=0)
    assert len(reward([], [])) == 0
    assert reward.provenance["checkpoint"] == f"{QUICK} {file}" and reward.provenance["unit"] == "cosine"
    with pytest.raises(ValueError, match=r"name a file of .* or one of open_clip's tags \[\]"):
        load("absent.pt")


def test_tokens_are_the_published_tokenizers(file: Path) -> None:
    """Begin, cut, end, zeros: worked by hand but for the words, whose curly quotes and entities ftfy and html undo."""
    from open_clip import SimpleTokenizer

    words = SimpleTokenizer()
    ids = load(file).clip.tokenizer(PROMPTS)
    for row, prompt in zip(ids.tolist(), PROMPTS, strict=True):
        body = words.encode(prompt)[:75]
        assert row == [49406, *body, 49407] + [0] * (75 - len(body))
    assert words.encode("“curly” &amp;") == words.encode('"curly" &')
