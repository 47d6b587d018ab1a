"""Separability against closed forms, and planted worlds in which the generator, or the image itself, tells."""

import io
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from PIL import Image

from diffpref.data.command import main
from diffpref.data.separability import measure


def gaussians(n: int, delta: float, seed: int = 0, d: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit Gaussians whose means are delta apart; a long constant axis, so that length 1 changes no direction."""
    x = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed))
    x[0, :, 0] += delta
    x = torch.cat([x, torch.full((2, n, 1), 1000.0)], -1)
    return x[0], x[1]


@pytest.mark.parametrize("delta", [0.0, 1.0, 2.0])
def test_the_accuracy_of_two_gaussians_is_phi_of_half_their_distance(delta: float) -> None:
    found = measure(*gaussians(5000, delta), [str(i) for i in range(5000)]).probe
    # Five standard deviations of a share of 10,000 are 0.025.
    assert found.share == pytest.approx(NormalDist().cdf(delta / 2), abs=0.025) and found.n == 10_000
    assert found.low < found.share < found.high


def test_a_prompt_is_never_in_both_parts() -> None:
    """Each prompt has its own direction, which a rule could only know from other rows of that prompt."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(40, 256, generator=generator).repeat_interleave(10, 0)
    noise = 0.1 * torch.randn(2, 400, 256, generator=generator)
    prompts = [str(i // 10) for i in range(400)]
    apart = measure(directions + noise[0], -directions + noise[1], prompts).probe
    known = measure(directions + noise[0], -directions + noise[1], [str(i) for i in range(400)]).probe
    assert apart.share < 0.65 and known.share > 0.95


def test_one_generator_that_always_wins_is_warned_of() -> None:
    chosen, rejected = gaussians(800, 0.0)
    models = [("x", "y") if i % 2 else ("x", "x") for i in range(800)]
    chosen[1::2, 0] += 6  # x draws another way than y, but x against x differs in nothing
    rejected[::2, 0] += 6
    chosen[::2, 0] += 6
    found = measure(chosen, rejected, [str(i) for i in range(800)], models)
    assert found.inside is not None and found.inside.share == pytest.approx(0.5, abs=0.09)
    assert found.name is not None and found.name.share == 0.75 and found.by_generator
    assert found.lines()[-1].startswith("warning: chosen and rejected differ mostly by who drew them")


def test_images_that_are_better_by_themselves_are_not() -> None:
    chosen, rejected = gaussians(800, 3.0)
    models = [("x", "y") if i % 4 < 2 else ("y", "x") for i in range(400)] + [("x", "x")] * 400
    found = measure(chosen, rejected, [str(i) for i in range(800)], models)
    assert found.inside is not None and abs(found.probe.share - found.inside.share) < 0.06
    assert found.name is not None and found.name.share < 0.7 and not found.by_generator
    alone = measure(chosen, rejected, [str(i) for i in range(800)])
    assert not alone.by_generator and "cannot tell style from quality" in alone.lines()[-1]


def test_too_few_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 200 pairs or more, got 199"):
        measure(*gaussians(199, 1.0), [str(i) for i in range(199)])
    with pytest.raises(ValueError, match="needs 5 prompts or more, got 4"):
        measure(*gaussians(200, 1.0), [str(i % 4) for i in range(200)])


def test_the_command_takes_a_function_of_ones_own(parquet, tmp_path: Path, capsys) -> None:
    def png(level: int) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), (level, 60, 60)).save(stream, "PNG")
        return stream.getvalue()

    columns = {"prompt": [f"p{i}" for i in range(200)], "rejected": [png(i % 40) for i in range(200)]}
    columns |= {"chosen": [png(160 + i % 40) for i in range(200)]}
    columns |= {"chosen_model": ["new"] * 200, "rejected_model": ["old"] * 200}
    source = str(parquet(columns))
    (tmp_path / "mine.py").write_text(
        "def mean(images):\n    return [list(image.getpixel((0, 0))) for image in images]\n"
    )
    assert main(["separability", source, "--features", f"{tmp_path / 'mine.py'}:mean"]) == 0
    shown = capsys.readouterr().out
    assert "a linear look at single images: 100.0%" in shown and "apart in 100% of cases, and the generator's" in shown
    assert main(["separability", source, "--features", "judge"]) == 0
    assert main(["separability", source, "--features", "jpeg_compressibility"]) == 1
    assert "has no image tower" in capsys.readouterr().err
