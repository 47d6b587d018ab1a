"""Embedded models, pairs and configs are found in a checkout and in an installed package."""

from pathlib import Path

import pytest

import diffpref.files.embedded
from diffpref.files.embedded import embedded
from diffpref.files.hub import missing_path

ROOT = Path(__file__).parent.parent


EMBEDDED = (
    "assets/tiny-sdxl",
    "assets/tiny-sd3",
    "assets/tiny-edm",
    "assets/judge",
    "assets/emoji-pairs",
    "assets/emoji-lists",
    "assets/emoji-reward",
    "assets/tiny-clip",
    "assets/fashion-classifier",
    "configs",
    # Named by configs.
    "examples/compressible.py",
    "examples/fashion_classes.txt",
)


@pytest.mark.parametrize(
    "name", [*EMBEDDED, "assets/tiny-sdxl/model_index.json", "assets/tiny-edm/unet", "configs/tiny-sdxl/dpo.yaml"]
)
def test_a_checkout_has_its_assets(name: str) -> None:
    assert embedded(name) == ROOT / name and embedded(name).exists()


def test_what_is_missing_is_named_with_its_path() -> None:
    with pytest.raises(ValueError) as problem:
        embedded("assets/absent")
    assert str(ROOT / "assets" / "absent") in str(problem.value) and "install it again" in str(problem.value)


def test_an_installed_package_looks_inside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "diffpref"
    (package / "_embedded" / "configs").mkdir(parents=True)
    # Another project's folder beside the package must not be taken for ours.
    (package.parent / "assets").mkdir()
    monkeypatch.setattr(diffpref.files.embedded, "PACKAGE", package)
    assert embedded("configs") == package / "_embedded" / "configs"
    with pytest.raises(ValueError, match="_embedded"):
        embedded("assets")


def test_the_wheel_carries_what_is_asked_for() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in EMBEDDED:
        assert f'"{name}" = "diffpref/_embedded/{name}"' in text


def test_a_path_of_the_repository_in_another_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert missing_path("assets/tiny-sdxl").endswith(
        f"the one that comes with diffpref is {embedded('assets/tiny-sdxl')}"
    )
    assert "comes with" not in missing_path("assets/tiny-sdxxl") + missing_path("tiny-sdxl")
