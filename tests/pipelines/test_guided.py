"""Guidance by preference over stock pipelines: 0 is the base and 1 the tuned model, to the last bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffpref.pipelines import load, preference_guidance
from tests import small_edm
from tests.small_sdxl import SIZE

PROMPT = "red cat"


def draw(pipe: Any, **options: Any) -> np.ndarray:
    """A float image: rounding to eight bits would hide small differences."""
    options = {"height": SIZE, "width": SIZE, "num_inference_steps": 4, "guidance_scale": 3.0} | options
    return pipe(PROMPT, generator=torch.Generator().manual_seed(1), output_type="np", **options).images[0]


@pytest.mark.parametrize(
    ("family", "adapter"),
    [("sdxl", "lora"), ("sdxl", "full"), ("sd15", "lora"), ("sd3", "lora"), ("sd3", "full")],
)
def test_zero_is_the_base_and_one_the_tuned_model(
    stock: Callable[..., Any], runs: Callable[..., Path], family: str, adapter: str
) -> None:
    base = draw(stock(family))
    pipe = load(stock(family), runs(family, adapter))
    tuned = draw(pipe)
    assert np.abs(tuned - base).max() > 1e-3
    found = {}
    for scale in (0, 1, 0.5, 2):
        with preference_guidance(pipe, scale):
            found[scale] = draw(pipe)
    assert np.array_equal(found[0], base) and np.array_equal(found[1], tuned)
    for scale in (0.5, 2):
        assert np.abs(found[scale] - base).max() > 1e-4 and np.abs(found[scale] - tuned).max() > 1e-4
    assert np.array_equal(draw(pipe), tuned), "afterwards the pipeline is as before"


def test_the_window_is_of_the_schedulers_levels(stock: Callable[..., Any], runs: Callable[..., Path]) -> None:
    """Of four steps, scale 0 from the half on is two steps of the tuned model and two of the base."""
    pipe = load(stock(), runs())
    calls: list[bool] = []
    layer = next(part for name, part in pipe.unet.named_modules() if name.endswith("to_q"))
    layer.register_forward_pre_hook(lambda layer, inputs: calls.append(not layer.disable_adapters))
    with preference_guidance(pipe, 0, start=0.5):
        mixed = draw(pipe)
    assert calls == [True, True, False, False]
    tuned = draw(pipe)
    assert not np.array_equal(mixed, tuned) and pipe.get_active_adapters() == ["preference"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_other_loras_stay_on_in_the_reference(
    stock: Callable[..., Any], runs: Callable[..., Path], tmp_path: Path
) -> None:
    style = runs(seed=5)
    pipe = stock()
    pipe.load_lora_weights(style, adapter_name="style")
    pipe.set_adapters("style", 0.7)
    styled = draw(pipe)
    load(pipe, runs(), scale=0.5)
    both = draw(pipe)
    with preference_guidance(pipe, 0):
        assert np.array_equal(draw(pipe), styled)
    assert np.array_equal(draw(pipe), both) and not np.array_equal(both, styled)


@pytest.mark.parametrize("kind", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"])
def test_other_pipelines_of_the_network_need_nothing(
    stock: Callable[..., Any], runs: Callable[..., Path], kind: str
) -> None:
    import diffusers

    plain, pipe = stock(), load(stock(), runs())
    image = Image.new("RGB", (SIZE, SIZE), (200, 120, 40))
    given = {"image": image, "strength": 0.6} | ({"mask_image": image.convert("L")} if "Inpaint" in kind else {})
    found = []
    for base, scale in ((plain, None), (pipe, 0), (pipe, 2)):
        other = getattr(diffusers, kind).from_pipe(base)
        other.set_progress_bar_config(disable=True)
        if scale is None:
            found.append(draw(other, **given))
        else:
            with preference_guidance(other, scale):
                found.append(draw(other, **given))
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_edm_from_its_own_folder_and_from_stock_diffusers(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    from diffpref.pipelines import EDMPipeline

    def pictures(pipe: Any) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed(0)
        return pipe(class_labels=[0, 1], num_inference_steps=3, generator=seed, output_type="pt").images

    base, tuned = (small_edm.save_pipeline(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    before, after = (pictures(EDMPipeline.from_pretrained(folder)) for folder in (base, tuned))
    assert torch.equal(pictures(DiffusionPipeline.from_pretrained(tuned, trust_remote_code=True)), after)
    pipe = load(EDMPipeline.from_pretrained(base), tuned)
    assert torch.equal(pictures(pipe), after)
    with preference_guidance(pipe, 0):
        assert torch.equal(pictures(pipe), before)
    with preference_guidance(pipe, 0, start=0.5):
        assert not torch.equal(pictures(pipe), before) and not torch.equal(pictures(pipe), after)


@pytest.mark.parametrize(("start", "stop"), [(-0.1, 1.0), (0.5, 0.5), (0.0, 1.1)])
def test_wrong_windows_are_refused(stock: Callable[..., Any], start: float, stop: float) -> None:
    with pytest.raises(ValueError, match="start before stop"), preference_guidance(stock(), 1, start, stop):
        pass


def test_a_plain_pipeline_has_no_preference(stock: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"no preference in it: call diffpref.pipelines.load"):
        preference_guidance(stock(), 2).__enter__()
