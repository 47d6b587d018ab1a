"""The small pipeline for the backbone tests, by prediction type."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffpref.backbones import Checkpoint
from tests import small_edm, small_sd3
from tests.small_sdxl import save_pipeline

Make = Callable[..., Checkpoint]


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


@pytest.fixture(scope="session")
def make_edm(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A small EDM pipeline with these settings, made once for each."""
    made: dict[str, Path] = {}

    def make(**settings: object) -> Checkpoint:
        key = repr(sorted(settings.items()))
        if key not in made:
            made[key] = small_edm.save_pipeline(tmp_path_factory.mktemp("edm"), **settings)  # type: ignore[arg-type]
        return Checkpoint(str(made[key]))

    return make


@pytest.fixture(scope="session")
def grey(make_edm: Make) -> Checkpoint:
    return make_edm()


@pytest.fixture(scope="session")
def unconditional(make_edm: Make) -> Checkpoint:
    return make_edm(classes=None)


@pytest.fixture(scope="session")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Without T5, as tiny-sd3."""
    return Checkpoint(str(small_sd3.save_pipeline(tmp_path_factory.mktemp("sd3"))), max_sequence_length=1)


@pytest.fixture(scope="session")
def sd3_t5(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = small_sd3.save_pipeline(tmp_path_factory.mktemp("sd3-t5"), t5=True)
    return Checkpoint(str(folder), max_sequence_length=small_sd3.TOKENS)
