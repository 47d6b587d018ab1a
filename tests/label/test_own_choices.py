"""Executor, aggregator, generator and pack form of a user's own, named by their addresses in the settings."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from diffpref.label.engine import label
from diffpref.label.settings import from_mapping, from_yaml
from tests.label.world import config_of, lines, make_world, quiet

MINE = '''
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from diffpref.label.executors.local import Processes
from diffpref.label.generators.drawn import drawn


@dataclass(frozen=True)
class Noted:
    """An executor that notes its start."""

    diary: str = ""

    def start(self, folder, threads):
        Path(self.diary).write_text("started")
        return Processes(folder, 1, threads)


@dataclass(frozen=True)
class Best:
    """The best score of any reward, times a factor."""

    factor: float = 1.0

    def check(self, rewards):
        if self.factor <= 0:
            raise ValueError(f"factor must be above 0, got {self.factor}.")

    def phi(self, scores, voters):
        return self.factor * scores.amax(0)


@dataclass(frozen=True)
class Dark:
    """Noise whose values are divided."""

    by: int = 1

    def settings(self):
        return {"by": self.by}

    def contents(self, hashes):
        return {}

    def check(self, name):
        pass

    def open(self, device, name):
        def draw(prompts, seeds):
            noise = [np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8) for seed in seeds]
            return [drawn(Image.fromarray(image // self.by)) for image in noise]

        return draw


@dataclass(frozen=True)
class Winners:
    """The best image of each prompt."""

    column: str = "winner"

    def check(self, candidates):
        pass

    def schema(self, contest):
        return pa.schema([("prompt", pa.string()), (self.column, pa.binary())])

    def records(self, rows, read, contest):
        if rows:
            yield {"prompt": rows[0]["prompt"], self.column: read(rows[0])}
'''


def test_choices_of_a_users_own_make_a_data_set(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(MINE, encoding="utf-8")
    keys = make_world(
        tmp_path,
        generators=[{"name": "dark", "generator": f"{own}:Dark", "by": 2, "samples": 2}],
        packs=[{"name": "best", "form": f"{own}:Winners", "column": "png"}],
        executor=f"{own}:Noted",
        diary=str(tmp_path / "diary.txt"),
        aggregator=f"{own}:Best",
        factor=2.0,
    )
    config = from_mapping(keys, "world")
    out = label(config, say=quiet)
    assert from_yaml(out / "label.yaml") == config and (tmp_path / "diary.txt").read_text() == "started"
    rows = pq.read_table(out / "labels").to_pylist()
    assert all(row["phi"] == 2 * max(row["score.bright"], row["score.red"]) for row in rows)
    packed = pq.read_table(out / "packs" / "best").to_pylist()
    assert len(packed) == 10 and all(row["png"][:4] == b"\x89PNG" for row in packed)


def test_other_code_of_a_users_own_labels_again_and_draws_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "own_code.py", tmp_path / "other" / "own_code.py"
    first.write_text(MINE, encoding="utf-8")
    second.parent.mkdir()
    second.write_text(MINE.replace("scores.amax(0)", "scores.amin(0)"), encoding="utf-8")
    labels = []
    for own in (first, second):
        out = label(config_of(tmp_path, aggregator=f"{own}:Best"), say=quiet)
        labels.append(pq.read_table(out / "labels").to_pylist())
    assert [row["phi"] for row in labels[0]] != [row["phi"] for row in labels[1]]
    drawn = lines(tmp_path / "drawn.log")
    assert len(drawn) == len(set(drawn)) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregator": "Best", "factor": 0}, "factor must be above 0, got 0"),
        ({"aggregator": "Best", "factro": 1}, "unknown key 'factro'. Perhaps you meant 'factor'"),
        ({"aggregator": "Winners"}, "aggregator .* lacks phi"),
        ({"executor": "Best"}, "executor .* lacks start"),
    ],
)
def test_what_a_users_own_lacks_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    own = tmp_path / "mine.py"
    own.write_text(MINE, encoding="utf-8")
    named = {key: f"{own}:{value}" if key in ("aggregator", "executor") else value for key, value in change.items()}
    path = tmp_path / "label.yaml"
    path.write_text(yaml.safe_dump(make_world(tmp_path, **named)))
    with pytest.raises(ValueError, match=message):
        from_yaml(path)
