"""The loop: gradients, update, figures, checkpoints and images, step by step."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffpref.engine.step import Compared, Engine
from diffpref.probes import AnyBatch
from diffpref.run.checkpoint import load_checkpoint, save_checkpoint
from diffpref.run.environment import peak_memory_gib
from diffpref.run.log import MetricsLog
from diffpref.run.signals import Stopped, StopRequest, stop_requests
from diffpref.training.groups import Optimization
from diffpref.training.learner import Learner
from diffpref.training.measures import Measure
from diffpref.training.meter import Meter
from diffpref.training.outlook import outlook
from diffpref.training.rounds import Basis, Encoded, Watch
from diffpref.training.samples import draw_samples
from diffpref.training.schedule import steps_of
from diffpref.training.start import check_equal

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
    measures: Sequence[Measure] = ()
    """Of the main process, at evaluation points."""

    def resumed(self, checkpoint: Path | None) -> int:
        """The step to go on from, with everything restored from the checkpoint; 0 without one."""
        if checkpoint is None:
            return 0
        first, pending = load_checkpoint(checkpoint, self.learner.state)
        self.meter.restore(pending)
        return first

    def outlook(self, first: int, *, batch: int, k: int) -> str:
        """What the steps from `first` on amount to, for people.

        Args:
            batch: groups of a step over all processes.
            k: images of a group.
        """
        steps, groups = steps_of(self.optimization), len(self.encoded.groups)
        return outlook(steps=steps, first=first, batch=batch, k=k, groups=groups, run=self.basis.run.output_dir)

    def take(self, engine: Engine, stream: Iterator[AnyBatch], first: int) -> None:
        """Take the steps from `first` to the last, which is a checkpoint too.

        Raises:
            ValueError: the loss is not finite.
            Stopped: Ctrl-C or SIGTERM, after a checkpoint.
        """
        with stop_requests() as stop:
            self._take(engine, stream, first, stop)

    def _take(self, engine: Engine, stream: Iterator[AnyBatch], first: int, stop: StopRequest) -> None:
        """Take the steps, and look for a request to stop after each."""
        run, last = self.basis.run, steps_of(self.optimization)
        accelerator = self.learner.accelerator
        main, every = accelerator.is_main_process, self.basis.validation.validation_steps
        log = MetricsLog(run.output_dir / "metrics.jsonl", first) if main else None
        if first in (0, last):  # a run that was killed after its last checkpoint still owes its last images
            self._draw(first, stop, kept=first > 0)
        counted, clock = first, time.monotonic()
        bar = tqdm(total=last, initial=first, disable=not main, desc="train", unit="step")
        for step in range(first, last):
            compared = engine.step(stream, self.optimization.gradient_accumulation_steps)
            if step == 0:
                self._check_start(compared, bar)
            self.meter.add(compared)
            norm = self.learner.update()
            done = step + 1
            bar.update()
            evaluated = done % every == 0 or done == last
            if done % run.logging_steps == 0 or evaluated:
                seconds = (time.monotonic() - clock) / (done - counted)
                self._log(done, norm, seconds, log, bar, self._measured() if evaluated else {})
                counted, clock = done, time.monotonic()
            asked = stop.agreed(accelerator)
            kept = done % run.checkpointing_steps == 0 or done == last or asked is not None
            if kept:
                engine.flush()
                self._save(done)
            if asked is not None:
                bar.close()
                raise self._stopped(asked, done)
            if evaluated:
                paused = time.monotonic()
                self._draw(done, stop, kept=kept)
                clock += time.monotonic() - paused
        bar.close()
        engine.flush()
        accelerator.wait_for_everyone()

    def _check_start(self, compared: Sequence[Compared], bar: tqdm) -> None:
        """Policy and reference are one model before the first update, unless the policy starts from a LoRA of its own.

        Raises:
            ValueError: they differ by more than rounding."""
        if not self.basis.adapter.starts_equal:
            return
        try:
            line = check_equal(compared, self.learner.accelerator, beta=self.meter.beta)
        except ValueError:
            bar.close()
            raise
        if line is not None and self.learner.accelerator.is_main_process:
            self.basis.say(line)

    def _log(
        self,
        done: int,
        norm: torch.Tensor | None,
        seconds: float,
        log: MetricsLog | None,
        bar: tqdm,
        measured: Mapping[str, float],
    ) -> None:
        """The summary of the steps since the last and what was measured, to the log, the trackers and the bar."""
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
            **measured,
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

    def _measured(self) -> dict[str, float]:
        """The metrics of all measures, of the averaged weights; none in other processes than the main one."""
        if not self.measures:
            return {}
        with self.learner.averaged():
            return {name: value for measure in self.measures for name, value in measure().items()}

    def _save(self, done: int) -> None:
        """Write a checkpoint, in the main process."""
        run, pending = self.basis.run, self.meter.pending()
        if self.learner.accelerator.is_main_process:
            limit = run.checkpoints_total_limit
            save_checkpoint(run.output_dir, done, self.learner.state, pending, self.checkpoint, limit)

    def _stopped(self, number: int, done: int) -> Stopped:
        """What ends a run whose checkpoint is written."""
        folder, last = self.basis.run.output_dir, steps_of(self.optimization)
        text = f"stopped after step {done} of {last}; {folder}/checkpoint-{done} holds everything to go on with"
        return Stopped(number, f"{text}: --resume_from_checkpoint latest.")

    def _draw(self, step: int, stop: StopRequest, *, kept: bool) -> None:
        """Sample; a signal does not wait for it, and leaves a checkpoint where the step has none yet."""
        try:
            with stop.at_once():
                self._sample(step)
        except Stopped as problem:
            if not kept:
                self._save(step)
            raise self._stopped(problem.number, step) from None

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
