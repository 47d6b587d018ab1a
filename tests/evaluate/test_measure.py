"""Measures by name: the embedded one, and the user's own."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffpref.data.decode import decode
from diffpref.data.images import read_images
from diffpref.demo.fashion import fashion_frechet, load_classifier, load_real_features
from diffpref.evaluate.measure import CheckedMeasure, find_measure

FASHION = Path("/usr/share/datasets/fashion-mnist")
ASSETS = Path(__file__).parents[2] / "assets"
shipped = pytest.mark.skipif(
    not (ASSETS / "fashion-classifier" / "real.safetensors").is_file(), reason="assets/fashion-classifier is not made"
)

MINE = """
import numpy as np

def darkness(images, prompts):
    return 255 - np.mean([np.asarray(image).mean() for image in images]) + len(prompts[0])

constant = 3.0
"""


def noise(n: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 28, 28), np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_measures.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "my_measures.py"


@pytest.mark.parametrize("name", ["my_measures.py:darkness", "my_measures:darkness"])
def test_the_users_own(mine: Path, name: str) -> None:
    measure = find_measure(name)
    pictures = [Image.new("L", (4, 4), level) for level in (5, 15)]
    value = measure(pictures, ["abc", ""])
    assert type(value) is float and value == pytest.approx(255 - 10 + 3)
    assert pickle.loads(pickle.dumps(measure))(pictures, ["abc", ""]) == value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashion_fid", r"measure must be one of \['fashion_frechet'\], or your own.*got 'fashion_fid'"),
        (":darkness", "measure must be one of"),
        ("my_measures.py:", "measure must be one of"),
        ("absent.py:darkness", "^measure 'absent.py:darkness': there is no file"),
        ("no_such_module_at_all:f", "^measure 'no_such_module_at_all:f': module .* cannot be imported"),
        ("my_measures.py:light", "^measure 'my_measures.py:light': my_measures.py has no 'light'"),
        ("my_measures.py:constant", "constant is float and cannot be called"),
    ],
)
def test_names_that_are_no_measure(mine: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_measure(name)


@pytest.mark.parametrize("answer", [2, 2.0, np.float32(2), torch.tensor(2.0), torch.tensor([2.0])])
def test_any_number_is_an_answer(answer: object) -> None:
    assert CheckedMeasure("mine", lambda images, prompts: answer)(noise(1), [""]) == 2.0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "measure 'mine' returned NoneType None: it must return one number"),
        ("2", "returned str '2'"),
        ([1.0, 2.0], r"returned list \[1.0, 2.0\]: it must return one number for all pictures"),
        (torch.ones(2), "returned Tensor"),
        (float("nan"), "returned nan for 1 pictures: it must be finite"),
        (float("inf"), "returned inf"),
    ],
)
def test_answers_that_are_no_number(answer: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckedMeasure("mine", lambda images, prompts: answer)(noise(1), [""])


def test_pictures_and_prompts_must_fit() -> None:
    measure = CheckedMeasure("mine", lambda images, prompts: 1.0)
    with pytest.raises(ValueError, match="one prompt a picture, got 1 for 2"):
        measure(noise(2), [""])
    with pytest.raises(ValueError, match="got none"):
        measure([], [])


@shipped
def test_fashion_frechet_is_the_distance_of_the_features_to_the_training_pictures() -> None:
    """Against the same pictures as tensors; a grey picture saved as colour measures the same."""
    measure, pictures = find_measure("fashion_frechet"), noise(20)
    x = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])[:, None] / 127.5 - 1
    expected = fashion_frechet(load_classifier(), x, load_real_features("train"))
    assert measure(pictures, [""] * 20) == pytest.approx(expected, rel=1e-5)
    coloured = [picture.convert("RGB") for picture in pictures]
    assert measure(coloured, [""] * 20) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="picture 1 is 32 x 32: use it with"):
        measure([pictures[0], Image.new("L", (32, 32))], ["", ""])
    with pytest.raises(ValueError, match="at least two pictures"):
        measure(pictures[:1], [""])


@shipped
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_real_pictures_are_near_and_noise_is_far() -> None:
    """README of the classifier: about 0.5 for 500 real pictures, about 110 for noise; here with room for 300."""
    measure: Callable[..., float] = find_measure("fashion_frechet")
    real = [decode(row.images[0]) for row in read_images(FASHION, max_rows=300)]
    assert measure(real, [""] * 300) < 2
    assert measure(noise(300), [""] * 300) > 50
