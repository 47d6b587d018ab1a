"""Before the first update policy and reference agree to the last bit, whatever the run is made of."""

import itertools
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from diffpref.backbones import Checkpoint, Family, Times, open_backbone
from diffpref.backbones.adapters import Adapter, Full, LoRA
from diffpref.backbones.attention import Setting
from diffpref.backbones.guidance import guided
from diffpref.run.precision import PRECISIONS
from diffpref.training.groups import Run
from diffpref.training.models import Computing, accelerator_of, build_models
from diffpref.types import Cond
from examples.extension.adapter import SomeWeights
from tests import small_edm, small_sd3, small_sd15, small_sdxl

BACKBONES: Mapping[str, ModuleType] = {"sdxl": small_sdxl, "sd15": small_sd15, "sd3": small_sd3, "edm": small_edm}
ADAPTERS: Mapping[str, Adapter] = {
    "lora": LoRA(rank=4),
    "peft": LoRA(rank=4, lora_backend="peft"),
    "full": Full(),
    "streamed": Full(reference_memory="streamed"),
    "example": SomeWeights(trained_parts=("to_k", "to_v")),
}


@dataclass(frozen=True)
class Asked:
    """A backbone with noisy latents, times and prompts for it."""

    family: Family
    x: Tensor
    t: Tensor
    cond: Cond
    empty: Cond


@pytest.fixture(scope="module", params=BACKBONES)
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    kind = BACKBONES[request.param]
    folder: Path = kind.save_pipeline(tmp_path_factory.mktemp(request.param))
    family = open_backbone(Checkpoint(str(folder), max_sequence_length=1), Times(), resolution=kind.SIZE)
    encoder = family.load_encoder(torch.device("cpu"))
    prompts = list(getattr(kind, "CLASSES", ("red cat", "a dog", "two cats")))
    make = torch.Generator().manual_seed(0)
    pictures = torch.rand(3, 3, kind.SIZE, kind.SIZE, generator=make) * 2 - 1
    x = encoder.encode_pictures(pictures, [make] * 3)
    t = torch.stack([family.draw_t(make) for _ in prompts])
    noisy = family.path.noise(x, torch.randn(x.shape, generator=make), t)
    cond, empty = (
        family.group_cond(c, kind.SIZE) for c in (encoder.encode_prompts(prompts), family.empty_prompt(encoder))
    )
    return Asked(family, noisy, t, cond, empty)


@pytest.mark.parametrize("attention", ["auto", "math"])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_policy_and_reference_agree_to_the_last_bit(
    asked: Asked, adapter: str, precision: str, attention: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training and in evaluation mode, with and without guidance; the policy with a graph, the reference without."""
    family, chosen = asked.family, ADAPTERS[adapter]
    if chosen.added and not family.lora_targets:
        pytest.skip("trained as a whole")
    if chosen.autocast and precision == "fp16":
        pytest.skip("accelerate has no autocast to float16 on the CPU")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerator_of(Run(output_dir=Path("none"), mixed_precision=precision), chosen)  # type: ignore[arg-type]
    computing = Computing(PRECISIONS[precision], attention)
    models = build_models(family, chosen, accelerator, computing=computing, seed=0)
    streamed = chosen.streamed(models.network)
    for trains, scale in itertools.product((None, True, False), (1.0, 3.0)):
        policy, reference = (guided(model, scale, asked.empty) for model in (models.policy, models.reference))
        for model in (models.policy, models.reference):
            if trains is not None:  # else as they were built
                model.network.train(trains)  # type: ignore[attr-defined]
        with torch.no_grad(), accelerator.autocast(), nullcontext() if streamed is None else streamed.loaded():
            theirs = reference(asked.x, asked.t, asked.cond)
        with accelerator.autocast():
            ours = policy(asked.x, asked.t, asked.cond)
        assert ours.requires_grad
        assert torch.equal(ours, theirs), f"guidance {scale}, training mode {trains}"
