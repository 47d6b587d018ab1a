"""What of a CLIP learns: LoRA, or the weights of its last layers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from diffpref.rewards.clip_hf import load_model, load_processor
from diffpref.rewards.training.config import Towers
from diffpref.rewards.training.model import PairScorer, choose_trained, save_reward
from diffpref.rewards.training.tunings import LoRATuning
from tests.rewards.training.reward_run import read, weights


# peft asks transformers by a name that is going away.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_lora_is_merged_and_kept(small_clip: Path, pairs: Path, tmp_path: Path) -> None:
    """Merged, attached again by peft, and in memory: one set of scores."""
    from peft import PeftModel

    clip, _ = load_model(str(small_clip))
    processor = load_processor(str(small_clip), clip.config)
    batch = read(pairs).batch([0, 1, 2], processor)
    before = PairScorer(clip)(batch.pixels, batch.ids)
    tuning = LoRATuning(rank=3)
    choose_trained(clip, tuning, Towers(), seed=0)
    trained = {name for name, p in clip.named_parameters() if p.requires_grad}
    assert "logit_scale" in trained and all("lora_" in name for name in trained - {"logit_scale"})
    assert torch.equal(PairScorer(clip)(batch.pixels, batch.ids), before), "at step 0 LoRA changes nothing"
    with torch.no_grad():
        for name, p in clip.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    with torch.no_grad():
        scores = PairScorer(clip)(batch.pixels, batch.ids)
    assert (scores - before).abs().max() > 0.1
    save_reward(clip, tuning, processor, tmp_path / "model")
    tuning.save(clip, tmp_path)
    merged, _ = load_model(str(tmp_path / "model"))
    attached = PeftModel.from_pretrained(CLIPModel.from_pretrained(small_clip), tmp_path / "adapter").base_model.model
    with torch.no_grad():
        for other in (merged, attached):
            torch.testing.assert_close(PairScorer(other)(batch.pixels, batch.ids), scores, atol=1e-4, rtol=1e-4)
    assert torch.equal(PairScorer(clip)(batch.pixels, batch.ids), scores), "saving changes nothing"


def test_what_is_trained(run, small_clip: Path) -> None:
    base, after = (
        load_file(small_clip / "model.safetensors"),
        weights(run(trained_vision_layers=1, trained_text_layers=0, train_logit_scale=False)),
    )
    changed = {name for name in base if not torch.equal(base[name], after[name])}
    allowed = ("vision_model.encoder.layers.1.", "vision_model.post_layernorm.", "visual_projection.")
    assert changed and all(name.startswith(allowed) for name in changed)
    assert {name for name in base if name.startswith(allowed) and "k_proj.bias" not in name} == changed - {
        name for name in changed if "k_proj.bias" in name
    }
