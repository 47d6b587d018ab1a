"""The whole model in one file: read by stock diffusers' `from_single_file`, it draws the trainer's image."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffpref.counting.architectures import SD35_TRANSFORMER, SDXL_UNET
from diffpref.export.original import LAYOUTS
from tests.export.drawing import LSB, far, stocks, trainers
from tests.small_sdxl import SIZE

Runs = Callable[..., Path]
Export = Callable[..., Path]
ASSETS = Path(__file__).parents[2] / "assets"
KINDS: Mapping[str, Any] = {
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "sd15": diffusers.StableDiffusionPipeline,
    "sd3": diffusers.StableDiffusion3Pipeline,
}
# diffusers finds a text encoder by its width; those of the small SDXL and SD3 have one width, the embedded ones two.
BASES: Mapping[str, Mapping[str, Any]] = {
    "sdxl": {"pretrained_model_name_or_path": str(ASSETS / "tiny-sdxl"), "resolution": 64},
    "sd15": {},
    "sd3": {"pretrained_model_name_or_path": str(ASSETS / "tiny-sd3"), "resolution": 64},
}


def base_of(bases: Any, family: str) -> str:
    return str(BASES[family].get("pretrained_model_name_or_path") or bases(family))


def opened(file: Path, family: str, base: str) -> Any:
    without = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
    return KINDS[family].from_single_file(str(file), config=base, torch_dtype=torch.float32, **without)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("family", KINDS)
def test_from_single_file_draws_the_trainers_image(
    runs: Runs, bases: Any, export: Export, family: str, adapter: str
) -> None:
    run = runs(family, adapter, **BASES[family], **({"lora_alpha": 8} if adapter == "lora" else {}))
    size = BASES[family].get("resolution", SIZE)
    wanted, base = trainers(run, size), base_of(bases, family)
    plain = export(base, to="checkpoint", name="plain", dtype="float32")
    assert far(stocks(opened(plain, family, base), size), wanted) > 4 * LSB
    file = export(run, to="checkpoint", dtype="float32")
    assert far(stocks(opened(file, family, base), size), wanted) <= LSB
    half = load_file(export(run, to="checkpoint", name="half"))
    whole = load_file(file)
    assert half.keys() == whole.keys() and all(torch.equal(half[name], whole[name].half()) for name in whole)


@pytest.mark.slow
def test_kohyas_names_of_sd3_are_those_of_the_checkpoint(runs: Runs, bases: Any, export: Export) -> None:
    """ComfyUI's rule for all models: lora_unet_ and the checkpoint's own name of the weight."""
    run, base = runs("sd3", **BASES["sd3"], lora_alpha=8), base_of(bases, "sd3")
    plain = load_file(export(base, to="checkpoint", name="plain", dtype="float32"))
    lora = load_file(file := export(run, to="kohya"))
    start, taken = "model.diffusion_model.", set()
    for name in [name for name in plain if name.startswith(start) and name.endswith(".weight")]:
        key = "lora_unet_" + name.removeprefix(start).removesuffix(".weight").replace(".", "_")
        if f"{key}.lora_up.weight" in lora:
            up, down, alpha = (lora[f"{key}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha"))
            plain[name] += alpha / len(down) * up @ down
            taken |= {f"{key}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha")}
    assert taken == lora.keys()
    save_file(plain, file.with_name("merged.safetensors"))
    merged = opened(file.with_name("merged.safetensors"), "sd3", base)
    wanted = trainers(run, 64)
    assert far(stocks(merged, 64), wanted) <= LSB
    # And our own reader takes the parts apart again.
    back = export(file, to="diffusers", name="back", base=base)
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(
        base, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipe.load_lora_weights(back)
    assert far(stocks(pipe, 64), wanted) <= LSB


@pytest.mark.parametrize(
    ("family", "kind", "config", "marks"),
    [
        (
            "SDXL",
            "UNet2DConditionModel",
            SDXL_UNET,
            {"label_emb.0.2.bias": (1280,), "output_blocks.5.2.conv.bias": (640,)},
        ),
        (
            "SD15",
            "UNet2DConditionModel",
            {"cross_attention_dim": 768},
            {"input_blocks.9.0.op.bias": (1280,), "output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1)},
        ),
        (
            "SD3",
            "SD3Transformer2DModel",
            SD35_TRANSFORMER,
            {"joint_blocks.23.context_block.adaLN_modulation.1.bias": (3072,), "x_embedder.proj.bias": (1536,)},
        ),
    ],
)
def test_the_published_networks_have_the_published_names(
    family: str, kind: str, config: Mapping[str, Any], marks: Mapping[str, tuple[int, ...]]
) -> None:
    """The marks are names and shapes in Stability's own files, by some of which programs tell the models apart."""
    with torch.device("meta"):
        network = getattr(diffusers, kind)(**{key: value for key, value in config.items() if key[0] != "_"})
    found: dict[str, Tensor] = LAYOUTS[family].network(network)
    assert {name: tuple(found[f"model.diffusion_model.{name}"].shape) for name in marks} == marks


def test_an_architecture_without_a_place_is_refused() -> None:
    with torch.device("meta"):
        each: Any = (1, 2, 2, 2)
        odd = diffusers.UNet2DConditionModel(layers_per_block=each)
        other = diffusers.UNet2DConditionModel(class_embed_type="timestep")
    for network, said in ((odd, "one number of layers"), (other, "has no place for class_embedding")):
        with pytest.raises(ValueError, match=said):
            LAYOUTS["SD15"].network(network)
