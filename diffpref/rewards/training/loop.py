"""The training loop of a reward: settings in, a folder in PickScore's format out.

The order of the pairs follows from (seed, step) alone, so a resumed run continues exactly, and batch 1 x accumulation 8
learns what batch 8 does.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, gather_object
from torch import Tensor
from tqdm.auto import tqdm

from diffpref.backbones.adapters import trainable
from diffpref.files.identity import files_hash
from diffpref.rewards.clip_hf import Processor, load_model, load_processor
from diffpref.rewards.training.config import RewardConfig
from diffpref.rewards.training.data import PairData, batches, order, read_pairs, total_weight
from diffpref.rewards.training.evaluate import Predictions, accuracy
from diffpref.rewards.training.losses import cross_entropy, entropy, share_of_step
from diffpref.rewards.training.model import TRAINED, PairScorer, choose_trained
from diffpref.rewards.training.output import check_output, claim_output, save_output, write_report
from diffpref.rewards.training.prepare import build_parts, check_settings, identity
from diffpref.rewards.training.settings import to_mapping
from diffpref.run.checkpoint import State, check_identity, load_checkpoint, save_checkpoint
from diffpref.run.environment import peak_memory_gib
from diffpref.run.log import MetricsLog


@torch.no_grad()
def validate(
    network: PairScorer, data: PairData, processor: Processor, accelerator: Accelerator, size: int, workers: int
) -> dict[str, float]:
    """Accuracy without ties and mean excess cross-entropy (nats per pair) on all pairs, equal on every process."""
    mine = range(accelerator.process_index, len(data), accelerator.num_processes)
    chunks = [list(mine[start : start + size]) for start in range(0, len(mine), size)]
    found: list[tuple[int, list[float]]] = []
    network.eval()
    for chunk, batch in zip(chunks, batches(data, processor, chunks, workers=workers), strict=True):
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            scores = network(batch.pixels, batch.ids)
        found += zip(chunk, scores.double().cpu().tolist(), strict=True)
    network.train()
    gathered = dict(gather_object(found))
    scores = torch.tensor([gathered[i] for i in range(len(data))], dtype=torch.float64)
    excess = cross_entropy(scores, data.labels) - entropy(data.labels)
    seen = Predictions(scores[:, 0] - scores[:, 1], data.labels, ("",) * len(data))
    return {"validation/accuracy": accuracy(seen).rate, "validation/loss": excess.mean().item()}


@torch.no_grad()
def tally(loss: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Sums over a batch: the loss, excess cross-entropy, pairs, right ones among the decided, decided ones."""
    side = (scores[:, 0] - scores[:, 1]) * (labels[:, 0] - labels[:, 1])
    decided = labels[:, 0] != labels[:, 1]
    right = 0.5 * ((side > 0).float() + (side >= 0).float()) * decided
    excess = cross_entropy(scores, labels) - entropy(labels)
    return torch.stack([loss, excess.sum(), excess.new_tensor(len(excess)), right.sum(), decided.float().sum()])


def train(config: RewardConfig, *, say: Callable[[str], None] = print) -> Path:
    """Run the training that the settings describe, and return its output directory.

    Raises:
        ValueError: settings, data, a model or a checkpoint that cannot work; before the first step.
    """
    trackers = check_settings(config)
    run, settings, source = config.run, config.optimization, config.base.pretrained_model_name_or_path
    resume = check_output(run)
    pairs, held = config.pairs, config.validation
    data = read_pairs(pairs, pairs.dataset_name, pairs.dataset_split, pairs.max_train_samples)
    name = held.validation_dataset_name
    held_out = read_pairs(pairs, name, held.validation_split, held.max_validation_samples) if name else None
    accelerator = Accelerator(
        mixed_precision=run.mixed_precision,
        log_with=trackers or None,  # type: ignore[arg-type]
        project_config=ProjectConfiguration(project_dir=str(run.output_dir), logging_dir=str(run.output_dir / "logs")),
    )
    main, processes = accelerator.is_main_process, accelerator.num_processes
    if run.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    clip, files = load_model(source)
    processor = load_processor(config.base.processor or source, clip.config)
    choose_trained(clip, config.tuning, logit_scale=config.criterion.train_logit_scale, seed=run.seed)
    network = PairScorer(clip)
    prepared = accelerator.prepare_model(network)
    parts = build_parts(network, config, accelerator)
    parameters = trainable(network)
    known = identity(config, files_hash(files), data, processes)
    if resume is not None:
        check_identity(resume, known)
    # Only now, when nothing can be refused any more: a run that did not start leaves the output directory as it was.
    if main:
        say(data.pairs.summary() + (f"\nvalidation: {held_out.pairs.summary()}" if held_out else ""))
        claim_output(config, fresh=resume is None)
    accelerator.wait_for_everyone()
    state = State(clip, TRAINED[config.tuning.adapter], parts, None)
    # Sums since the step `begun`, when the last line of metrics was written.
    first, begun, sums, best = 0, 0, torch.zeros(5, device=accelerator.device), None
    if resume is not None:
        first, pending = load_checkpoint(resume, state)
        sums += pending["sums"][accelerator.process_index].to(accelerator.device)
        begun = int(pending["begun"])
        best = (int(pending["best"][0]), float(pending["best"][1])) if pending["best"] else None
    if trackers:
        flat = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in to_mapping(config).items()}
        accelerator.init_trackers(run.tracker_name, config=flat)
    log = MetricsLog(run.output_dir / "metrics.jsonl", first) if main else None
    accumulation = settings.gradient_accumulation_steps
    effective = settings.train_batch_size * accumulation * processes
    indices = order(
        run.seed,
        len(data),
        range(first, settings.max_train_steps),
        size=settings.train_batch_size,
        accumulation=accumulation,
        rank=accelerator.process_index,
        processes=processes,
    )
    stream = batches(data, processor, indices, workers=pairs.dataloader_num_workers)

    def note(step: int, metrics: dict[str, float]) -> None:
        accelerator.log(metrics, step=step)
        if log is not None:
            log.write(step, metrics, None)

    def measure(step: int) -> float:
        assert held_out is not None
        found = validate(network, held_out, processor, accelerator, held.validation_batch_size, workers=0)
        note(step, found)
        return found["validation/accuracy"]

    if held_out and first == 0:
        measure(0)
    seen, clock = first, time.monotonic()
    bar = tqdm(total=settings.max_train_steps, initial=first, disable=not main, desc="train", unit="step")
    for step in range(first, settings.max_train_steps):
        total = total_weight(data, run.seed, step, effective)
        for part in range(accumulation):
            batch = next(stream).to(accelerator.device)
            last = part == accumulation - 1
            with nullcontext() if last else accelerator.no_sync(prepared):
                scores = prepared(batch.pixels, batch.ids)
                loss = share_of_step(
                    config.criterion.loss,
                    scores,
                    batch.labels,
                    weights=batch.weights,
                    total=total,
                    processes=processes,
                )
                accelerator.backward(loss)
            sums += tally(loss, scores, batch.labels)
        norm = accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
        parts["optimizer"].step()
        parts["optimizer"].zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            parts["schedule"].step()
        if config.criterion.loss == "hps":
            with torch.no_grad():
                clip.logit_scale.clamp_(0, math.log(100))
        done = step + 1
        bar.update()
        end = done == settings.max_train_steps
        if done % run.logging_steps == 0 or end:
            whole: Any = accelerator.reduce(sums, "sum")
            loss_sum, excess, count, right, decided = whole.tolist()
            sums = torch.zeros_like(sums)
            metrics = {
                "loss": loss_sum / processes / (done - begun),
                "loss_per_pair": excess / count,
                "accuracy": right / decided if decided else float("nan"),
                "scale": clip.logit_scale.exp().item(),
                "learning_rate": float(parts["schedule"].get_last_lr()[0]),
                "grad_norm": float("nan") if norm is None else float(norm),
                "epoch": done * effective / len(data),
                "seconds_per_step": (time.monotonic() - clock) / (done - seen),
                "peak_memory_gib": peak_memory_gib(),
            }
            if not math.isfinite(metrics["loss"]):
                raise ValueError(
                    f"step {done}: the loss is {metrics['loss']}. Use mixed_precision bf16 or no, or a lower rate."
                )
            note(done, metrics)
            bar.set_postfix({k: f"{metrics[k]:.3f}" for k in ("loss", "accuracy")}, refresh=False)
            begun, seen, clock = done, done, time.monotonic()
        if held_out and (done % held.validation_steps == 0 or end):
            paused, value = time.monotonic(), measure(done)
            # The later of equal ones, as yuvalkirstain/PickScore:trainer/accelerators/base_accelerator.py keeps it.
            if best is None or value >= best[1]:
                best = (done, value)
                if main:
                    save_output(config, clip, processor)
            accelerator.wait_for_everyone()
            clock += time.monotonic() - paused
        if done % run.checkpointing_steps == 0:
            left: Any = accelerator.gather(sums[None])
            if main:
                pending = {"sums": left.cpu(), "begun": begun, "best": list(best) if best else []}
                save_checkpoint(run.output_dir, done, state, pending, known, run.checkpoints_total_limit)
    bar.close()
    accelerator.wait_for_everyone()
    if main:
        if best is None:
            save_output(config, clip, processor)
        write_report(run.output_dir, best)
    for tracker in accelerator.trackers:
        tracker.finish()
    return run.output_dir
