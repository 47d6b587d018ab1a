"""`diffpref data score`: the reward's numbers at the right images, P(chosen), and stops and starts."""

import json
import math
from pathlib import Path

import datasets
import pytest
from PIL import Image

from diffpref.data.command import main
from diffpref.data.decode import decode
from diffpref.data.preferences import read_preferences
from diffpref.rewards import find_reward

REWARD = '''"""A reward that counts its calls, and fails at the image that it is told to fail at."""
from pathlib import Path


def level(images, prompts):
    calls = Path(__file__).with_name("calls.txt")
    with calls.open("a") as file:
        file.write(f"{len(images)}\\n")
    levels = [image.getpixel((0, 0))[0] / 100 for image in images]
    if Path(__file__).with_name("fail.txt").exists() and 1.4 in levels:
        raise ValueError("no more")
    return levels
'''


@pytest.fixture
def reward(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(REWARD)
    return f"{tmp_path / 'mine.py'}:level"


def calls(folder: Path) -> int:
    """Images that the reward has seen."""
    return sum(map(int, (folder / "calls.txt").read_text().split()))


@pytest.fixture
def pairs(parquet, image_bytes) -> Path:
    """Five pairs, of which the reward reverses the second and decides the third, a tie."""
    levels = [(40, 20), (60, 90), (50, 10), (140, 120), (80, 70)]
    columns = {
        "caption": [f"p{i}" for i in range(5)],
        "jpg_0": [image_bytes(a) for a, _ in levels],
        "jpg_1": [image_bytes(b) for _, b in levels],
        "label_0": [1.0, 1.0, 0.5, 1.0, 1.0],
        "label_1": [0.0, 0.0, 0.5, 0.0, 0.0],
    }
    return parquet(columns)


def test_both_scores_and_the_probability_are_written(pairs: Path, reward: str, tmp_path: Path, capsys) -> None:
    output = tmp_path / "scored.parquet"
    assert main(["score", str(pairs), "--reward", reward, "--output", str(output), "--batch_size", "2"]) == 0
    assert "prefers the image that the data prefer in 3 of 4 rows: 75.0%" in capsys.readouterr().out
    table = datasets.load_dataset("parquet", data_files=str(output), split="train")
    assert table["chosen_score"][:] == pytest.approx([0.4, 0.9, 0.5, 1.4, 0.8])
    assert table["rejected_score"][:] == pytest.approx([0.2, 0.6, 0.1, 1.2, 0.7])
    # A function of one's own is read as a Bradley-Terry reward.
    expected = [1 / (1 + math.exp(-difference)) for difference in (0.2, 0.3, 0.4, 0.2, 0.1)]
    assert table["chosen_probability"][:] == pytest.approx(expected)
    back = read_preferences(output)
    assert [[decode(image).getpixel((0, 0))[0] for image in row.images] for row in back] == [
        *([40, 20], [90, 60], [50, 10], [140, 120], [80, 70])
    ]
    assert not list(tmp_path.glob("*.jsonl")) and calls(tmp_path) == 10


def test_rows_against_the_choice_can_be_left_out(pairs: Path, reward: str, tmp_path: Path, capsys) -> None:
    output = tmp_path / "scored.parquet"
    flags = ["--reward", reward, "--output", str(output), "--contradictions", "drop"]
    assert main(["score", str(pairs), *flags]) == 0
    assert "5 rows, 4 kept, 1 dropped (1 reward against the choice)" in capsys.readouterr().out
    assert [row.prompt for row in read_preferences(output)] == ["p0", "p2", "p3", "p4"]


def test_a_stopped_run_goes_on_and_ends_with_the_same_file(pairs: Path, reward: str, tmp_path: Path, capsys) -> None:
    flags = ["--reward", reward, "--batch_size", "1", "--output"]
    assert main(["score", str(pairs), *flags, str(tmp_path / "whole.parquet")]) == 0
    (tmp_path / "fail.txt").touch()
    (tmp_path / "calls.txt").unlink()
    output = tmp_path / "scored.parquet"
    assert main(["score", str(pairs), *flags, str(output)]) == 1
    assert "no more" in capsys.readouterr().err and not output.exists()
    kept = tmp_path / "scored.parquet.scores.jsonl"
    assert len(kept.read_text().splitlines()) == 1 + 3
    kept.write_text(kept.read_text()[:-9])  # a kill in the middle of a line
    (tmp_path / "fail.txt").unlink()
    (tmp_path / "calls.txt").unlink()
    assert main(["score", str(pairs), *flags, str(output)]) == 0
    assert "2 rows were scored before this start" in capsys.readouterr().out
    assert calls(tmp_path) == 6 and output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_scores_of_another_reward_are_not_mixed_in(pairs: Path, reward: str, tmp_path: Path, capsys) -> None:
    output = tmp_path / "scored.parquet"
    (tmp_path / "fail.txt").touch()
    flags = ["score", str(pairs), "--reward", reward, "--output", str(output), "--batch_size", "1"]
    assert main(flags) == 1
    (tmp_path / "mine.py").write_text(REWARD.replace("/ 100", "/ 50"))
    capsys.readouterr()
    assert main(flags) == 1
    assert "has scores of another reward" in capsys.readouterr().err


def test_bad_images_are_named_or_left_out(pairs: Path, json_file, reward: str, tmp_path: Path, capsys) -> None:
    Image.new("RGB", (8, 8), (50, 50, 50)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    rows = [{"prompt": "p", "chosen": "a.png", "rejected": name} for name in ("b.png", "gone.png")]
    Image.new("RGB", (8, 8), (40, 40, 40)).save(tmp_path / "c.png")
    path = json_file([*rows, {"prompt": "p", "chosen": "a.png", "rejected": "c.png"}], "rows.jsonl")
    flags = ["score", str(path), "--reward", reward, "--output", str(tmp_path / "scored.parquet")]
    assert main(flags) == 1
    assert "rows.jsonl row 0: " in capsys.readouterr().err
    assert main([*flags, "--on_bad_row", "skip"]) == 0
    assert "3 rows, 1 kept, 2 dropped (1 unreadable image, 1 missing image)" in capsys.readouterr().out


def test_lists_get_a_score_for_each_image(json_file, image_bytes, reward: str, tmp_path: Path) -> None:
    for level in (10, 90, 50):
        (tmp_path / f"{level}.png").write_bytes(image_bytes(level))
    path = json_file([{"prompt": "p", "images": ["10.png", "90.png", "50.png"], "ranks": [1, 2, 3]}], "lists.jsonl")
    output = tmp_path / "scored.parquet"
    assert main(["score", str(path), "--reward", reward, "--output", str(output)]) == 0
    assert read_preferences(output)[0].scores == pytest.approx((0.1, 0.9, 0.5))


def test_the_embedded_reward_scores_the_embedded_pairs(tmp_path: Path) -> None:
    output, source = tmp_path / "scored.parquet", Path("assets/emoji-pairs/train.parquet")
    assert main(["score", str(source), "--max_rows", "6", "--reward", "emoji_hand", "--output", str(output)]) == 0
    scored, reward = read_preferences(output), find_reward("emoji_hand")
    assert scored.schema == "pairs (chosen, rejected)" and json.dumps(scored.dropped) == "{}"
    for row in scored:
        assert reward([decode(image) for image in row.images], [row.prompt] * 2).tolist() == pytest.approx(row.scores)
