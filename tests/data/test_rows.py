"""Decoding: orientation, transparency, 16-bit grey; and what a broken file says."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from diffpref.data.bad_row import BadRow
from diffpref.data.decode import decode, image_size
from diffpref.data.rows import Preferences, Row


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def quadrants() -> Image.Image:
    """16x8 with four different corners, so that every orientation shows."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, :8], pixels[:4, 8:], pixels[4:, :8] = 250, 160, 80
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_the_header_says_the_same_size(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(quadrants(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    image = decode(data)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert image.size == expected.size == image_size(data) == ((8, 16) if orientation >= 5 else (16, 8))
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_orientation_6_is_a_quarter_turn_clockwise() -> None:
    """EXIF 2.32: in 6 the stored left column is the top row seen; the stored bottom-left corner is the top left."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode(encoded(quadrants(), "PNG", exif=exif))
    assert image.getpixel((0, 0)) == (80, 80, 80) and image.getpixel((7, 0)) == (250, 250, 250)


def test_transparency_is_white() -> None:
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half.putpixel((1, 1), (10, 20, 30, 255))
    for image in (half, half.convert("LA")):
        shown = decode(encoded(image, "PNG"))
        assert shown.mode == "RGB" and shown.getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(half, "PNG")).getpixel((1, 1)) == (10, 20, 30)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert decode(encoded(palette, "PNG", transparency=1)).getpixel((2, 2)) == (255, 255, 255)
    assert decode(encoded(palette, "GIF")).getpixel((2, 2)) == (0, 255, 0)


def test_sixteen_bit_grey_keeps_its_level() -> None:
    deep = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert decode(encoded(deep, "PNG")).getpixel((0, 0)) == (128, 128, 128)


def test_other_modes_become_rgb() -> None:
    for mode in ("1", "L", "CMYK"):
        assert decode(encoded(Image.new(mode, (4, 4)), "JPEG" if mode == "CMYK" else "PNG")).mode == "RGB"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cat\.png does not exist: restore"):
        decode(tmp_path / "cat.png")
    with pytest.raises(ValueError, match=r"cat\.png does not exist"):
        image_size(tmp_path / "cat.png")


def test_broken_files_say_what_is_wrong(tmp_path: Path, image_bytes) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"")
    with pytest.raises(BadRow, match=r"cat\.png is empty \(0 bytes\)"):
        image_size(path)
    with pytest.raises(BadRow, match="image of 5 bytes is not an image that Pillow can open"):
        image_size(b"hello")
    with pytest.raises(BadRow, match="is empty"):
        decode(b"")
    for kind in ("PNG", "JPEG"):
        noise = Image.effect_noise((64, 64), 80).convert("RGB")
        cut = encoded(noise, kind)[:1500]
        assert image_size(cut) == (64, 64)
        with pytest.raises(BadRow, match="image of 1500 bytes is corrupt or cut short") as caught:
            decode(cut)
        assert caught.value.reason == "unreadable image"
    whole = bytearray(image_bytes(9, (64, 64)))
    whole[60] ^= 0xFF
    with pytest.raises(BadRow, match="corrupt or cut short"):
        decode(bytes(whole))


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(BadRow, match="not an image that Pillow can open"):
        decode(tmp_path)


def test_preferences_behave_as_a_sequence() -> None:
    rows = [Row(prompt=f"p{i}", images=(b"a", b"b"), scores=(1.0, 0.0), where=f"row {i}") for i in range(5)]
    all_rows = Preferences(
        source="here",
        schema="test",
        read=rows.__getitem__,
        index=[0, 2, 4],
        scores=[r.scores for r in rows[::2]],
        dropped={"tie": 2},
    )
    assert len(all_rows) == 3 and [row.prompt for row in all_rows] == ["p0", "p2", "p4"]
    assert all_rows[-1].prompt == "p4"
    with pytest.raises(IndexError):
        all_rows[3]
    some = all_rows.subset([0, 2], dropped={"tie": 1}, step="checked")
    assert [row.prompt for row in some] == ["p0", "p4"] and some.dropped == {"tie": 3}
    assert some.summary() == "source: here\nschema: test\nchecked: 3 rows, 2 kept, 1 dropped (1 tie)"
    with pytest.raises(ValueError, match="here: no row is left after checked: 3 tie"):
        all_rows.subset([], dropped={"tie": 3}, step="checked")
