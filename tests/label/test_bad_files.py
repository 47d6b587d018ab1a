"""Files of a labelling run that are missing, edited or of another plan: named, and nothing that was done is lost."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffpref.label.engine import label
from diffpref.label.settings import from_mapping
from tests.label.world import config_of, data_files, lines, make_world, quiet


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
    with pytest.raises(ValueError, match=f"holds the images of another plan; these differ: .*{message}"):
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
    rewards = [{"name": "red", "reward": f"{tmp_path / 'world.py'}:brightness"}]
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
    # Relabelling reads every score; packing reads every image.
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
    from diffpref.label.executors.local import lock_folder

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
