"""The training loop of a reward: settings in, a folder in PickScore's format out."""

from collections.abc import Callable
from pathlib import Path

from diffpref.rewards.training.config import RewardConfig
from diffpref.rewards.training.data import read_pairs
from diffpref.rewards.training.output import OUTPUTS, save_output
from diffpref.rewards.training.prepare import accelerator_of, build_model, build_parts, check_named, identity
from diffpref.rewards.training.progress import Progress
from diffpref.rewards.training.settings import READER
from diffpref.rewards.training.trainer import Trainer
from diffpref.rewards.training.validate import read_held_out
from diffpref.run.checkpoint import State, check_identity
from diffpref.run.folder import checkpoint_to_continue, claim
from diffpref.run.trackers import check_trackers, finish_trackers, start_trackers
from diffpref.settings import bounds
from diffpref.training.schedule import check_length, counted


def train(config: RewardConfig, *, say: Callable[[str], None] = print) -> Path:
    """Run the training that the settings describe, and return its output directory.

    Raises:
        ValueError: settings, data, a model or a checkpoint that cannot work; before the first step.
    """
    bounds.check(config)
    check_length(config.optimization)
    config.optimizer.check()
    base, pairs, run, tuning = config.base, config.pairs, config.run, config.tuning
    name, source, limit = base.pretrained_model_name_or_path, pairs.dataset_name, pairs.max_train_samples
    check_named(pretrained_model_name_or_path=name, dataset_name=source)
    trackers = check_trackers(run.report_to)
    resume = checkpoint_to_continue(run.output_dir, run.resume_from_checkpoint, overwrite=run.overwrite_output_dir)
    data = read_pairs(pairs, config.labels, source, split=pairs.dataset_split, max_rows=limit)
    held_out = read_held_out(pairs, config.labels, config.validation)
    accelerator = accelerator_of(run, trackers)
    model = build_model(base, tuning, config.towers, seed=run.seed, accelerator=accelerator)
    decay = config.towers.decay_vectors
    optimization = counted(config.optimization, groups=len(data), processes=accelerator.num_processes)
    parts = build_parts(model.network, config.optimizer, optimization, decay_vectors=decay, accelerator=accelerator)
    trainer = Trainer(
        accelerator=accelerator,
        model=model,
        loss=config.loss,
        state=State(model.clip, tuning, parts, None),
        data=data,
        held_out=held_out,
        optimization=optimization,
        run=run,
        progress=Progress(accelerator.device),
        save=lambda: save_output(run.output_dir, model.clip, tuning, model.processor),
    )
    settings, batch = READER.to_mapping(config), trainer.effective_batch
    own = identity(settings, tuning, base_hash=model.base_hash, data=data.fingerprint, effective_batch=batch)
    if resume is not None:
        check_identity(resume, own)
    # Only now, when nothing can be refused any more: a run that did not start leaves the output directory as it was.
    if accelerator.is_main_process:
        say(data.pairs.summary() + (f"\nvalidation: {held_out.data.pairs.summary()}" if held_out else ""))
        claim(run.output_dir, settings, OUTPUTS, fresh=resume is None)
    accelerator.wait_for_everyone()
    if trackers:
        start_trackers(accelerator, run.tracker_name, settings)
    trainer.run_steps(own, resume, workers=pairs.dataloader_num_workers)
    finish_trackers(accelerator)
    return run.output_dir
