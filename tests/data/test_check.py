"""The image check: what it finds, what it skips, what it never decodes."""

from pathlib import Path

import pytest

from diffpref.data import check, look
from diffpref.data.check import check_rows
from diffpref.data.decode import decode
from diffpref.data.preferences import read_preferences


@pytest.fixture
def mixed(json_file, tmp_path: Path, image_bytes):
    """Row 0 good, 1 sizes differ, 2 missing, 3 cut short, 4 empty, 5 tiny, 6 good."""
    for name, size in (("a", (64, 48)), ("b", (64, 48)), ("wide", (96, 48)), ("tiny", (4, 4))):
        (tmp_path / f"{name}.png").write_bytes(image_bytes(7, size))
    (tmp_path / "cut.png").write_bytes(image_bytes(7, (64, 48))[:-40])
    (tmp_path / "empty.png").write_bytes(b"")
    second = ["b", "wide", "gone", "cut", "empty", "tiny", "b"]
    records = [{"prompt": "p", "chosen": "a.png", "rejected": f"{name}.png"} for name in second]
    records[5]["chosen"] = "tiny.png"
    return lambda *kept: read_preferences(json_file([records[i] for i in kept], f"{kept}.jsonl"))


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (1, {}, r"row 1: the images are 64x48, 96x48 pixels, .* --size_mismatch crop"),
        (2, {}, r"row 1: image 1: .*gone.png does not exist: restore"),
        (3, {"full": True}, r"row 1: image 1: .*cut.png is corrupt or cut short"),
        (4, {}, r"row 1: image 1: .*empty.png is empty \(0 bytes\): replace it"),
        (5, {"min_size": 32}, r"row 1: image 0 is 4x4 pixels, below the minimum of 32"),
    ],
)
def test_each_bad_image_is_named(mixed, row: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_rows(mixed(0, row, 6), **options)
    assert str(caught.value).endswith("Or leave such rows out with --on_bad_row skip.")
    kept = check_rows(mixed(0, row, 6), on_bad_row="skip", **options)
    assert [r.where.split()[-1] for r in kept] == ["0", "2"] and sum(kept.dropped.values()) == 1


def test_skipping_counts_each_reason(mixed) -> None:
    kept = check_rows(mixed(0, 1, 2, 3, 4, 5, 6), on_bad_row="skip", full=True, min_size=32)
    assert len(kept) == len(kept.scores) == 2
    assert kept.dropped == {"sizes differ": 1, "missing image": 1, "unreadable image": 2, "too small": 1}
    assert "images decoded: 7 rows, 2 kept, 5 dropped (1 sizes differ, " in kept.summary()
    with pytest.raises(ValueError, match="no row is left after images checked: 1 missing image"):
        check_rows(mixed(2), on_bad_row="skip")


def test_crop_accepts_different_sizes(mixed) -> None:
    assert len(check_rows(mixed(0, 1), size_mismatch="crop")) == 2


def test_headers_alone_are_read(mixed, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(look, "decode", lambda image_bytes: decoded.append(image_bytes) or decode(image_bytes))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded an image"))
    assert len(check_rows(mixed(0, 3, 6))) == 3 and decoded == []
    monkeypatch.undo()
    monkeypatch.setattr(look, "decode", lambda image_bytes: decoded.append(image_bytes) or decode(image_bytes))
    assert len(check_rows(mixed(0, 6), full=True)) == 2 and len(decoded) == 4


def test_the_order_is_kept_over_windows(
    json_file, tmp_path: Path, image_bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_WINDOW", 4)
    (tmp_path / "a.png").write_bytes(image_bytes(1))
    names = ["a.png" if i % 3 else "gone.png" for i in range(23)]
    path = json_file(
        [{"prompt": f"p{i}", "chosen": "a.png", "rejected": name} for i, name in enumerate(names)], "l.jsonl"
    )
    kept = check_rows(read_preferences(path), on_bad_row="skip", workers=3)
    assert [row.prompt for row in kept] == [f"p{i}" for i in range(23) if i % 3]


def test_workers_are_checked(mixed) -> None:
    with pytest.raises(ValueError, match="workers must be 1 or above, got 0"):
        check_rows(mixed(0), workers=0)
