"""The SD3 family's ends against diffusers: prompts, images in and out, samples, LoRA files, gradients."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors import safe_open

from diffpref.backbones import Checkpoint, Encoder
from diffpref.backbones.adapters import trainable
from diffpref.backbones.adapters.lora import PORTABLE, attach_lora
from diffpref.backbones.adapters.reference import AdapterOff
from diffpref.backbones.sd3 import SD3, SD3Network
from tests.small_sampling import latents_of
from tests.small_sd3 import SHIFT_FACTOR, TOKENS
from tests.small_sdxl import SIZE

CPU = torch.device("cpu")
PROMPTS = ["red cat", "a dog", "two cats"]
OPTIONS: dict[str, Any] = {"resolution": SIZE, "seeds": [7, 8, 9], "steps": 3, "batch_size": 2}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stock(checkpoint: Checkpoint, *, t5: bool = False) -> StableDiffusion3Pipeline:
    absent = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint.source, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def a_batch() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    cond = {"prompt_embeds": normal(3, 9, 32, seed=1), "pooled": normal(3, 32, seed=2)}
    return normal(3, 4, 8, 8), torch.tensor([0.001, 0.5, 0.999]), SD3(Checkpoint("")).group_cond(cond, SIZE)


def test_prompts_are_encoded_as_the_pipeline_does(sd3: Checkpoint) -> None:
    encoder = SD3(sd3).load_encoder(CPU)
    assert isinstance(encoder, Encoder)
    embeds, negative, pooled, negative_pooled = stock(sd3).encode_prompt("red cat", None, None, max_sequence_length=1)
    ours, empty = encoder.encode_prompts(["red cat", "a dog"]), SD3(sd3).empty_prompt(encoder)
    torch.testing.assert_close(ours["prompt_embeds"][:1], embeds)
    torch.testing.assert_close(ours["pooled"][:1], pooled)
    torch.testing.assert_close(empty["prompt_embeds"], negative)
    torch.testing.assert_close(empty["pooled"], negative_pooled)
    # CLIP's eight tokens, and one of zeros for T5.
    assert ours["prompt_embeds"].shape == (2, 9, 32) and not ours["prompt_embeds"][:, 8:].any()


def test_t5_is_encoded_in_bfloat16(sd3_t5: Checkpoint) -> None:
    encoder, pipeline = SD3(sd3_t5).load_encoder(CPU), stock(sd3_t5, t5=True)
    dtypes = [getattr(encoder.pipeline, f"text_encoder{place}").dtype for place in ("", "_2", "_3")]
    assert dtypes == [torch.float32, torch.float32, torch.bfloat16]
    ours = encoder.encode_prompts(["red cat"])
    options = {"do_classifier_free_guidance": False, "max_sequence_length": TOKENS}
    with torch.no_grad():
        wide, _, pooled, _ = pipeline.encode_prompt("red cat", None, None, **options)
        pipeline.text_encoder_3.to(torch.bfloat16)
        exact, _, _, _ = pipeline.encode_prompt("red cat", None, None, **options)
    torch.testing.assert_close(ours["prompt_embeds"], exact)
    torch.testing.assert_close(ours["pooled"], pooled)
    assert ours["prompt_embeds"].dtype == torch.float32 and ours["prompt_embeds"][:, 8:].any()
    # bfloat16 has 8 bits; the error of a dozen operations.
    torch.testing.assert_close(ours["prompt_embeds"], wide, rtol=0.05, atol=0.05 * float(wide[:, 8:].std()))


def test_the_identity_names_weights_and_length(sd3: Checkpoint, sd3_t5: Checkpoint) -> None:
    longer = Checkpoint(sd3.source, max_sequence_length=2)
    names = [SD3(c).load_encoder(CPU).identity for c in (sd3, sd3, longer, sd3_t5)]
    assert names[0] == names[1] and len(set(names)) == 3


@pytest.mark.parametrize("length", [0, 513])
def test_a_length_that_the_pipeline_refuses_is_refused(sd3: Checkpoint, length: int) -> None:
    with pytest.raises(ValueError, match=rf"max_sequence_length must be in \[1, 512\], got {length}"):
        SD3(Checkpoint(sd3.source, max_sequence_length=length)).load_encoder(CPU)


def test_an_autoencoder_without_a_shift_is_refused(sd3: Checkpoint, tmp_path: Path) -> None:
    shutil.copytree(Path(sd3.source) / "vae", tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift_factor": None}))
    with pytest.raises(ValueError, match="vae: config.json has no shift_factor"):
        SD3(Checkpoint(sd3.source, vae=str(tmp_path / "vae"))).load_encoder(CPU)


def test_pictures_are_encoded_in_the_networks_units(sd3: Checkpoint) -> None:
    encoder = SD3(sd3).load_encoder(CPU)
    pictures = normal(1, 3, SIZE, SIZE).clamp(-1, 1)
    ours = encoder.encode_pictures(pictures, [torch.Generator().manual_seed(5)])
    with torch.no_grad():
        posterior = encoder.vae.encode(pictures).latent_dist
    latents = posterior.mean + posterior.std * normal(4, 8, 8, seed=5)
    # The latents' scale is small_vae's 0.5.
    torch.testing.assert_close(ours, (latents - SHIFT_FACTOR) * 0.5)


@pytest.mark.parametrize("t5", [False, True], ids=["zeros", "t5"])
def test_samples_are_those_of_the_stock_pipeline(sd3: Checkpoint, sd3_t5: Checkpoint, t5: bool) -> None:
    checkpoint = sd3_t5 if t5 else sd3
    encoder, network = SD3(checkpoint).load_encoder(CPU), SD3(checkpoint).load_network(torch.float32)
    decoder = SD3(checkpoint).load_decoder(network, CPU)
    given = encoder.encode_prompts(PROMPTS), SD3(checkpoint).empty_prompt(encoder)
    pictures = decoder.sample(*given, guidance_scale=4.0, **OPTIONS)
    latents = latents_of(decoder, *given, {**OPTIONS, "guidance_scale": 4.0}, 2)
    assert [p.tobytes() for p in decoder.decode(latents)] == [p.tobytes() for p in pictures[:2]]
    pipeline = stock(checkpoint, t5=t5)
    if t5:
        pipeline.text_encoder_3.to(torch.bfloat16)
    for place, prompt in enumerate(PROMPTS):
        options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": SIZE, "width": SIZE}
        options["max_sequence_length"] = checkpoint.max_sequence_length
        (expected,) = pipeline(prompt, generator=torch.Generator().manual_seed(7 + place), **options).images
        levels = torch.tensor(list(expected.tobytes())) - torch.tensor(list(pictures[place].tobytes()))
        # Batches of two and of one round differently.
        assert levels.abs().max() <= 1


def test_lora_reaches_the_stock_pipeline(sd3: Checkpoint, tmp_path: Path) -> None:
    network = SD3(sd3).load_network(torch.float32)
    policy = SD3Network(network, SD3(sd3).path)
    inputs = a_batch()
    before = policy(*inputs)
    attach_lora(network, 4, SD3.lora_targets, seed=0)
    assert torch.equal(policy(*inputs), before)
    # Eight projections of two matrices in each block; the last block has no way out of its text stream.
    assert len(trainable(network)) == 2 * (8 + 7)
    for place, parameter in enumerate(trainable(network)):
        parameter.data += 0.3 * normal(*parameter.shape, seed=place)
    after = policy(*inputs)
    assert (after - before).abs().max() > 1e-2
    assert torch.equal(AdapterOff(policy, network)(*inputs), before)
    assert torch.equal(policy(*inputs), after)

    SD3(Checkpoint("")).save_lora(network, tmp_path)
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        assert all(name.startswith("transformer.") and ".lora_" in name for name in file.keys())
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["transformer.r"] == metadata["transformer.lora_alpha"] == 4
    assert set(metadata) <= {f"transformer.{name}" for name in PORTABLE}
    pipeline = stock(sd3)
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(SD3Network(pipeline.transformer, policy.path)(*inputs), after)


def test_gradients_reach_both_streams(sd3: Checkpoint) -> None:
    network = SD3(sd3).load_network(torch.bfloat16)
    attach_lora(network, 2, SD3.lora_targets, seed=0)
    network.enable_gradient_checkpointing()
    x_t, t, cond = a_batch()
    with torch.autocast("cpu", torch.bfloat16):
        SD3Network(network, SD3(sd3).path)(x_t, t, cond).float().square().mean().backward()
    # The up matrices start at zero, so only they get a gradient at first.
    silent = [n for n, p in network.named_parameters() if "lora_B" in n and (p.grad is None or not p.grad.any())]
    # Queries of the last block's text stream: what they ask for is thrown away.
    assert silent == ["transformer_blocks.1.attn.add_q_proj.lora_B.default.weight"]
