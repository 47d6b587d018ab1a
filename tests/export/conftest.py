"""The small pipelines and finished runs of the plug-in's tests, and one call that exports."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffpref.cli import main
from tests.pipelines.conftest import bases, runs, stock

__all__ = ["bases", "runs", "stock"]
Export = Callable[..., Path]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """`diffpref export` of these words with a target; returns the place that it wrote."""

    def go(*words: object, to: str, name: str = "out", **flags: object) -> Path:
        place = tmp_path / (name + (".safetensors" if to in ("comfyui", "kohya", "checkpoint") else ""))
        given = [f"--{key}={value}" for key, value in flags.items()]
        assert main(["export", *map(str, words), "--to", to, "--output", str(place), *given]) == 0
        return place

    return go
