"""Configs by name from any folder, with the models and data that come with the package."""

from dataclasses import asdict
from pathlib import Path

import pytest

from diffpref.settings.named import names, read_config
from diffpref.settings.typed import read_yaml
from diffpref.training.settings import parse

ROOT = Path(__file__).parents[1]


def texts(value: object) -> list[str]:
    """All texts in nested values."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("given", ["tiny-sdxl/dpo", "tiny-sdxl/dpo.yaml", "configs/tiny-sdxl/dpo.yaml"])
def test_a_name_works_in_an_empty_folder(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse(["--config", given, "--max_train_steps", "3"])
    assert (Path(config.model.pretrained_model_name_or_path) / "model_index.json").is_file()
    assert Path(config.data.dataset_name).is_file() and config.optimization.max_train_steps == 3
    assert config.run.output_dir == Path("runs/tiny-sdxl-dpo")
    given_file = parse(["--config", str(ROOT / "configs/tiny-sdxl/dpo.yaml")])
    assert asdict(config.objective) == asdict(given_file.objective) and config.adapter == given_file.adapter


def test_what_every_config_names_is_found_from_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"sdxl/dpo", "tiny-edm/ddo", "label/tiny", "reward/tiny"} <= set(names())
    for name in names():
        values, _ = read_config(Path(name))
        for text in texts(values):
            assert not text.startswith(("assets/", "examples/")), f"{name}: {text}"
            if "/assets/" in text or "/examples/" in text:
                assert Path(text.partition(":")[0]).exists(), f"{name}: {text}"


def test_in_a_checkout_the_paths_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    file = ROOT / "configs" / "tiny-sdxl" / "dpo.yaml"
    assert read_config(Path("tiny-sdxl/dpo")) == (read_yaml(file), file)


def test_a_file_of_the_users_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "configs" / "tiny-sdxl" / "dpo.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("pretrained_model_name_or_path: assets/mine\n")
    assert parse(["--config", "configs/tiny-sdxl/dpo.yaml"]).model.pretrained_model_name_or_path == "assets/mine"


def test_a_wrong_name_gets_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="tiny-sdxl/dop: no such config file, .* Did you mean tiny-sdxl/dpo?"):
        parse(["--config", "tiny-sdxl/dop"])
    with pytest.raises(ValueError, match="Those are .*sdxl/dpo"):
        parse(["--config", "nothing like it"])
    with pytest.raises(ValueError, match="^/nowhere/mine.yaml: no such config file.$"):
        parse(["--config", "/nowhere/mine.yaml"])
