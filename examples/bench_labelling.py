"""What labelling costs beside bare drawing and scoring, and what batched scoring saves; prints one table.

    python examples/bench_labelling.py [--captions 128] [--rounds 3]

On tiny-sdxl and the embedded reward: (a) the labelling engine, from an empty folder to packed lists, against the same
pictures from the same seeds by a bare loop of the stock pipeline and one call of the reward, in turn, in one process;
(b) a PickScore-format reward on batches, each caption encoded once, against one picture at a time with its caption
encoded each time, as the published packages score. Ratios with their range over the rounds, of the clock and of the
processor's seconds; the latter hold on a machine that others use too.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

Seconds = tuple[float, float]
"""Of the clock, and of the processor over all threads."""

SAMPLES = 4
CALL: dict[str, Any] = {"num_inference_steps": 25, "guidance_scale": 3.0, "height": 64, "width": 64}
BATCH = 16


def settings(captions: list[str], folder: Path) -> Any:
    """The labelling run: one generator, one reward, lists."""
    from diffpref.files.embedded import embedded
    from diffpref.label.settings import from_mapping

    (folder / "prompts.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    generator = {
        "name": "tiny-sdxl",
        "pretrained_model_name_or_path": str(embedded("assets/tiny-sdxl")),
        "dtype": "float32",
        "load": {"add_watermarker": False},
        "call": CALL,
        "samples": SAMPLES,
        "batch_size": BATCH,
    }
    keys = {
        "prompts": str(folder / "prompts.txt"),
        "generators": [generator],
        "rewards": [{"reward": "pickscore", "checkpoint": str(embedded("assets/tiny-clip")), "processor": ""}],
        "output_dir": str(folder / "out"),
        "workers": 1,
    }
    return from_mapping(keys, "bench")


class Watch:
    """Reads the clock and the processor's seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def __call__(self) -> Seconds:
        return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def bare(captions: list[str]) -> tuple[Seconds, list[Image.Image], Any]:
    """Seconds of loading, drawing and scoring, with nothing around them; pictures and reward."""
    from diffusers import StableDiffusionXLPipeline

    from diffpref.files.embedded import embedded
    from diffpref.rewards import find_reward

    jobs = [(caption, place) for place, caption in enumerate(caption for caption in captions for _ in range(SAMPLES))]
    watch, pictures = Watch(), []
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(
        embedded("assets/tiny-sdxl"), dtype=torch.float32, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        for first in range(0, len(jobs), BATCH):
            part = jobs[first : first + BATCH]
            generators = [torch.Generator().manual_seed(seed) for _, seed in part]
            pictures += pipeline([caption for caption, _ in part], generator=generators, **CALL).images
    reward = find_reward("pickscore", settings={"checkpoint": str(embedded("assets/tiny-clip")), "processor": ""})
    score_batches(pictures, captions, reward)
    return watch(), pictures, reward


def score_batches(pictures: list[Image.Image], captions: list[str], reward: Any) -> Seconds:
    """Seconds to score eight captions' pictures at a time."""
    watch, repeated = Watch(), [caption for caption in captions for _ in range(SAMPLES)]
    for first in range(0, len(repeated), 8 * SAMPLES):
        reward(pictures[first : first + 8 * SAMPLES], repeated[first : first + 8 * SAMPLES])
    return watch()


def one_by_one(pictures: list[Image.Image], captions: list[str], reward: Any) -> Seconds:
    """Seconds to score each picture alone, its caption encoded anew."""
    watch, repeated = Watch(), [caption for caption in captions for _ in range(SAMPLES)]
    for picture, caption in zip(pictures, repeated, strict=True):
        reward([picture], [caption])
    return watch()


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    from diffpref.data.prompts import read_prompts
    from diffpref.files.embedded import embedded
    from diffpref.label.engine import label
    from diffpref.run.quiet import quiet_libraries

    quiet_libraries()
    captions = read_prompts(str(embedded("assets/emoji-pairs/train.parquet")), limit=args.captions)
    bare(captions[:8])  # what a process loads once, neither side shall pay
    costs: list[Seconds] = []
    ratios: list[Seconds] = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            config = settings(captions, Path(folder))
            watch = Watch()
            label(config, say=lambda line: None)
            whole = watch()
        plain, pictures, reward = bare(captions)
        alone, batched = one_by_one(pictures, captions, reward), score_batches(pictures, captions, reward)
        costs.append((whole[0] / plain[0] - 1, whole[1] / plain[1] - 1))
        ratios.append((alone[0] / batched[0], alone[1] / batched[1]))
        print(f"the engine {whole[1]:.1f} s, bare {plain[1]:.1f} s of the processor", flush=True)
    print("\n| what | clock: median [least, most] | processor: median [least, most] |\n|---|---|---|")
    for name, values in (
        ("the engine's own share on top of bare drawing and scoring", costs),
        ("one by one / batched scoring", ratios),
    ):
        clock, processor = (spread(list(some)) for some in zip(*values, strict=True))
        print(f"| {name} | {clock} | {processor} |")


if __name__ == "__main__":
    main()
