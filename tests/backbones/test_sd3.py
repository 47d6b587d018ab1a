"""The SD3 family against diffusers itself: path, times, network call, prompts, pictures, LoRA files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin, StableDiffusion3Pipeline
from safetensors import safe_open

from diffpref.backbones import Checkpoint, Encoder, Times
from diffpref.backbones.adapters import trainable
from diffpref.backbones.adapters.lora import attach_lora
from diffpref.backbones.adapters.reference import AdapterOff
from diffpref.backbones.flow import STEPS, FlowTimes
from diffpref.backbones.sd3 import SD3, SD3Network
from diffpref.path import rectified_flow
from diffpref.transition import sample_chain
from diffpref.types import Backbone
from tests.small_sampling import latents_of
from tests.small_sd3 import SHIFT, SHIFT_FACTOR, TOKENS, save_pipeline
from tests.small_sdxl import SIZE

CPU = torch.device("cpu")
PROMPTS = ["red cat", "a dog", "two cats"]
OPTIONS: dict[str, Any] = {"resolution": SIZE, "seeds": [7, 8, 9], "steps": 3, "batch_size": 2}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Without T5, as tiny-sd3."""
    return Checkpoint(str(save_pipeline(tmp_path_factory.mktemp("sd3"))), max_sequence_length=1)


@pytest.fixture(scope="module")
def with_t5(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(str(save_pipeline(tmp_path_factory.mktemp("sd3-t5"), t5=True)), max_sequence_length=TOKENS)


def stock(checkpoint: Checkpoint, *, t5: bool = False) -> StableDiffusion3Pipeline:
    absent = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint.source, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def another(base: Checkpoint, folder: Path, scheduler: SchedulerMixin) -> Checkpoint:
    """The pipeline with another scheduler."""
    shutil.copytree(base.source, folder / "base")
    scheduler.save_pretrained(folder / "base" / "scheduler")
    return Checkpoint(str(folder / "base"))


def a_batch() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    cond = {"prompt_embeds": normal(3, 9, 32, seed=1), "pooled": normal(3, 32, seed=2)}
    return normal(3, 4, 8, 8), torch.tensor([0.001, 0.5, 0.999]), SD3(Checkpoint("")).group_cond(cond, SIZE)


def test_the_path_is_the_schedulers(base: Checkpoint) -> None:
    path, scheduler = SD3(base).path, FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    x0, eps, places = normal(4, 4, 8, 8), normal(4, 4, 8, 8, seed=1), [0, 10, 500, 999]
    t = scheduler.sigmas[places]
    torch.testing.assert_close(path.noise(x0, eps, t), scheduler.scale_noise(x0, scheduler.timesteps[places], eps))
    assert torch.equal(scheduler.timesteps, STEPS * scheduler.sigmas)
    # With one step, the sampler goes to its estimate of the clean picture, from the noisiest of its levels.
    scheduler.set_timesteps(1)
    x, v = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1)
    (clean,) = scheduler.step(v, scheduler.timesteps[0], x, return_dict=False)
    torch.testing.assert_close(path.to_x0(v, x, scheduler.sigmas[:1]), clean)
    # By hand: the velocity points from the picture to the noise.
    quarter = torch.full((4,), 0.25)
    x_t = path.noise(x0, eps, quarter)
    torch.testing.assert_close(x_t - 0.25 * path.target(x0, eps, quarter), x0)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDPMScheduler(), "its scheduler is a DDPMScheduler of 1000 levels; SD3 needs a FlowMatch"),
        (FlowMatchEulerDiscreteScheduler(num_train_timesteps=100), "FlowMatchEulerDiscreteScheduler of 100 levels"),
    ],
    ids=["ddpm", "levels"],
)
def test_a_scheduler_of_another_path_is_refused(
    base: Checkpoint, tmp_path: Path, scheduler: SchedulerMixin, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _ = SD3(another(base, tmp_path, scheduler)).path


def test_times_are_resolved_from_the_pipeline(base: Checkpoint) -> None:
    times = SD3.open(base, Times(), SIZE).times
    assert times == FlowTimes("logit_normal", 0.0, 1.0, SHIFT)
    given = Times(timestep_density="uniform", timestep_shift=1.5)
    assert SD3.open(base, given, SIZE).times == FlowTimes("uniform", shift=1.5)


def test_a_shift_by_resolution_is_left_to_the_user(base: Checkpoint, tmp_path: Path) -> None:
    dynamic = another(base, tmp_path, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with pytest.raises(ValueError, match="use_dynamic_shifting.*set timestep_shift"):
        SD3.open(dynamic, Times(), SIZE)
    assert SD3.open(dynamic, Times(timestep_shift=2.0), SIZE).times.shift == 2.0


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (Times(timestep_density="log_normal"), "log_normal and p_mean are EDM's"),
        (Times(p_mean=-1.2), "log_normal and p_mean are EDM's"),
        (Times(logit_std=0.0), r"logit_std must be above 0, got 0\.0"),
        (Times(timestep_shift=-1.0), r"timestep_shift must be above 0, got -1\.0"),
    ],
)
def test_times_that_cannot_work_are_refused(base: Checkpoint, times: Times, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SD3.open(base, times, SIZE)


def logit_normal(t: torch.Tensor, mean: float, std: float, shift: float) -> torch.Tensor:
    """P(T <= t): the shift adds ln(shift) to the logit, so T is logit-normal again."""
    return torch.special.ndtr((t.logit() - mean - torch.tensor(shift).log()) / std)


def shifted_uniform(t: torch.Tensor, mean: float, std: float, shift: float) -> torch.Tensor:
    return t / (shift - (shift - 1) * t)


@pytest.mark.parametrize(("mean", "std", "shift"), [(0.0, 1.0, 1.0), (0.0, 1.0, 3.0), (-0.5, 0.6, 2.0)])
@pytest.mark.parametrize("cdf", [logit_normal, shifted_uniform])
def test_times_have_the_closed_forms_distribution(cdf: Any, mean: float, std: float, shift: float) -> None:
    times = FlowTimes("uniform" if cdf is shifted_uniform else "logit_normal", mean, std, shift)
    generator, path, count = torch.Generator().manual_seed(0), rectified_flow(), 2000
    drawn = torch.stack([times.draw(generator) for _ in range(count)]).double().sort().values
    # Kolmogorov and Smirnov's statistic, at a level of 1 %; the clipped ends are far smaller.
    distance = (cdf(drawn, mean, std, shift) - torch.arange(1, count + 1) / count).abs().max()
    assert distance < 1.63 / count**0.5 + 1e-3
    path.check_times(drawn)


def test_times_stay_off_both_ends() -> None:
    wide = FlowTimes("logit_normal", std=100.0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([wide.draw(generator) for _ in range(200)])
    assert drawn.min() == pytest.approx(1e-3) and drawn.max() == pytest.approx(1 - 1e-3)
    assert drawn.dtype == torch.float32 and torch.equal(SD3(Checkpoint("")).time_fraction(drawn), drawn)
    assert rectified_flow().snr(drawn).log().isfinite().all()


def test_the_backbone_is_the_transformer(base: Checkpoint) -> None:
    network = SD3(base).load_network(torch.float32).eval()
    backbone = SD3Network(network, SD3(base).path)
    assert isinstance(backbone, Backbone)
    x_t, t, cond = a_batch()
    with torch.no_grad():
        predicted = backbone(x_t, t, cond)
        for place, timestep in enumerate((1.0, 500.0, 999.0)):
            one = slice(place, place + 1)
            alone = network(
                x_t[one],
                timestep=torch.tensor([timestep]),
                encoder_hidden_states=cond["prompt_embeds"][one],
                pooled_projections=cond["pooled"][one],
            ).sample
            # float32, batches of one and of three.
            torch.testing.assert_close(predicted[one], alone, rtol=1e-4, atol=1e-5)


def test_following_the_backbone_is_sampling_without_guidance(base: Checkpoint) -> None:
    """Sign, scale and times of the velocity in one: Euler's steps with our backbone are the stock sampler's."""
    encoder, network = SD3(base).load_encoder(CPU), SD3(base).load_network(torch.float32)
    cond, backbone = encoder.encode_prompts(["red cat"]), SD3Network(network, SD3(base).path)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(3)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        for here, there in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
            x = x + (there - here) * backbone(x, here.expand(1), cond)
    decoder, empty = SD3(base).load_decoder(network, CPU), SD3(base).empty_prompt(encoder)
    torch.testing.assert_close(latents_of(decoder, cond, empty, {**OPTIONS, "guidance_scale": 1.0}, 1), x)


def test_chains_run_on_their_levels(base: Checkpoint) -> None:
    backbone = SD3Network(SD3(base).load_network(torch.float32), SD3(base).path)
    times = SD3(base).chain_times(4)
    assert times.tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2]) and times.dtype == torch.float32
    x, _, cond = a_batch()
    chain = sample_chain(backbone, x, times, cond, rule=SD3.step, generator=torch.Generator().manual_seed(0))
    assert chain.latents.shape == (5, 3, 4, 8, 8) and chain.log_density.isfinite().all()


def test_prompts_are_encoded_as_the_pipeline_does(base: Checkpoint) -> None:
    encoder = SD3(base).load_encoder(CPU)
    assert isinstance(encoder, Encoder)
    embeds, negative, pooled, negative_pooled = stock(base).encode_prompt("red cat", None, None, max_sequence_length=1)
    ours, empty = encoder.encode_prompts(["red cat", "a dog"]), SD3(base).empty_prompt(encoder)
    torch.testing.assert_close(ours["prompt_embeds"][:1], embeds)
    torch.testing.assert_close(ours["pooled"][:1], pooled)
    torch.testing.assert_close(empty["prompt_embeds"], negative)
    torch.testing.assert_close(empty["pooled"], negative_pooled)
    # CLIP's eight tokens, and one of zeros for T5.
    assert ours["prompt_embeds"].shape == (2, 9, 32) and not ours["prompt_embeds"][:, 8:].any()


def test_t5_is_encoded_in_bfloat16(with_t5: Checkpoint) -> None:
    encoder, pipeline = SD3(with_t5).load_encoder(CPU), stock(with_t5, t5=True)
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


def test_the_identity_names_weights_and_length(base: Checkpoint, with_t5: Checkpoint) -> None:
    longer = Checkpoint(base.source, max_sequence_length=2)
    names = [SD3(c).load_encoder(CPU).identity for c in (base, base, longer, with_t5)]
    assert names[0] == names[1] and len(set(names)) == 3


@pytest.mark.parametrize("length", [0, 513])
def test_a_length_that_the_pipeline_refuses_is_refused(base: Checkpoint, length: int) -> None:
    with pytest.raises(ValueError, match=rf"max_sequence_length must be in \[1, 512\], got {length}"):
        SD3(Checkpoint(base.source, max_sequence_length=length)).load_encoder(CPU)


def test_an_autoencoder_without_a_shift_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    shutil.copytree(Path(base.source) / "vae", tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift_factor": None}))
    with pytest.raises(ValueError, match="vae: config.json has no shift_factor"):
        SD3(Checkpoint(base.source, vae=str(tmp_path / "vae"))).load_encoder(CPU)


def test_pictures_are_encoded_in_the_networks_units(base: Checkpoint) -> None:
    encoder = SD3(base).load_encoder(CPU)
    pictures = normal(1, 3, SIZE, SIZE).clamp(-1, 1)
    ours = encoder.encode_pictures(pictures, [torch.Generator().manual_seed(5)])
    with torch.no_grad():
        posterior = encoder.vae.encode(pictures).latent_dist
    latents = posterior.mean + posterior.std * normal(4, 8, 8, seed=5)
    # The latents' scale is small_vae's 0.5.
    torch.testing.assert_close(ours, (latents - SHIFT_FACTOR) * 0.5)


@pytest.mark.parametrize("t5", [False, True], ids=["zeros", "t5"])
def test_samples_are_those_of_the_stock_pipeline(base: Checkpoint, with_t5: Checkpoint, t5: bool) -> None:
    checkpoint = with_t5 if t5 else base
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


def test_lora_reaches_the_stock_pipeline(base: Checkpoint, tmp_path: Path) -> None:
    network = SD3(base).load_network(torch.float32)
    policy = SD3Network(network, SD3(base).path)
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
        assert json.loads(file.metadata()["lora_adapter_metadata"])["transformer.r"] == 4
    pipeline = stock(base)
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(SD3Network(pipeline.transformer, policy.path)(*inputs), after)


def test_gradients_reach_both_streams(base: Checkpoint) -> None:
    network = SD3(base).load_network(torch.bfloat16)
    attach_lora(network, 2, SD3.lora_targets, seed=0)
    network.enable_gradient_checkpointing()
    x_t, t, cond = a_batch()
    with torch.autocast("cpu", torch.bfloat16):
        SD3Network(network, SD3(base).path)(x_t, t, cond).float().square().mean().backward()
    # The up matrices start at zero, so only they get a gradient at first.
    silent = [n for n, p in network.named_parameters() if "lora_B" in n and (p.grad is None or not p.grad.any())]
    # Queries of the last block's text stream: what they ask for is thrown away.
    assert silent == ["transformer_blocks.1.attn.add_q_proj.lora_B.default.weight"]
