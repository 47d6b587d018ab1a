"""A reward's training, step by step: batches, gradients, metrics, validations and checkpoints.

The order of the pairs follows from (seed, step) alone, so a resumed run continues exactly, and batch 1 x accumulation 8
learns what batch 8 does.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from diffpref.rewards.training.config import Run
from diffpref.rewards.training.data import PairBatch, PairData, batches, order, total_weight
from diffpref.rewards.training.losses import Loss
from diffpref.rewards.training.output import write_report
from diffpref.rewards.training.prepare import Model
from diffpref.rewards.training.progress import Progress
from diffpref.rewards.training.validate import HeldOut, validate
from diffpref.run.checkpoint import State, load_checkpoint, save_checkpoint
from diffpref.run.clock import StepClock
from diffpref.run.done import mark_done
from diffpref.run.environment import peak_memory_gib
from diffpref.run.log import MetricsLog
from diffpref.training.groups import Optimization
from diffpref.training.schedule import steps_of


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A reward's training, ready to begin or to go on."""

    accelerator: Accelerator
    model: Model
    loss: Loss
    state: State
    data: PairData
    held_out: HeldOut | None
    optimization: Optimization
    run: Run
    progress: Progress
    save: Callable[[], None]
    """Writes the reward into the output directory; the main process calls it."""

    @property
    def effective_batch(self) -> int:
        """Pairs of a step, of all processes."""
        batch = self.optimization
        return batch.train_batch_size * batch.gradient_accumulation_steps * self.accelerator.num_processes

    def run_steps(self, identity: dict[str, object], resume: Path | None, *, workers: int) -> None:
        """Every step that is left, with its metrics, validations and checkpoints; then the reward and its report.

        Args:
            identity: what a checkpoint says of the run.
            resume: the checkpoint to go on from.
            workers: processes that decode images."""
        run, main = self.run, self.accelerator.is_main_process
        first, last = 0, steps_of(self.optimization)
        if resume is not None:
            first, pending = load_checkpoint(resume, self.state)
            self.progress.restore(pending, self.accelerator.process_index)
        log = MetricsLog(run.output_dir / "metrics.jsonl", first) if main else None
        stream = self.stream(range(first, last), workers=workers)
        if self.held_out is not None and first == 0:
            self.note(log, 0, validate(self.model.network, self.held_out, self.model.processor, self.accelerator))
        clock = StepClock(first)
        bar = tqdm(total=last, initial=first, disable=not main, desc="train", unit="step")
        for step in range(first, last):
            norm = self.step(step, stream)
            done, end = step + 1, step + 1 == last
            bar.update()
            if done % run.logging_steps == 0 or end:
                metrics = self.metrics(done, norm, clock)
                self.note(log, done, metrics)
                bar.set_postfix({key: f"{metrics[key]:.3f}" for key in ("loss", "accuracy")}, refresh=False)
            if self.held_out is not None and (done % self.held_out.every == 0 or end):
                with clock.paused():
                    self.compare(log, done, self.held_out)
            if done % run.checkpointing_steps == 0:
                pending = self.progress.pending(self.accelerator)
                if main:
                    limit = run.checkpoints_total_limit
                    save_checkpoint(run.output_dir, done, self.state, pending, identity, limit)
        bar.close()
        self.accelerator.wait_for_everyone()
        if main:
            if self.progress.best is None:
                self.save()
            write_report(run.output_dir, self.progress.best)
            mark_done(run.output_dir)

    def stream(self, steps: range, *, workers: int) -> Iterator[PairBatch]:
        """This process's batches of the steps, decoded on demand."""
        indices = order(
            self.run.seed,
            len(self.data),
            steps,
            size=self.optimization.train_batch_size,
            accumulation=self.optimization.gradient_accumulation_steps,
            share=(self.accelerator.process_index, self.accelerator.num_processes),
        )
        return batches(self.data, self.model.processor, indices, workers=workers)

    def step(self, step: int, stream: Iterator[PairBatch]) -> float:
        """One step of the optimizer over the next batches; returns the gradient's norm before clipping."""
        accelerator, parts = self.accelerator, self.state.parts
        total = total_weight(self.data, self.run.seed, step, self.effective_batch)
        accumulation = self.optimization.gradient_accumulation_steps
        for part in range(accumulation):
            batch = next(stream).to(accelerator.device)
            with nullcontext() if part == accumulation - 1 else accelerator.no_sync(self.model.prepared):
                scores = self.model.prepared(batch.pixels, batch.ids)
                loss = self.loss.share_of_step(
                    scores, batch.labels, weights=batch.weights, total=total, processes=accelerator.num_processes
                )
                accelerator.backward(loss)
            self.progress.add(loss, scores, batch.labels)
        norm: Any = accelerator.clip_grad_norm_(self.model.parameters, self.optimization.max_grad_norm)
        parts["optimizer"].step()
        parts["optimizer"].zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            parts["schedule"].step()
        self.loss.limit_scale(self.model.clip.logit_scale)
        return float("nan") if norm is None else float(norm)

    def metrics(self, done: int, norm: float, clock: StepClock) -> dict[str, float]:
        """A line of metrics at the step `done`.

        Raises:
            ValueError: a loss that is no finite number.
        """
        metrics = {
            **self.progress.summary(self.accelerator, done),
            "scale": self.model.clip.logit_scale.exp().item(),
            "learning_rate": float(self.state.parts["schedule"].get_last_lr()[0]),
            "grad_norm": norm,
            "epoch": done * self.effective_batch / len(self.data),
            "seconds_per_step": clock.lap(done),
            "peak_memory_gib": peak_memory_gib(),
        }
        if not math.isfinite(metrics["loss"]):
            raise ValueError(
                f"step {done}: the loss is {metrics['loss']}. Use mixed_precision bf16 or no, or a lower rate."
            )
        return metrics

    def compare(self, log: MetricsLog | None, done: int, held_out: HeldOut) -> None:
        """Validate, and save the weights where they are the best so far."""
        figures = validate(self.model.network, held_out, self.model.processor, self.accelerator)
        self.note(log, done, figures)
        if self.progress.keeps(done, figures["validation/accuracy"]) and self.accelerator.is_main_process:
            self.save()
        self.accelerator.wait_for_everyone()

    def note(self, log: MetricsLog | None, step: int, metrics: dict[str, float]) -> None:
        """Send a line of metrics to the trackers and, on the main process, to metrics.jsonl."""
        self.accelerator.log(metrics, step=step)
        if log is not None:
            log.write(step, metrics, None)
