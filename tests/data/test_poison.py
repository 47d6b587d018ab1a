"""Data that can be read and teaches something else: each kind is warned of where it is planted, and nowhere else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diffpref.data.check import check_rows
from diffpref.data.command import main
from diffpref.data.poison import Poison, long_captions
from diffpref.data.preferences import read_preferences
from diffpref.data.tokens import by_words, of_model
from tests.small_sdxl import small_tokenizer

ROWS, SIDE = 16, 80


def drawn(seed: int) -> Image.Image:
    """Coarse noise: as bright and as sharp, on average, whatever the seed."""
    levels = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((SIDE, SIDE))


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Pairs without any poison."""
    for place, side in enumerate("wl"):
        (tmp_path / side).mkdir()
        for number in range(ROWS):
            drawn(2 * number + place).save(tmp_path / side / f"{number:02d}.png")
            (tmp_path / side / f"{number:02d}.txt").write_text(f"noise {number}")
    return tmp_path


def warned(source: Path, capsys) -> dict[str, dict]:
    """The warnings of validate, by kind."""
    assert main(["validate", str(source), "--json", "--size_mismatch", "crop", "--resolution", "64"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["bad"] == 0 and record["kept"] == record["read"]
    return {warning["kind"]: warning for warning in record["warnings"]}


def each(folder: Path, change) -> None:
    for path in sorted(folder.glob("*.png")):
        change(Image.open(path).convert("RGB")).save(path)


def test_good_pairs_are_not_warned_of(clean: Path, capsys) -> None:
    assert warned(clean, capsys) == {}


def plant_same(root: Path) -> None:
    Image.open(root / "w/03.png").save(root / "l/03.png", compress_level=1)  # other bytes, the same pixels


def plant_copy(root: Path) -> None:
    Image.open(root / "w/03.png").save(root / "l/03.jpg", quality=85)
    (root / "l/03.png").unlink()


def plant_small(root: Path) -> None:
    drawn(77).resize((24, 24)).save(root / "w/03.png")


def plant_panorama(root: Path) -> None:
    drawn(77).resize((240, 80)).save(root / "w/03.png")


def plant_black(root: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(root / "w/03.png")


def plant_caption(root: Path) -> None:
    for side in "wl":
        (root / side / "03.txt").write_text("a fox, " * 40)


def plant_repeat(root: Path) -> None:
    for side in "wl":
        for suffix in (".png", ".txt"):
            shutil.copy(root / side / f"03{suffix}", root / side / f"99{suffix}")


def plant_contradiction(root: Path) -> None:
    plant_repeat(root)
    (root / "w/99.png").rename(root / "l/98.png")
    (root / "l/99.png").rename(root / "w/99.png")
    (root / "l/98.png").rename(root / "l/99.png")


@pytest.mark.parametrize(
    ("plant", "kinds", "place"),
    [
        (plant_same, {"same image": 1, "repeated image": 1}, "w/03.png"),
        (plant_copy, {"alike": 1}, "w/03.png"),
        (plant_small, {"small": 1}, "(w/03.png): 24x24"),
        (plant_panorama, {"cropped": 1}, "(w/03.png): 240x80 keeps 33%"),
        (plant_black, {"one colour": 1}, "(w/03.png)"),
        (plant_caption, {"long caption": 1}, "w/03.png: 122 tokens"),
        (plant_repeat, {"repeated row": 1, "repeated image": 2}, "w/99.png"),
        (plant_contradiction, {"contradiction": 1, "repeated image": 2}, "w/99.png"),
    ],
)
def test_each_planted_poison_is_named(clean: Path, capsys, plant, kinds: dict[str, int], place: str) -> None:
    plant(clean)
    found = warned(clean, capsys)
    assert {kind: warning["count"] for kind, warning in found.items()} == kinds
    assert place in found[next(iter(kinds))]["text"]


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (
            lambda image: image.filter(ImageFilter.GaussianBlur(2)),
            "side sharpness",
            "better image is sharper in 100%",
        ),
        (lambda image: image.point(lambda level: level * 0.8), "side brightness", "better image is brighter in 100%"),
        (lambda image: image.resize((SIDE - 10, SIDE - 10)), "side size", "better image is larger in 100%"),
    ],
)
def test_sides_that_differ_are_a_shortcut(clean: Path, capsys, change, kind: str, text: str) -> None:
    each(clean / "l", change)
    found = warned(clean, capsys)
    assert kind in found and text in found[kind]["text"]
    assert "side format" not in found and ("side size" in found) == (kind == "side size")


def test_sides_in_two_formats_are_a_shortcut(clean: Path, capsys) -> None:
    for path in sorted((clean / "l").glob("*.png"))[:12]:
        Image.open(path).save(path.with_suffix(".webp"), lossless=True)
        path.unlink()
    found = warned(clean, capsys)
    # 12 of 16 rows differ and 4 count half: 14 of 16.
    assert list(found) == ["side format"] and found["side format"]["count"] == 12
    assert "is a PNG and the worse a WEBP in 75% of 16 rows" in found["side format"]["text"]


def test_few_rows_that_agree_by_chance_are_no_shortcut(clean: Path, capsys) -> None:
    for path in sorted((clean / "l").glob("*.png"))[:9]:  # 9 of 16 differ: 12.5 of 16
        Image.open(path).resize((SIDE - 10, SIDE - 10)).save(path)
    assert warned(clean, capsys) == {}


def test_training_says_what_headers_show(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_small(clean)
    plant_caption(clean)
    shutil.copy(clean / "w/05.png", clean / "l/05.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded an image"))
    rows = check_rows(read_preferences(clean), size_mismatch="crop", poison=Poison(resolution=64))
    warnings = [line for line in rows.summary().splitlines() if line.startswith("warning: ")]
    assert [line.split(" of ")[0] for line in warnings] == ["warning: 1"] * 2
    assert "compare an image with itself" in warnings[0] and "below 64 pixels" in warnings[1]
    (cut,) = long_captions(rows, by_words())
    assert cut.count == 1 and "longer than the 77 tokens" in cut.text and "w/03.png: 122 tokens" in cut.text


def test_captions_are_counted_by_the_models_tokenizer(tmp_path: Path) -> None:
    small_tokenizer(tmp_path / "words").save_pretrained(tmp_path / "tokenizer")
    own = of_model(str(tmp_path))
    assert own is not None and own.limit == 8 and of_model(str(tmp_path / "words")) is None
    # Start, "cat" and "red" in one token each, "fox" in three, end.
    assert [own.count(text) for text in ("", "cat", "cat red", "fox")] == [2, 3, 4, 5]
    words = by_words()
    assert [words.count(text) for text in ("", "cat", "a red cat, 12 it's")] == [2, 3, 10]


def test_every_bad_row_is_listed_with_its_file(clean: Path, capsys) -> None:
    (clean / "w/02.png").write_bytes(b"nothing")
    (clean / "l/02.png").write_bytes((clean / "w/01.png").read_bytes()[:500])
    (clean / "l/04.png").unlink()
    (clean / "w/06.txt").write_bytes(b"\xff\xfea")
    assert main(["validate", str(clean)]) == 1
    shown = capsys.readouterr()
    assert "read: 16 rows, 14 kept, 2 dropped" in shown.out
    lines = shown.err.splitlines()
    assert lines[0] == "diffpref data: 3 bad rows:" and len(lines) == 5
    for line, words in zip(
        lines[1:-1],
        (["w/04.png", "no image named 04"], ["06.txt is no UTF-8"], ["02.png", "image 1: "]),
        strict=True,
    ):
        assert all(word in line for word in words)
    assert main(["validate", str(clean), "--on_bad_row", "skip"]) == 0


def test_the_list_of_bad_rows_has_an_end(json_file, capsys) -> None:
    path = json_file([{"prompt": "p", "chosen": f"{i}.png", "rejected": ""} for i in range(1500)], "bad.jsonl")
    assert main(["validate", str(path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "  bad.jsonl row 0: image 1 is empty: give its bytes or its path."
    assert lines[-1] == "  and 1480 more"
