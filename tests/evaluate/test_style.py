"""The style features: what they are of pictures simple enough to say, and what they must not see."""

import pytest
import torch

from diffpref.demo.style import STYLE, style

PALETTE, SHADING = 343, 49
"""7 x 7 x 7 colours, then twice 7 x 7 of shading, then 3 x 6 of flatness."""


def plain(red: float, green: float, blue: float) -> torch.Tensor:
    return torch.tensor([red, green, blue], dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 64, 64).clone()


def pictures(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_one_row_a_picture_in_0_to_1() -> None:
    s = style(pictures(3))
    assert s.shape == (3, STYLE) and STYLE == PALETTE + 2 * SHADING + 18
    assert 0 <= s.min() and s.max() <= 1


def test_shares_sum_to_1() -> None:
    palette, near, far, _ = style(pictures(3)).split([PALETTE, SHADING, SHADING, 18], 1)
    for roots in (palette, near, far):
        torch.testing.assert_close(roots.square().sum(1), torch.ones(3))


def test_the_palette_of_half_a_picture_of_each_colour() -> None:
    x = plain(1, 1, 1)
    x[:, :, :32] = torch.tensor([1.0, 0.0, 0.5]).view(1, 3, 1, 1)  # bins 6, 0 and 3 of 0 to 6
    palette = style(x)[0, :PALETTE].view(7, 7, 7)
    assert palette[6, 6, 6].item() == pytest.approx(0.5**0.5, abs=1e-6)
    assert palette[6, 0, 3].item() == pytest.approx(0.5**0.5, abs=1e-6)
    assert palette.square().sum().item() == pytest.approx(1, abs=1e-6)


def test_a_colour_between_two_bins_is_shared() -> None:
    palette = style(plain(0, 0, 1 / 24))[0, :PALETTE].view(7, 7, 7)  # a quarter of the way from bin 0 to bin 1
    assert palette[0, 0, 0].square().item() == pytest.approx(0.75, abs=1e-5)
    assert palette[0, 0, 1].square().item() == pytest.approx(0.25, abs=1e-5)


def test_a_plain_picture_has_no_shading_and_is_flat() -> None:
    _, near, far, flat = style(plain(0.5, 0.5, 0.5)).split([PALETTE, SHADING, SHADING, 18], 1)
    for roots in (near, far):
        assert roots.view(7, 7)[3, 3].item() == pytest.approx(1, abs=1e-3)  # as light as around, which is half light
    assert (flat == 1).all()


def test_stripes_are_flat_only_to_wide_means() -> None:
    x = plain(0, 0, 0)
    x[..., 2::4] = x[..., 3::4] = 1.0  # two black columns, two white: two pixels on, always the other
    points, pairs, fours = style(x)[0, -18:].view(3, 6)
    assert (points == 0).all()
    assert pairs.max() <= 0.5 + 1e-3
    assert (fours == 1).all()


def test_mirrored_or_turned_over_it_is_the_same_hand() -> None:
    """Of flatness, which looks along the rows, a quarter turn would change the features; a mirror does not."""
    x = pictures(3)
    for axes in ([3], [2], [2, 3]):
        torch.testing.assert_close(style(x.flip(axes)), style(x), atol=1e-3, rtol=0)
