"""The Frechet distance of tiny-edm and of each round of its self-play, on many samples of the same noise.

    python -m diffpref.train --config configs/tiny-edm/ddo.yaml
    python examples/measure_rounds.py runs/tiny-edm-ddo

Classes come in turn, so that all are equally many; 10,000 samples take about five minutes of one core each.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import UNet2DModel

from diffpref.evaluate.measure import find_measure
from diffpref.files import atomic
from diffpref.files.embedded import embedded
from diffpref.pipelines.edm import EDMPipeline

CLASSES = 10


def distance(weights: Path | None, count: int, steps: int) -> float:
    """The measure of `count` samples of the base model, or of the network in a folder."""
    pipeline = EDMPipeline.from_pretrained(embedded("assets/tiny-edm"))
    if weights is not None:
        pipeline.unet = UNet2DModel.from_pretrained(weights / "unet")
    pipeline.set_progress_bar_config(disable=True)
    pictures, labels = [], [place % CLASSES for place in range(count)]
    for first in range(0, count, 100):
        draws = [torch.Generator().manual_seed(place) for place in range(first, min(first + 100, count))]
        part = labels[first : first + 100]
        pictures += pipeline(class_labels=part, num_inference_steps=steps, generator=draws).images
    return find_measure("fashion_frechet", "cpu")(pictures, [str(label) for label in labels])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the output directory of the self-play")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=9, help="levels of the sampler, as in the config")
    args = parser.parse_args()
    rounds = json.loads((args.run / "self_play.json").read_text())["rounds"]
    rows = [("base", None)] + [(f"round {entry['round']}", args.run / entry["best"]) for entry in rounds]
    result: dict[str, float] = {}
    for name, weights in rows:
        start = time.monotonic()
        result[name] = distance(weights, args.samples, args.steps)
        change = result[name] / result["base"] - 1
        print(f"{name}: {result[name]:.4f} ({change:+.1%} of the base) {time.monotonic() - start:.0f} s", flush=True)
    atomic.write_json(args.run / "frechet.json", {"samples": args.samples, "steps": args.steps, "frechet": result})


if __name__ == "__main__":
    main()
