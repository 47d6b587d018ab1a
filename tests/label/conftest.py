"""What several tests of labelling share: pairs for people, and a data set with its report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffpref.label.report import write_report
from diffpref.people import Pair, write_pairs
from tests.label.report_world import Row, figures_of, make_rows, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pairs; image j of pair i is a 4 x 4 square of the grey value 2 i + j."""
    place = tmp_path / "pictures"
    pairs = []
    for i in range(4):
        names = [f"p{i:05}/{j}.png" for j in (0, 1)]
        (place / f"p{i:05}").mkdir(parents=True)
        for j, name in enumerate(names):
            Image.new("L", (4, 4), 2 * i + j).save(place / name)
        pairs.append(Pair(f"0-{i}", f"prompt {i} <b>&", (names[0], names[1])))
    write_pairs(place, pairs)
    return place


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row], Mapping[str, Any]]:
    rows = make_rows()
    folder = write_run(tmp_path_factory.mktemp("run") / "labels-1", rows)
    assert write_report(folder) == folder / "report.html"
    return folder, rows, figures_of(folder)
