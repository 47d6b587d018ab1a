"""What every family answers, by the same tests on tiny real pipelines."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

from diffpref.backbones import FAMILIES, Checkpoint, Decoder, Encoder, Family, Kind, Times, family_class, open_backbone
from diffpref.backbones.adapters.lora import attach_lora, lora_state, trainable
from diffpref.backbones.prompts import collate, split
from diffpref.pipelines.edm import EDMPipeline
from diffpref.types import Backbone
from tests import small_edm, small_sd3, small_sd15, small_sdxl

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"steps": 2, "guidance_scale": 2.0, "batch_size": 2}


@dataclass(frozen=True)
class Case:
    """A tiny pipeline, how to load it as users do, and prompts that it knows."""

    save: Callable[[Path], Path]
    stock: Callable[[Path], Any]
    size: int = small_sdxl.SIZE
    prompts: tuple[str, ...] = ("red cat", "a dog", "two cats")


SD3_STOCK = partial(StableDiffusion3Pipeline.from_pretrained, text_encoder_3=None, tokenizer_3=None)
CASES = {
    "StableDiffusionXLPipeline": Case(small_sdxl.save_pipeline, StableDiffusionXLPipeline.from_pretrained),
    "StableDiffusionPipeline": Case(small_sd15.save_pipeline, StableDiffusionPipeline.from_pretrained),
    "StableDiffusion3Pipeline": Case(small_sd3.save_pipeline, SD3_STOCK),
    "EDMPipeline": Case(small_edm.save_pipeline, EDMPipeline.from_pretrained, small_edm.SIZE, small_edm.CLASSES),
}


def test_every_family_has_a_case() -> None:
    assert set(CASES) == set(FAMILIES)


@pytest.fixture(scope="module", params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def case(name: str) -> Case:
    return CASES[name]


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.save(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def family(case: Case, folder: Path) -> Family:
    return open_backbone(Checkpoint(str(folder), max_sequence_length=1), Times(), resolution=case.size)


def test_it_is_what_the_pipeline_names(family: Family, name: str) -> None:
    assert (
        isinstance(family, Family) and isinstance(type(family), Kind) and type(family) is family_class(name, "the test")
    )
    assert family.checkpoint.max_sequence_length == 1
    with pytest.raises(FrozenInstanceError):
        family.checkpoint = Checkpoint("")  # type: ignore[misc]


def test_an_unknown_pipeline_is_refused_with_the_known() -> None:
    with pytest.raises(ValueError, match="the test is a FluxPipeline; supported pipelines are StableDiffusionXL"):
        family_class("FluxPipeline", "the test")


def test_the_path_is_read_once(family: Family) -> None:
    assert family.path is family.path


def test_a_resolution_that_does_not_fit_is_refused(family: Family) -> None:
    for wrong in {0, family.side * 3 // 2} - {family.side}:
        with pytest.raises(ValueError, match=f"resolution must be a multiple of {family.side}, got {wrong}"):
            open_backbone(family.checkpoint, Times(), resolution=wrong)


def test_times_are_on_the_path_and_repeat(family: Family) -> None:
    first, again = (torch.Generator().manual_seed(3) for _ in range(2))
    drawn = torch.stack([family.draw_t(first) for _ in range(200)])
    assert torch.equal(drawn, torch.stack([family.draw_t(again) for _ in range(200)]))
    assert len(drawn.unique()) > 100
    family.path.check_times(drawn)
    share = family.time_fraction(drawn)
    assert 0 <= share.min() and share.max() <= 1
    weight = family.loss_weight(drawn)
    assert weight.shape == drawn.shape and weight.isfinite().all() and weight.min() > 0


def test_chains_fall(family: Family) -> None:
    times = family.chain_times(5)
    assert len(times) == 6 and (times.diff() < 0).all()
    assert (family.time_fraction(times).diff() < 0).all()


def test_pictures_and_prompts_go_in_and_samples_come_out(family: Family, case: Case) -> None:
    encoder = family.load_encoder(CPU)
    assert isinstance(encoder, Encoder) and encoder.identity == family.load_encoder(CPU).identity
    prompts, empty = encoder.encode_prompts(case.prompts), family.empty_prompt(encoder)
    assert {len(value) for value in prompts.values()} == {3} and {len(value) for value in empty.values()} == {1}
    draws = [torch.Generator().manual_seed(place) for place in range(2)]
    latents = encoder.encode_pictures(torch.zeros(2, 3, case.size, case.size), draws)
    decoder = family.load_decoder(family.load_network(torch.float32).eval(), CPU)
    assert isinstance(decoder, Decoder)
    assert latents.shape == (2, *decoder.latent_shape(case.size))
    assert [picture.size for picture in decoder.decode(latents)] == [(case.size, case.size)] * 2
    options = {**OPTIONS, "resolution": case.size, "seeds": [5, 6, 7]}
    pictures = decoder.sample(prompts, empty, **options)
    assert [picture.size for picture in pictures] == [(case.size, case.size)] * 3
    again = decoder.sample(prompts, empty, **options)
    assert [picture.tobytes() for picture in again] == [picture.tobytes() for picture in pictures]


def test_the_network_runs_on_a_batch_of_cached_prompts(family: Family, case: Case) -> None:
    """Through the cache's form, one prompt at a time, and back."""
    encoded = family.load_encoder(CPU).encode_prompts(case.prompts)
    prompts = collate(split(encoded))
    for key, value in encoded.items():
        assert torch.equal(prompts[key], value.float()), key
    cond = family.group_cond(prompts, case.size)
    assert {len(value) for value in cond.values()} == {3} and set(cond) >= set(prompts)
    network = family.load_network(torch.float32).eval()
    backbone = family.backbone(network)
    assert isinstance(backbone, Backbone) and backbone.path is family.path
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(3, *family.load_decoder(network, CPU).latent_shape(case.size), generator=draws)
    with torch.no_grad():
        predicted = backbone(x, torch.stack([family.draw_t(draws) for _ in range(3)]), cond)
    assert predicted.shape == x.shape and predicted.isfinite().all()


def test_its_shapes_without_weights_are_the_real_ones(family: Family, case: Case, name: str) -> None:
    kind, network = family_class(name, "the test"), cast(Any, family.load_network(torch.float32))
    assert type(network).__name__ in kind.networks
    lengths = (small_sdxl.LENGTH,)
    shape = kind.shape(network.config, case.size, lengths, kind.prompt_tokens(lengths, 1))
    prompts = family.load_encoder(CPU).encode_prompts(case.prompts)
    assert shape.prompt == {key: tuple(value.shape[1:]) for key, value in prompts.items()}
    cond = family.group_cond(prompts, case.size)
    assert shape.cond == {key: tuple(value.shape[1:]) for key, value in cond.items()}
    # The tiny autoencoders halve twice, the published ones three times.
    wide = kind.shape(network.config, 2 * case.size, lengths, None)
    assert wide.latent == family.load_decoder(network, CPU).latent_shape(case.size)
    assert isinstance(kind.meta_backbone(network), Backbone)


def test_a_saved_lora_loads_in_the_stock_pipeline(family: Family, case: Case, folder: Path, tmp_path: Path) -> None:
    network = family.load_network(torch.float32)
    if not family.lora_targets:
        with pytest.raises(ValueError, match="set adapter: full"):
            family.save_lora(network, tmp_path)
        return
    attach_lora(network, 2, family.lora_targets, seed=0)
    for place, parameter in enumerate(trainable(network)):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place))
    family.save_lora(network, tmp_path)
    pipeline = case.stock(folder)
    pipeline.load_lora_weights(tmp_path, adapter_name="default")
    theirs = lora_state(getattr(pipeline, family.component))
    assert theirs and all(torch.equal(theirs[key], value) for key, value in lora_state(network).items())


def test_a_saved_network_loads_in_the_stock_pipeline(family: Family, case: Case, folder: Path, tmp_path: Path) -> None:
    network: Any = family.load_network(torch.float32)
    for parameter in network.parameters():
        parameter.data += 1
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path)
    pipeline: Any = case.stock(folder, **{family.component: loaded})
    found = getattr(pipeline, family.component).state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


def test_other_weights_replace_the_networks(family: Family, case: Case, tmp_path: Path) -> None:
    state = {key: value + 1 for key, value in family.load_network(torch.float32).state_dict().items()}
    (tmp_path / family.component).mkdir()
    save_file(state, tmp_path / family.component / "diffusion_pytorch_model.safetensors")
    source = family.checkpoint.source
    replaced = open_backbone(Checkpoint(source, network_weights=tmp_path), Times(), resolution=case.size)
    again = replaced.load_network(torch.float32).state_dict()
    assert all(torch.equal(again[key], value) for key, value in state.items())
    with pytest.raises(ValueError, match=f"network_weights .*nowhere has no {family.component}/diffusion"):
        open_backbone(Checkpoint(source, network_weights=tmp_path / "nowhere"), Times(), resolution=case.size)
