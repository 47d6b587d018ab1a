"""What goes wrong in a labelling run: a clear error or a counted status, and nothing that was done is lost."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from diffpref.labelling.engine import label
from diffpref.labelling.settings import from_mapping, parse
from tests.label.world import PROMPTS, config_of, data_files, lines, make_world


def quiet(line: str) -> None:
    """Nobody reads along."""


def statuses(out: Path) -> Counter[str]:
    return Counter(row["status"] for row in pq.read_table(out / "labels").to_pylist())


def generators(folder: Path, *names: str, samples: int = 2) -> list[dict[str, object]]:
    return [{"name": name, "function": f"{folder / 'world.py'}:{name}", "samples": samples} for name in names]


def reward(folder: Path, name: str) -> dict[str, object]:
    return {"name": name, "reward": f"{folder / 'world.py'}:{name}"}


def test_a_generator_that_fails_on_some_prompts_is_counted(tmp_path: Path) -> None:
    """Every planned picture keeps a row; a prompt with two good pictures or more keeps its labels."""
    prompts = [*PROMPTS, "will explode", "is black", "is flat", "has nan", "the same", "fine"]
    config = config_of(tmp_path, prompts, shard_size=16, max_failure_share=0.2, retries=2)
    out = label(config, say=quiet)
    rows = pq.read_table(out / "labels").to_pylist()
    assert len(rows) == 4 * len(prompts)
    by = {(row["prompt"], row["generator"]): row for row in rows}
    assert by["will explode", "noise"]["status"] == "gen_error"
    assert by["will explode", "noise"]["message"] == "RuntimeError: no picture of will explode"
    assert by["has nan", "noise"]["status"] == "nan_image" and by["is black", "noise"]["status"] == "black_image"
    assert by["is flat", "noise"]["status"] == "flat_image"
    assert all(row["phi"] is None for row in rows if row["status"] != "ok")
    # The other generator draws all prompts: two candidates are left, and phi goes over these two.
    assert sorted(row["phi"] for row in rows if row["prompt"] == "will explode" and row["phi"] is not None) == (
        [0.0, 1.0] if by["will explode", "other"]["phi"] != 0.5 else [0.5, 0.5]
    )
    same = [row for row in rows if row["prompt"] == "the same" and row["generator"] == "noise"]
    assert same[1]["duplicate_of"] == same[0]["image_id"] and same[1]["status"] == "ok"
    # A retry of an error begins with the picture's own seed, one of a bad picture with the next.
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


def test_a_picture_that_fails_once_is_drawn_from_the_next_seed(tmp_path: Path) -> None:
    config = config_of(tmp_path, retries=2, max_failure_share=1.0)
    config = config_of(tmp_path, retries=2, max_failure_share=1.0, generators=generators(tmp_path, "moody"))
    out = label(config, say=quiet)
    rows = pq.read_table(out / "labels").to_pylist()
    attempts = Counter(row["attempt"] for row in rows)
    assert statuses(out) == {"ok": 20} and attempts[2] > 0
    first = next(row for row in rows if row["attempt"] == 2)
    from diffpref.labelling.plan import seed_of

    assert first["seed"] == seed_of(0, first["prompt_id"], "moody", first["sample"]) + 2


def test_too_many_failures_stop_the_run_and_keep_finished_shards(tmp_path: Path) -> None:
    prompts = [*PROMPTS[:4], *(f"will explode {i}" for i in range(4))]
    with pytest.raises(ValueError, match="4 of a shard's 8 pictures failed.*RuntimeError: no picture of will explode"):
        label(config_of(tmp_path, prompts), say=quiet)
    assert sorted(path.name for path in (tmp_path / "out/done/images/noise").iterdir()) == ["00000.json"]
    assert not list((tmp_path / "out").rglob("*.tmp"))
    drawn = Counter(lines(tmp_path / "drawn.log"))
    with pytest.raises(ValueError, match="pictures failed"):
        label(config_of(tmp_path, prompts), say=quiet)
    again = Counter(lines(tmp_path / "drawn.log")) - drawn
    assert again and all("explode" in line for line in again)


def test_a_generator_that_returns_too_few_pictures(tmp_path: Path) -> None:
    make_world(tmp_path)
    config = config_of(tmp_path, generators=generators(tmp_path, "one_less"))
    with pytest.raises(ValueError, match="generator 'one_less' returned 0 pictures for 1 prompts"):
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
    with pytest.raises(ValueError, match="too_few' returned 15 scores for 16 pictures: it must return one number a"):
        label(config, say=quiet)
    drawn = lines(tmp_path / "drawn.log")
    label(config_of(tmp_path), say=quiet)
    assert lines(tmp_path / "drawn.log") == drawn


@pytest.mark.parametrize("text", ["", "\n\n  \n"])
def test_an_empty_prompt_file(tmp_path: Path, text: str) -> None:
    config = config_of(tmp_path)
    (tmp_path / "prompts.txt").write_text(text)
    with pytest.raises(ValueError, match=r"prompts.txt"):
        label(config, say=quiet)
    assert not (tmp_path / "out" / "plan.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed \(0 there, 1 now\)"),
        ({"shard_size": 5}, r"shard_size \(4 there, 5 now\)"),
        ({"prompts": "other.txt"}, "the kept prompts"),
        ({"generators": 1}, r"generator 'noise' \(samples\)"),
        ({"generators": 2}, r"generator 'other' \(removed\)"),
    ],
)
def test_another_plan_in_an_old_folder(tmp_path: Path, change: dict[str, object], message: str) -> None:
    keys = make_world(tmp_path)
    label(from_mapping(keys, "world"), say=quiet)
    before = data_files(tmp_path / "out")
    if "prompts" in change:
        (tmp_path / "other.txt").write_text("something else\nand more\n")
        change = {"prompts": str(tmp_path / "other.txt")}
    elif change.get("generators") == 1:
        change = {"generators": [{**keys["generators"][0], "samples": 3}, keys["generators"][1]]}
    elif change.get("generators") == 2:
        change = {"generators": keys["generators"][:1]}
    with pytest.raises(ValueError, match=f"holds the pictures of another plan; these differ: .*{message}"):
        label(from_mapping({**keys, **change}, "world"), say=quiet)
    assert data_files(tmp_path / "out") == before


def test_other_code_of_the_users_generator_is_another_plan(tmp_path: Path) -> None:
    label(config_of(tmp_path), say=quiet)
    file = tmp_path / "world.py"
    file.write_text(file.read_text() + "\n# another version\n")
    with pytest.raises(ValueError, match=r"generator 'noise' \(source\)"):
        label(config_of(tmp_path), say=quiet)


def test_a_reward_changed_under_its_name(tmp_path: Path) -> None:
    label(config_of(tmp_path), say=quiet)
    rewards = [{**reward(tmp_path, "brightness"), "name": "red"}]
    with pytest.raises(ValueError, match="the scores of 'red' were made with other settings.*another name"):
        label(config_of(tmp_path, rewards=rewards), say=quiet)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("important")
    with pytest.raises(ValueError, match="is not empty and holds no plan.json"):
        label(config_of(tmp_path), say=quiet)


def edit(path: Path, *, keep_size: bool) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data if keep_size else data + b"more")


@pytest.mark.parametrize("name", ["images/noise/00001.tar", "images/noise/00001.parquet", "scores/red/00001.parquet"])
@pytest.mark.parametrize("keep_size", [True, False])
def test_a_shard_edited_by_hand_is_named_and_made_again_on_request(tmp_path: Path, name: str, keep_size: bool) -> None:
    label(config_of(tmp_path), say=quiet)
    out, clean = tmp_path / "out", data_files(tmp_path / "out")
    edit(out / name, keep_size=keep_size)
    # Relabelling reads every score; packing reads every picture.
    other = config_of(tmp_path, aggregator="pareto")
    marker = f"done/{name.rpartition('.')[0]}.json"
    with pytest.raises(ValueError, match=f"{name} was changed after it was written.*delete .*{marker}"):
        label(other, say=quiet)
    (out / marker).unlink()
    drawn = len(lines(tmp_path / "drawn.log"))
    label(config_of(tmp_path), say=quiet)
    assert data_files(out) == clean
    assert len(lines(tmp_path / "drawn.log")) - drawn == (8 if "images" in name else 0), "one shard alone"


def test_a_damaged_marker_is_named(tmp_path: Path) -> None:
    label(config_of(tmp_path), say=quiet)
    (tmp_path / "out/done/images/noise/00001.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match=r"00001.json was edited or damaged: delete it"):
        label(config_of(tmp_path), say=quiet)


def test_a_missing_data_file_is_made_again(tmp_path: Path) -> None:
    label(config_of(tmp_path), say=quiet)
    clean = data_files(tmp_path / "out")
    (tmp_path / "out/scores/red/00000.parquet").unlink()
    label(config_of(tmp_path), say=quiet)
    assert data_files(tmp_path / "out") == clean


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    from diffpref.labelling.executors.local import lock_folder

    (tmp_path / "out").mkdir()
    with lock_folder(tmp_path / "out"), pytest.raises(ValueError, match="another run works in"):
        label(config_of(tmp_path), say=quiet)
    label(config_of(tmp_path), say=quiet)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip("a file system of its own needs the right to mount one")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    config = config_of(tmp_path, output_dir=str(small_disk / "out"))
    with pytest.raises(ValueError, match="the disk is full .*run the same command again"):
        label(config, say=quiet)
    markers = list((small_disk / "out" / "done").rglob("*.json"))
    assert markers and all(json.loads(path.read_text())["files"] for path in markers)
    drawn = Counter(lines(tmp_path / "drawn.log"))
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    out = label(config, say=quiet)
    assert data_files(out) == data_files(label(config_of(tmp_path), say=quiet))
    assert max(drawn.values()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_sise": 4}, "world: unknown key 'shard_sise'. Perhaps you meant 'shard_size'"),
        ({"generators": []}, "world: generators is empty"),
        ({"rewards": []}, "world: rewards is empty"),
        ({"rewards": [{"name": "x"}]}, r"rewards\[0\] needs `reward: NAME`"),
        ({"generators": [{"name": "a", "function": "x:y"}]}, "one picture a prompt cannot be compared"),
        (
            {"generators": [{"name": "a b", "function": "x:y", "samples": 2}]},
            r"generators\[0\]: the generator name must",
        ),
        ({"generators": [{"name": "a", "samples": 2}]}, r"generators\[0\]: generator 'a' needs either"),
        ({"generators": [{"name": "a", "function": "x:y", "call": {"generator": 1}}]}, "must not set generator"),
        ({"generators": "sdxl"}, "generators must be a list of"),
        ({"packs": [{"name": "p", "form": "triples"}]}, r"packs\[0\]: form must be one of lists, pairs, pickapic"),
        ({"packs": [{"name": "p", "min_candidates": 9}]}, "is 9, but a prompt has at most 4 pictures"),
        ({"weights": {"brigth": 2}}, "weights names the reward 'brigth', but there are bright, red"),
        ({"stages": ["image"]}, "stages must be among .*Perhaps you meant 'images'"),
        ({"executor": "dask"}, "executor must be one of local, ranks, slurm, ray"),
        ({"prompts": ""}, "prompts is missing"),
        ({"max_failure_share": 2.0}, r"max_failure_share must be in \[0, 1\]"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_mapping({**make_world(tmp_path), **change}, "world")


def test_a_reward_setting_is_checked_before_a_picture_is_drawn(tmp_path: Path) -> None:
    config = config_of(tmp_path, rewards=[{"reward": "emoji_hand", "directroy": "x"}])
    with pytest.raises(ValueError, match="unknown key 'directroy'. Perhaps you meant 'directory'"):
        label(config, say=quiet)
    assert not lines(tmp_path / "drawn.log")


def test_the_command_line_needs_a_config() -> None:
    with pytest.raises(ValueError, match="--config needs a YAML file"):
        parse(["--output_dir", "x"])
