"""LoRA files merged into the base model: policy and reference start from them, the output works on the base alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor

from diffpref import load_policy
from diffpref.backbones import Checkpoint
from diffpref.backbones.adapters.base_adapters import TRAINED_FILE, parse
from diffpref.backbones.sdxl import SDXL
from diffpref.training.loop import train
from tests.lora_files import matrices, write
from tests.small_sdxl import read_metrics, small_unet

# Of peft, where a pipeline has several adapters, as the comparisons have.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
Run = Callable[..., Path]
LN2 = 0.6931472


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two LoRA files: of kohya's names, of another rank and with more layers than the run's; and of diffusers'."""
    folder, network = tmp_path_factory.mktemp("adapters"), small_unet()
    more = matrices(network, ("to_q", "to_v", "proj_in", "conv1"), rank=3, seed=1)
    style = write(folder / "style.safetensors", more, "kohya", "unet", 2.0)
    other = write(folder / "other.safetensors", matrices(network, rank=2, seed=2), "diffusers", "unet", 1.0)
    return f"{style}=0.7", f"{other}=-0.4"


def inputs() -> dict[str, Any]:
    draws = torch.Generator().manual_seed(0)
    added = {"text_embeds": torch.randn(2, 16, generator=draws), "time_ids": torch.full((2, 6), 32.0)}
    text = torch.randn(2, 8, 32, generator=draws)
    x = torch.randn(2, 4, 8, 8, generator=draws)
    return {"sample": x, "timestep": 400, "encoder_hidden_states": text, "added_cond_kwargs": added}


@torch.no_grad()
def stock(base: Path, *loras: tuple[Path, float]) -> Tensor:
    """What a stock pipeline's network predicts with these files at these weights."""
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(base)
    for place, (file, _) in enumerate(loras):
        pipeline.load_lora_weights(file, adapter_name=f"l{place}")
    if loras:
        pipeline.set_adapters([f"l{place}" for place in range(len(loras))], [weight for _, weight in loras])
    return pipeline.unet.eval()(**inputs()).sample


def test_policy_and_reference_start_from_them(base: Path, files: tuple[str, str], run: Run) -> None:
    out = run(base_adapters=list(files), max_train_steps=3, learning_rate=3e-2)
    first = read_metrics(out)[0]
    assert first["loss"] == pytest.approx(LN2, abs=1e-6) and first["rewards/margins"] == 0.0
    parts = [(Path(entry.source), entry.weight) for entry in map(parse, files)]
    loaded: Any = load_policy(out, device="cpu")
    with torch.no_grad():
        network = loaded.policy.model.network
        trained = network.eval()(**inputs()).sample
        network.disable_adapters()
        reference = network(**inputs()).sample
    torch.testing.assert_close(reference, stock(base, *parts), atol=1e-5, rtol=0)
    assert (trained - reference).abs().max() > 1e-3
    # One file for the bare base model.
    torch.testing.assert_close(stock(base, (out, 1.0)), trained, atol=1e-5, rtol=0)
    # What was trained alone, over the base model with its adapters.
    alone = stock(base, *parts, (out / TRAINED_FILE, 1.0))
    torch.testing.assert_close(alone, trained, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_run_is_not_continued_on_other_adapters(files: tuple[str, str], run: Run) -> None:
    run(base_adapters=[files[0]], checkpointing_steps=2, max_train_steps=2)
    again = {"checkpointing_steps": 2, "max_train_steps": 4, "resume_from_checkpoint": "latest"}
    with pytest.raises(ValueError, match=r"base_adapters was \['style.safetensors=0.7'\], is \['other"):
        run(base_adapters=[files[1]], **again)
    with pytest.raises(ValueError, match=r"base_adapters was \['style.safetensors=0.7'\], is None"):
        run(**again)
    run(base_adapters=[files[0]], **again)


@pytest.mark.slow
def test_a_run_goes_on_from_another_with_the_same_adapters(
    files: tuple[str, str], run: Run, settings: Callable[..., Any], tmp_path: Path
) -> None:
    shared = {"base_adapters": list(files), "max_train_steps": 2}
    first = run(**shared, output_dir=str(tmp_path / "first"), learning_rate=3e-2)
    said: list[str] = []
    second = train(
        settings(
            **shared, adapter_weights=str(first / TRAINED_FILE), learning_rate=1e-30, output_dir=str(tmp_path / "b")
        ),
        say=said.append,
    )
    for name in (TRAINED_FILE, "pytorch_lora_weights.safetensors"):
        one, other = load_file(first / name), load_file(second / name)
        assert one.keys() == other.keys()
        assert all(torch.allclose(tensor, other[key], atol=1e-6) for key, tensor in one.items())
    assert sum("the reference is the base model with its base_adapters; " in line for line in said) == 1
    assert sum(line.startswith("base_adapters: ") for line in said) == 2
    # The stacked file has other layers and another rank: the message names the one to go on with.
    with pytest.raises(
        ValueError, match=f"has the layer .*, which this run.*without its base adapters, is .*{TRAINED_FILE}"
    ):
        run(**shared, adapter_weights=str(first), output_dir=str(tmp_path / "c"))


@pytest.mark.slow
def test_errors_of_another_base_are_not_taken(files: tuple[str, str], run: Run, tmp_path: Path) -> None:
    """Stored errors lie in one folder for each base; a file that changed under its name is refused."""
    shared = {
        "stored_reference": 1,
        "max_train_steps": 2,
        "cache_dir": str(tmp_path / "cache"),
        "overwrite_output_dir": True,
    }
    runs = [
        run(**shared),
        run(**shared, base_adapters=[files[0]]),
        run(**shared),
        run(**shared, base_adapters=[files[1]]),
    ]
    assert all(read_metrics(out)[0]["loss"] == pytest.approx(LN2, abs=1e-6) for out in runs)
    assert len(list((tmp_path / "cache" / "reference").iterdir())) == 3
    file = write(tmp_path / "x.safetensors", matrices(small_unet(), seed=3), "older", "unet", None)
    run(**shared, base_adapters=[str(file)])
    write(file, matrices(small_unet(), seed=4), "older", "unet", None)
    with pytest.raises(ValueError, match="weights '.*' then, '.*' now"):
        run(**shared, base_adapters=[str(file)])


def test_all_weights_start_from_them_too(base: Path, files: tuple[str, str], run: Run) -> None:
    out = run(adapter="full", base_adapters=list(files), max_train_steps=1, learning_rate=1e-30)
    assert read_metrics(out)[0]["loss"] == pytest.approx(LN2, abs=1e-6)
    parts = [(Path(entry.source), entry.weight) for entry in map(parse, files)]
    # The whole network has them in it; so has what goes on from it, once.
    network: Any = SDXL(Checkpoint(str(base), network_weights=out)).load_network(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(network(**inputs()).sample, stock(base, *parts), atol=1e-5, rtol=0)
    loaded: Any = load_policy(out, device="cpu")
    with torch.no_grad():
        for backbone in (loaded.policy, loaded.reference):
            found = backbone.model.network(**inputs()).sample
            torch.testing.assert_close(found, stock(base, *parts), atol=1e-5, rtol=0)


@pytest.mark.parametrize("entry", ["", "=1", "x.safetensors=", "x.safetensors=much", "x.safetensors=nan"])
def test_a_weight_is_a_number(entry: str) -> None:
    with pytest.raises(ValueError, match="base_adapters must be written as FILE or FILE=WEIGHT"):
        parse(entry)


def test_alpha_is_trained_saved_and_read_again(base: Path, run: Run, tmp_path: Path) -> None:
    out = run(lora_alpha=12, max_train_steps=2, learning_rate=3e-2, checkpointing_steps=1)
    loaded: Any = load_policy(out, device="cpu")
    network = loaded.policy.model.network
    assert {scale for m in network.modules() for scale in getattr(m, "scaling", {}).values()} == {3.0}
    with torch.no_grad():
        torch.testing.assert_close(stock(base, (out, 1.0)), network(**inputs()).sample, atol=1e-5, rtol=0)
    again = {"adapter_weights": str(out), "max_train_steps": 1, "learning_rate": 1e-30}
    for place, alpha in enumerate((12, None)):
        more = run(lora_alpha=alpha, output_dir=str(tmp_path / str(place)), **again)
        torch.testing.assert_close(stock(base, (more, 1.0)), stock(base, (out, 1.0)), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"lora_alpha was 12.0, is None"):
        run(max_train_steps=3, resume_from_checkpoint="latest")


CHOICE = "or name the file in base_adapters"


@pytest.mark.parametrize(
    ("rank", "ends", "message"),
    [
        (2, ("to_q", "to_k", "to_v", "to_out.0"), rf"has rank 2 .*, and rank is 4: set rank: 2, {CHOICE}"),
        (
            4,
            ("to_q",),
            rf"has not the layer .*to_k, which this run's LoRA has: set lora_target_modules: \[to_q\], {CHOICE}",
        ),
        (4, ("to_q", "conv1"), r"has the layer down_blocks.0.resnets.0.conv1, which this run's LoRA has not"),
    ],
    ids=["rank", "fewer layers", "more layers"],
)
def test_what_does_not_fit_is_said_before_images_are_encoded(
    settings: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    ends: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(SDXL, "load_encoder", lambda *given: pytest.fail("images are encoded"))
    monkeypatch.setattr(SDXL, "load_network", lambda *given: pytest.fail("weights are read"))
    file = write(tmp_path / "x.safetensors", matrices(small_unet(), ends, rank), "older", "unet", None)
    with pytest.raises(ValueError, match=message) as caught:
        train(settings(adapter_weights=str(file)), say=lambda line: None)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    # The remedies of the message work.
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    values = {"max_train_steps": 1, "overwrite_output_dir": True, "base_adapters": [str(file)]}
    train(settings(**values), say=lambda line: None)


def test_the_reference_of_adapter_weights_is_said(settings: Callable[..., Any], tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", matrices(small_unet()), "diffusers", "unet", 8.0)
    said: list[str] = []
    out = train(settings(adapter_weights=str(file), max_train_steps=1), say=said.append)
    assert said[0] == (
        f"adapter_weights {file}: the policy starts from it, the reference is the bare base model; name it in "
        "base_adapters to start both from it"
    )
    assert read_metrics(out)[0]["rewards/margins"] != 0.0
