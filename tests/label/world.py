"""A labelling world without models: a generator that draws noise from its seed, and rewards that are arithmetic.

The generator writes every picture it draws into drawn.log, so that a test can count what was drawn twice.
"""

from pathlib import Path
from typing import Any

from diffpref.labelling.config import LabelConfig
from diffpref.labelling.settings import from_mapping

WORLD = '''
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
SLEEP = float(os.environ.get("WORLD_SLEEP", "0"))


def note(name, text):
    """One write, so that lines of several processes do not mix."""
    handle = os.open(HERE / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, (text + "\\n").encode())
    os.close(handle)


def noise(seed):
    low = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((16, 16), Image.Resampling.NEAREST)


def make(device):
    def draw(prompts, seeds):
        pictures = []
        for prompt, seed in zip(prompts, seeds):
            note("drawn.log", f"{prompt}|{seed}")
            time.sleep(SLEEP)
            if "deadly" in prompt:
                os._exit(9)
            if "explode" in prompt:
                raise RuntimeError(f"no picture of {prompt}")
            if "black" in prompt:
                pictures.append(Image.new("RGB", (16, 16)))
            elif "flat" in prompt:
                pictures.append(Image.new("RGB", (16, 16), (90, 90, 90)))
            elif "nan" in prompt:
                pictures.append(np.full((16, 16, 3), np.nan))
            elif "same" in prompt:
                pictures.append(noise(7))
            else:
                pictures.append(noise(seed))
        return pictures

    return draw


def moody(device):
    """Fails on the first seed that it sees of each prompt."""
    seen = set()

    def draw(prompts, seeds):
        if len(prompts) == 1 and prompts[0] not in seen:
            seen.add(prompts[0])
            return [np.full((16, 16, 3), np.nan)]
        return [np.full((16, 16, 3), np.nan) if p not in seen else noise(s) for p, s in zip(prompts, seeds)]

    return draw


def other(device):
    return lambda prompts, seeds: [noise(seed + 1) for seed in seeds]


def one_less(device):
    return lambda prompts, seeds: [noise(seed) for seed in seeds][1:]


def brightness(images, prompts):
    note("scored.log", f"brightness|{len(images)}")
    time.sleep(SLEEP / 2 * len(images))
    return [np.asarray(image).mean() for image in images]


def redness(images, prompts):
    note("scored.log", f"redness|{len(images)}")
    return [np.asarray(image)[..., 0].mean() - np.asarray(image)[..., 2].mean() for image in images]


def not_a_number(images, prompts):
    scores = [np.asarray(image).mean() for image in images]
    return [float("nan") if "odd" in prompt else score for prompt, score in zip(prompts, scores)]


def too_few(images, prompts):
    return [0.0] * (len(images) - 1)


def raises(images, prompts):
    if any("odd" in prompt for prompt in prompts):
        raise RuntimeError("this reward does not like odd prompts")
    return [np.asarray(image).mean() for image in images]
'''
PROMPTS = [f"thing number {word}" for word in "one two three four five six seven eight nine ten".split()]


def make_world(folder: Path, prompts: list[str] = PROMPTS, **changes: Any) -> dict[str, Any]:
    """The keys of a label.yaml in a new world; `changes` replace or add keys."""
    folder.mkdir(parents=True, exist_ok=True)
    code = folder / "world.py"
    if not code.exists():
        code.write_text(WORLD, encoding="utf-8")
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return {
        "prompts": str(folder / "prompts.txt"),
        "generators": [
            {"name": "noise", "function": f"{code}:make", "samples": 2, "batch_size": 3},
            {"name": "other", "function": f"{code}:other", "samples": 2},
        ],
        "rewards": [
            {"name": "bright", "reward": f"{code}:brightness"},
            {"name": "red", "reward": f"{code}:redness"},
        ],
        "output_dir": str(folder / "out"),
        "shard_size": 4,
        **changes,
    }


def config_of(folder: Path, prompts: list[str] = PROMPTS, **changes: Any) -> LabelConfig:
    """The settings of a new world."""
    return from_mapping(make_world(folder, prompts, **changes), "world")


def data_files(root: Path) -> dict[str, bytes]:
    """Everything that a run made but its markers, its report and its copy of the settings, which hold paths."""
    found = {}
    for folder in ("images", "filter", "scores", "labels", "packs"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file():
                found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def lines(path: Path) -> list[str]:
    """The lines of a log, or none."""
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
