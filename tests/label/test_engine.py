"""The engine end to end in a world of arithmetic: what it makes, what it does not make again, and that bytes repeat."""

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from diffpref.data.decode import decode
from diffpref.data.pairs import as_pairs
from diffpref.data.preferences import read_preferences
from diffpref.data.scoring import score
from diffpref.labelling.engine import label
from diffpref.labelling.plan import seed_of
from diffpref.objectives import DPO, RankDPO
from tests.label.world import PROMPTS, config_of, data_files, lines

PACKS = [
    {"name": "lists", "form": "lists"},
    {"name": "pairs", "form": "pairs", "pairs": "best_worst"},
    {"name": "pickapic", "form": "pickapic", "min_gap": 0.3},
    {"name": "same", "form": "pairs", "same_generator": True},
]


def quiet(line: str) -> None:
    """Nobody reads along."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    return label(config_of(folder, packs=PACKS), say=quiet)


def phi_by_hand(scores: list[list[float]]) -> list[float]:
    """Algorithm 1 of Syn-Pic in loops: rewards, then ordered pairs."""
    count = [0] * len(scores[0])
    for reward in scores:
        for i, j in itertools.permutations(range(len(reward)), 2):
            count[i] += reward[i] > reward[j]
    return [c / (len(scores) * (len(scores[0]) - 1)) for c in count]


def test_lists_hold_the_pictures_best_first_with_phi(run: Path) -> None:
    rows = read_preferences(run / "packs" / "lists")
    packed = pq.read_table(run / "packs" / "lists").to_pylist()
    assert [row["prompt"] for row in packed] == PROMPTS
    # Where the rewards contradict each other everywhere, every phi is 1/2; the reader counts that as a tie.
    assert [row.prompt for row in rows] == [row["prompt"] for row in packed if len(set(row["scores"])) > 1]
    for row in rows:
        arrays = [np.asarray(decode(picture), dtype=np.float64) for picture in row.images]
        bright, red = [a.mean() for a in arrays], [a[..., 0].mean() - a[..., 2].mean() for a in arrays]
        # Scores are kept in float32, which moves no order here.
        assert list(row.scores) == pytest.approx(phi_by_hand([bright, red]), abs=1e-12)
        assert list(row.scores) == sorted(row.scores, reverse=True)
        assert sorted(row.models) == ["noise", "noise", "other", "other"]


def test_every_pack_is_what_training_takes(run: Path) -> None:
    lists = score(read_preferences(run / "packs" / "lists"), RankDPO(), given="scores")
    assert all(0 <= value <= 1 for row in lists for value in row.scores)
    for name in ("pairs", "pickapic", "same"):
        assert len(score(as_pairs(read_preferences(run / "packs" / name)), DPO())) > 0


def test_pairs(run: Path) -> None:
    labels = {row["image_id"]: row for row in pq.read_table(run / "labels").to_pylist()}
    by_prompt = {p: [r for r in labels.values() if r["prompt"] == p and r["phi"] is not None] for p in PROMPTS}
    extremes = {p: (max(r["phi"] for r in rows), min(r["phi"] for r in rows)) for p, rows in by_prompt.items()}
    for row in pq.read_table(run / "packs" / "pairs").to_pylist():
        assert (row["chosen_score"], row["rejected_score"]) == extremes[row["prompt"]]
        assert labels[row["chosen_id"]]["phi"] == row["chosen_score"]
    table = pq.read_table(run / "packs" / "pickapic").to_pylist()
    expected = sum(
        abs(a["phi"] - b["phi"]) >= 0.3 - 1e-9
        for rows in by_prompt.values()
        for a, b in itertools.combinations(rows, 2)
    )
    assert len(table) == expected
    for row in table:
        first, second = labels[row["image_0_uid"]], labels[row["image_1_uid"]]
        assert (row["label_0"], row["label_1"]) == (
            float(first["phi"] > second["phi"]),
            float(first["phi"] < second["phi"]),
        )
        assert row["num_example_per_prompt"] == sum(r["caption"] == row["caption"] for r in table)
    assert 0 < sum(row["label_0"] for row in table) < len(table), "the better one stands on either side"
    for row in pq.read_table(run / "packs" / "same").to_pylist():
        assert row["chosen_model"] == row["rejected_model"]


def test_each_picture_has_its_own_seed(run: Path) -> None:
    rows = pq.read_table(run / "labels").to_pylist()
    assert len({row["seed"] for row in rows}) == len(rows) == len(PROMPTS) * 4
    for row in rows:
        assert row["seed"] == seed_of(0, row["prompt_id"], row["generator"], row["sample"]) < 2**63
        assert row["image_id"] == f"{row['prompt_id']}-{row['generator']}-{row['sample']}"


def test_two_runs_give_the_same_bytes(run: Path, tmp_path: Path) -> None:
    again = label(config_of(tmp_path, packs=PACKS), say=quiet)
    assert data_files(again) == data_files(run)


def test_pictures_hang_neither_on_batches_nor_on_shards(run: Path, tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        shard_size=7,
        generators=[
            {"name": "noise", "function": f"{tmp_path / 'world.py'}:make", "samples": 2, "batch_size": 5},
            {"name": "other", "function": f"{tmp_path / 'world.py'}:other", "samples": 2, "batch_size": 1},
        ],
    )
    other = label(config, say=quiet)
    first, second = (
        {tuple(row["image_ids"]): row for row in pq.read_table(root / "packs" / "lists").to_pylist()}
        for root in (run, other)
    )
    assert first == second


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    label(config, say=quiet)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "done").rglob("*.json")}
    drawn = lines(tmp_path / "drawn.log")
    label(config, say=quiet)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "done").rglob("*.json")} == before
    assert lines(tmp_path / "drawn.log") == drawn and len(drawn) == len(set(drawn)) == 20


def test_another_reward_draws_nothing_and_scores_only_itself(tmp_path: Path) -> None:
    rewards = [{"name": "bright", "reward": f"{tmp_path / 'world.py'}:brightness"}]
    label(config_of(tmp_path, rewards=rewards), say=quiet)
    drawn = lines(tmp_path / "drawn.log")
    (tmp_path / "scored.log").unlink()
    more = [*rewards, {"name": "red", "reward": f"{tmp_path / 'world.py'}:redness"}]
    label(config_of(tmp_path, rewards=more), say=quiet)
    assert lines(tmp_path / "drawn.log") == drawn
    assert {line.split("|")[0] for line in lines(tmp_path / "scored.log")} == {"redness"}
    assert "score.red" in pq.read_table(tmp_path / "out" / "labels").column_names


def test_relabelling_needs_neither_generator_nor_reward(tmp_path: Path) -> None:
    label(config_of(tmp_path), say=quiet)
    first = pq.read_table(tmp_path / "out" / "packs" / "lists").to_pylist()
    for log in ("drawn.log", "scored.log"):
        (tmp_path / log).unlink()
    label(config_of(tmp_path, aggregator="win_prob", temperatures={"bright": 5.0, "red": 5.0}), say=quiet)
    assert lines(tmp_path / "drawn.log") == lines(tmp_path / "scored.log") == []
    second = pq.read_table(tmp_path / "out" / "packs" / "lists").to_pylist()
    assert [row["scores"] for row in first] != [row["scores"] for row in second]
    label(config_of(tmp_path), say=quiet)
    assert pq.read_table(tmp_path / "out" / "packs" / "lists").to_pylist() == first


def test_a_held_out_reward_is_kept_and_has_no_say(run: Path, tmp_path: Path) -> None:
    rewards = [
        {"name": "bright", "reward": f"{tmp_path / 'world.py'}:brightness"},
        {"name": "red", "reward": f"{tmp_path / 'world.py'}:redness"},
        {"name": "guard", "reward": f"{tmp_path / 'world.py'}:not_a_number", "held_out": True},
    ]
    prompts = [*PROMPTS[:-1], "an odd thing"]
    out = label(config_of(tmp_path, prompts, rewards=rewards, max_failure_share=0.5), say=quiet)
    labels = pq.read_table(out / "labels").to_pylist()
    theirs = {row["image_id"]: row["phi"] for row in pq.read_table(run / "labels").to_pylist()}
    assert all(row["phi"] == theirs[row["image_id"]] for row in labels if row["image_id"] in theirs)
    odd = [row for row in labels if row["prompt"] == "an odd thing"]
    assert all(row["phi"] is not None and row["score.guard"] is None for row in odd)


def test_markers_say_what_made_the_shard(run: Path) -> None:
    marker = json.loads((run / "done" / "images" / "noise" / "00000.json").read_text())
    assert marker["counts"] == {"ok": 8} and marker["about"]["versions"]["torch"]
    assert set(marker["files"]) == {"images/noise/00000.tar", "images/noise/00000.parquet"}


def test_tars_are_read_by_datasets_as_webdataset(run: Path) -> None:
    import datasets

    files = [str(path) for path in sorted((run / "images" / "noise").glob("*.tar"))]
    rows = list(datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True))
    assert len(rows) == 20 and rows[0]["json"]["prompt"] == PROMPTS[0] and rows[0]["png"].size == (16, 16)
