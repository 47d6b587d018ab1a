"""All methods on the tiny models, three seeds each, judged on captions that no training saw: one table and one plot.

    python examples/compare_methods.py [--jobs 2] [--seeds 0] [--methods dpo smpo] [--backbones tiny-sdxl]

Each run is configs/BACKBONE/METHOD.yaml with its own seed, in a process of its own. What is finished is kept in
--output_dir, so the command goes on where it was stopped. It ends with comparison.md and comparison.svg there.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BACKBONES = ("tiny-sdxl", "tiny-sd3")
METHODS = ("dpo", "inpo", "smpo", "rankdpo", "d3po", "ddo")
HAND = "openmoji"


@dataclass(frozen=True)
class Result:
    """One run, judged: wins[i] is 1 where caption i came out more in the preferred hand than the base's, else 0."""

    wins: list[float]
    caption: float
    base_caption: float
    frechet: float
    base_frechet: float
    chosen_error: float
    steps: int
    seconds: float
    memory_gib: float


def draw(model: Path, tuned: Path | None, captions: list[str], config: Any) -> list[Any]:
    """A picture for each caption from seed = its place, by a stock diffusers pipeline with the tuned weights."""
    import diffusers
    import torch

    name = json.loads((model / "model_index.json").read_text())["_class_name"]
    # diffusers does not load an SD3 pipeline that was saved without T5 unless it is told so.
    absent: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None} if "3" in name else {}
    pipeline = getattr(diffusers, name).from_pretrained(model, dtype=torch.float32, **absent)
    if tuned is not None:
        pipeline.load_lora_weights(str(tuned))
    pipeline.set_progress_bar_config(disable=True)
    length = {"max_sequence_length": config.model.max_sequence_length} if "3" in name else {}
    pictures = []
    for first in range(0, len(captions), 32):
        part = captions[first : first + 32]
        pictures += pipeline(
            part,
            height=config.data.resolution,
            width=config.data.resolution,
            num_inference_steps=config.validation.num_inference_steps,
            guidance_scale=config.validation.guidance_scale,
            generator=[torch.Generator().manual_seed(first + place) for place in range(len(part))],
            **length,
        ).images
    return pictures


def settings(backbone: str, method: str, seed: int, output: Path) -> Any:
    """The method's config on this backbone, as it is, with a seed and a folder."""
    from diffpref.files.embedded import embedded
    from diffpref.training.settings import from_mapping, from_yaml

    base = from_yaml(embedded(f"configs/{backbone}/{method}.yaml"))
    changes: dict[str, Any] = {
        "pretrained_model_name_or_path": str(embedded(base.model.pretrained_model_name_or_path)),
        "dataset_name": str(embedded(base.data.dataset_name)),
        "output_dir": str(output / "run"),
        "overwrite_output_dir": True,
        "validation_prompts": [],
        "seed": seed,
    }
    return from_mapping(changes, "compare_methods", base)


def judge(config: Any, tuned: Path, folder: Path, split: str, count: int) -> dict[str, Any]:
    """The judge's figures of the tuned model against its base on the captions of a split."""
    from PIL import Image

    from diffpref.data.decode import decode
    from diffpref.data.preferences import read_preferences
    from diffpref.demo.compare import compare_hands
    from diffpref.demo.judge import Judge, to_batch
    from diffpref.files.embedded import embedded

    rows = read_preferences(embedded(f"assets/emoji-pairs/{split}.parquet"))
    real = [decode(row.images[row.scores.index(max(row.scores))]) for row in rows]
    captions = [rows[place].prompt for place in range(0, len(rows), max(1, len(rows) // count))][:count]
    model = Path(config.model.pretrained_model_name_or_path)
    kept = folder.parent / f"base-{split}-{count}"
    if not (kept / "done").exists():
        kept.mkdir(parents=True, exist_ok=True)
        for place, picture in enumerate(draw(model, None, captions, config)):
            picture.save(kept / f"{place:03d}.png")
        (kept / "done").touch()
    base = [Image.open(kept / f"{place:03d}.png").convert("RGB") for place in range(len(captions))]
    pictures = draw(model, tuned, captions, config)
    for place, picture in enumerate(pictures[:: max(1, len(pictures) // 24)]):
        picture.save(folder / f"sample-{place:02d}.png")
    network = Judge.load(embedded("assets/judge"))
    result = compare_hands(network, base=base, tuned=pictures, captions=captions, artist=HAND, real=real)
    column = network.artists.index(HAND)
    before, after = (network.artist_probability(to_batch(some))[:, column].tolist() for some in (base, pictures))
    return {
        "wins": [float(a > b) + 0.5 * float(a == b) for a, b in zip(after, before, strict=True)],
        "caption": result.tuned.top1,
        "base_caption": result.base.top1,
        "frechet": result.tuned.frechet,
        "base_frechet": result.base.frechet,
    }


def one(backbone: str, method: str, seed: int, folder: Path, split: str, count: int) -> None:
    """Train and judge one run; writes result.json when all is done."""
    from diffpref.files import atomic
    from diffpref.run.quiet import quiet_libraries
    from diffpref.training.loop import train

    quiet_libraries()
    folder.mkdir(parents=True, exist_ok=True)
    config = settings(backbone, method, seed, folder)
    start = time.monotonic()
    tuned = train(config, say=lambda line: None)
    seconds = time.monotonic() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    metrics = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    steps = metrics[-1]["step"] * (config.source.rounds if method == "d3po" else 1)
    figures = judge(config, tuned, folder, split, count)
    chosen = statistics.mean(line["error/chosen/ratio"] for line in metrics[-3:])
    result = Result(**figures, chosen_error=chosen, steps=steps, seconds=seconds, memory_gib=memory)
    atomic.write_json(folder / "result.json", asdict(result))


def interval(results: list[Result]) -> tuple[float, float, float]:
    """The mean win rate over seeds and its 95 % interval; captions are the sample, for seeds share them."""
    wins = [statistics.mean(by_seed) for by_seed in zip(*(result.wins for result in results), strict=True)]
    mean = statistics.mean(wins)
    half = 1.96 * statistics.stdev(wins) / math.sqrt(len(wins))
    return mean, mean - half, mean + half


def table(results: dict[tuple[str, str], list[Result]]) -> str:
    """The comparison as a Markdown table."""
    lines = [
        "| backbone | method | win rate over the base | by seed | caption found | Frechet | steps | seconds | GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (backbone, method), runs in results.items():
        mean, low, high = interval(runs)
        seeds = ", ".join(f"{statistics.mean(run.wins):.2f}" for run in runs)

        def average(name: str, runs: list[Result] = runs) -> float:
            return statistics.mean(getattr(run, name) for run in runs)

        lines.append(
            f"| {backbone} | {method} | {mean:.3f} [{low:.3f}, {high:.3f}] | {seeds} "
            f"| {average('base_caption'):.3f} -> {average('caption'):.3f} "
            f"| {average('base_frechet'):.1f} -> {average('frechet'):.1f} "
            f"| {runs[0].steps} | {average('seconds'):.0f} | {average('memory_gib'):.1f} |"
        )
    return "\n".join(lines) + "\n"


def plot(results: dict[tuple[str, str], list[Result]]) -> str:
    """An SVG of the win rates with their intervals, one row a run; the line is at one half."""
    left, width, row = 150, 420, 26
    height = row * len(results) + 40

    def x(value: float) -> float:
        return left + width * (value - 0.4) / 0.6

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {height}" font-family="sans-serif"'
    ]
    parts.append(' font-size="13" role="img" aria-label="Win rate of each method over its base model">')
    parts.append(f'<rect width="100%" height="{height}" fill="#ffffff"/>')
    for tick in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        colour = "#444444" if tick == 0.5 else "#dddddd"
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="10" y2="{height - 24}" stroke="{colour}"/>')
        parts.append(f'<text x="{x(tick)}" y="{height - 8}" text-anchor="middle" fill="#444444">{tick:.1f}</text>')
    colours = dict(zip(BACKBONES, ("#1f6f8b", "#b3541e"), strict=True))
    for place, ((backbone, method), runs) in enumerate(results.items()):
        mean, low, high = interval(runs)
        y, colour = 24 + row * place, colours.get(backbone, "#444444")
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end" fill="#222222">{backbone} {method}</text>')
        parts.append(f'<line x1="{x(low)}" x2="{x(high)}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<circle cx="{x(mean)}" cy="{y}" r="5" fill="{colour}"/>')
        for run in runs:
            parts.append(
                f'<circle cx="{x(statistics.mean(run.wins))}" cy="{y}" r="2.5" fill="#ffffff" stroke="{colour}"/>'
            )
        parts.append(f'<text x="{left + width + 10}" y="{y + 4}" fill="#222222">{mean:.2f}</text>')
    return "".join(parts) + "</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/compare"))
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, choices=BACKBONES)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--captions", type=int, default=292, help="how many of the 292 held-out captions are judged")
    parser.add_argument("--split", default="heldout", choices=("heldout", "train"), help="train, to choose settings")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each a process")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    places = [(b, m, s) for b in args.backbones for m in args.methods for s in args.seeds]

    def folder(backbone: str, method: str, seed: int) -> Path:
        return args.output_dir / backbone / f"{method}-{seed}"

    if args.one:
        one(*places[0], folder(*places[0]), args.split, args.captions)
        return

    def start(place: tuple[str, str, int]) -> None:
        backbone, method, seed = place
        folder(*place).mkdir(parents=True, exist_ok=True)
        if (folder(*place) / "result.json").is_file():
            return
        line = [sys.executable, __file__, "--one", "--backbones", backbone, "--methods", method, "--seeds", str(seed)]
        line += ["--output_dir", str(args.output_dir), "--captions", str(args.captions), "--split", args.split]
        with (folder(*place) / "log.txt").open("w") as log:
            code = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT).returncode
        print(f"{backbone} {method} seed {seed}: {'done' if code == 0 else f'failed, see {log.name}'}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(start, places))
    results: dict[tuple[str, str], list[Result]] = {}
    for path, place in ((folder(*place) / "result.json", place) for place in places):
        if path.is_file():
            results.setdefault(place[:2], []).append(Result(**json.loads(path.read_text())))
    (args.output_dir / "comparison.md").write_text(table(results))
    (args.output_dir / "comparison.svg").write_text(plot(results))
    print(table(results))


if __name__ == "__main__":
    main()
