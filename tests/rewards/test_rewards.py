"""Rewards by name and the user's own: what is found, what is refused, and that the embedded one knows the hand."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffpref.data.decode import decode
from diffpref.data.preferences import read_preferences
from diffpref.demo.emoji_hand import HandNetwork, load, save, to_tensor
from diffpref.rewards import CheckedReward, find_reward

ASSETS = Path(__file__).parents[2] / "assets"
shipped = pytest.mark.skipif(
    not (ASSETS / "emoji-reward" / "reward.safetensors").is_file(), reason="assets/emoji-reward has not been made"
)


def grey(*levels: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (level, level, level)) for level in levels]


def checked(answer: object) -> CheckedReward:
    return CheckedReward("mine", lambda images, prompts: answer)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(code: str) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(code, encoding="utf-8")
        return path

    return write


BRIGHTNESS = """
import numpy as np

def brightness(images, prompts):
    return [np.asarray(image).mean() + len(prompt) / 1000 for image, prompt in zip(images, prompts)]

constant = 3.0
"""


def test_the_users_file(file, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its full path and by one relative to the working directory; pictures and prompts arrive in order."""
    path = file(BRIGHTNESS)
    scores = find_reward(f"{path}:brightness")(grey(3, 200), ["", "four"])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor([3.0, 200.004]))
    monkeypatch.chdir(path.parent)
    again = find_reward("mine.py:brightness", "cpu")
    assert torch.equal(again(grey(3, 200), ["", "four"]), scores)
    assert len(again([], [])) == 0
    assert torch.equal(pickle.loads(pickle.dumps(again))(grey(3, 200), ["", "four"]), scores)


def test_the_users_module(file, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(file(BRIGHTNESS).parent)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert find_reward("mine:brightness")(grey(7), [""]).tolist() == [7.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("emoji_hnad", r"must be one of .*'emoji_hand'.*got 'emoji_hnad'.* Perhaps you meant 'emoji_hand'"),
        (":brightness", "must be one of"),
        ("mine.py:", "must be one of"),
        ("no_such_module_here:brightness", "no_such_module_here cannot be imported .ModuleNotFoundError"),
        ("absent.py:brightness", "there is no file .*absent.py"),
        ("mine.py:darkness", "mine.py has no 'darkness'"),
        ("mine.py:constant", "constant is float and cannot be called"),
    ],
)
def test_what_cannot_be_found_is_named(file, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(file(BRIGHTNESS).parent)
    with pytest.raises(ValueError, match=message):
        find_reward(name)


def test_a_file_that_fails_is_refused_again_until_it_is_repaired(file) -> None:
    path = file("def brightness(images, prompts:\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be imported .SyntaxError"):
            find_reward(f"{path}:brightness")
    path.write_text(BRIGHTNESS, encoding="utf-8")
    find_reward(f"{path}:brightness")


@pytest.mark.parametrize(
    "answer",
    [[1, 2.5], (1, 2.5), np.array([1, 2.5]), torch.tensor([1, 2.5], dtype=torch.bfloat16), map(float, [1, 2.5])],
    ids=["list", "tuple", "array", "tensor", "iterator"],
)
def test_any_sequence_of_numbers_will_do(answer: object) -> None:
    assert checked(answer)(grey(0, 0), ["", ""]).tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], "returned 1 scores for 2 images"),
        ([1.0, 2.0, 3.0], "returned 3 scores for 2 images"),
        ([1.0, float("nan")], "returned nan for image 1 .'b'."),
        ([float("-inf"), 1.0], "returned -inf for image 0"),
        ([1e300, 1.0], "returned inf for image 0 .*float32"),
        (["1", "2"], "returned str '1' for image 0"),
        ("12", "returned str '12'"),
        ({1: 1, 2: 2}, "returned dict"),
        (None, "returned NoneType"),
        (3.0, "returned float"),
        (torch.tensor(3.0), "returned float"),
        (np.ones((2, 1)), r"returned list \[1.0\] for image 0"),
        ([None, 1.0], "returned NoneType None for image 0"),
    ],
)
def test_a_wrong_answer_is_refused(answer: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"reward 'mine' {message}"):
        checked(answer)(grey(0, 0), ["a", "b"])


def test_every_call_is_checked_and_gradients_are_off() -> None:
    answers = iter([[1.0], [2.0], []])
    reward = CheckedReward("mine", lambda images, prompts: next(answers) if not torch.is_grad_enabled() else None)
    assert reward(grey(0), [""]).tolist() == [1.0] and reward(grey(0), [""]).tolist() == [2.0]
    with pytest.raises(ValueError, match="returned 0 scores for 1 images"):
        reward(grey(0), [""])


def test_not_one_prompt_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        checked([0.0, 0.0])(grey(0, 0), [""])


def test_the_package_imports_neither_judge_nor_style() -> None:
    for path in (ASSETS.parent / "diffpref" / "rewards").glob("*.py"):
        assert "import diffpref.evaluate" not in path.read_text() and "from diffpref.evaluate" not in path.read_text()


def test_pictures_become_tensors_on_white() -> None:
    red, clear = Image.new("RGB", (128, 32), (255, 0, 0)), Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    marked = Image.new("RGB", (64, 64), "white")
    marked.putpixel((5, 9), (0, 255, 0))  # x = 5, y = 9
    x = to_tensor([red, clear, marked])
    assert x.shape == (3, 3, 64, 64)
    assert x[0].mean((1, 2)).tolist() == [1.0, -1.0, -1.0] and (x[1] == 1).all()
    assert x[2, :, 9, 5].tolist() == [-1.0, 1.0, -1.0]


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    """float16 keeps 11 bits, so the first copy differs a little; the second is the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = HandNetwork(widths=(4, 4, 8, 8))
    pictures = [Image.effect_noise((64, 64), 50) for _ in range(3)]
    save(network, tmp_path / "a", notes={"steps": 1})
    first = load(torch.device("cpu"), tmp_path / "a")
    save(first.network, tmp_path / "b", notes={})
    torch.testing.assert_close(network(to_tensor(pictures)), first.score(pictures, [""] * 3), atol=1e-2, rtol=0)
    assert torch.equal(
        load(torch.device("cpu"), tmp_path / "b").score(pictures, [""] * 3), first.score(pictures, [""] * 3)
    )
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json is missing"):
        load(torch.device("cpu"), tmp_path / "a")


@shipped
def test_the_embedded_reward_knows_the_hand() -> None:
    """Held-out captions: chosen is OpenMoji's drawing, rejected Google's or Twitter's of the same caption."""
    rows = list(read_preferences(ASSETS / "emoji-pairs" / "heldout.parquet"))
    pictures = [decode(picture) for row in rows for picture in row.images]
    reward = find_reward("emoji_hand")
    scores = reward(pictures, [row.prompt for row in rows for _ in range(2)]).view(-1, 2)
    assert ((scores[:, 0] > scores[:, 1]).float().mean() > 0.95).item()
    assert ((scores[:, 0] > 0).float().mean() > 0.9).item() and ((scores[:, 1] < 0).float().mean() > 0.9).item()
    # A score hangs on its own picture only; a convolution may add in another order, hence float32's 1e-4.
    torch.testing.assert_close(reward(pictures[5:6], ["x"]), scores.flatten()[5:6], atol=1e-4, rtol=1e-4)


@shipped
def test_the_embedded_reward_is_small_and_says_what_it_learned() -> None:
    reward = load(torch.device("cpu"))
    assert sum(parameter.numel() for parameter in reward.network.parameters()) <= 150_000
    config = json.loads((ASSETS / "emoji-reward" / "config.json").read_text(encoding="utf-8"))
    assert config["captions"] == 293 and config["held_out"]["real"]["AUC"] > 0.99
