"""Generators: a real pipeline draws what the stock pipeline draws, seeds alone decide, and mistakes are named early."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffpref.files.embedded import embedded
from diffpref.label.entries import GeneratorSettings
from diffpref.label.generators import Generator
from diffpref.label.generators.function import FunctionGenerator
from diffpref.label.generators.pipeline import PipelineGenerator

TINY = embedded("assets/tiny-sdxl")
CALL = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 64, "width": 64}
CPU = torch.device("cpu")


def settings(**changes: Any) -> GeneratorSettings:
    keys = {"name": "tiny", "pretrained_model_name_or_path": str(TINY), "dtype": "float32", "call": CALL}
    return GeneratorSettings.from_entry({**keys, **changes}, "here")


def loaded(**changes: Any) -> Generator:
    return settings(**changes).source.open(CPU, "tiny")


@pytest.fixture(scope="module")
def generator() -> PipelineGenerator:
    made = loaded(load={"add_watermarker": False})
    assert isinstance(made, PipelineGenerator)
    return made


def test_the_images_are_the_stock_pipelines(generator: PipelineGenerator) -> None:
    """Drawn in one batch, as PIL images, by the pipeline that anybody would load."""
    from diffusers import StableDiffusionXLPipeline

    stock: Any = StableDiffusionXLPipeline.from_pretrained(TINY, dtype=torch.float32, add_watermarker=False)
    stock.set_progress_bar_config(disable=True)
    prompts, seeds = ["red apple", "fox"], [3, 2**62 + 5]
    theirs = stock(prompts, generator=[torch.Generator().manual_seed(s) for s in seeds], **CALL).images
    ours = generator(prompts, seeds)
    assert all(drawn.status == "ok" for drawn in ours)
    for mine, other in zip(ours, theirs, strict=True):
        assert np.array_equal(np.asarray(mine.image), np.asarray(other))


def test_an_image_hangs_on_its_own_seed(generator: PipelineGenerator) -> None:
    """Alone or in a batch it is the same, up to how a matrix product of another size rounds."""
    together, alone = generator(["red apple", "fox"], [3, 4]), generator(["fox"], [4])
    a, b = (np.asarray(drawn.image, dtype=int) for drawn in (together[1], alone[0]))
    assert np.abs(a - b).max() <= 1
    assert np.abs(a - np.asarray(generator(["fox"], [5])[0].image, dtype=int)).max() > 20


def test_what_a_pipeline_hides_gets_a_status() -> None:
    """A float array with what is no number, and an image that the safety checker blacked out."""
    bad = np.zeros((3, 8, 8, 3), np.float32)
    bad[0, 1, 2, 0] = np.nan
    result = SimpleNamespace(images=bad, nsfw_content_detected=[False, True, False])
    generator = PipelineGenerator(lambda *args, **options: result, {})
    assert [drawn.status for drawn in generator(["a", "b", "c"], [1, 2, 3])] == ["nan_image", "safety_blocked", "ok"]


def test_float_pixels_round_as_diffusers_rounds() -> None:
    pixels = np.linspace(-0.1, 1.1, 8 * 8 * 3, dtype=np.float32).reshape(1, 8, 8, 3)
    generator = PipelineGenerator(lambda *args, **options: SimpleNamespace(images=pixels), {})
    (drawn,) = generator(["a"], [1])
    from diffusers.image_processor import VaeImageProcessor

    (theirs,) = VaeImageProcessor.numpy_to_pil(pixels.clip(0, 1))
    assert np.array_equal(np.asarray(drawn.image), np.asarray(theirs))


def test_grey_images_become_rgb() -> None:
    generator = PipelineGenerator(lambda *a, **o: SimpleNamespace(images=np.full((1, 4, 4, 1), 0.5)), {})
    (drawn,) = generator(["a"], [1])
    assert drawn.image is not None and drawn.image.mode == "RGB" and drawn.image.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"call": {**CALL, "guidance": 3}},
            "StableDiffusionXLPipeline has no argument 'guidance'. Perhaps you meant 'guida",
        ),
        ({"pipeline": "StableDifusionPipeline"}, "diffusers has no pipeline 'StableDifusionPipeline'"),
        ({"scheduler": "EulerDiscretScheduler"}, "diffusers has no scheduler 'EulerDiscretScheduler'"),
        ({"pretrained_model_name_or_path": str(TINY / "unet")}, "is no diffusers pipeline: it has no model_index.json"),
        ({"load": {"torch_type": 1, "unet": "no such thing"}}, "cannot be loaded as a pipeline"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    """All but what only the weights can show is found without loading them."""
    with pytest.raises(ValueError, match=f"generator 'tiny'.*{message}"):
        settings(**changes).source.check("tiny")
        loaded(**changes)


def test_another_scheduler(generator: PipelineGenerator) -> None:
    other = loaded(scheduler="DDIMScheduler", scheduler_options={"timestep_spacing": "trailing"})
    assert isinstance(other, PipelineGenerator)
    assert type(other.pipeline.scheduler).__name__ == "DDIMScheduler"
    assert other.pipeline.scheduler.config.timestep_spacing == "trailing"


def test_identity_is_what_decides_the_images(tmp_path: Path) -> None:
    """Neither where the weights lie nor the batch; what is in them does, and every setting of the call."""
    copied = tmp_path / "elsewhere"
    shutil.copytree(TINY, copied)
    base = settings().identity()
    assert settings(pretrained_model_name_or_path=str(copied), batch_size=7, cpu_offload=True).identity() == base
    assert settings(call={**CALL, "num_inference_steps": 3}).identity() != base
    scheduler = copied / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("}", " }"))
    assert settings(pretrained_model_name_or_path=str(copied)).identity() != base


@pytest.mark.parametrize("name", ["no/such/folder", "./sdxl", "sdxl"])
def test_a_checkpoint_that_does_not_exist(name: str) -> None:
    with pytest.raises(ValueError, match=f"generator checkpoint {name} does not exist: name a folder, or OWNER/NAME"):
        settings(pretrained_model_name_or_path=name).identity()


def test_a_hub_model_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="generator checkpoint nobody/nothing cannot be found"):
        settings(pretrained_model_name_or_path="nobody/nothing").identity()


def test_a_users_answer_is_checked() -> None:
    with pytest.raises(ValueError, match="generator 'mine' returned str: it must return images"):
        FunctionGenerator(lambda prompts, seeds: ["a.png"], "mine")(["a"], [1])
    (drawn,) = FunctionGenerator(lambda prompts, seeds: [Image.new("RGBA", (4, 4))], "mine")(["a"], [1])
    assert drawn.image is not None and drawn.image.mode == "RGB"


@pytest.mark.parametrize("path", sorted(embedded("configs/label").glob("*.yaml")), ids=lambda path: path.name)
def test_the_calls_of_every_config_are_the_pipelines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of checkpoints that cannot be here: their pipeline's class is named in the config."""
    from diffpref.label.settings import from_yaml

    monkeypatch.chdir(embedded("configs").parent)
    for generator in from_yaml(path).generators:
        generator.source.check(generator.name)
