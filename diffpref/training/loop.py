"""The one training: settings in, a trained adapter or network in the output directory.

Read `train` and `fit` from top to bottom: the source asks for rounds; a round is encoded, its models are built, its
plan is made, and then the loop of `steps.py` runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from diffpref.backbones.loading import check_start
from diffpref.engine.checks import check_engine
from diffpref.engine.plan import PLAN, Plan, read_plan
from diffpref.engine.stored import StoredErrors
from diffpref.run.checkpoint import check_identity, found_to_continue
from diffpref.run.done import mark_done
from diffpref.settings.bounds import check
from diffpref.settings.record import fields_of
from diffpref.training import prepare
from diffpref.training.alarms import alarms_of
from diffpref.training.config import TrainConfig
from diffpref.training.engine import Works
from diffpref.training.finish import finish, open_page_of
from diffpref.training.learner import build_learner
from diffpref.training.measures import measures_of
from diffpref.training.meter import Meter
from diffpref.training.models import accelerator_of, build_models, computing_of, open_base
from diffpref.training.output import save_output
from diffpref.training.report import write_report
from diffpref.training.rounds import Basis, Encoded, Round, Say
from diffpref.training.schedule import check_length, counted, steps_of
from diffpref.training.settings import to_mapping
from diffpref.training.steps import Steps
from diffpref.training.stream import Drawing, Feed, Share


def train(config: TrainConfig, *, say: Say = print) -> Path:
    """Run the training that the settings describe, and return the result's folder: in rounds, one in the output_dir.

    Raises:
        ValueError: settings, data or a checkpoint that cannot work; before the first step, naming what and the remedy.
    """
    trackers = check_settings(config)
    basis = basis_of(config, say)
    prepare.check_levels(basis.family.path, config.probe)
    config.source.check(basis)
    config.adapter.check(basis.family)
    for line in (*check_start(basis.family), *config.adapter.check_start(basis.family)):
        say(line)
    page = open_page_of(config.hub, config.run.output_dir)
    rounds = config.source.each_round(basis, to_mapping(config))
    while True:
        try:
            asked = next(rounds)
        except StopIteration as finished:
            finish(basis, finished.value, page, to_mapping(config))
            return finished.value
        fit(config, asked, trackers)


def basis_of(config: TrainConfig, say: Say) -> Basis:
    """What the run is built on; opens the backbone, whose weights come later."""
    family = open_base(config.model, config.times, resolution=config.data.resolution)
    return Basis(
        family=family,
        data=config.data,
        objective=config.objective,
        probe=config.probe,
        adapter=config.adapter,
        run=config.run,
        validation=config.validation,
        say=say,
    )


def check_settings(config: TrainConfig) -> list[str]:
    """The trackers to use; raises ValueError for settings that cannot work, before anything is read."""
    check(config)
    check_length(config.optimization)
    config.optimizer.check()
    prepare.check_choices(config.objective, config.probe, config.source, config.times)
    check_engine(config.probe, config.adapter, stored_reference=config.engine.stored_reference)
    return prepare.check_run(config.run)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A round whose groups are encoded and whose models are built; nothing of it is on the disk yet."""

    encoded: Encoded
    works: Works
    feed: Feed
    identity: Mapping[str, object]
    """What must be the same for a checkpoint to be continued."""
    stored: StoredErrors | None


def prepared(config: TrainConfig, asked: Round, accelerator: Accelerator, say: Say) -> Prepared:
    """Encode a round's groups and build its models."""
    basis, flat = asked.basis, to_mapping(config)
    encoded = asked.encode(accelerator, say)
    models = build_models(
        basis.family, basis.adapter, accelerator, computing=computing_of(basis.run), seed=basis.run.seed
    )
    for line in models.lines:
        say(line)
    works = Works(
        accelerator=accelerator,
        family=basis.family,
        models=models,
        probe=basis.probe,
        source=config.source,
        adapter=basis.adapter,
        settings=config.engine,
        accumulation=config.optimization.gradient_accumulation_steps,
        empty=encoded.empty,
        streamed=basis.adapter.streamed(models.network),
    )
    feed = _feed(config, basis, accelerator, encoded)
    choices = ("objective", *fields_of(config.objective), "probe", *fields_of(config.probe), *fields_of(config.times))
    identity = prepare.identity(
        flat,
        choices,
        config.adapter,
        base_adapters=basis.family.checkpoint.base_adapters,
        base=models.base_hash,
        data=encoded.groups.fingerprint,
        effective_batch=feed.share.step,
    )
    stored = works.stored(basis.run, flat, basis.data.cache_dir or basis.run.output_dir / "cache")
    return Prepared(encoded=encoded, works=works, feed=feed, identity=identity, stored=stored)


def fit(config: TrainConfig, asked: Round, trackers: list[str]) -> None:
    """One round: from its groups to a trained network and its report in the round's folder."""
    basis = asked.basis
    start = basis.family.checkpoint
    model = replace(config.model, network_weights=start.network_weights, base_adapters=start.base_adapters)
    config = replace(config, model=model, data=basis.data, adapter=basis.adapter, run=basis.run)
    run, flat, resume = config.run, to_mapping(config), prepare.check_output(basis.run)
    accelerator = accelerator_of(run, config.adapter, trackers)
    say: Say = basis.say if accelerator.is_main_process else lambda line: None
    if run.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    say(asked.summary)
    ready = prepared(config, asked, accelerator, say)
    groups, processes = len(ready.encoded.groups), accelerator.num_processes
    config = replace(config, optimization=counted(config.optimization, groups=groups, processes=processes))
    last = steps_of(config.optimization)
    if (line := found_to_continue(run.output_dir, run.resume_from_checkpoint, resume, last=last)) is not None:
        say(line)
    if resume is not None:
        check_identity(resume, ready.identity)
    example = next(ready.feed(0, 1)).to(accelerator.device)
    kept = read_plan(resume) if resume is not None else None
    plan = ready.works.plan(config.mode, config.optimizer, example, kept)
    say(plan.line())
    # Only now, when nothing can be refused any more: a run that did not start leaves the output directory as it was.
    if accelerator.is_main_process:
        if resume is None:
            prepare.claim_output(run.output_dir)
        prepare.write_provenance(run.output_dir, flat, ready.works.models.base_values)
    accelerator.wait_for_everyone()
    steps = _steps(config, asked, ready, plan, say)
    first = steps.resumed(resume)
    say(steps.outlook(first, batch=ready.feed.share.step, k=example.candidates.scores.shape[1]))
    if trackers:
        shown = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in flat.items()}
        accelerator.init_trackers(run.tracker_name, config=shown)
    engine = ready.works.engine(
        plan,
        config.objective,
        scores=example.candidates.scores,
        run=run,
        identity=json.dumps(ready.identity, sort_keys=True),
        stored=ready.stored,
    )
    steps.take(engine, ready.feed(first, last), first)
    if accelerator.is_main_process:
        save_output(steps.learner, basis.family, config.objective, flat, run.output_dir, basis.prompt)
        write_report(run.output_dir)
        mark_done(run.output_dir, steps=last)
    # Not `end_training`: it ends the process group too, which rounds go on using.
    for tracker in accelerator.trackers:
        tracker.finish()


def _steps(config: TrainConfig, asked: Round, ready: Prepared, plan: Plan, say: Say) -> Steps:
    """The loop of a round."""
    accelerator, basis = ready.works.accelerator, asked.basis
    learner = build_learner(
        ready.works.models.network,
        basis.adapter,
        accelerator,
        optimizer=config.optimizer,
        optimization=config.optimization,
        average=config.average,
    )
    meter = Meter(
        accelerator=accelerator,
        time_fraction=basis.family.time_fraction,
        beta=config.objective.beta,
        alarms=[config.objective.alarm, *alarms_of(groups=len(ready.encoded.groups))],
    )
    return Steps(
        basis=basis,
        encoded=ready.encoded,
        optimization=config.optimization,
        learner=learner,
        meter=meter,
        checkpoint={**ready.identity, PLAN: plan.mapping()},
        loss_mode=plan.name,
        watch=asked.watch,
        measures=measures_of(
            ready.works,
            ready.encoded,
            ready.feed.drawing,
            basis.validation,
            # What fits with a graph fits without one.
            at_once=max(plan.micro_batch, basis.validation.validation_batch_size),
            beta=config.objective.beta,
            folder=basis.run.output_dir / "drift",
            say=say,
        ),
    )


def _feed(config: TrainConfig, basis: Basis, accelerator: Accelerator, encoded: Encoded) -> Feed:
    """This process's batches of a round."""
    data, family, traits = basis.data, basis.family, basis.probe.traits
    drawing = Drawing(
        seed=basis.run.seed,
        draw_t=family.draw_t,
        empty_prompt=encoded.empty,
        complete=lambda prompts: family.group_cond(prompts, data.resolution),
        flip=data.random_flip,
        empty=data.proportion_empty_prompts,
        shared_noise=traits.shared_noise,
        repeats=traits.repeats or config.engine.stored_reference,
    )
    share = Share(
        size=config.optimization.train_batch_size,
        accumulation=config.optimization.gradient_accumulation_steps,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    return Feed(encoded.groups, drawing, share)
