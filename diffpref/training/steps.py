"""The loop: gradients, update, figures, checkpoints and images, step by step."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffpref.engine.step import Engine
from diffpref.probes import AnyBatch
from diffpref.run.checkpoint import load_checkpoint, save_checkpoint
from diffpref.run.environment import peak_memory_gib
from diffpref.run.log import MetricsLog
from diffpref.training.groups import Optimization
from diffpref.training.learner import Learner
from diffpref.training.meter import Meter
from diffpref.training.rounds import Basis, Encoded, Watch
from diffpref.training.samples import draw_samples

POSTFIX = {"loss": "loss", "acc": "rewards/accuracies", "margin": "rewards/margins", "chosen": "error/chosen/ratio"}


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A round's steps, whose engine and batches come when they are taken."""

    basis: Basis
    encoded: Encoded
    optimization: Optimization
    learner: Learner
    meter: Meter
    checkpoint: Mapping[str, object]
    """What a checkpoint says of the run that it belongs to."""
    loss_mode: str
    watch: Watch | None = None

    def resumed(self, checkpoint: Path | None) -> int:
        """The step to go on from, with everything restored from the checkpoint; 0 without one."""
        if checkpoint is None:
            return 0
        first, pending = load_checkpoint(checkpoint, self.learner.state)
        self.meter.restore(pending)
        return first

    def take(self, engine: Engine, stream: Iterator[AnyBatch], first: int) -> None:
        """Take the steps from `first` to the last.

        Raises:
            ValueError: the loss is not finite.
        """
        run, last = self.basis.run, self.optimization.max_train_steps
        accelerator = self.learner.accelerator
        main, every = accelerator.is_main_process, self.basis.validation.validation_steps
        log = MetricsLog(run.output_dir / "metrics.jsonl", first) if main else None
        if first == 0:
            self._sample(0)
        counted, clock = first, time.monotonic()
        bar = tqdm(total=last, initial=first, disable=not main, desc="train", unit="step")
        for step in range(first, last):
            self.meter.add(engine.step(stream, self.optimization.gradient_accumulation_steps))
            norm = self.learner.update()
            done = step + 1
            bar.update()
            if done % run.logging_steps == 0 or done == last:
                seconds = (time.monotonic() - clock) / (done - counted)
                self._log(done, norm, seconds, log, bar)
                counted, clock = done, time.monotonic()
            if done % run.checkpointing_steps == 0:
                engine.flush()
                self._save(done)
            if done % every == 0 or done == last:
                paused = time.monotonic()
                self._sample(done)
                clock += time.monotonic() - paused
        bar.close()
        engine.flush()
        accelerator.wait_for_everyone()

    def _log(self, done: int, norm: torch.Tensor | None, seconds: float, log: MetricsLog | None, bar: tqdm) -> None:
        """The summary of the steps since the last, to the log, the trackers and the bar."""
        accelerator, optimization = self.learner.accelerator, self.optimization
        metrics, skipped = self.meter.summary()
        groups = optimization.train_batch_size * optimization.gradient_accumulation_steps * accelerator.num_processes
        metrics |= {
            "learning_rate": self.learner.rate,
            "grad_norm": float("nan") if norm is None else float(norm),
            "epoch": done * groups / len(self.encoded.groups),
            "skipped": skipped,
            "seconds_per_step": seconds,
            "peak_memory_gib": peak_memory_gib(),
        }
        trouble = self.meter.trouble(metrics)
        accelerator.log(metrics, step=done)
        bar.set_postfix({short: f"{metrics[name]:.3f}" for short, name in POSTFIX.items()}, refresh=False)
        if log is not None:
            log.write(done, metrics, trouble, loss_mode=self.loss_mode)
        if trouble:
            bar.write(f"step {done}: {trouble}")
        if not metrics["loss"] < float("inf"):
            raise ValueError(
                f"step {done}: the loss is {metrics['loss']}. Use mixed_precision bf16 or no, or a lower rate."
            )

    def _save(self, done: int) -> None:
        """Write a checkpoint, in the main process."""
        run, pending = self.basis.run, self.meter.pending()
        if self.learner.accelerator.is_main_process:
            limit = run.checkpoints_total_limit
            save_checkpoint(run.output_dir, done, self.learner.state, pending, self.checkpoint, limit)

    def _sample(self, step: int) -> None:
        """Draw the validation images and call the watch, with the averaged weights, in the main process."""
        basis, learner, network = self.basis, self.learner, self.learner.network
        accelerator = learner.accelerator
        if accelerator.is_main_process and basis.validation.validation_prompts:
            with learner.averaged():
                draw_samples(
                    network,
                    basis.family,
                    accelerator,
                    basis.validation,
                    prompts=self.encoded.validation,
                    empty=self.encoded.negative,
                    resolution=basis.data.resolution,
                    seed=basis.run.seed,
                    folder=basis.run.output_dir / "samples",
                    step=step,
                )
        if accelerator.is_main_process and self.watch is not None:
            with learner.averaged():
                network.eval()
                self.watch(step, network)
                network.train()
        accelerator.wait_for_everyone()
