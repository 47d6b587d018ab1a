"""The Python of README and of model cards runs as it stands, where the training was started."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests import small_edm, small_sd3
from tests.small_sdxl import SIZE, save_pairs, save_pipeline

Run = Callable[..., Path]
README = Path(__file__).parents[2] / "README.md"


def snippets(text: str, word: str) -> list[str]:
    """The blocks of Python that hold the word."""
    return [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if word in code]


def execute(code: str, **known: Any) -> dict[str, Any]:
    """What the code leaves; a deprecated argument is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        exec(compile(code, "the snippet", "exec"), known)
    return known


@pytest.fixture
def start(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train from a folder with a base model and pairs by relative names; the text of the card that is written."""
    monkeypatch.chdir(tmp_path)
    save_pairs(tmp_path / "pairs")

    def go(base: str = "base", save: Callable[[Path], Path] = save_pipeline, **changes: Any) -> Path:
        if not Path(base).exists():
            save(Path(base))
        pairs = {"dataset_name": "pairs/pairs.jsonl", "max_train_steps": 2, "validation_prompts": ["red cat"]}
        values = {"pretrained_model_name_or_path": base, "output_dir": "runs/mine", **pairs, **changes}
        return run(**values)

    return go


def card(folder: Path) -> str:
    (code,) = snippets((folder / "README.md").read_text(), "from_pretrained")
    return code


@pytest.mark.parametrize(("world", "save"), [("sdxl", save_pipeline), ("sd3", small_sd3.save_pipeline)])
def test_the_card_of_a_lora(start: Callable[..., Path], world: str, save: Any) -> None:
    left = execute(card(start(save=save, max_sequence_length=small_sd3.TOKENS)))
    assert isinstance(left["image"], Image.Image) and left["pipe"].get_list_adapters()


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True], ids=["a run", "a folder of weights"])
def test_the_card_of_a_lora_over_other_weights_loads_them(start: Callable[..., Path], plain: bool) -> None:
    first = start(adapter="full", output_dir="runs/full")
    weights = first / "unet" if plain else first
    left = execute(card(start(network_weights=str(weights))))
    state, wanted = left["pipe"].unet.state_dict(), load_file(first / "unet" / "diffusion_pytorch_model.safetensors")
    # LoRA's layers have other names in the pipeline.
    kept = wanted.keys() & state.keys()
    assert len(kept) > 50 and all(torch.equal(state[name], wanted[name]) for name in kept)


@pytest.mark.slow
def test_the_card_of_a_whole_network(start: Callable[..., Path]) -> None:
    folder = start(adapter="full", learning_rate=1e-2)
    left = execute(card(folder))
    wanted = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(left["pipe"].unet.state_dict()[name], tensor) for name, tensor in wanted.items())


def test_the_card_of_edm(start: Callable[..., Path], tmp_path: Path) -> None:
    draws = {"validation_prompts": [], "resolution": small_edm.SIZE, "adapter": "full", "proportion_empty_prompts": 1.0}
    rows = (tmp_path / "pairs" / "pairs.jsonl").read_text()
    for place, prompt in enumerate(("red cat", "a dog", "two cats", "old red car")):
        rows = rows.replace(f'"{prompt}"', f'"{small_edm.CLASSES[place % len(small_edm.CLASSES)]}"')
    (tmp_path / "pairs" / "pairs.jsonl").write_text(rows)
    assert isinstance(execute(card(start(save=small_edm.save_pipeline, **draws)))["image"], Image.Image)


def test_readme_loads_a_run_whatever_type_the_base_has(start: Callable[..., Path]) -> None:
    """Half precision on the disk, as in the embedded model: a pipeline takes each part's own type if none is named."""
    base = "stabilityai/stable-diffusion-xl-base-1.0"
    start(base, lambda folder: _half(save_pipeline(folder)))
    (code,) = snippets(README.read_text(encoding="utf-8"), "load_lora_weights")
    left = execute(code)
    assert isinstance(left["image"], Image.Image) and left["pipe"].get_list_adapters()


def test_readme_gives_both_networks_back(start: Callable[..., Path]) -> None:
    start()
    text = README.read_text(encoding="utf-8")
    (code,) = snippets(text, "load_policy(")
    image = Image.new("RGB", (SIZE, SIZE))
    left = execute(code, better=image, worse=image, beta=5000)
    assert left["rewards"].shape == (1, 2)


def _half(folder: Path) -> Path:
    from diffusers import StableDiffusionXLPipeline

    StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    return folder
