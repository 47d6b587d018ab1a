"""The SDXL family against diffusers itself: path, network call, latents, prompts, pictures."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from diffpref.backbones import Checkpoint, Encoder, Times
from diffpref.backbones.identity import weights_hash
from diffpref.backbones.latents import scale_latents, unscale_latents
from diffpref.backbones.sdxl import SDXL, SDXLNetwork
from diffpref.types import Backbone
from tests.small_sampling import latents_of
from tests.small_sdxl import SCHEDULE, SIZE, save_pipeline

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stock(base: Checkpoint) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(base.source, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_path_is_the_schedulers(make_base: Callable[..., Checkpoint], prediction: str) -> None:
    base = make_base(prediction_type=prediction)
    path = SDXL(base).path
    scheduler = DDPMScheduler(**SCHEDULE, prediction_type=prediction)
    x0, eps, t = normal(5, 4, 8, 8), normal(5, 4, 8, 8, seed=1), torch.tensor([0, 1, 500, 998, 999])
    torch.testing.assert_close(path.noise(x0, eps, t), scheduler.add_noise(x0, eps, t))
    expected = {"epsilon": eps, "v_prediction": scheduler.get_velocity(x0, eps, t), "sample": x0}[prediction]
    torch.testing.assert_close(path.target(x0, eps, t), expected)


def test_a_scheduler_of_another_length_is_refused(make_base: Callable[..., Checkpoint]) -> None:
    with pytest.raises(ValueError, match="the scheduler has 500 levels, not 1000"):
        _ = SDXL(make_base(num_train_timesteps=500)).path


def test_times_cover_the_whole_schedule(base: Checkpoint) -> None:
    generator, times = torch.Generator().manual_seed(0), SDXL.open(base, Times(), SIZE).times
    drawn = torch.stack([times.draw(generator) for _ in range(20_000)])
    assert drawn.min() == 0 and drawn.max() == 999
    # A uniform mean of 20 000 draws has standard deviation 2.04.
    assert abs(drawn.double().mean() - 499.5) < 8
    assert SDXL(Checkpoint("")).time_fraction(torch.tensor([0, 999])).tolist() == pytest.approx([0, 0.999])


def test_the_backbone_is_the_unet(base: Checkpoint) -> None:
    network = UNet2DConditionModel.from_pretrained(base.source, subfolder="unet").eval()
    backbone = SDXLNetwork(network, SDXL(base).path)
    assert isinstance(backbone, Backbone)
    x_t, t = normal(3, 4, 8, 8), torch.tensor([0, 500, 999])
    prompts = {"prompt_embeds": normal(3, 8, 32, seed=1), "pooled": normal(3, 16, seed=2)}
    with torch.no_grad():
        predicted = backbone(x_t, t, SDXL(Checkpoint("")).group_cond(prompts, SIZE))
        for place in range(3):
            one = slice(place, place + 1)
            sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32)
            added = {"text_embeds": prompts["pooled"][one], "time_ids": sizes}
            alone = network(x_t[one], t[place], prompts["prompt_embeds"][one], added_cond_kwargs=added).sample
            # float32, batches of one and of three.
            torch.testing.assert_close(predicted[one], alone, rtol=1e-4, atol=1e-5)


def test_the_time_ids_are_those_of_the_pipeline(base: Checkpoint) -> None:
    pipeline = stock(base)
    expected = pipeline._get_add_time_ids((SIZE, SIZE), (0, 0), (SIZE, SIZE), torch.float32, 16)
    ours = SDXL(Checkpoint("")).group_cond({"pooled": torch.zeros(2, 16)}, SIZE)["time_ids"]
    assert torch.equal(ours, expected.expand(2, 6))


def test_prompts_are_encoded_as_the_pipeline_does(base: Checkpoint) -> None:
    encoder = SDXL(base).load_encoder(CPU)
    assert isinstance(encoder, Encoder)
    ours = encoder.encode_prompts(["red cat", ""])
    embeds, negative, pooled, negative_pooled = stock(base).encode_prompt("red cat")
    torch.testing.assert_close(ours["prompt_embeds"][:1], embeds)
    torch.testing.assert_close(ours["pooled"][:1], pooled)
    empty = SDXL(base).empty_prompt(encoder)
    assert torch.equal(empty["prompt_embeds"], negative) and torch.equal(empty["pooled"], negative_pooled)
    assert not empty["pooled"].any() and ours["pooled"][1].any()


def test_the_empty_prompt_is_encoded_where_the_pipeline_does(base: Checkpoint, tmp_path: Path) -> None:
    shutil.copytree(base.source, tmp_path / "base")
    index = tmp_path / "base" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": False}))
    other = Checkpoint(str(tmp_path / "base"))
    _, negative, _, negative_pooled = stock(other).encode_prompt("red cat")
    empty = SDXL(other).empty_prompt(SDXL(other).load_encoder(CPU))
    assert negative_pooled.any()
    torch.testing.assert_close(empty["prompt_embeds"], negative)
    torch.testing.assert_close(empty["pooled"], negative_pooled)


STATISTICS = {"latents_mean": [0.5, -1.0, 2.0, 0.0], "latents_std": [0.5, 2.0, 4.0, 1.0]}


@pytest.mark.parametrize("statistics", [{}, STATISTICS], ids=["scaling factor", "mean and std"])
def test_latents_are_what_the_pipeline_decodes(base: Checkpoint, statistics: dict[str, list[float]]) -> None:
    """The pipeline's own decoding of our latents is the autoencoder's decoding of its own latents."""
    pipeline = stock(base)
    pipeline.vae.register_to_config(**statistics)
    latents = normal(2, 4, 8, 8)
    with torch.no_grad():
        expected = pipeline.vae.decode(latents).sample
    scaled = scale_latents(latents, pipeline.vae.config)
    decoded = []
    decode = pipeline.vae.decode
    pipeline.vae.decode = lambda given, **options: decoded.append(given) or decode(given, **options)  # type: ignore
    pictures = pipeline(
        prompt_embeds=torch.zeros(2, 8, 32),
        pooled_prompt_embeds=torch.zeros(2, 16),
        latents=scaled / pipeline.scheduler.init_noise_sigma,
        num_inference_steps=1,
        guidance_scale=1.0,
        height=SIZE,
        width=SIZE,
        output_type="pt",
        # One step that leaves the latents alone: what is decoded is what was given.
        callback_on_step_end=lambda pipe, step, t, given: {"latents": scaled},
        callback_on_step_end_tensor_inputs=["latents"],
    ).images
    torch.testing.assert_close(decoded[0], latents)
    torch.testing.assert_close(pictures, (expected / 2 + 0.5).clamp(0, 1))


def test_scaled_latents_by_hand() -> None:
    latents = torch.full((1, 4, 1, 1), 2.0)
    assert scale_latents(latents, {"scaling_factor": 0.13025}).flatten().tolist() == pytest.approx([0.2605] * 4)
    by_channel = scale_latents(latents, {"scaling_factor": 0.5, **STATISTICS}).flatten().tolist()
    assert by_channel == [1.5, 0.75, 0.0, 1.0]
    shifted = scale_latents(latents, {"scaling_factor": 1.5305, "shift_factor": 0.0609}).flatten().tolist()
    assert shifted == pytest.approx([1.5305 * 1.9391] * 4)


@pytest.mark.parametrize("config", [{}, {"shift_factor": 0.1}, STATISTICS, {**STATISTICS, "shift_factor": 0.1}])
def test_unscaling_is_the_way_back(config: dict[str, object]) -> None:
    latents = normal(2, 4, 8, 8)
    config = {"scaling_factor": 0.13, **config}
    torch.testing.assert_close(unscale_latents(scale_latents(latents, config), config), latents, rtol=1e-4, atol=1e-5)


def test_pictures_are_encoded_from_minus_1_to_1_with_their_own_draws(base: Checkpoint) -> None:
    encoder = SDXL(base).load_encoder(CPU)
    pictures = normal(2, 3, SIZE, SIZE).clamp(-1, 1)

    def draws() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    both = encoder.encode_pictures(pictures, draws())
    torch.testing.assert_close(both[1:], encoder.encode_pictures(pictures[1:], draws()[1:]), rtol=1e-4, atol=1e-5)
    vae = AutoencoderKL.from_pretrained(base.source, subfolder="vae")
    with torch.no_grad():
        posterior = vae.encode(pictures).latent_dist
    noise = normal(4, 8, 8, seed=5)
    torch.testing.assert_close(both[0], (posterior.mean[0] + posterior.std[0] * noise) * 0.5, rtol=1e-4, atol=1e-5)
    assert both.std() > 0


def test_the_encoders_identity_names_its_weights(base: Checkpoint, tmp_path: Path) -> None:
    assert SDXL(base).load_encoder(CPU).identity == SDXL(base).load_encoder(CPU).identity
    other = Checkpoint(str(save_pipeline(tmp_path / "other", seed=1)))
    assert SDXL(base).load_encoder(CPU).identity != SDXL(other).load_encoder(CPU).identity
    # Another autoencoder alone is another identity too.
    mixed = Checkpoint(base.source, vae=str(tmp_path / "other" / "vae"))
    assert SDXL(mixed).load_encoder(CPU).identity != SDXL(base).load_encoder(CPU).identity


def test_the_hash_of_weights_sees_values_shapes_and_types() -> None:
    layer = torch.nn.Linear(3, 2)
    first = weights_hash(layer)
    assert first == weights_hash(layer)
    assert weights_hash(layer.half()) != first
    with torch.no_grad():
        layer.float().weight[0, 0] += 1
    assert weights_hash(layer) != first


OPTIONS: dict[str, Any] = {"resolution": SIZE, "seeds": [7, 8, 9], "steps": 2, "guidance_scale": 4.0, "batch_size": 2}


def test_samples_are_those_of_the_stock_pipeline(base: Checkpoint) -> None:
    encoder = SDXL(base).load_encoder(CPU)
    network = SDXL(base).load_network(torch.float32)
    decoder = SDXL(base).load_decoder(network, CPU)
    given = encoder.encode_prompts(["red cat", "a dog", "two cats"]), SDXL(base).empty_prompt(encoder)
    pictures = decoder.sample(*given, **OPTIONS)
    decoded = decoder.decode(latents_of(decoder, *given, OPTIONS, 2))
    assert [p.tobytes() for p in decoded] == [p.tobytes() for p in pictures[:2]]
    pipeline = stock(base)
    for place, prompt in enumerate(["red cat", "a dog", "two cats"]):
        generator = torch.Generator().manual_seed(7 + place)
        options = {"num_inference_steps": 2, "guidance_scale": 4.0, "height": SIZE, "width": SIZE}
        (expected,) = pipeline(prompt, generator=generator, **options).images
        levels = torch.tensor(list(expected.tobytes())) - torch.tensor(list(pictures[place].tobytes()))
        # Batches of two and of one round differently.
        assert levels.abs().max() <= 1


def test_a_half_precision_network_is_decoded_in_float32(base: Checkpoint) -> None:
    """The autoencoder stays in float32 whatever the network and the caller's autocast are."""
    encoder, network = SDXL(base).load_encoder(CPU), SDXL(base).load_network(torch.bfloat16)
    decoder = SDXL(base).load_decoder(network, CPU)
    given = encoder.encode_prompts(["red cat", "a dog", "two cats"]), SDXL(base).empty_prompt(encoder)
    latents = latents_of(decoder, *given, OPTIONS, 3)
    assert latents.dtype == torch.bfloat16 and len(decoder.sample(*given, **OPTIONS)) == 3
    plain = decoder.decode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert [p.tobytes() for p in decoder.decode(latents)] == [p.tobytes() for p in plain]
