"""What every source answers, by the same tests; that each trains is in tests/sources and tests/test_extension.py."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from diffpref.objectives import OBJECTIVES
from diffpref.run.done import mark_done
from diffpref.settings.axis import Axis
from diffpref.sources import SOURCES
from diffpref.training.rounds import Source

AXIS = Axis("source", SOURCES)


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Source:
    return AXIS.member(request.param, "the test")()


def test_it_is_a_value(source: Source) -> None:
    assert isinstance(source, Source) and source == replace(source)  # type: ignore[type-var]
    with pytest.raises(FrozenInstanceError):
        source.anything = 1  # type: ignore[attr-defined]


def test_some_objective_learns_from_it(source: Source) -> None:
    assert source.gives.forms
    assert [name for name, kind in OBJECTIVES.items() if kind().candidates in source.gives.forms]


def test_every_objective_has_a_source() -> None:
    given = {form for name in SOURCES for form in AXIS.member(name, "the test")().gives.forms}
    assert {kind().candidates for kind in OBJECTIVES.values()} <= given


def test_nothing_finished_is_no_result(source: Source, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        source.result(tmp_path)
    (tmp_path / "README.md").write_text("")
    with pytest.raises(ValueError, match=str(tmp_path)):
        source.result(tmp_path)


def test_a_finished_folder_that_is_named_is_the_result(source: Source, tmp_path: Path) -> None:
    mark_done(tmp_path, steps=1)
    assert source.result(tmp_path) == tmp_path
