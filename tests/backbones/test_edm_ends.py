"""The EDM family's ends against its pipeline: classes, images in and out, the cache, samples."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import Tensor

from diffpref.backbones import Checkpoint, Encoder
from diffpref.backbones.edm import EDM, EDMNetwork
from diffpref.backbones.edm_pictures import MOST_LABELS, EDMDecoder, find_class
from diffpref.backbones.prompts import collate
from diffpref.data.encode import encode_preferences
from diffpref.data.framing import Framing, to_square
from diffpref.data.pairs import as_pairs
from diffpref.data.preferences import read_preferences
from diffpref.data.rows import Preferences
from diffpref.errors import compare
from diffpref.files.store import TensorStore
from diffpref.pipelines.edm import EDMPipeline
from diffpref.probe import forward_probe
from tests.small_edm import PATCH, SIZE, small_unet

CPU = torch.device("cpu")
Make = Callable[..., Checkpoint]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stock(checkpoint: Checkpoint) -> EDMPipeline:
    pipeline = EDMPipeline.from_pretrained(checkpoint.source)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# Prompts and pictures.


def test_prompts_are_classes(grey: Checkpoint) -> None:
    encoder = EDM(grey).load_encoder(CPU)
    assert isinstance(encoder, Encoder)
    prompts = ["trouser", "ankle boot", " BAG ", "0", "2", ""]
    labels = encoder.encode_prompts(prompts)["labels"]
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 1, 2, 0, 2, 3]
    empty = EDM(grey).empty_prompt(encoder)
    assert empty["labels"].tolist() == [3]
    assert EDM(Checkpoint("")).group_cond({"labels": labels}, SIZE) == {"labels": labels}


@pytest.mark.parametrize("prompt", ["a cat", "3", "-1", "1.0", "²"])
def test_an_unknown_class_is_named_with_the_known(grey: Checkpoint, prompt: str) -> None:
    known = "give a number from 0 to 2, or one of trouser, Ankle boot, bag; empty for no class"
    with pytest.raises(ValueError, match=f"prompt '{prompt}' is no class of this model: {known}"):
        EDM(grey).load_encoder(CPU).encode_prompts(["bag", prompt])


def test_names_that_are_numbers_come_first() -> None:
    assert find_class("7", 4, ["7", "1", "0"]) == 0 and find_class("2", 4, ["7", "1", "0"]) == 2


def test_many_names_are_not_all_listed() -> None:
    names = [f"class {place}" for place in range(100)]
    with pytest.raises(ValueError, match="from 0 to 99, or one of class 0, .*, class 19 and 80 more;"):
        find_class("x", 101, names)
    with pytest.raises(ValueError, match="give a number from 0 to 99; empty"):
        find_class("class 1", 101, None)


def test_an_unconditional_network_has_empty_prompts_alone(unconditional: Checkpoint) -> None:
    encoder = EDM(unconditional).load_encoder(CPU)
    assert encoder.encode_prompts(["", " "])["labels"].tolist() == [0, 0]
    assert EDM(unconditional).empty_prompt(encoder)["labels"].tolist() == [0]
    with pytest.raises(ValueError, match="prompt 'bag': this model has no classes, so that every prompt must be empty"):
        encoder.encode_prompts(["bag"])


def test_more_labels_than_the_cache_can_keep(tmp_path: Path) -> None:
    config = dict(small_unet().config) | {"num_class_embeds": 2050, "_class_name": "UNet2DModel"}
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "EDMPipeline", "patch_size": PATCH}))
    with pytest.raises(ValueError, match="has 2050 labels; at most 2049 are supported"):
        EDM(Checkpoint(str(tmp_path))).load_encoder(CPU)
    everything = torch.arange(MOST_LABELS)
    assert torch.equal(everything.half().float().long(), everything)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_go_in_and_out_unchanged(make_edm: Make, channels: int, mode: str) -> None:
    checkpoint = make_edm(channels=channels)
    encoder = EDM(checkpoint).load_encoder(CPU)
    shape = (SIZE, SIZE) if channels == 1 else (SIZE, SIZE, 3)
    levels = torch.randint(256, (3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures = [Image.fromarray(one.numpy()) for one in levels]
    squares = torch.stack([to_square(picture.convert("RGB"), SIZE, (0.5, 0.5)) for picture in pictures])
    encoded = encoder.encode_pictures(squares, [])
    assert encoded.shape == (3, channels * PATCH**2, SIZE // PATCH, SIZE // PATCH)
    assert -1 <= encoded.min() < -0.99 and 0.99 < encoded.max() <= 1
    decoder = EDM(checkpoint).load_decoder(EDM(checkpoint).load_network(torch.float32), CPU)
    # Half precision keeps the 256 levels too: the cache does.
    for carrier in (encoded, encoded.half().float()):
        back = decoder.decode(carrier)
        assert [one.mode for one in back] == [mode] * 3
        assert [one.tobytes() for one in back] == [one.tobytes() for one in pictures]


def test_the_first_patch_is_the_first_square(grey: Checkpoint) -> None:
    ramp = torch.arange(SIZE * SIZE).view(1, 1, SIZE, SIZE).expand(1, 3, SIZE, SIZE) / (SIZE * SIZE)
    encoded = EDM(grey).load_encoder(CPU).encode_pictures(ramp, [])
    assert (encoded[0, :, 0, 0] * SIZE * SIZE).tolist() == pytest.approx([0, 1, SIZE, SIZE + 1], abs=1e-4)


def test_grey_is_the_mean_of_the_channels(grey: Checkpoint) -> None:
    colours = torch.tensor([1.0, 0.5, -0.75]).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
    encoded = EDM(grey).load_encoder(CPU).encode_pictures(colours, [])
    torch.testing.assert_close(encoded, torch.full_like(encoded, 0.25))


def test_pictures_of_another_size_are_refused(grey: Checkpoint) -> None:
    message = "this model's pictures are 16 x 16 pixels, not 32 x 32: set resolution: 16"
    with pytest.raises(ValueError, match=message):
        EDM(grey).load_encoder(CPU).encode_pictures(torch.zeros(1, 3, 32, 32), [])
    decoder = EDM(grey).load_decoder(EDM(grey).load_network(torch.float32), CPU)
    with pytest.raises(ValueError, match=message):
        draw(decoder, torch.tensor([0]), resolution=32)


def test_the_identity_names_all_that_encoding_depends_on(make_edm: Make, grey: Checkpoint) -> None:
    others = [make_edm(channels=3), make_edm(classes=None), make_edm(classes=("bag", "Ankle boot", "trouser"))]
    names = [EDM(checkpoint).load_encoder(CPU).identity for checkpoint in (grey, *others)]
    assert len(set(names)) == 4
    # No weights take part.
    assert EDM(make_edm(seed=1)).load_encoder(CPU).identity == names[0]


def save_rows(folder: Path) -> Preferences:
    lines = []
    for place, prompt in enumerate(["bag", "1", "trouser"]):
        names = {side: f"{side}-{place}.png" for side in ("chosen", "rejected")}
        for side, name in names.items():
            Image.new("L", (SIZE, SIZE), 40 * place + (120 if side == "chosen" else 0)).save(folder / name)
        lines.append(json.dumps({"prompt": prompt, **names}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return as_pairs(read_preferences(str(folder / "pairs.jsonl")))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_classes_survive_the_cache_and_equal_models_agree(grey: Checkpoint, tmp_path: Path, dtype: str) -> None:
    encoder, store = EDM(grey).load_encoder(CPU), TensorStore(tmp_path / "cache")
    empty = EDM(grey).empty_prompt(encoder)
    rows = save_rows(tmp_path)
    data = encode_preferences(rows, encoder, store, Framing(SIZE), dtype=dtype)
    groups = [data.group(place, mirrored=False) for place in range(3)]
    prompts = collate([groups[0][1], groups[1][1], {name: value[0] for name, value in empty.items()}])
    assert prompts["labels"].tolist() == [2, 1, 3]
    network, path = EDM(grey).load_network(torch.float32), EDM(grey).path
    policy, reference = EDMNetwork(network, path), EDMNetwork(EDM(grey).load_network(torch.float32), path)
    cond = EDM(Checkpoint("")).group_cond(prompts, SIZE)
    x0 = torch.stack([images for images, _, _ in groups]).float()
    errors = compare(policy, reference, forward_probe(path, x0, torch.tensor([0.1, 1.0, 9.0]), normal(*x0.shape), cond))
    assert not errors.log_ratio.any() and errors.policy.min() > 0


# Sampling.


def draw(decoder: EDMDecoder, labels: Tensor, **changes: object) -> list:
    options = {"resolution": SIZE, "steps": 3, "guidance_scale": 2.0, "batch_size": 2}
    options |= {"seeds": list(range(7, 7 + len(labels)))}
    return decoder.sample({"labels": labels}, {"labels": torch.tensor([3])}, **{**options, **changes})


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_samples_are_those_of_the_stock_pipeline(grey: Checkpoint, scale: float) -> None:
    decoder = EDM(grey).load_decoder(EDM(grey).load_network(torch.float32), CPU)
    # As the cache hands them out.
    pictures = draw(decoder, torch.tensor([0.0, 2.0, 3.0]), guidance_scale=scale)
    pipeline = stock(grey)
    for place, label in enumerate([0, 2, 3]):
        generator = torch.Generator().manual_seed(7 + place)
        (expected,) = pipeline(
            class_labels=[label], num_inference_steps=3, guidance_scale=scale, generator=generator
        ).images
        levels = torch.tensor(list(expected.tobytes())) - torch.tensor(list(pictures[place].tobytes()))
        # Batches of two and of one round differently.
        assert levels.abs().max() <= 1
    assert pictures[0].mode == "L"


def test_samples_use_the_given_network(grey: Checkpoint) -> None:
    network: UNet2DModel = small_unet(seed=5)
    decoder = EDM(grey).load_decoder(network, CPU)
    assert decoder.pipeline.unet is network
    before = draw(decoder, torch.tensor([0]))[0].tobytes()
    with torch.no_grad():
        network.conv_out.weight.mul_(2)
    assert draw(decoder, torch.tensor([0]))[0].tobytes() != before


def test_latents_decode_to_the_samples(grey: Checkpoint) -> None:
    decoder = EDM(grey).load_decoder(EDM(grey).load_network(torch.float32), CPU)
    labels = torch.tensor([0, 1, 2])
    latents = decoder.latents(labels, seeds=[7, 8, 9], steps=3, guidance_scale=2.0)
    assert latents.shape == (3, PATCH**2, SIZE // PATCH, SIZE // PATCH)
    decoded = [picture.tobytes() for picture in decoder.decode(latents)]
    assert decoded == [picture.tobytes() for picture in draw(decoder, labels, batch_size=3)]


def test_an_unconditional_network_samples(unconditional: Checkpoint) -> None:
    decoder = EDM(unconditional).load_decoder(EDM(unconditional).load_network(torch.float32), CPU)
    pictures = draw(decoder, torch.zeros(3), batch_size=3)
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8, 9)]
    expected = stock(unconditional)(3, num_inference_steps=3, generator=generators).images
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in expected]


def test_lora_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="EDM is trained as a whole, without LoRA: set adapter: full"):
        EDM(Checkpoint("")).save_lora(small_unet(), tmp_path)
    assert not EDM.lora_targets
