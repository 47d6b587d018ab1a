"""The one training loop: settings in, a trained adapter or network in the output directory.

Read `train` from top to bottom: prepare, then for every step the probe, both models' errors, the objective's loss, its
gradient, and the figures that tell whether the run is healthy.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from diffpref.backbones.adapters import trainable
from diffpref.engine.checks import check_engine
from diffpref.engine.plan import PLAN, read_plan
from diffpref.probes import AnyBatch
from diffpref.run.checkpoint import State, check_identity, load_checkpoint, save_checkpoint
from diffpref.run.environment import peak_memory_gib
from diffpref.run.log import MetricsLog
from diffpref.sources.dataset import Rows, Source, candidates_of, read_rows
from diffpref.training import prepare
from diffpref.training.config import TrainConfig
from diffpref.training.engine import engine_of, plan_of, stored_errors
from diffpref.training.health import CollapseAlarm, pair_table, saturation, summarize
from diffpref.training.models import accelerator_of, build_models, computing_of, open_base
from diffpref.training.output import save_output
from diffpref.training.report import write_report
from diffpref.training.samples import averaged, draw_samples
from diffpref.training.schedule import build_schedule, effective_rate
from diffpref.training.settings import to_mapping
from diffpref.training.stream import Drawing, batches

Watch = Callable[[int, torch.nn.Module], None]
POSTFIX = {"loss": "loss", "acc": "rewards/accuracies", "margin": "rewards/margins", "chosen": "error/chosen/ratio"}


def train(
    config: TrainConfig, *, source: Source | None = None, watch: Watch | None = None, say: Callable[[str], None] = print
) -> Path:
    """Run the training that the settings describe, and return its output directory.

    Args:
        source: the groups to learn from, where they are no data set of the settings but, for instance, samples.
        watch: called by the main process with the step and the network, its averaged weights in place, whenever
            pictures are drawn: every `validation_steps` and at the end.

    Raises:
        ValueError: settings, data or a checkpoint that cannot work; before the first step, naming what and the remedy.
    """
    trackers = prepare.check_settings(config)
    check_engine(config.mode, config.probe, config.adapter, stored_reference=config.engine.stored_reference)
    run, settings = config.run, config.optimization
    resume = prepare.check_output(config)
    family = open_base(config)
    prepare.check_family(config, family)
    source = source or Rows(read_rows(config))
    accelerator = accelerator_of(run, config.adapter, trackers)
    main = accelerator.is_main_process
    say_once = say if main else lambda line: None
    if run.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    say_once(source.summary())
    encoded = source.encode(config, family, accelerator, say_once)
    models = build_models(
        family,
        config.adapter,
        accelerator,
        computing=computing_of(run),
        seed=run.seed,
    )
    for line in models.lines:
        say_once(line)
    streamed = config.adapter.streamed(models.network)
    processes = accelerator.num_processes
    identity = prepare.identity(config, models, encoded.data, processes)
    if resume is not None:
        check_identity(resume, identity)
    accumulation = settings.gradient_accumulation_steps
    drawing = Drawing(
        family,
        run.seed,
        flip=config.data.random_flip,
        empty=config.data.proportion_empty_prompts,
        shared_noise=config.probe.traits.shared_noise,
        repeats=config.probe.traits.repeats or config.engine.stored_reference,
    )

    def stream_of(first: int, steps: int) -> Iterator[AnyBatch]:
        return batches(
            encoded.data,
            drawing,
            size=settings.train_batch_size,
            first_step=first,
            steps=steps,
            accumulation=accumulation,
            share=(accelerator.process_index, processes),
        )

    example = next(stream_of(0, 1)).to(accelerator.device)
    kept = read_plan(resume) if resume is not None else None
    plan = plan_of(config, family, accelerator, models, example, encoded.empty, kept=kept)
    say_once(plan.line())
    stored = stored_errors(config, family, models, accelerator)
    # Only now, when nothing can be refused any more: a run that did not start leaves the output directory as it was.
    if main:
        if resume is None:
            prepare.claim_output(config)
        prepare.write_provenance(config)
    accelerator.wait_for_everyone()

    parameters = trainable(models.network)
    optimizer = accelerator.prepare_optimizer(config.optimizer.build(parameters, effective_rate(settings, processes)))
    schedule = build_schedule(optimizer, settings)
    ema = EMAModel(parameters, decay=config.average.ema_decay) if config.average.use_ema else None
    parts = {"optimizer": optimizer, "schedule": schedule}
    if accelerator.scaler is not None:
        parts["scaler"] = accelerator.scaler
    state = State(models.network, config.adapter, parts, ema)
    alarm, tables, real_fake = CollapseAlarm(), [], candidates_of(config) == "real_fake"
    first = 0
    if resume is not None:
        first, pending = load_checkpoint(resume, state)
        alarm.ratios.update(pending["ratios"])
        mine = slice(accelerator.process_index, accelerator.process_index + 1)
        tables += pending["tables"].to(accelerator.device).chunk(processes)[mine]
    if trackers:
        flat = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in to_mapping(config).items()}
        accelerator.init_trackers(run.tracker_name, config=flat)
    log = MetricsLog(run.output_dir / "metrics.jsonl", first) if main else None
    engine = engine_of(
        config,
        family,
        accelerator,
        models,
        plan,
        empty=encoded.empty,
        identity=json.dumps(identity, sort_keys=True),
        streamed=streamed,
        stored=stored,
        scores=example.candidates.scores,
    )
    stream = stream_of(first, settings.max_train_steps)

    def sample(step: int) -> None:
        if main and config.validation.validation_prompts:
            draw_samples(config, family, models.network, encoded, ema, parameters, accelerator, step)
        if main and watch is not None:
            with averaged(ema, parameters):
                models.network.eval()
                watch(step, models.network)
                models.network.train()
        accelerator.wait_for_everyone()

    if first == 0:
        sample(0)
    seen, clock = first, time.monotonic()
    bar = tqdm(total=settings.max_train_steps, initial=first, disable=not main, desc="train", unit="step")
    for step in range(first, settings.max_train_steps):
        for batch in engine.step(stream, accumulation):
            fraction, beta = family.time_fraction(batch.t), getattr(config.objective, "beta", 1.0)
            rows = pair_table(batch.errors, batch.scores, batch.loss, fraction, beta)
            tables.append(torch.cat([rows, batch.skipped[:, None].to(rows)], 1))
        norm = accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            schedule.step()
            if ema is not None:
                ema.step(parameters)
        done = step + 1
        bar.update()
        if done % run.logging_steps == 0 or done == settings.max_train_steps:
            table: Any = accelerator.gather(torch.cat(tables))
            metrics = summarize(table[:, :-1])
            metrics |= {
                "learning_rate": float(schedule.get_last_lr()[0]),
                "grad_norm": float("nan") if norm is None else float(norm),
                "epoch": done * settings.train_batch_size * accumulation * processes / len(encoded.data),
                "skipped": float(table[:, -1].mean()),
                "seconds_per_step": (time.monotonic() - clock) / (done - seen),
                "peak_memory_gib": peak_memory_gib(),
            }
            tables.clear()
            trouble = saturation(metrics) if real_fake else alarm(metrics)
            accelerator.log(metrics, step=done)
            bar.set_postfix({short: f"{metrics[name]:.3f}" for short, name in POSTFIX.items()}, refresh=False)
            if log is not None:
                log.write(done, metrics, trouble, loss_mode=plan.name)
            if trouble:
                bar.write(f"step {done}: {trouble}")
            if not metrics["loss"] < float("inf"):
                raise ValueError(
                    f"step {done}: the loss is {metrics['loss']}. Use mixed_precision bf16 or no, or a lower rate."
                )
            seen, clock = done, time.monotonic()
        if done % run.checkpointing_steps == 0:
            engine.flush()
            # Groups that no summary has counted yet belong to the first summary after a resume.
            left: Any = accelerator.gather(torch.cat(tables)) if tables else torch.empty(0)
            if main:
                pending = {"tables": left.cpu(), "ratios": dict(alarm.ratios)}
                kind = {**identity, PLAN: plan.mapping()}
                save_checkpoint(run.output_dir, done, state, pending, kind, run.checkpoints_total_limit)
        if done % config.validation.validation_steps == 0 or done == settings.max_train_steps:
            paused = time.monotonic()
            sample(done)
            clock += time.monotonic() - paused
    bar.close()
    engine.flush()
    accelerator.wait_for_everyone()
    if main:
        save_output(config, family, models.network, ema, parameters)
        write_report(run.output_dir)
    # Not `end_training`: it ends the process group too, which rounds go on using.
    for tracker in accelerator.trackers:
        tracker.finish()
    return run.output_dir
