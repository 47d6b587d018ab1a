"""The small pipeline for the backbone tests, by prediction type."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffpref.backbones import Checkpoint
from tests.small_sdxl import save_pipeline


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """A pipeline with these scheduler settings, made once for each."""
    made: dict[str, Path] = {}

    def make(**scheduler: object) -> Checkpoint:
        key = repr(sorted(scheduler.items()))
        if key not in made:
            made[key] = save_pipeline(tmp_path_factory.mktemp("base"), **scheduler)
        return Checkpoint(str(made[key]))

    return make


@pytest.fixture(scope="session")
def base(make_base: Callable[..., Checkpoint]) -> Checkpoint:
    return make_base()
