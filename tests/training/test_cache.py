"""The cache of latents and prompts: encoded once, keyed by content, safe to interrupt, honest when damaged."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffpref.backbones.sdxl import SDXLEncoder
from diffpref.data.encode import EncodedPreferences, encode_preferences
from diffpref.data.framing import Framing, to_square
from diffpref.data.preferences import read_preferences
from diffpref.data.rows import Preferences
from diffpref.files.identity import content_key
from diffpref.files.store import TensorStore
from diffpref.sources.images import ImageGroups
from diffpref.training.stream import Drawing
from tests.small_sdxl import save_pairs

Run = Callable[..., Path]
EMPTY = {"prompt_embeds": torch.full((1, 2, 3), -1.0), "pooled": torch.full((1, 3), -1.0)}


class Counter:
    """An encoder whose latents are the pictures' 8 x 8 means, and that counts what it encodes."""

    def __init__(self, identity: str = "counter", fail_after: int = 10**9) -> None:
        self.identity, self.fail_after = identity, fail_after
        self.pictures = self.prompts = 0

    def encode_pictures(self, pictures: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        self.pictures += len(pictures)
        if self.pictures > self.fail_after:
            raise KeyboardInterrupt
        return torch.nn.functional.avg_pool2d(pictures, 4)

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        self.prompts += len(prompts)
        values = torch.tensor([float(len(prompt)) for prompt in prompts])
        return {"prompt_embeds": values[:, None, None].expand(-1, 2, 3), "pooled": values[:, None].expand(-1, 3)}


@pytest.fixture
def rows(pairs: Path) -> Preferences:
    return read_preferences(pairs)


def encode(rows: Preferences, encoder: Counter, folder: Path, **options: Any) -> EncodedPreferences:
    framing = Framing(**{"resolution": 32, **options.pop("framing", {})})
    return encode_preferences(rows, encoder, TensorStore(folder), framing, **{"dtype": "float32", **options})


def latents(data: EncodedPreferences, indices: Sequence[int], *, mirrored: bool = False) -> torch.Tensor:
    return torch.stack([data.group(index, mirrored=mirrored)[0] for index in indices]).float()


def test_a_second_run_encodes_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    encode_pictures, encode_prompts = SDXLEncoder.encode_pictures, SDXLEncoder.encode_prompts

    def pictures(self: SDXLEncoder, given: torch.Tensor, draws: Sequence[torch.Generator]) -> torch.Tensor:
        counts[-1]["pictures"] += len(given)
        return encode_pictures(self, given, draws)

    def prompts(self: SDXLEncoder, given: Sequence[str]) -> dict[str, torch.Tensor]:
        # The empty prompt is encoded by every run, for its shape.
        counts[-1]["prompts"] += len([prompt for prompt in given if prompt])
        return encode_prompts(self, given)

    monkeypatch.setattr(SDXLEncoder, "encode_pictures", pictures)
    monkeypatch.setattr(SDXLEncoder, "encode_prompts", prompts)
    for place in range(2):
        counts.append({"pictures": 0, "prompts": 0})
        run(output_dir=str(tmp_path / f"{place}"), cache_dir=str(tmp_path / "cache"), max_train_steps=1)
    assert counts == [{"pictures": 16, "prompts": 4}, {"pictures": 0, "prompts": 0}]


def test_pictures_and_unique_prompts_are_encoded_once(rows: Preferences, tmp_path: Path) -> None:
    encoder = Counter()
    data = encode(rows, encoder, tmp_path)
    assert (encoder.pictures, encoder.prompts, len(data)) == (16, 4, 8)
    again = Counter()
    assert encode(rows, again, tmp_path).fingerprint == data.fingerprint
    assert (again.pictures, again.prompts) == (0, 0)


CHANGES = {
    "resolution": ({"framing": {"resolution": 16}}, "counter", (16, 0)),
    "dtype": ({"dtype": "float16"}, "counter", (16, 4)),
    "encoder": ({}, "other", (16, 4)),
    "flip adds the mirrored ones": ({"framing": {"flip": True}}, "counter", (16, 0)),
    # A square picture at its own resolution has one crop, but which one it was is part of the key.
    "crop": ({"framing": {"crop": "random"}}, "counter", (16, 0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_tensors_depend_on_is_in_the_key(rows: Preferences, tmp_path: Path, change: str) -> None:
    options, identity, expected = CHANGES[change]
    first = encode(rows, Counter(), tmp_path)
    encoder = Counter(identity)
    second = encode(rows, encoder, tmp_path, **options)
    assert (encoder.pictures, encoder.prompts) == expected
    assert second.fingerprint != first.fingerprint


def test_an_interrupted_encode_keeps_what_was_written(
    rows: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A shard for every picture, as 64 MiB are for a real model's.
    monkeypatch.setattr("diffpref.files.store.SHARD_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        encode(rows, Counter(fail_after=8), tmp_path)
    (tmp_path / ".0123.tmp").write_bytes(b"half a shard")
    second = Counter()
    data = encode(rows, second, tmp_path)
    assert (second.pictures, second.prompts) == (8, 0)
    whole = encode(rows, Counter(), tmp_path / "other")
    assert torch.equal(latents(data, [0, 7]), latents(whole, [0, 7]))


def test_processes_share_the_work_whenever_they_look(rows: Preferences, tmp_path: Path) -> None:
    """The second process starts when the first is done, and still nothing is left out or encoded twice."""
    parts = [Counter(), Counter()]
    for rank, encoder in enumerate(parts):
        data = encode(rows, encoder, tmp_path, share=(rank, 2))
    assert sum(part.pictures for part in parts) == 16 and sum(part.prompts for part in parts) == 4
    assert min(part.pictures for part in parts) > 0
    assert latents(data, range(8)).shape == (8, 2, 3, 8, 8)


def test_a_damaged_shard_is_named(rows: Preferences, tmp_path: Path) -> None:
    encode(rows, Counter(), tmp_path)
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{shard.name}: this cache file is damaged .* Delete it; it is made again"):
        TensorStore(tmp_path)
    shard.unlink()
    encoder = Counter()
    encode(rows, encoder, tmp_path)
    assert encoder.pictures == 16


def test_the_disk_must_hold_the_cache(rows: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(2**30, 2**30, 1000))
    with pytest.raises(ValueError, match="the latent cache needs about .* GiB"):
        encode(rows, Counter(), tmp_path)


def test_a_latent_that_overflows_names_its_row(rows: Preferences, tmp_path: Path) -> None:
    class Hot(Counter):
        def encode_pictures(self, pictures: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
            return super().encode_pictures(pictures, generators) * 1e6

    with pytest.raises(ValueError, match=r"row 0, image 0: its latent is not finite; use --cache_dtype float32"):
        encode(rows, Hot(), tmp_path, dtype="float16")


def test_a_group_shares_crop_and_flip(tmp_path: Path) -> None:
    """Two equal wide pictures in a row stay equal, whatever the crop and the flip; rows differ."""
    save_pairs(tmp_path, count=6, size=(96, 32))
    ramp = np.tile(np.arange(96, dtype=np.uint8) * 2, (32, 1))
    for file in tmp_path.glob("*.png"):
        Image.fromarray(ramp).convert("RGB").save(file)
    rows = read_preferences(tmp_path / "pairs.jsonl")
    data = encode(rows, Counter(), tmp_path / "cache", framing={"crop": "random", "flip": True, "seed": 1})
    for mirror in (False, True):
        x0 = latents(data, range(6), mirrored=mirror)
        assert torch.equal(x0[:, 0], x0[:, 1])
        slopes = (x0[..., 1:] - x0[..., :-1]).sign()
        assert (slopes == (-1 if mirror else 1)).all()
        assert len({float(x[0, 0, 0, 0]) for x in x0}) == 6
    plain = latents(data, range(6))
    mirrored = latents(data, range(6), mirrored=True)
    # The means of four pixels, summed from the other side.
    torch.testing.assert_close(mirrored, plain.flip(-1), rtol=0, atol=1e-6)


def test_dropped_captions_get_the_unconditional_embedding(rows: Preferences, tmp_path: Path) -> None:
    data = encode(rows, Counter(), tmp_path)
    drawing = Drawing(
        seed=0, draw_t=lambda draw: torch.tensor(1), empty_prompt=EMPTY, complete=lambda prompts: prompts, empty=0.5
    )
    draws = replace(drawing.draws([("a",), ("b",)]), dropped=[False, True])
    cond = ImageGroups(data).batch([0, 1], draws).candidates.cond
    assert cond["pooled"].tolist() == [[7.0] * 3, [-1.0] * 3]
    assert (cond["prompt_embeds"][0] == 7).all() and (cond["prompt_embeds"][1] == -1).all()


def test_squares_are_resized_on_the_shorter_side_and_cropped() -> None:
    """A horizontal ramp of 128 x 64 at resolution 32: half the size, then the asked half of the width."""
    ramp = np.tile(np.arange(128, dtype=np.uint8) * 2, (64, 1))
    picture = Image.fromarray(ramp).convert("RGB")
    for place, first in ((0.0, 0), (0.5, 16), (1.0, 32)):
        square = to_square(picture, 32, (place, 0.5))
        assert square.shape == (3, 32, 32)
        # Pixel x of the half-size ramp covers levels 4x to 4x + 2; Lanczos rounds at the edges.
        expected = (4 * (first + torch.arange(32)) + 1) / 127.5 - 1
        assert (square[0, 16, 2:-2] - expected[2:-2]).abs().max() <= 1.01 / 127.5
    assert to_square(Image.new("RGB", (32, 32), "white"), 32, (0.5, 0.5)).eq(1).all()


def test_keys_tell_lists_of_parts_apart() -> None:
    assert len({content_key("ab", "c"), content_key("a", "bc"), content_key("abc"), content_key(b"abc", "")}) == 4


def test_a_slice_is_stored_alone_and_in_any_layout(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    batch = torch.randn(64, 4, 8, 8).to(memory_format=torch.channels_last)
    store.add("one", {"latent": batch[3]})
    assert "one" in store and store.missing(["one", "two", "two"]) == ["two"]
    store.flush()
    assert torch.equal(TensorStore(tmp_path).get("one")["latent"], batch[3])
    (shard,) = tmp_path.glob("*.safetensors")
    assert shard.stat().st_size < 4 * 4 * 64 + 500
