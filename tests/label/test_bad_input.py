"""Generators and rewards that fail: a clear error or a counted status, and the rest of the run goes on."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from diffpref.label.engine import label
from tests.label.world import PROMPTS, config_of, lines, make_world, quiet


def statuses(out: Path) -> Counter[str]:
    return Counter(row["status"] for row in pq.read_table(out / "labels").to_pylist())


def generators(folder: Path, *names: str, samples: int = 2) -> list[dict[str, object]]:
    return [{"name": name, "function": f"{folder / 'world.py'}:{name}", "samples": samples} for name in names]


def reward(folder: Path, name: str) -> dict[str, object]:
    return {"name": name, "reward": f"{folder / 'world.py'}:{name}"}


def test_a_generator_that_fails_on_some_prompts_is_counted(tmp_path: Path) -> None:
    """Every planned image keeps a row; a prompt with two good images or more keeps its labels."""
    prompts = [*PROMPTS, "will explode", "is black", "is flat", "has nan", "the same", "fine"]
    config = config_of(tmp_path, prompts, shard_size=16, max_failure_share=0.2, retries=2)
    out = label(config, say=quiet)
    rows = pq.read_table(out / "labels").to_pylist()
    assert len(rows) == 4 * len(prompts)
    by = {(row["prompt"], row["generator"]): row for row in rows}
    assert by["will explode", "noise"]["status"] == "gen_error"
    assert by["will explode", "noise"]["message"] == "RuntimeError: no image of will explode"
    assert by["has nan", "noise"]["status"] == "nan_image" and by["is black", "noise"]["status"] == "black_image"
    assert by["is flat", "noise"]["status"] == "flat_image"
    assert all(row["phi"] is None for row in rows if row["status"] != "ok")
    # The other generator draws all prompts: two candidates are left, and phi goes over these two.
    assert sorted(row["phi"] for row in rows if row["prompt"] == "will explode" and row["phi"] is not None) == (
        [0.0, 1.0] if by["will explode", "other"]["phi"] != 0.5 else [0.5, 0.5]
    )
    same = [row for row in rows if row["prompt"] == "the same" and row["generator"] == "noise"]
    assert same[1]["duplicate_of"] == same[0]["image_id"] and same[1]["status"] == "ok"
    # A retry of an error begins with the image's own seed, one of a bad image with the next.
    drawn = Counter(line.split("|")[0] for line in lines(tmp_path / "drawn.log"))
    assert drawn["fine"] == 2 and drawn["has nan"] == 2 + 2 * 2
    assert [row["prompt"] for row in pq.read_table(out / "packs" / "lists").to_pylist()] == [
        *PROMPTS,
        "the same",
        "fine",
    ]


def test_near_duplicates_can_be_dropped_without_a_new_score(tmp_path: Path) -> None:
    label(config_of(tmp_path, ["the same", *PROMPTS]), say=quiet)
    (tmp_path / "scored.log").unlink()
    out = label(config_of(tmp_path, ["the same", *PROMPTS], duplicate_pictures="drop"), say=quiet)
    assert statuses(out)["near_duplicate"] == 1 and not lines(tmp_path / "scored.log")


def test_an_image_that_fails_once_is_drawn_from_the_next_seed(tmp_path: Path) -> None:
    config = config_of(tmp_path, retries=2, max_failure_share=1.0)
    config = config_of(tmp_path, retries=2, max_failure_share=1.0, generators=generators(tmp_path, "moody"))
    out = label(config, say=quiet)
    rows = pq.read_table(out / "labels").to_pylist()
    attempts = Counter(row["attempt"] for row in rows)
    assert statuses(out) == {"ok": 20} and attempts[2] > 0
    first = next(row for row in rows if row["attempt"] == 2)
    from diffpref.label.plan import seed_of

    assert first["seed"] == seed_of(0, first["prompt_id"], "moody", first["sample"]) + 2


def test_too_many_failures_stop_the_run_and_keep_finished_shards(tmp_path: Path) -> None:
    prompts = [*PROMPTS[:4], *(f"will explode {i}" for i in range(4))]
    with pytest.raises(ValueError, match="4 of a shard's 8 images failed.*RuntimeError: no image of will explode"):
        label(config_of(tmp_path, prompts), say=quiet)
    assert sorted(path.name for path in (tmp_path / "out/done/images/noise").iterdir()) == ["00000.json"]
    assert not list((tmp_path / "out").rglob("*.tmp"))
    drawn = Counter(lines(tmp_path / "drawn.log"))
    with pytest.raises(ValueError, match="images failed"):
        label(config_of(tmp_path, prompts), say=quiet)
    again = Counter(lines(tmp_path / "drawn.log")) - drawn
    assert again and all("explode" in line for line in again)


def test_a_generator_that_returns_too_few_images(tmp_path: Path) -> None:
    make_world(tmp_path)
    config = config_of(tmp_path, generators=generators(tmp_path, "one_less"))
    with pytest.raises(ValueError, match="generator 'one_less' returned 0 images for 1 prompts"):
        label(config, say=quiet)


def test_scores_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    make_world(tmp_path)
    prompts = [*PROMPTS, "an odd thing"]
    config = config_of(
        tmp_path,
        prompts,
        rewards=[reward(tmp_path, "not_a_number"), reward(tmp_path, "redness")],
        max_failure_share=0.5,
    )
    out = label(config, say=quiet)
    assert statuses(out) == {"ok": 40, "score_nan": 4}
    odd = [row for row in pq.read_table(out / "labels").to_pylist() if row["status"] == "score_nan"]
    assert all(row["message"] == "not_a_number: not a finite number" for row in odd)
    assert all(row["score.not_a_number"] is None and row["score.redness"] is not None for row in odd)


def test_a_reward_that_fails_on_one_prompt_scores_the_others(tmp_path: Path) -> None:
    make_world(tmp_path)
    prompts = [*PROMPTS, "an odd thing"]
    config = config_of(tmp_path, prompts, rewards=[reward(tmp_path, "raises")], max_failure_share=0.5)
    out = label(config, say=quiet)
    assert statuses(out) == {"ok": 40, "score_error": 4}


def test_a_reward_with_the_wrong_count_stops_at_once(tmp_path: Path) -> None:
    make_world(tmp_path)
    config = config_of(tmp_path, rewards=[reward(tmp_path, "too_few")])
    with pytest.raises(ValueError, match="too_few' returned 15 scores for 16 images: it must return one number per"):
        label(config, say=quiet)
    drawn = lines(tmp_path / "drawn.log")
    label(config_of(tmp_path), say=quiet)
    assert lines(tmp_path / "drawn.log") == drawn
