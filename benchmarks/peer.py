"""Our training step against the diffusers research script's order, on the CPU: the embedded SDXL, the same pictures.

The script decodes and encodes pictures and prompts at every step, has peft's LoRA, and runs the policy before the
reference with its graph alive. Ours is the engine of a run, which finds latents and text in its cache and, from the
second epoch on where `stored_reference` is set, the reference's errors too. All clip and end with AdamW. They take
turns, so that what else the machine does meets all.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import attach_stock_lora, peer_step
from diffpref.backbones.adapters import LoRA, trainable
from diffpref.backbones.unet import STEPS
from diffpref.counting.steps import BETA
from diffpref.data.decode import decode
from diffpref.data.framing import to_square
from diffpref.data.rows import Preferences
from diffpref.files.embedded import embedded
from diffpref.probe import forward_probe
from diffpref.run.randomness import index_at
from diffpref.sources.dataset import Dataset
from diffpref.training.config import TrainConfig
from diffpref.training.loop import basis_of, prepared
from diffpref.training.models import accelerator_of
from diffpref.training.rounds import Round
from diffpref.training.settings import from_mapping, from_yaml

PAIRS, ROWS = 4, 16
EPOCH = ROWS // PAIRS
"""Steps until all errors of the reference are stored."""
SCRIPT = "diffusers script"
Turn = Callable[[], object]


def race(repeats: int) -> tuple[list[dict[str, Any]], str]:
    """Seconds a step of each, and how many times faster ours are, with the spread over `repeats` turns."""
    with tempfile.TemporaryDirectory() as folder:
        config = settings(Path(folder), stored=0)
        rows = Dataset().read(config.data, config.objective)
        runs = {
            SCRIPT: their_turn(config, rows),
            "ours": our_turn(config, rows),
            "ours, reference stored": our_turn(settings(Path(folder), stored=1), rows),
        }
        seconds = take_turns(runs, repeats)
    lines = ["| step of 4 pairs | seconds, median | times faster, median | range |", "| --- | --- | --- | --- |"]
    found = []
    for name, values in seconds.items():
        ratios = [theirs / mine for theirs, mine in zip(seconds[SCRIPT], values, strict=True)]
        middle = statistics.median(ratios)
        found.append({"step": name, "seconds": values, "ratios": ratios, "median": middle})
        lines.append(
            f"| {name} | {statistics.median(values):.3f} | {middle:.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        )
    return found, "\n".join([*lines, "", f"{repeats} turns"])


def take_turns(runs: dict[str, Turn], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run's steps, one after the other, after an epoch that nobody measures."""
    for run in runs.values():
        for _ in range(EPOCH):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def settings(folder: Path, *, stored: int) -> TrainConfig:
    """The quickstart's config, with the batch of the race."""
    base = from_yaml(embedded("configs/tiny-sdxl/dpo.yaml"))
    changes = {
        "pretrained_model_name_or_path": str(embedded(base.model.pretrained_model_name_or_path)),
        "dataset_name": str(embedded(base.data.dataset_name)),
        "max_train_samples": ROWS,
        "train_batch_size": PAIRS,
        "beta": BETA,
        "sft": 0.0,
        "validation_prompts": [],
        "output_dir": str(folder / f"stored-{stored}"),
        "cache_dir": str(folder / "cache"),
        "stored_reference": stored,
    }
    return from_mapping(changes, "bench peer", base)


def our_turn(config: TrainConfig, rows: Preferences) -> Turn:
    """A step of the training loop, from the cached batch to the optimizer."""
    basis = basis_of(config, lambda line: None)
    accelerator = accelerator_of(config.run, config.adapter)
    asked = Round(basis=basis, summary="", encode=lambda where, say: Dataset().encode(rows, None, basis, where, say))
    ready = prepared(config, asked, accelerator, basis.say)
    example = next(ready.feed(0, 1))
    plan = ready.works.plan(config.mode, config.optimizer, example, None)
    engine = ready.works.engine(
        plan, config.objective, scores=example.candidates.scores, run=config.run, identity="", stored=ready.stored
    )
    ours = ready.feed(0, 2**31)
    return _then_update(ready.works.models.network, config, lambda: engine.step(ours, 1))


def their_turn(config: TrainConfig, rows: Preferences) -> Turn:
    """A step as the script has it, from the encoded picture files to the optimizer."""
    family = basis_of(config, lambda line: None).family
    encoder, network = family.load_encoder(torch.device("cpu")), family.load_network(torch.float32).train()
    assert isinstance(config.adapter, LoRA)
    attach_stock_lora(network, config.adapter.rank, family.lora_targets)
    model, draws, side = family.backbone(network), torch.Generator().manual_seed(0), config.data.resolution
    seen = 0

    def step() -> None:
        nonlocal seen
        chosen = [rows[index_at(config.run.seed, seen + place, len(rows))] for place in range(PAIRS)]
        seen += PAIRS
        # Better first, as the rows' scores say.
        files = [
            row.images[place]
            for row in chosen
            for place in (row.scores[0] < row.scores[1], row.scores[0] >= row.scores[1])
        ]
        pictures = torch.stack([to_square(decode(file), side, (0.5, 0.5)) for file in files])
        x0 = encoder.encode_pictures(pictures, [draws] * len(pictures)).unflatten(0, (PAIRS, 2))
        eps = torch.randn(x0[:, :1].shape, generator=draws).expand_as(x0)
        t = torch.randint(STEPS, (PAIRS,), generator=draws)
        cond = family.group_cond(encoder.encode_prompts([row.prompt for row in chosen]), side)
        peer_step(network, model, forward_probe(family.path, x0, t, eps, cond), BETA)

    return _then_update(network, config, step)


def _then_update(network: torch.nn.Module, config: TrainConfig, step: Turn) -> Turn:
    parameters = trainable(network)
    optimizer = config.optimizer.build(parameters, config.optimization.learning_rate)

    def run() -> None:
        step()
        torch.nn.utils.clip_grad_norm_(parameters, config.optimization.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return run
