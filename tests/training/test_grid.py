"""Where pictures and labels land on a sheet."""

import numpy as np
import pytest
from PIL import Image

from diffpref.report.grid import GUTTER, picture_grid, side_by_side


def flat(colour: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_pictures_stand_in_rows_with_white_gutters() -> None:
    sheet = picture_grid([flat("red"), flat("lime"), flat("blue")], 2)
    assert sheet.size == (2 * 64 + GUTTER, 2 * 64 + GUTTER) and sheet.mode == "RGB"
    assert sheet.getpixel((0, 0)) == sheet.getpixel((63, 63)) == (255, 0, 0)
    assert sheet.getpixel((64 + GUTTER, 0)) == (0, 255, 0)
    assert sheet.getpixel((0, 64 + GUTTER)) == (0, 0, 255)
    assert sheet.getpixel((64 + 1, 10)) == sheet.getpixel((100, 100)) == (255, 255, 255)


def test_fewer_pictures_than_columns_leave_no_empty_cells() -> None:
    assert picture_grid([flat("red")], 5).size == (64, 64)


def test_smaller_pictures_are_centred_and_transparency_is_white() -> None:
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    sheet = picture_grid([flat("red", (32, 64)), clear], 2)
    assert sheet.getpixel((15, 5)) == (255, 255, 255) and sheet.getpixel((16, 5)) == (255, 0, 0)
    assert sheet.getpixel((64 + GUTTER + 5, 5)) == (255, 255, 255)


@pytest.mark.parametrize(
    "label", ["fox", "a very long label that no cell of this width can hold", "", "two\nlines", "狐"]
)
def test_a_label_stays_in_its_cell(label: str) -> None:
    alone = np.asarray(picture_grid([flat("red"), flat("red")], 2, [label, ""]))
    assert (alone[:, 64 + GUTTER // 2 :][66:] == 255).all(), "the label reaches into the next cell"
    assert (alone[66:, :64] < 255).any() == bool(label)


def test_side_by_side_doubles_small_pictures_and_keeps_large_ones() -> None:
    small = side_by_side([flat("red")] * 3, [flat("blue")] * 3, ["a", "b", "a caption of two lines or even more"])
    large = side_by_side([flat("red", (512, 512))], [flat("blue", (512, 512))], ["a"])
    for sheet, count, side in ((small, 3, 128), (large, 1, 512)):
        array = np.asarray(sheet).astype(int)
        assert (array == [255, 0, 0]).all(-1).sum() == (array == [0, 0, 255]).all(-1).sum() == count * side * side
    red = np.argwhere((np.asarray(small) == [255, 0, 0]).all(-1))
    blue = np.argwhere((np.asarray(small) == [0, 0, 255]).all(-1))
    assert red[:, 0].max() < blue[:, 0].min() and red[:, 1].min() == blue[:, 1].min()


def test_captions_of_columns_do_not_touch() -> None:
    sheet = np.asarray(side_by_side([flat("red")] * 2, [flat("red")] * 2, ["w" * 80, "m " * 80]))
    right = sheet.shape[1] - GUTTER
    between = sheet[:, right - 128 - GUTTER : right - 128]
    assert (between == 255).all() and (sheet[:, right:] == 255).all()


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="0 pictures"):
        picture_grid([], 3)
    with pytest.raises(ValueError, match="each of the 1 pictures, got 2"):
        picture_grid([flat("red")], 1, ["a", "b"])
    with pytest.raises(ValueError, match="1 captions, 1 before and 2 after"):
        side_by_side([flat("red")], [flat("red")] * 2, ["a"])
