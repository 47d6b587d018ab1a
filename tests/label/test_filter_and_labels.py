"""Filter verdicts, and how scores become labels, each against something that is not the code."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageEnhance

from diffpref.labelling.engine import label
from diffpref.labelling.filter import difference_hash
from diffpref.labelling.images import TarReader, TarWriter, encode
from tests.label.world import PROMPTS, config_of


def quiet(line: str) -> None:
    """Nobody reads along."""


def picture(seed: int, size: int = 64) -> Image.Image:
    low = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((size, size), Image.Resampling.BICUBIC)


def bits(a: Image.Image, b: Image.Image) -> int:
    return int((difference_hash(a) != difference_hash(b)).sum())


def test_the_hash_sees_what_people_see() -> None:
    """Another size, brightness or JPEG is the same picture; another picture is as far as chance, half of 256 bits."""
    original = picture(0, 128)
    buffer = io.BytesIO()
    original.save(buffer, "JPEG", quality=90)
    assert bits(original, original) == 0
    assert bits(original, original.resize((64, 64), Image.Resampling.BOX)) <= 6
    assert bits(original, ImageEnhance.Brightness(original).enhance(0.8)) <= 6
    assert bits(original, Image.open(buffer)) <= 12
    assert all(70 < bits(original, picture(seed, 128)) < 186 for seed in range(1, 20))
    assert bits(original, original.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 70


def test_a_tar_is_lossless_ordered_and_the_same_again(tmp_path: Path) -> None:
    pictures = {f"id-{i}": picture(i) for i in (3, 1, 2)}
    for name in ("a.tar", "b.tar"):
        with TarWriter(tmp_path / name) as tar:
            for image_id, image in pictures.items():
                tar.add(image_id, image, {"prompt": "ünïcode", "seed": 2**62})
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        names = tar.getnames()
    assert names == [f"id-{i}.{kind}" for i in (3, 1, 2) for kind in ("json", "png")]
    reader = TarReader(tmp_path / "a.tar")
    for image_id, image in pictures.items():
        assert np.array_equal(np.asarray(reader.picture(image_id)), np.asarray(image))
        assert reader.data(image_id) == encode(image)
    reader.close()


def test_an_encoder_that_fails_is_heard(tmp_path: Path) -> None:
    with pytest.raises(ValueError), TarWriter(tmp_path / "a.tar") as tar:
        tar.add("a", Image.new("RGB", (0, 5)), {})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels")


def labels(world: Path, **changes: object) -> list[dict]:
    """The rows of all labels in a world that is drawn and scored once."""
    return pq.read_table(label(config_of(world, packs=[], **changes), say=quiet) / "labels").to_pylist()


def by_prompt(rows: list[dict]) -> list[tuple[torch.Tensor, torch.Tensor, list[dict]]]:
    found = []
    for prompt in PROMPTS:
        some = [row for row in rows if row["prompt"] == prompt]
        scores = torch.tensor([[row["score.bright"], row["score.red"]] for row in some], dtype=torch.float64)
        found.append((scores, torch.tensor([row["phi"] for row in some], dtype=torch.float64), some))
    return found


def test_win_prob_with_temperatures(world: Path) -> None:
    """CaPO's calibrated reward in loops."""
    temperatures = [3.0, 7.0]
    rows = labels(world, aggregator="win_prob", temperatures={"bright": 3.0, "red": 7.0})
    for scores, phi, _ in by_prompt(rows):
        for i in range(4):
            total = sum(
                1 / (1 + np.exp(-(scores[i, r] - scores[j, r]).item() / temperatures[r]))
                for r in range(2)
                for j in range(4)
                if j != i
            )
            assert phi[i].item() == pytest.approx(total / 6, abs=1e-12)


def test_mean_z_over_the_whole_data_set(world: Path) -> None:
    """Over all shards: population mean and deviation by numpy."""
    rows = labels(world, aggregator="mean_z")
    z = 0
    for name in ("score.bright", "score.red"):
        values = np.array([row[name] for row in rows], dtype=np.float64)
        z = z + (values - values.mean()) / values.std() / 2
    np.testing.assert_allclose([row["phi"] for row in rows], z, rtol=1e-9, atol=1e-9)


def test_weights(world: Path) -> None:
    """A reward of a million times the weight decides alone."""
    rows = labels(world, weights={"bright": 1e6})
    for scores, phi, _ in by_prompt(rows):
        assert torch.equal(phi.argsort(), scores[:, 0].argsort())


def test_pareto(world: Path) -> None:
    """1 exactly where no other picture of the prompt is better in both."""
    rows = labels(world, aggregator="pareto")
    for scores, phi, _ in by_prompt(rows):
        free = [not any((scores[j] > scores[i]).all() for j in range(4)) for i in range(4)]
        assert [value == 1 for value in phi.tolist()] == free


def test_ranks_are_a_permutation_with_ties_broken_by_z(world: Path) -> None:
    rows = labels(world)
    spread = {
        name: (lambda v: (v.mean(), v.std()))(np.array([row[name] for row in rows], np.float64))
        for name in ("score.bright", "score.red")
    }
    ties = 0
    for _, _, some in by_prompt(rows):
        assert sorted(row["rank"] for row in some) == [1, 2, 3, 4]
        ordered = sorted(some, key=lambda row: row["rank"])
        for better, worse in zip(ordered, ordered[1:], strict=False):
            assert better["phi"] >= worse["phi"]
            if better["phi"] == worse["phi"]:
                ties += 1
                z = [sum((row[n] - m) / s for n, (m, s) in spread.items()) for row in (better, worse)]
                assert z[0] >= z[1]
    assert ties > 3
