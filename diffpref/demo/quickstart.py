"""`diffpref quickstart`: the whole road on the embedded emoji model, in minutes and without a GPU.

Samples of held-out captions, Diffusion-DPO towards one artist's hand on the training captions, the same samples again
through stock diffusers, a judge that training never saw, and a page that shows what changed.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image

    from diffpref.demo.compare import HandComparison
    from diffpref.training.config import TrainConfig
    from diffpref.training.groups import Validation

CONFIGS = {"lora": "configs/tiny-sdxl/dpo.yaml", "full": "configs/tiny-sdxl/dpo-full.yaml"}
HELDOUT = "assets/emoji-pairs/heldout.parquet"
ARTIST = "openmoji"
PAIRS = 24
"""Before-and-after pairs that the report shows."""


@dataclass(frozen=True)
class Quickstart:
    """Fine-tune the embedded emoji model with DPO, and show what changed."""

    output_dir: Path = Path("diffpref-quickstart")
    overwrite_output_dir: bool = False
    """Delete what an earlier quickstart left in the output directory."""
    captions: int = 292
    """How many of the held-out captions are drawn before and after, for the judge."""
    adapter: Literal["lora", "full"] = "lora"
    """Train LoRA, or all weights."""
    seed: int = 0


def settings(options: Quickstart) -> "TrainConfig":
    """The training settings: the config of the adapter, with this installation's paths."""
    from diffpref.files.embedded import embedded
    from diffpref.training.settings import from_mapping, from_yaml

    base = from_yaml(embedded(CONFIGS[options.adapter]))
    changes = {
        "pretrained_model_name_or_path": str(embedded("assets/tiny-sdxl")),
        "dataset_name": str(embedded(base.data.dataset_name)),
        "output_dir": str(options.output_dir),
        "overwrite_output_dir": options.overwrite_output_dir,
        "seed": options.seed,
    }
    return from_mapping(changes, "the quickstart", base)


def spread(count: int, wanted: int) -> range:
    """At most `wanted` of `count` places, evenly apart."""
    return range(0, count, max(1, count // wanted))[:wanted]


def draw(
    model: Path, tuned: Path | None, prompts: Sequence[str], settings: "Validation", *, side: int, seed: int
) -> "list[Image.Image]":
    """An image for each prompt, by a stock pipeline, with the trained weights of `tuned` where it is given."""
    import torch
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(model, dtype=torch.float32, add_watermarker=False)
    if tuned is not None and (tuned / "unet").is_dir():
        pipeline.unet = UNet2DConditionModel.from_pretrained(tuned / "unet", dtype=torch.float32)
    elif tuned is not None:
        pipeline.load_lora_weights(str(tuned))
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    pictures, batch = [], 32
    for first in range(0, len(prompts), batch):
        part = list(prompts[first : first + batch])
        pictures += pipeline(
            part,
            height=side,
            width=side,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            generator=[torch.Generator().manual_seed(seed + first + i) for i in range(len(part))],
        ).images
    return pictures


def main(arguments: list[str]) -> int:
    """Run the quickstart; prints each stage with its seconds and the table of the judge."""
    import tyro

    options = tyro.cli(Quickstart, args=arguments, prog="diffpref quickstart")
    if options.captions < 1:
        raise ValueError(f"captions must be 1 or above, got {options.captions}; there are 292 held out.")
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {line}", flush=True)

    say("loading")
    from diffpref.run.quiet import quiet_libraries

    quiet_libraries()
    from diffpref.data.decode import decode
    from diffpref.data.preferences import read_preferences
    from diffpref.demo.compare import compare_hands
    from diffpref.demo.judge import Judge
    from diffpref.files.embedded import embedded
    from diffpref.training.loop import train
    from diffpref.training.prepare import check_output

    config = settings(options)
    check_output(config.run)
    heldout = read_preferences(embedded(HELDOUT))
    chosen = [decode(row.images[row.scores.index(max(row.scores))]) for row in heldout]
    captions = [heldout[place].prompt for place in spread(len(heldout), options.captions)]
    model = embedded("assets/tiny-sdxl")
    say(f"drawing {len(captions)} held-out captions with the base model")
    look, seed, side = config.validation, config.run.seed, config.data.resolution
    before = draw(model, None, captions, look, side=side, seed=seed)
    say(f"fine-tuning: DPO towards {ARTIST}'s hand, {config.optimization.max_train_steps} steps")
    run = train(config, say=say)
    say("drawing the same captions, from the same seeds, with the tuned weights in stock diffusers")
    after = draw(model, run, captions, look, side=side, seed=seed)
    judge = Judge.load(embedded("assets/judge"))
    result = compare_hands(judge, base=before, tuned=after, captions=captions, artist=ARTIST, real=chosen)
    drawn = dataclasses.asdict(look) | {"seed": seed}
    report = write_result(run, drawn, result, before, after, captions, time.monotonic() - start)
    print()
    for name, first, second in result.table():
        print(f"{name:44} {first!s:>24} {second!s:>24}")
    print()
    say(f"report: {report}")
    return 0


def write_result(
    run: Path,
    settings: Mapping[str, object],
    result: "HandComparison",
    before: "Sequence[Image.Image]",
    after: "Sequence[Image.Image]",
    captions: Sequence[str],
    seconds: float,
) -> Path:
    """evaluation.json, the pairs of pictures and report.html in the run's folder; returns the report's path."""
    from diffpref.files import atomic
    from diffpref.report.grid import side_by_side
    from diffpref.run.environment import peak_memory_gib
    from diffpref.training.report import write_report

    folder = run / "samples" / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    # Evenly over the captions, whose order goes from animals to household things.
    shown = spread(len(captions), PAIRS)
    for place, index in enumerate(shown):
        atomic.save_picture(folder / f"{place:03d}-before.png", before[index])
        atomic.save_picture(folder / f"{place:03d}-after.png", after[index])
    atomic.write_json(folder / "captions.json", [captions[index] for index in shown])
    few = shown[::3]
    sheet = side_by_side([before[i] for i in few], [after[i] for i in few], [captions[i] for i in few])
    atomic.save_picture(run / "samples" / "before-after.png", sheet)
    low, high = result.win_rate.low, result.win_rate.high
    evaluation = {
        "figures": [
            [f"{result.win_rate.rate:.0%}", f"wins over the base, {low:.0%} to {high:.0%}", ""],
            [f"{seconds:.0f} s", "from start to end", ""],
        ],
        "table": result.table(),
        "notes": [
            f"{len(captions)} captions that training never saw, the same prompt and seed before and after, judged by a "
            "classifier that training never used. The interval is Wilson's at 95 %.",
        ],
        "settings": dict(settings),
        "comparison": result.to_json(),
        "seconds": seconds,
        "peak_memory_gib": peak_memory_gib(),
    }
    atomic.write_json(run / "evaluation.json", evaluation)
    return write_report(run)
