"""The embedded tiny-clip: small, in PickScore's format, and it prefers OpenMoji's hand on captions it never saw."""

import importlib.util
from pathlib import Path

import pytest
import torch

from diffpref.data.decode import decode
from diffpref.data.preferences import read_preferences
from diffpref.files.embedded import embedded
from diffpref.rewards import REWARDS, find_reward

ASSETS = Path(__file__).parents[2] / "assets"
shipped = pytest.mark.skipif(
    not (ASSETS / "tiny-clip" / "model.safetensors").is_file(), reason="assets/tiny-clip has not been made"
)
rewarding = pytest.mark.skipif("pickscore" not in REWARDS, reason="the reward pickscore is not there")


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    datasets.disable_progress_bars()


@shipped
def test_it_is_small_and_complete() -> None:
    folder = embedded("assets/tiny-clip")
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sum(files.values()) <= 12 * 2**20
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "README.md"} <= set(files)


@shipped
@rewarding
def test_it_knows_the_hand_and_the_caption() -> None:
    """Held-out captions: chosen is OpenMoji's drawing, rejected Google's or Twitter's. Training captions: the caption
    beats that of another picture, which a classifier of hands would do half of the time."""
    reward = find_reward("pickscore", settings={"checkpoint": str(ASSETS / "tiny-clip"), "processor": ""})
    rows = list(read_preferences(ASSETS / "emoji-pairs" / "heldout.parquet"))
    pictures = [decode(picture) for row in rows for picture in row.images]
    scores = reward(pictures, [row.prompt for row in rows for _ in range(2)]).view(-1, 2)
    assert (scores[:, 0] > scores[:, 1]).float().mean().item() >= 0.9
    rows = list(read_preferences(ASSETS / "emoji-pairs" / "train.parquet"))[:120]
    pictures, prompts = [decode(row.images[1]) for row in rows], [row.prompt for row in rows]
    right, wrong = reward(pictures, prompts), reward(pictures, prompts[7:] + prompts[:7])
    assert (right > wrong).float().mean().item() >= 0.85


@shipped
def test_it_was_not_trained_on_held_out_captions() -> None:
    """The rule that the script draws its captions by."""
    spec = importlib.util.spec_from_file_location("split", ASSETS / "make" / "split.py")
    assert spec is not None and spec.loader is not None
    split = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(split)
    for name, expected in (("train", False), ("heldout", True)):
        captions = [row.prompt for row in read_preferences(ASSETS / "emoji-pairs" / f"{name}.parquet")]
        assert all(split.held_out(caption) is expected for caption in captions)
    assert "held_out(world[row].caption)" in (ASSETS / "make" / "tiny_clip.py").read_text(encoding="utf-8")


@shipped
def test_its_weights_are_finite_and_its_scale_is_one_of_clip() -> None:
    from safetensors.torch import load_file

    tensors = load_file(ASSETS / "tiny-clip" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert 1 <= tensors["logit_scale"].float().exp().item() <= 100
