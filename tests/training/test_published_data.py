"""The published ways with images and captions: mirroring, posterior draws, sizes, empty and negative prompts."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpref.backbones import Checkpoint
from diffpref.backbones.sdxl import SDXL
from diffpref.data.framing import Told
from diffpref.sources.images import ImageGroups
from diffpref.training.config import TrainConfig
from diffpref.training.loop import basis_of
from diffpref.training.rounds import encode_fixed
from tests.small_sdxl import read_metrics, save_pairs
from tests.training.test_resume import assert_same, killed_after
from tests.training.test_stream import COUNT, MIRRORED, assert_equal, data, flat, groups_of, stream

Run = Callable[..., Path]
Settings = Callable[..., TrainConfig]
__all__ = ["data"]
STEPS = 60 * COUNT


def test_each_image_is_mirrored_by_a_coin_of_its_own(data: ImageGroups) -> None:
    together, alone = flat(stream(data, steps=STEPS)), flat(stream(replace(data, mirror_alone=True), steps=STEPS))
    mirrored = alone["x0"][:, :, 0, 0, 0] >= MIRRORED
    assert set((together["x0"][:, 0, 0, 0, 0] >= MIRRORED).tolist()) == {True, False}
    assert torch.equal(*(together["x0"] >= MIRRORED).unbind(1))
    # As RandomHorizontalFlip on each picture: half of each side, and a quarter of the pairs each way.
    for first in (False, True):
        for second in (False, True):
            share = ((mirrored[:, 0] == first) & (mirrored[:, 1] == second)).double().mean()
            # The deviation of a share of 420 groups is 0.021.
            assert float(share) == pytest.approx(0.25, abs=0.085)
    # Nothing else changes: the order, the times, the noise, the dropped captions, the pictures before mirroring.
    assert_equal({k: v for k, v in alone.items() if k != "x0"}, {k: v for k, v in together.items() if k != "x0"})
    assert torch.equal(alone["x0"] % MIRRORED, together["x0"] % MIRRORED)


def test_fresh_draws_are_new_each_time_and_follow_from_the_position(data: ImageGroups) -> None:
    store = data.encoded.store
    for group in data.encoded.groups:
        for key in (*group.pictures, *group.mirrored):
            latent = store.get(key)["latent"]
            store.add(f"{key} fresh", {"latent": latent, "std": torch.full(latent.shape, 0.01)})
    groups = [
        replace(g, pictures=tuple(f"{k} fresh" for k in g.pictures), mirrored=tuple(f"{k} fresh" for k in g.mirrored))
        for g in data.encoded.groups
    ]
    fresh = ImageGroups(replace(data.encoded, groups=groups), fresh=True)
    plain, found = flat(stream(data, steps=2 * COUNT)), flat(stream(fresh, steps=2 * COUNT))
    assert_equal({k: v for k, v in found.items() if k != "x0"}, {k: v for k, v in plain.items() if k != "x0"})
    noise = (found["x0"] - plain["x0"]) / 0.01
    assert float(noise.std()) == pytest.approx(1, abs=0.1) and len(noise.flatten().unique()) > 0.9 * noise.numel()
    # Cut otherwise, or begun later, it is the same; kept draws come again.
    assert_equal(flat(stream(fresh, size=2, steps=COUNT)), found)
    later = flat(stream(fresh, steps=2 * COUNT, first_step=COUNT))
    assert_equal(later, {name: value[COUNT:] for name, value in found.items()})
    again = flat(stream(fresh, steps=2 * COUNT, repeats=1))["x0"]
    assert {tuple(x.flatten().tolist()) for x in again[:COUNT]} == {tuple(x.flatten().tolist()) for x in again[COUNT:]}


def test_a_mirrored_group_is_told_where_its_mirrored_images_were_cut(data: ImageGroups) -> None:
    sizes = [Told(100 + group, 200, 7, group, 50 + group) for group in range(COUNT)]
    found = flat(stream(ImageGroups(replace(data.encoded, sizes=sizes)), steps=4 * COUNT))
    mirrored = found["x0"][:, 0, 0, 0, 0] >= MIRRORED
    groups = [sizes[group] for group in groups_of(found)]
    lefts = torch.where(mirrored, torch.tensor([s[4] for s in groups]), torch.tensor([s[3] for s in groups]))
    rows = [[size[0], 200, 7, left] for size, left in zip(groups, lefts.tolist(), strict=True)]
    assert found.pop("framing").tolist() == rows and bool(mirrored.any()) and not bool(mirrored.all())
    # Also where the caption is dropped, and nothing else changes.
    assert_equal(found, flat(stream(data, steps=4 * COUNT)))


EVERYTHING: dict[str, Any] = {
    "posterior": "fresh",
    "random_flip": True,
    "mirror_alone": True,
    "encode_empty_prompt": True,
    "proportion_empty_prompts": 0.5,
    "noise_offset": 0.1,
    "input_perturbation": 0.1,
    "t_min": 100,
    "t_max": 900,
}


@pytest.mark.slow
def test_a_run_of_the_published_ways_resumes_exactly(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run(**EVERYTHING, output_dir=str(tmp_path / "straight"))
    changes = {**EVERYTHING, "checkpointing_steps": 2}
    killed_after(monkeypatch, 2, run, **changes)
    resumed = run(**changes, resume_from_checkpoint="latest")
    assert_same(straight, resumed)
    for key, value in {"mirror_alone": False, "encode_empty_prompt": False, "noise_offset": 0.0, "t_min": 99}.items():
        with pytest.raises(ValueError, match=f"belongs to another run: {key} was"):
            run(**changes | {key: value}, resume_from_checkpoint="latest", max_train_steps=6)


@pytest.mark.slow
def test_an_epoch_of_kept_errors_has_the_draws_that_were_kept(run: Run, tmp_path: Path) -> None:
    """The fifth step repeats the first one's groups and draws, whose errors were kept; they are what they would be."""
    changes = {k: v for k, v in EVERYTHING.items() if not k.startswith("t_")}
    changes |= {"max_train_samples": 2, "max_train_steps": 3, "learning_rate": 1e-12, "stored_reference": 1}
    lines = [
        [line["error/chosen/reference"] for line in read_metrics(run(**changes, output_dir=str(tmp_path / name)))]
        for name in ("first", "second")
    ]
    assert lines[0] == lines[1] and lines[0][0] == lines[0][1] == lines[0][2]


def test_turbos_times_on_its_levels(run: Run) -> None:
    lines = read_metrics(run(timesteps=[249, 499, 749, 999], zero_terminal_snr=True, max_train_steps=3))
    assert lines[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["error/chosen/policy"]) for line in lines)


def test_sizes_reach_the_network(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    told: list[torch.Tensor] = []
    group_cond = SDXL.group_cond

    def spy(self: SDXL, prompts: Any, resolution: int) -> Any:
        cond = group_cond(self, prompts, resolution)
        told.append(cond["time_ids"])
        return cond

    monkeypatch.setattr(SDXL, "group_cond", spy)
    wide = save_pairs(tmp_path / "wide", size=(64, 48))
    run(dataset_name=str(wide), real_sizes=True, proportion_empty_prompts=1.0, max_train_steps=1)
    # 64 x 48 becomes 43 x 32, of which 11 columns go, 5 or 6 of them at the left.
    rows = {tuple(row) for ids in told for row in ids.tolist()}
    assert rows == {(48.0, 64.0, 0.0, 6.0, 32.0, 32.0)} or rows == {(48.0, 64.0, 0.0, 5.0, 32.0, 32.0)}


@torch.no_grad()
def test_the_empty_prompt_is_the_official_codes(settings: Settings, base: Path) -> None:
    config = settings(encode_empty_prompt=True, validation_prompts=["red cat"])
    basis = basis_of(config, lambda line: None)
    encoder = SDXL(Checkpoint(str(base))).load_encoder(torch.device("cpu"))
    fixed, pipeline = encode_fixed(basis, encoder), encoder.pipeline
    ids = pipeline.tokenizer("", padding="max_length", truncation=True, return_tensors="pt").input_ids
    hidden = [
        text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        for text_encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
    ]
    torch.testing.assert_close(fixed.empty["prompt_embeds"], torch.cat(hidden, -1))
    torch.testing.assert_close(fixed.empty["pooled"], pipeline.text_encoder_2(ids)[0])
    # Images are drawn as the stock pipeline draws them, whose unconditional prompt is zeros.
    assert not fixed.negative["prompt_embeds"].any() and not fixed.negative["pooled"].any()
    plain = encode_fixed(basis_of(settings(negative_prompt="a dog"), lambda line: None), encoder)
    assert not plain.empty["pooled"].any()
    torch.testing.assert_close(plain.negative, dict(encoder.encode_prompts(["a dog"])))


@pytest.mark.slow
def test_a_negative_prompt_changes_the_validation_images_alone(run: Run, tmp_path: Path) -> None:
    shown = {"validation_prompts": ["red cat"], "max_train_steps": 1}
    one, other = (
        run(**shown, **more, output_dir=str(tmp_path / f"{len(more)}")) for more in ({}, {"negative_prompt": ""})
    )
    assert_same(one, other)
    pictures = [(folder / "samples" / "step-000000.png").read_bytes() for folder in (one, other)]
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mirror_alone": True}, "mirror_alone says how images are mirrored, and none is: set random_flip: true"),
        (
            {"real_sizes": True, "random_flip": True, "mirror_alone": True},
            "real_sizes tells the network one crop for all images of a group, and mirror_alone gives them several",
        ),
        ({"real_sizes": True, "size_mismatch": "crop"}, "real_sizes needs images of one size in each row"),
        ({"probe": "inversion", "zero_terminal_snr": True}, "zero_terminal_snr leaves a last level without a picture"),
        ({"t_max": 1000}, r"t_max must be in \[0, 999\] on this backbone, got 1000"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run: Run, changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(**changes)
    assert not (tmp_path / "run").exists()
