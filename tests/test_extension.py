"""A member of every axis from a file outside the package: an address, two steps, and no line in diffpref/."""

import hashlib
from pathlib import Path

import pytest

from diffpref.training.loop import train
from diffpref.training.settings import from_mapping, from_yaml, to_mapping
from tests.small_sdxl import SIZE, read_metrics, save_pairs, save_pipeline

ROOT = Path(__file__).parents[1]
MEMBERS = ROOT / "examples" / "extension"
CHOICES = {
    "objective": "objective.py:Hinge",
    "probe": "probe.py:Opposite",
    "source": "source.py:Rejudged",
    "adapter": "adapter.py:SomeWeights",
    "optimizer": "optimizer.py:SGD",
    "loss_mode": "loss_mode.py:GroupByGroup",
}


def package() -> str:
    """A digest of every file of the package."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "diffpref").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("world")
    pairs = save_pairs(folder / "pairs", count=4)
    base = save_pipeline(folder / "base")
    return {"pretrained_model_name_or_path": str(base), "dataset_name": str(pairs), "cache_dir": str(folder / "cache")}


@pytest.mark.parametrize("axis", [*CHOICES, "all at once"])
def test_two_steps_with_a_member_from_outside(
    axis: str, world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    before = package()
    chosen = CHOICES if axis not in CHOICES else {axis: CHOICES[axis]}
    settings = {
        **world,
        **{key: f"{MEMBERS}/{address}" for key, address in chosen.items()},
        "resolution": SIZE,
        "output_dir": str(tmp_path / "run"),
        "train_batch_size": 2,
        "max_train_steps": 2,
        "logging_steps": 1,
        "proportion_empty_prompts": 0.0,
    }
    config = from_mapping(settings, "the test")
    folder = train(config, say=lambda line: None)
    assert [line["step"] for line in read_metrics(folder)] == [1, 2]
    # The run's own config.yaml can be read again, and names the file.
    again = from_yaml(folder / "config.yaml")
    assert again == config
    assert all(to_mapping(again)[key].endswith(address) for key, address in chosen.items())
    assert package() == before
